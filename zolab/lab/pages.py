"""What the book draws from data: the ledger, the recorded runs, the map of chapters."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from zolab import chapters, fresh
from zolab.lab.claims import CAVEAT, VERDICTS, Claim, ledger
from zolab.lab.records import RESULTS
from zolab.lab.show import DATA, table

ROOT = Path(__file__).parent.parent.parent
MARKS = {
    "reproduced": "✓✓",
    "holds": "✓",
    "same direction": "↗",
    "not seen": "○",
    "opposite": "✗",
    "could not test": "?",
}


@cache
def book() -> Mapping[str, chapters.Chapter]:
    """The chapters of this checkout."""
    return chapters.find(ROOT / "notebooks")


def measured() -> dict[str, dict[str, str]]:
    """By claim: what the stored outputs of the chapters say, with their scale."""
    found = {}
    for chapter in book().values():
        for output in chapter.outputs():
            if row := output.get("data", {}).get(DATA):
                found[row["claim"]] = row
    return found


def counts() -> str:
    """How many claims have each verdict, worst first, as one line of HTML."""
    tally = Counter(c.verdict for c in ledger().values())
    parts = [f"<b>{tally[v]}</b> {MARKS[v]}&nbsp;{v}" for v in VERDICTS if tally[v]]
    return f'<p class="zolab-counts">{len(ledger())} claims: {" · ".join(parts)}</p>'


def ledger_page() -> str:
    """The counts, the caveat, and a card a claim, worst first."""
    seen = measured()
    claims = sorted(ledger().values(), key=lambda c: VERDICTS.index(c.verdict))
    cards = "".join(_card(c, seen.get(c.id)) for c in claims)
    return f"{counts()}<p><b>{CAVEAT}</b></p>{cards}"


def _card(c: Claim, ours: Mapping[str, str] | None) -> str:
    chapter = book().get(c.chapter)
    page = f"../notebooks/{chapter.path.stem}.html" if chapter else "#"
    unverified = "" if c.checked else " <i>(unverified: nobody has read it there)</i>"
    here = f"{escape(ours['ours'])} <i>(scale {ours['scale']})</i>" if ours else "-"
    rows = {
        "paper": f"{escape(c.paper)}{unverified}, {escape(c.source)}",
        "ours": here,
        "distance": escape(c.distance),
        "expected": f"{c.expected}. {escape(c.why)}",
        "control": _control(c.control),
        "again": f"<code>{escape(c.command)}</code>",
    }
    if c.record:
        rows["record"] = f'<a href="status.html#{c.record}">{c.record}</a>'
    body = "".join(f"<dt>{k}</dt><dd>{v}</dd>" for k, v in rows.items())
    kind = c.verdict.replace(" ", "-")
    return (
        f'<section class="zolab-claim {kind}" id="{c.id}">'
        f"<p><b>{MARKS[c.verdict]} {c.verdict}</b>: {escape(c.text)}</p>"
        f'<p><a href="{page}#{c.id}">chapter {c.chapter}, its cell</a> · {c.kind} · '
        f"<code>{c.id}</code></p><dl>{body}</dl></section>"
    )


def _control(control: str) -> str:
    if control.startswith("none: "):
        return escape(control)
    file, _, name = control.partition("::")
    return f"<code>{escape(name)}</code> in {escape(file)} must fail"


def status_page() -> str:
    """Every recorded run and every chapter's outputs: where, when, and still fresh?"""
    return f"<h2>Chapters</h2>{_outputs()}<h2>Records</h2>{_records()}"


def _outputs() -> str:
    rows = []
    for c in book().values():
        ran = c.about.ran
        if ran is None:
            rows.append([c.number, c.title, "not saved yet", "", ""])
            continue
        changed = fresh.stale(ran, [x.source for x in c.cells()])
        state = f"changed since: {', '.join(changed)}" if changed else "fresh"
        rows.append([c.number, c.title, ran["scale"], ran["date"], state])
    return table(["chapter", "title", "scale", "date", "outputs"], rows).html


def _records() -> str:
    rows = []
    for path in sorted(RESULTS.glob("*.json")):
        found = json.loads(path.read_text("utf-8"))
        origin = found.get("from", found)
        device = str(origin.get("device") or origin.get("cpu", ""))
        date = str(origin["date"])[:10]
        rows.append([path.stem, origin["command"], device, date, _state(origin)])
    html = table(["record", "command", "device", "date", "code"], rows).html
    for name in (row[0] for row in rows):  # a claim links to its record
        html = html.replace(f">{name}<", f' id="{name}">{name}<', 1)
    return html


def _state(origin: Mapping[str, Any]) -> str:
    commit = str(origin.get("commit") or "an unknown commit")
    if "modules" not in origin:
        return f"recorded at {commit}"
    changed = fresh.stale(origin)
    return f"recorded at {commit}: changed since" if changed else f"fresh, {commit}"


def chapter_map() -> str:
    """The chapters as an SVG: each below those that it needs, each a link."""
    depth: dict[str, int] = {}
    for number, c in book().items():  # in order, so needs come first
        depth[number] = 1 + max((depth[n] for n in c.about.needs), default=-1)
    levels = [
        [n for n in depth if depth[n] == i] for i in range(max(depth.values()) + 1)
    ]
    # Two boxes side by side are what a phone's width holds: a level may be some rows.
    rows = [row[i : i + 2] for row in levels for i in range(0, len(row), 2)]
    at = {}
    for down, row in enumerate(rows):
        for i, n in enumerate(row):
            at[n] = 170 + (i - (len(row) - 1) / 2) * 165, 32 + 78 * down
    lines, boxes, words = "", "", []
    for n, c in book().items():
        x, y = at[n]
        for x0, y0 in (at[need] for need in _nearest(c.about.needs)):
            lines += f'<line x1="{x0}" y1="{y0 + 28}" x2="{x}" y2="{y - 28}"/>'
        boxes += _box(c, x, y)
        words.append(f"{n} needs {', '.join(c.about.needs) or 'nothing'}")
    height = 78 * len(rows)
    return (
        f'<svg class="zolab-map" viewBox="0 0 340 {height}" role="group" '
        f'aria-label="Map of the chapters: {"; ".join(words)}">{lines}{boxes}</svg>'
    )


def _nearest(needs: Iterable[str]) -> list[str]:
    """The needs that no other need already stands on."""
    implied = {m for n in needs for m in _all_needs(n)}
    return [n for n in needs if n not in implied]


def _all_needs(number: str) -> set[str]:
    own = set(book()[number].about.needs)
    return own | {m for n in own for m in _all_needs(n)}


def _box(c: chapters.Chapter, x: float, y: float) -> str:
    head = f"{c.number} · {c.about.minutes} min"
    lines = textwrap.wrap(c.title, 24)[:2]
    top = y - 10 if len(lines) > 1 else y - 3
    words = "".join(
        f'<text x="{x}" y="{top + 15 * i}">{part}</text>'
        for i, part in enumerate([f"<tspan>{head}</tspan>", *map(escape, lines)])
    )
    return (
        f'<a href="../notebooks/{c.path.stem}.html">'
        f'<rect x="{x - 78}" y="{y - 28}" width="156" height="56" rx="6"/>{words}</a>'
    )
