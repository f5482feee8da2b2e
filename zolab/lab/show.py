"""What a cell shows: HTML on a page, text in a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from zolab import ipython_shim

DATA = "application/vnd.zolab+json"


class Shown:
    """Two faces of one thing: `text` for a terminal, `html` for a notebook.

    `data` goes into the notebook's file beside them, for pages that count.
    """

    def __init__(
        self, text: str, html: str | None = None, data: Mapping[str, Any] | None = None
    ) -> None:
        self.text = text
        self.html = html or f"<p>{escape(text)}</p>".replace("\n", "<br>")
        self.data = data

    def __repr__(self) -> str:
        return self.text

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        faces: dict[str, Any] = {"text/plain": self.text, "text/html": self.html}
        return faces if self.data is None else faces | {DATA: dict(self.data)}


def show(thing: Any) -> None:
    """Display it now, wherever in a cell this is called; works without IPython."""
    try:
        from IPython.display import display
    except ImportError:
        ipython_shim.display(thing)
    else:
        display(thing)


def say(text: str) -> None:
    """Display a line of text."""
    show(Shown(text))


def table(header: list[str], rows: list[list[Any]]) -> Shown:
    """Rows under a header; on a phone each row becomes a card that names its cells."""
    cells = [header] + [[str(x) for x in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "  ".join(x.ljust(w) for x, w in zip(r, widths, strict=True)) for r in cells
    ]
    head = "".join(f"<th>{escape(x)}</th>" for x in header)
    body = "".join(f"<tr>{_cards(header, row)}</tr>" for row in cells[1:])
    html = (
        f'<table class="zolab-cards"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table>"
    )
    return Shown("\n".join(x.rstrip() for x in lines), html)


def _cards(header: list[str], row: list[str]) -> str:
    pairs = zip(header, row, strict=True)
    return "".join(f'<td data-head="{escape(h)}">{escape(x)}</td>' for h, x in pairs)
