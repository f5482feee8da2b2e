"""The ledger: what a paper says beside what was measured here, and a verdict.

A claim is a row of data/claims/NN.toml, written before it is measured: what must come
out, by which margin and why, and the control that must fail. Three kinds:

    identity    exact at any scale (a mean, a law): ours must agree with it
    mechanism   a sign or a rate: ours must point the same way
    result      the paper's own number: reproduced only in the paper's own setting

An identity `holds`; a mechanism shows in the `same direction`; a result is
`reproduced`. All may be `not seen` or `opposite`, or this machine
`could not test` them.
An effect counts from three standard errors. A run whose verdict differs from the
recorded one raises, in both directions: an effect that appears is news as much as one
that vanishes.
"""

from __future__ import annotations

import math
import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from html import escape
from pathlib import Path

from zolab.errors import ZolabError
from zolab.lab.scales import scale
from zolab.lab.show import Shown, show

LEDGER = Path(__file__).parent.parent / "data" / "claims"
REPRODUCED, HOLDS, SAME = "reproduced", "holds", "same direction"
NOT_SEEN, OPPOSITE, UNTESTED = "not seen", "opposite", "could not test"
VERDICTS = (OPPOSITE, NOT_SEEN, UNTESTED, SAME, HOLDS, REPRODUCED)  # worst first
KINDS = ("identity", "mechanism", "result")
CAVEAT = "No run of this size proves a claim about a model of 13 billion parameters."


class ClaimError(ZolabError):
    """The ledger has no such claim, or the verdict is not the recorded one."""


@dataclass(frozen=True)
class Claim:
    """A row of the ledger; `expect` is above, below or near `than`.

    `margin` is what a run without a standard error must exceed (above, below), or how
    far ours may lie from `than` beyond three standard errors (near). `checked` says
    that the paper's value was read in the paper; if not it is printed as unverified
    and never compared. `recorded` holds the verdict of each scale that was recorded,
    `record` the file of data/results that ours was taken from, if it was.
    """

    id: str
    chapter: str
    kind: str
    text: str
    source: str
    paper: str
    checked: bool
    setting: str
    distance: str
    seeds: int
    expect: str
    than: float
    margin: float
    why: str
    control: str
    verdict: str
    command: str
    unit: str = ""
    record: str = ""
    recorded: Mapping[str, str] = field(default_factory=dict)

    @property
    def expected(self) -> str:
        """What must come out, in words: near 1 within 0.25, or above 0 by 0.1."""
        word = "within" if self.expect == "near" else "by"
        margin = f" {word} {self.margin:g}" if self.margin else ""
        return f"{self.expect} {self.than:g}{margin}"

    def judge(self, measured: float | None, se: float | None = None) -> str:
        """The verdict on a measured number and its standard error."""
        if measured is None or not math.isfinite(measured):
            return UNTESTED
        gap = measured - self.than
        if self.expect == "near":
            agrees = abs(gap) <= self.margin + 3 * (se or 0.0)
            return self._best() if agrees else NOT_SEEN
        gap = gap if self.expect == "above" else -gap
        needed = self.margin if se is None else 3 * se
        if gap >= needed:
            return self._best()
        return OPPOSITE if gap <= -needed else NOT_SEEN

    def _best(self) -> str:
        if self.kind == "identity":
            return HOLDS
        own = self.kind == "result" and self.distance == "none" and self.checked
        return REPRODUCED if own else SAME


@dataclass(frozen=True)
class Row:
    """A claim with what was measured in this process."""

    claim: Claim
    measured: float | None
    se: float | None
    verdict: str
    scale: str

    @property
    def ours(self) -> str:
        """The measured number, plus or minus three standard errors."""
        if self.measured is None:
            return "not measured"
        interval = f" ± {3 * self.se:.2g}" if self.se is not None else ""
        return f"{self.measured:.3g}{interval} {self.claim.unit}".rstrip()

    @property
    def paper(self) -> str:
        """What the paper says, marked when nobody has checked it."""
        return self.claim.paper + ("" if self.claim.checked else " (unverified)")

    @property
    def news(self) -> str:
        """How the verdict stands to the recorded one; empty when they agree."""
        before = self.claim.recorded.get(self.scale)
        if before is None:
            return f"nothing recorded at scale {self.scale}"
        return "" if before == self.verdict else f"recorded: {before}"

    def shown(self) -> Shown:
        """A line in a terminal, a card on a page."""
        c = self.claim
        text = f"{c.id} | paper: {self.paper} | ours: {self.ours} | {self.verdict}"
        rows = {"paper": f"{self.paper}, {c.source}", "expected": c.expected}
        rows["ours"] = self.ours
        rows["verdict"] = self.verdict + (f" ({self.news})" if self.news else "")
        body = "".join(f"<div><b>{k}</b> {escape(v)}</div>" for k, v in rows.items())
        style = "border-left:4px solid #0072B2;padding:.2em .8em;margin:.5em 0"
        head = f"<div><code>{c.id}</code>, {c.kind}: {escape(c.text)}</div>"
        html = f'<div id="{c.id}" style="{style};max-width:42em">{head}{body}</div>'
        data = {"claim": c.id, "ours": self.ours, "verdict": self.verdict}
        return Shown(text, html, data | {"scale": self.scale})


_rows: dict[str, Row] = {}


@cache
def ledger(folder: Path = LEDGER) -> dict[str, Claim]:
    """The claims by id, from NN.toml of `folder`, a file a chapter.

    Raises ClaimError on a row that is not complete and on an id that is there twice.
    """
    claims: dict[str, Claim] = {}
    known = {f.name for f in fields(Claim)}
    files = [tomllib.loads(p.read_text("utf-8")) for p in sorted(folder.glob("*.toml"))]
    for row in [row for file in files for row in file.get("claim", [])]:
        name = row.get("id", "without id")
        if name in claims:
            raise ClaimError(f"claim {name} is in the ledger twice")
        if unknown := set(row) - known:
            raise ClaimError(f"claim {name} has {sorted(unknown)}, which mean nothing")
        try:
            claims[name] = Claim(**row)
        except TypeError as error:
            raise ClaimError(f"claim {name}: {error}") from None
    return claims


def claim(name: str, measured: float | None, se: float | None = None) -> None:
    """Show paper, ours and verdict; None means that this machine could not test it.

    Raises ClaimError on an unknown id, and when the verdict is not the recorded one.
    """
    if name not in ledger():
        raise ClaimError(f"no claim {name!r} in the ledger: {', '.join(ledger())}")
    c = ledger()[name]
    measured = None if measured is None else float(measured)
    se = None if se is None else float(se)
    row = Row(c, measured, se, c.judge(measured, se), scale())
    _rows[name] = row
    show(row.shown())
    if row.news.startswith("recorded"):
        raise ClaimError(
            f"{name}: ours is {row.ours}, which makes {row.verdict!r} at scale "
            f"{row.scale}; {row.news!r}. The margin's reason: {c.why}"
        )


def report() -> str:
    """The claims evaluated in this process, counts first, worst first."""
    if not _rows:
        return ""
    rows = sorted(_rows.values(), key=lambda r: VERDICTS.index(r.verdict))
    counts = Counter(r.verdict for r in rows)
    lines = [", ".join(f"{n} {verdict}" for verdict, n in counts.items())]
    lines += [r.shown().text for r in rows]
    return "\n".join([*lines, CAVEAT])


def evaluated() -> dict[str, Row]:
    """The rows that `report` lists, by id."""
    return dict(_rows)
