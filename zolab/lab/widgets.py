"""Widgets with two faces: something to move in the notebook and on the page alike.

Both faces are drawn by one function. With a kernel it is an ipywidget that draws as it
moves; on a page, and in a notebook that nobody has run, it is prerendered pictures
behind the same sliders. Arrow keys move both; nothing moves by itself until asked;
where scripts are off, the first picture stands still.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from html import escape, unescape
from typing import Any

from zolab.lab.figures import canvas
from zolab.lab.show import say, show

MOST = 60  # pictures in one page's widget
TICK = 700  # milliseconds a picture stands while it plays

# The page's script, in the element's own attributes: a page may hold many widgets, and
# a notebook's output keeps nothing else together.
MOVE = (
    "const w=this.closest('.zolab-frames'),s=[...w.querySelectorAll('[type=range]')],"
    "f=JSON.parse(w.querySelector('script').textContent),m=w.querySelector('img');"
    "let i=0;s.forEach(x=>{const v=JSON.parse(x.dataset.values);i=i*v.length+ +x.value;"
    "x.parentNode.querySelector('output').value=v[x.value];"
    "x.setAttribute('aria-valuetext',v[x.value])});m.src=f[i].src;m.alt=f[i].alt"
)
PLAY = (
    "const b=this,s=b.closest('.zolab-frames').querySelector('[type=range]');"
    "if(b.t){clearInterval(b.t);b.t=0}else b.t=setInterval(()=>{"
    "s.value=+s.value<+s.max?+s.value+1:0;s.dispatchEvent(new Event('input'))},"
    f"{TICK});"
    "b.textContent=b.t?'pause':'play'"
)


class Frames:
    """A drawing with one or two sliders; what `frames` shows."""

    def __init__(
        self,
        draw: Callable[..., Any],
        alt: Callable[..., str],
        size: tuple[int, int],
        controls: Mapping[str, Sequence[Any]],
    ) -> None:
        count = 1
        for values in controls.values():
            count *= len(values)
        if not 1 <= len(controls) <= 2 or not 1 < count <= MOST:
            found = {name: len(values) for name, values in controls.items()}
            raise ValueError(
                f"one or two controls with 2 to {MOST} pictures in all, not {found}"
            )
        self.controls = {name: list(values) for name, values in controls.items()}
        self._draw, self._alt, self._size = draw, alt, size
        self.picture = cache(self._picture)

    def _picture(self, *at: int) -> str:
        """The picture at these positions of the sliders, as an <img>."""
        chosen = self.chosen(at)
        title = ", ".join(f"{_label(k)} {v}" for k, v in chosen.items())
        with canvas(self._alt(**chosen), title, *self._size, dpi=110) as (ax, image):
            self._draw(ax, **chosen)
        return image[0] if image else ""

    def chosen(self, at: Sequence[int]) -> dict[str, Any]:
        """The controls' values at these positions."""
        pairs = zip(self.controls.items(), at, strict=True)
        return {name: values[i] for (name, values), i in pairs}

    def positions(self) -> list[tuple[int, ...]]:
        """All positions, the last control fastest."""
        return list(itertools.product(*(range(len(v)) for v in self.controls.values())))

    def text(self) -> str:
        """What each picture shows, a line each."""
        lines = ["[slider]"]
        for at in self.positions():
            chosen = self.chosen(at)
            where = ", ".join(f"{_label(k)} {v}" for k, v in chosen.items())
            lines.append(f"{where}: {self._alt(**chosen)}")
        return "\n".join(lines)

    def html(self) -> str:
        """The page's face; empty where matplotlib is missing."""
        pictures = [self.picture(*at) for at in self.positions()]
        if not pictures[0]:
            return ""
        parts = [_parts(p) for p in pictures]
        rows = []
        for i, (name, values) in enumerate(self.controls.items()):
            names = escape(json.dumps([str(v) for v in values]))
            play = "" if i else f' <button type=button onclick="{PLAY}">play</button>'
            rows.append(
                f"<div><label>{escape(_label(name))} <input type=range min=0 value=0 "
                f'max={len(values) - 1} data-values="{names}" oninput="{MOVE}" '
                f'aria-valuetext="{escape(str(values[0]))}"> '
                f"<output>{escape(str(values[0]))}</output></label>{play}</div>"
            )
        data = json.dumps(parts).replace("</", "<\\/")
        return (
            f'<div class="zolab-frames">{pictures[0]}{"".join(rows)}'
            f'<script type="application/json">{data}</script></div>'
        )

    def live(self) -> Any:
        """The notebook's face: an ipywidget that draws what it is asked for."""
        import ipywidgets as w

        picture = w.HTML(self.picture(*[0] * len(self.controls)))
        sliders = [
            w.SelectionSlider(
                options=[(str(v), i) for i, v in enumerate(values)],
                description=_label(name),
                style={"description_width": "initial"},
            )
            for name, values in self.controls.items()
        ]

        def move(_: Any) -> None:
            picture.value = self.picture(*(s.value for s in sliders))

        for s in sliders:
            s.observe(move, "value")
        first = len(next(iter(self.controls.values())))
        play = w.Play(min=0, max=first - 1, interval=TICK, show_repeat=False)
        play.observe(lambda c: setattr(sliders[0], "value", c["new"]), "value")
        top = w.HBox([sliders[0], play])
        return w.VBox([picture, top, *sliders[1:]])

    def __repr__(self) -> str:
        return self.text()

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        faces = {"text/plain": self.text()}
        if html := self.html():
            faces["text/html"] = html
        return faces | _live(self.live if html else None)


def frames(
    draw: Callable[..., Any],
    *,
    alt: Callable[..., str],
    width: int = 440,
    height: int = 290,
    **controls: Sequence[Any],
) -> None:
    """A drawing with a slider for each of one or two controls, and play and pause.

    `draw(ax, name=value)` draws one picture and `alt(name=value)` says what it shows;
    the page holds a picture for each combination.
    """
    show(Frames(draw, alt, (width, height), controls))


class Guess:
    """What the reader expects: `value` is None until something is chosen."""

    def __init__(self, question: str, options: Sequence[str]) -> None:
        self.question, self.options = question, tuple(options)
        self.value: str | None = None

    def __repr__(self) -> str:
        return f"Before you go on: {self.question} ({'; '.join(self.options)})"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """In Lab buttons; on the page, where html comes first, the list."""
        items = "".join(f"<li>{escape(o)}</li>" for o in self.options)
        ask = f"<p><b>Before you go on:</b> {escape(self.question)}</p>"
        faces = {"text/plain": repr(self), "text/html": f"{ask}<ul>{items}</ul>"}
        return faces | _live(self.live)

    def live(self) -> Any:
        """A question with a button an option."""
        import ipywidgets as w

        ask = w.HTML(f"<b>Before you go on:</b> {escape(self.question)}")
        menu = w.ToggleButtons(options=[(o, o) for o in self.options], value=None)
        menu.style.button_width = "auto"
        menu.observe(lambda change: setattr(self, "value", change["new"]), "value")
        return w.VBox([ask, menu])

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


def _live(build: Callable[[], Any] | None) -> dict[str, Any]:
    """The widget's entry of a mime bundle; none where ipywidgets is missing."""
    if build is None:
        return {}
    try:
        import ipywidgets  # noqa: F401
    except ImportError:
        return {}
    found = build()._repr_mimebundle_()
    return {k: v for k, v in found.items() if "widget" in k}


def _parts(image: str) -> dict[str, str]:
    """{"alt": ..., "src": ...} of an <img>."""
    alt = image.split('alt="', 1)[1].split('"', 1)[0]
    return {"alt": unescape(alt), "src": image.split('src="', 1)[1].split('"', 1)[0]}


def _label(name: str) -> str:
    return name.replace("_", " ")
