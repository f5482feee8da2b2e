"""What a run shows of itself: a figure and a Stop button in a notebook, else lines.

A notebook's figure is redrawn at most every second, and drawing takes at most a tenth
of the time. On the page the last figure stays. A terminal gets one line that changes, a
pipe a line a score.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from html import escape
from typing import Any

from zolab.lab.curve import Curve
from zolab.lab.figures import BLUE, GREY, ORANGE, canvas, line, mark, names
from zolab.lab.records import peak_gb
from zolab.lab.show import Shown

WINDOW = 20  # losses in the running mean
POINTS = 400  # of a line, at most


class Screen:
    """`draw` shows the curve when it is time to; `close` leaves the last word."""

    def __init__(
        self,
        steps: int,
        start: int,
        marks: Mapping[str, float],
        stop: Callable[[], Any],
    ) -> None:
        self.steps, self.start, self.marks = steps, start, dict(marks)
        self.began = time.monotonic()
        self.next, self.told = 0.0, ""
        self.live = in_notebook()
        if self.live:
            from IPython.display import display

            self.top = display(_button(stop), display_id=True)
            self.handle = display(Shown("the first step"), display_id=True)

    def draw(
        self, curve: Curve, done: int, *, note: str = "", now: bool = False
    ) -> None:
        """Show where the run is, at most every second; `now` does not wait."""
        began = time.monotonic()
        if not now and began < self.next:
            return
        text = self.status(curve, done) + (f" | {note}" if note else "")
        if self.live:
            self.handle.update(self._picture(curve, done, text))
        else:
            self._line(text, now)
        took = time.monotonic() - began
        self.next = began + took + max(1.0, 10 * took)

    def close(self, curve: Curve, done: int, words: str) -> None:
        """The last figure, and why the run ended."""
        if self.live:
            self.handle.update(self._picture(curve, done, self.status(curve, done)))
            self.top.update(Shown(words))
        else:
            self._line(self.status(curve, done), True)
            sys.stdout.write(words + "\n")

    def status(self, curve: Curve, done: int) -> str:
        """Step, loss, score beside its marks, speed, time left, memory: one line."""
        parts = [f"step {done}/{self.steps}"]
        _, means = curve.smooth(WINDOW)
        if means:
            parts.append(f"objective {means[-1]:.3f}")
        if curve.scores:
            floors = ", ".join(f"{k} {v:.3f}" for k, v in self.marks.items())
            last = curve.scores[max(curve.scores)]
            parts.append(f"accuracy {last:.3f}" + (f" ({floors})" if floors else ""))
        seconds, new = time.monotonic() - self.began, done - self.start
        if new and seconds:
            parts.append(f"{new / seconds:.1f} steps/s")
            parts.append(f"{_long(seconds / new * (self.steps - done))} left")
        parts.append(f"peak {peak_gb():.2f} GB")
        if curve.refused:
            parts.append(f"{len(curve.refused)} refused")
        return " | ".join(parts)

    def _line(self, text: str, milestone: bool) -> None:
        if sys.stdout.isatty():
            sys.stdout.write(f"\r\x1b[K{text}" + ("\n" if milestone else ""))
        elif milestone and text != self.told:
            sys.stdout.write(text + "\n")
            self.told = text
        sys.stdout.flush()

    def _picture(self, curve: Curve, done: int, text: str) -> Shown:
        if not curve.losses:
            return Shown(text)
        panels = 2 if curve.scores else 1
        alt = self.say(curve, done)
        with canvas(alt, "Objective", 440, 190 * panels + 20, panels) as (ax, image):
            draw(ax if panels > 1 else [ax], curve, self.marks)
        html = f"{image[0] if image else ''}<p>{escape(text)}</p>"
        return Shown(f"{text}\n[figure] {alt}", html)

    def say(self, curve: Curve, done: int) -> str:
        """The figure in words."""
        _, means = curve.smooth(WINDOW)
        first = means[min(WINDOW, len(means)) - 1]
        words = f"After {done} steps the objective, a mean of {WINDOW}, "
        words += f"is {means[-1]:.3f}; after the first {WINDOW} it was {first:.3f}."
        if curve.scores:
            ends = curve.scores[min(curve.scores)], curve.scores[max(curve.scores)]
            words += f" Held-out accuracy went from {ends[0]:.3f} to {ends[1]:.3f}"
            floors = (f"{k} is {v:.3f}" for k, v in self.marks.items())
            words += "".join(f"; {floor}" for floor in floors) + "."
        return words


def draw(axes: Any, curve: Curve, marks: Mapping[str, float]) -> None:
    """Losses and their running mean; below it the scores and what they must beat."""
    steps, means = curve.smooth(WINDOW)
    few = slice(None, None, max(1, len(steps) // POINTS))
    raw = [curve.losses[s] for s in steps]
    axes[0].plot(steps[few], raw[few], ".", color=BLUE, alpha=0.25, ms=3)
    line(axes[0], steps[few], means[few], f"mean of {WINDOW}", marks=False)
    if not curve.scores:
        axes[0].set_xlabel("step")
        return
    at = sorted(curve.scores)
    line(axes[1], at, [curve.scores[s] for s in at], style=1)
    for height in marks.values():
        mark(axes[1], height, "")
    ends = [(h, name, GREY) for name, h in marks.items()]
    names(axes[1], [*ends, (curve.scores[at[-1]], "this run", ORANGE)])
    axes[1].set_title("Held-out accuracy")
    axes[1].set_xlabel("step")


def in_notebook() -> bool:
    """Whether a kernel runs this: something that can redraw what it displayed."""
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    return getattr(get_ipython(), "kernel", None) is not None


def _button(stop: Callable[[], Any]) -> Any:
    """Stops after the step under way; where clicks wait for the cell, interrupt."""
    words = "to stop after a step: interrupt the kernel"
    try:
        import ipywidgets
    except ImportError:
        return Shown(words)
    button = ipywidgets.Button(description="Stop", icon="stop", tooltip=words)
    button.on_click(lambda _: stop())
    # JupyterLab sends clicks to a subshell, which is free while a cell runs. ipykernel
    # 7.4 returns them to the shell that last spoke to the button: the busy one.
    vars(button.comm).pop("_reply_subshell_id", None)
    return button


def _long(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
