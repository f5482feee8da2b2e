"""Figures for everyone: eight colours that stay apart, line styles, direct labels.

Every figure says its finding in words (`alt`), and where matplotlib is missing the
words are all there is. A figure is drawn 440 pixels wide with 12-pixel letters, so
that a phone shows it at nearly its own size; panels stand below one another.
"""

from __future__ import annotations

import base64
import io
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any

import numpy as np

from zolab.lab.show import Shown, show

# Okabe and Ito's colours, without the yellow, darkest contrasts first; every line also
# differs by dash and marker, so that a grey print still tells them apart.
BLUE, ORANGE, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
GREY = "#555555"  # bounds
STYLES = (
    (BLUE, "-", "o"),
    (ORANGE, "--", "s"),
    (GREEN, "-.", "^"),
    (PINK, ":", "D"),
    ("#000000", (0, (5, 1)), "v"),
    ("#56B4E9", (0, (1, 1)), "P"),
)
HATCHES = ("", "////", "....", "xxxx", "----", "++++")
DPI = 150
COLORS = 64
LOOK = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.7,
    "lines.markersize": 4,
    "figure.facecolor": "white",
}


class Nothing:
    """Stands for axes where matplotlib is missing: takes every call, draws nothing."""

    def __init__(self, panels: int = 1) -> None:
        self.panels = panels

    def __getattr__(self, name: str) -> Nothing:
        return self

    def __call__(self, *args: Any, **options: Any) -> Nothing:
        return self

    def __iter__(self) -> Iterator[Nothing]:
        return iter([self] * self.panels)

    def __getitem__(self, index: Any) -> Nothing:
        return self


@contextmanager
def figure(
    *, alt: str, title: str = "", width: int = 440, height: int = 290, panels: int = 1
) -> Iterator[Any]:
    """Axes to draw on (a list of them for more than one panel), shown at the end.

    `alt` says what the figure shows to somebody who cannot see it: required.
    """
    with canvas(alt, title, width, height, panels) as (axes, image):
        yield axes
    show(Shown(f"[figure] {textwrap.fill(alt, 76)}", image[0] if image else None))


@contextmanager
def canvas(
    alt: str, title: str, width: int, height: int, panels: int = 1, dpi: int = DPI
) -> Iterator[tuple[Any, list[str]]]:
    """(axes, a list that holds the picture as HTML afterwards)."""
    if len(alt.split()) < 5:
        raise ValueError(f"alt is {alt!r}: say in a sentence what the figure shows")
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from PIL import Image
    except ImportError:
        yield Nothing(panels), []
        return
    image: list[str] = []
    with matplotlib.rc_context(LOOK):
        # A Figure of its own needs no pyplot: no backend, nothing global to close.
        size = (width / 100, height / 100)
        fig = Figure(figsize=size, dpi=dpi, layout="constrained")
        page = FigureCanvasAgg(fig)
        axes = [fig.add_subplot(panels, 1, i + 1) for i in range(panels)]
        if title:
            axes[0].set_title(title)
        yield (axes if panels > 1 else axes[0]), image
        page.draw()
        picture = Image.fromarray(np.asarray(page.buffer_rgba())[..., :3])
    # Letters, lines and bands need few colours: a palette halves what a page weighs.
    png = io.BytesIO()
    picture.quantize(COLORS, method=Image.Quantize.MEDIANCUT).save(png, "PNG")
    data = base64.b64encode(png.getvalue()).decode()
    image.append(
        f'<img alt="{escape(alt)}" style="width:{width}px;max-width:100%;height:auto" '
        f'src="data:image/png;base64,{data}">'
    )


def line(
    ax: Any,
    x: Sequence[float],
    y: Sequence[float],
    label: str = "",
    *,
    style: int = 0,
    band: tuple[Sequence[float], Sequence[float]] | None = None,
    dy: float = 0.0,
    marks: bool = True,
) -> None:
    """A line in style 0 to 5, its band, and its name beside its last point.

    `dy` moves the name by points, where two lines end close together.
    """
    color, dash, marker = STYLES[style]
    ax.margins(x=0.02)
    every = max(1, len(x) // 8)
    ax.plot(
        x, y, color=color, ls=dash, marker=marker if marks else None, markevery=every
    )
    if band is not None:
        ax.fill_between(x, *band, color=color, alpha=0.18, lw=0)
    if label:
        tag(ax, x[-1], y[-1], label, style=style, dy=dy)


def tag(
    ax: Any, x: float, y: float, label: str, *, style: int = 0, dy: float = 0.0
) -> None:
    """Text to the right of a point, in the colour of its line."""
    ax.annotate(
        label,
        (x, y),
        xytext=(7, dy),
        textcoords="offset points",
        color=STYLES[style][0],
        va="center",
        annotation_clip=False,
    )


def mark(ax: Any, y: float, label: str, *, right: bool = False) -> None:
    """A dashed horizontal line with its name above it: a bound or a paper's value."""
    ax.axhline(y, color=GREY, ls=(0, (2, 2)), lw=1)
    where = (0.99 if right else 0.01, y)
    ax.annotate(
        label,
        where,
        xycoords=("axes fraction", "data"),
        xytext=(0, 2),
        textcoords="offset points",
        ha="right" if right else "left",
        color=GREY,
    )


def names(ax: Any, labels: Sequence[tuple[float, str, str]], gap: float = 11) -> None:
    """(height, name, colour) beside the right edge; moved apart, `gap` points at least.

    Call it last: the heights are taken to the page with the limits as they are.
    """
    if isinstance(ax, Nothing):
        return
    low, high = ax.get_ylim()
    # The canvas is laid out later: a panel's height in points is estimated.
    tall = ax.figure.get_size_inches()[1] * 72 / len(ax.figure.axes) * 0.7
    last = -math.inf
    for y, name, color in sorted(labels):
        at = (y - low) / (high - low) * tall
        last = max(at, last + gap)
        ax.annotate(
            name,
            (1.0, y),
            xycoords=("axes fraction", "data"),
            xytext=(7, last - at),
            textcoords="offset points",
            color=color,
            va="center",
            annotation_clip=False,
        )


def bars(
    ax: Any,
    values: Mapping[str, float],
    notes: Sequence[str] = (),
    *,
    style: int = 0,
    part: int = 0,
    parts: int = 1,
) -> None:
    """Horizontal bars, the first name on top, each with its note to the right.

    `part` of `parts` bars share a name's place, in style 0 to 5; the hatch tells them
    apart where colours do not.
    """
    color, height = STYLES[style][0], 0.8 / parts
    places = [i + (part + 0.5) * height - 0.4 for i in range(len(values))]
    sizes = list(values.values())
    ax.barh(
        places, sizes, 0.9 * height, color=color, hatch=HATCHES[style], edgecolor="w"
    )
    ax.set_yticks(range(len(values)), list(values))
    ax.set_ylim(len(values) - 0.4, -0.6)
    ax.grid(visible=False, axis="y")
    ax.set_axisbelow(True)
    for place, size, note in zip(places, sizes, notes, strict=False):
        tag(ax, size, place, note, style=style)
