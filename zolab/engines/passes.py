"""All blocks once, each for every probe that wants it.

Each probe is a copy of the closure that waits before a block until it is there
(`zolab.engines.baton`). A scheduler, not a barrier: when all that are still running
wait, the next wanted block in cyclic order is brought, and served to those that asked.
So they may visit different blocks (early exits, generation) and cannot lock each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from zolab.engines.base import Objectives
from zolab.engines.baton import Turn
from zolab.engines.resident import ask
from zolab.engines.traffic import Traffic
from zolab.engines.visiting import Visiting
from zolab.gradient import Answer, Probe

Mode = Callable[[Probe], Visiting]


def side_by_side(probes: Sequence[Probe], together: int) -> Iterator[list[Probe]]:
    """What passes through the model at once; dual numbers go alone."""
    group: list[Probe] = []
    for probe in probes:
        alone = probe.want == "jvp"
        if group and (alone or len(group) == together):
            yield group
            group = []
        group.append(probe)
        if alone:
            yield group
            group = []
    if group:
        yield group


def answers(
    probes: Sequence[Probe], objectives: Objectives, traffic: Traffic, mode: Mode
) -> list[Answer]:
    """One pass; an error in one probe stops the others and is raised."""
    turns = [_turn(p, objectives, mode) for p in probes]
    try:
        for turn in turns:
            turn.resume()
        while waiting := [t for t in turns if not t.done]:
            block = traffic.nearest([t.wants for t in waiting])
            held = traffic.bring(block)
            traffic.ahead(block)
            for turn in waiting:
                if turn.wants is block:
                    turn.resume()
            traffic.window.rest(held)
    except BaseException:
        for turn in turns:
            turn.stop()
        raise
    turns[-1].restore()
    return [t.result for t in turns]


def _turn(probe: Probe, objectives: Objectives, mode: Mode) -> Turn:
    mine = mode(probe)

    def work() -> Answer:
        with torch.no_grad(), mine:
            return ask(probe, objectives)

    turn = Turn(work)
    turn.mode = mine
    return turn
