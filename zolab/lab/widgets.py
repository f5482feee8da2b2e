"""Widgets with two faces: something to move in the notebook and on the page alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from zolab.lab.figures import canvas
from zolab.lab.show import Shown, say, show

# The one line of script: show the frame whose number the slider has.
SCRIPT = (
    "const d=this.closest('div');d.querySelectorAll('figure').forEach((f,i)=>"
    "f.hidden=i!=this.value);d.querySelector('output').value=this.dataset.v"
    ".split('|')[this.value]"
)


def frames(
    draw: Callable[[Any, Any], Any],
    values: Sequence[Any],
    *,
    label: str,
    alt: Callable[[Any], str],
    width: int = 440,
    height: int = 290,
) -> None:
    """A slider over prerendered frames; `draw(ax, value)` draws one, `alt` says it.

    The same HTML works in Lab and on a page with no kernel: arrow keys move it, and
    where scripts are off the first frame stands still.
    """
    pictures, texts = [], []
    for value in values:
        texts.append(f"{label} {value}: {alt(value)}")
        with canvas(alt(value), f"{label} = {value}", width, height) as (ax, image):
            draw(ax, value)
        pictures += image
    text = "[slider]\n" + "\n".join(texts)
    if not pictures:
        show(Shown(text))
        return
    style = 'style="margin:0"'
    figures = "".join(
        f"<figure {style}{' hidden' if i else ''}>{p}</figure>"
        for i, p in enumerate(pictures)
    )
    names = escape("|".join(str(v) for v in values))
    slider = (
        f"<label>{escape(label)} <input type=range min=0 max={len(values) - 1} value=0 "
        f'data-v="{names}" oninput="{SCRIPT}"></label> '
        f"<output>{escape(str(values[0]))}</output>"
    )
    show(Shown(text, f"<div>{slider}{figures}</div>"))


class Guess:
    """What the reader expects: `value` is None until something is chosen."""

    def __init__(self, question: str, options: Sequence[str]) -> None:
        self.question, self.options = question, tuple(options)
        self.value: str | None = None

    def __repr__(self) -> str:
        return f"Before you go on: {self.question} ({'; '.join(self.options)})"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """In Lab a drop-down; on the page, where html comes first, the list."""
        items = "".join(f"<li>{escape(o)}</li>" for o in self.options)
        html = (
            f"<p><b>Before you go on:</b> {escape(self.question)}</p><ul>{items}</ul>"
        )
        faces: dict[str, Any] = {"text/plain": repr(self), "text/html": html}
        try:
            import ipywidgets
        except ImportError:
            return faces
        choices = [("choose one", None), *((o, o) for o in self.options)]
        menu = ipywidgets.Dropdown(options=choices)
        menu.observe(lambda change: setattr(self, "value", change["new"]), "value")
        live = ipywidgets.VBox([ipywidgets.Label(self.question), menu])
        return live._repr_mimebundle_() | faces

    def reveal(self, answer: str) -> None:
        """Say what came out, beside the guess if there is one."""
        if answer not in self.options:
            raise ValueError(f"{answer!r} is none of the options {self.options}")
        said = f"You said: {self.value}. " if self.value else ""
        say(f"{said}Measured: {answer}.")


def predict(question: str, options: Sequence[str]) -> Guess:
    """Ask the reader before the figure is drawn; goes on without an answer."""
    guess = Guess(question, options)
    show(guess)
    return guess
