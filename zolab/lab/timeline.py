"""A picture of lanes: what each did when, and the stalls in which nothing computed.

up        [ 0 ][ 1 ][ 2 ]
compute        [ 0 ][ 1 ][ 2 ]
down           [ 0 ][ 1 ][ 2 ]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from zolab.lab.figures import BLUE, GREEN, ORANGE
from zolab.lab.passes import computed

if TYPE_CHECKING:
    from zolab.engines.window import Span

LANES = ("up", "compute", "down")
COLORS = {"up": BLUE, "compute": GREEN, "down": ORANGE}
STALL = 1e-3  # seconds: shorter pauses are the threads' own


def timeline(
    ax: Any,
    spans: Sequence[Span],
    *,
    start: float | None = None,
    end: float | None = None,
    width: float | None = None,
) -> list[tuple[float, float]]:
    """Draw the lanes' spans from `start` to `end`; returns the stalls, in seconds.

    Each bar carries its block's number. A stall is time in which no block computes; it
    is shaded over all lanes. `width` seconds are shown, so that pictures compare. Where
    no span is called "compute", the host's waits say when it computed.
    """
    bars = [s for s in spans if s.lane in LANES]
    if not any(s.lane == "compute" for s in bars):
        bars += computed(spans)
    if not bars:
        raise ValueError("no spans: set engine.window.spans = [] before the step")
    t0 = min(s.start for s in bars) if start is None else start
    t1 = max(s.end for s in bars) if end is None else end
    cut = [(s, max(s.start, t0), min(s.end, t1)) for s in bars]
    cut = [(s, a, b) for s, a, b in cut if b > a]
    stalls = _gaps([(a, b) for s, a, b in cut if s.lane == "compute"], t0, t1)
    wide = width or t1 - t0
    for a, b in stalls:
        where = (1e3 * (a - t0), 1e3 * (b - t0))
        ax.axvspan(*where, facecolor="#dddddd", edgecolor="#999999", hatch="///", lw=0)
    for s, a, b in cut:
        y = -LANES.index(s.lane)
        left, size = 1e3 * (a - t0), 1e3 * (b - a)
        color = COLORS[s.lane]
        ax.barh(y, size, 0.62, left, color=color, edgecolor="white", lw=1.2)
        if b - a > 0.025 * wide:
            middle = left + size / 2
            number = f"{s.block}"
            ax.text(middle, y, number, color="white", ha="center", va="center")
    if stalls:
        a, b = max(stalls, key=lambda x: x[1] - x[0])
        if b - a > 0.09 * wide:
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
            at = 1e3 * ((a + b) / 2 - t0)
            ax.text(at, -1, "stall", ha="center", va="center", bbox=box)
    ax.set_yticks([-i for i in range(len(LANES))], LANES)
    for tick, lane in zip(ax.get_yticklabels(), LANES, strict=False):
        tick.set_color(COLORS[lane])
    ax.set(xlim=(0, 1e3 * wide), ylim=(-2.5, 0.5))
    ax.grid(visible=False)
    return stalls


def _gaps(
    busy: Sequence[tuple[float, float]], start: float, end: float
) -> list[tuple[float, float]]:
    """What `busy` leaves of start to end, without pauses below a millisecond."""
    gaps, at = [], start
    for a, b in sorted(busy):
        gaps.append((at, a))
        at = max(at, b)
    gaps.append((at, end))
    return [(a, b) for a, b in gaps if b - a > STALL]
