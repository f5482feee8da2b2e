"""What a cell shows: HTML on a page, text in a terminal."""

from __future__ import annotations

from html import escape
from typing import Any

from zolab import ipython_shim


class Shown:
    """Two faces of one thing: `text` for a terminal, `html` for a notebook."""

    def __init__(self, text: str, html: str | None = None) -> None:
        self.text = text
        self.html = html or f"<p>{escape(text)}</p>".replace("\n", "<br>")

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return self.html


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
    """Rows under a header; narrow enough columns stay side by side on a phone."""
    cells = [header] + [[str(x) for x in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "  ".join(x.ljust(w) for x, w in zip(r, widths, strict=True)) for r in cells
    ]
    cell = '<td style="padding:.2em .6em">'
    head, *body = ["".join(f"{cell}{escape(x)}</td>" for x in r) for r in cells]
    html = f"<table><tr>{head.replace('td', 'th')}</tr>"
    html += "".join(f"<tr>{b}</tr>" for b in body) + "</table>"
    return Shown("\n".join(x.rstrip() for x in lines), html)
