"""What a streamed step spent its time on, from the spans that its window wrote down.

    seconds of a pass = computing + stalled,   stalled = sum of the waits for a load

A pass begins when it starts to wait for block 0 and ends when the next one does. The
host computes whenever it does not wait: no clock runs inside the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a chapter that streams nothing need not load the engine
    from zolab.engines.window import Span


@dataclass(frozen=True)
class Pass:
    """Seconds of one pass over the blocks, and of the link up and down; its `start`."""

    seconds: float
    stalled: float
    up: float
    down: float
    start: float

    @property
    def computing(self) -> float:
        return self.seconds - self.stalled

    @property
    def bound(self) -> float:
        """What no order of the same work on these lanes can beat."""
        return max(self.computing, self.up, self.down)


def computed(spans: Sequence[Span]) -> list[Span]:
    """The "compute" spans between the waits; nothing ends the last one: left out."""
    waits = sorted((s for s in spans if s.lane == "wait"), key=lambda s: s.start)
    pairs = pairwise(waits)
    return [replace(a, lane="compute", start=a.end, end=b.start) for a, b in pairs]


def passes(spans: Sequence[Span]) -> list[Pass]:
    """The whole passes in `window.spans`; the last one, which nothing ends, is not."""
    waits = [s for s in spans if s.lane == "wait"]
    begins = sorted(s.start for s in waits if s.block == 0)
    found: list[Pass] = []
    for a, b in pairwise(begins):
        busy = dict.fromkeys(("wait", "up", "down"), 0.0)
        for s in spans:
            if s.lane in busy:
                busy[s.lane] += max(0.0, min(s.end, b) - max(s.start, a))
        found.append(Pass(b - a, busy["wait"], busy["up"], busy["down"], a))
    return found
