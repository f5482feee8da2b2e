"""How long a streamed step takes: the slower of the link and the arithmetic.

    compute   Fw (2 N P_b + 2 V h + 2 N T q) n / F    Fw forward passes of n tokens
    transfer  b N P_b / BW                            up; down runs at the same time
    T*        b F / (2 Fw BW)                         tokens, where the two are equal

Fewer tokens than T* wait for the link, whatever the size of the model: P_b cancels. F
is the machine's FLOP/s in these products, BW its link's bytes a second, one way.
"""

from __future__ import annotations

from dataclasses import dataclass

from zolab.plan.memory import Work
from zolab.plan.shape import Shape
from zolab.plan.streamed import Window, moved


@dataclass(frozen=True)
class Machine:
    """Rates: FLOP/s, the link's bytes a second each way, a disk's (0: none)."""

    flops: float
    link: float
    disk: float = 0.0


@dataclass(frozen=True)
class Pace:
    """Seconds of a step, and the tokens from which on the link hides."""

    compute: float
    transfer: float
    threshold: float

    @property
    def seconds(self) -> float:
        """What a step takes when both run at the same time."""
        return max(self.compute, self.transfer)


def flops(shape: Shape, work: Work) -> float:
    """Operations of one forward pass: two a matrix entry and token, and attention.

    Causal attention reads half of the T x T scores, in two products.
    """
    matrices = sum(m * n for m, n in shape.matrices.values())
    layer = 2 * matrices + 2 * work.tokens * shape.queries
    return work.count * (shape.layers * layer + 2.0 * shape.embedding)


def pace(
    shape: Shape, work: Work, machine: Machine, window: Window | None = None
) -> Pace:
    """A streamed step's seconds; from a disk, when the machine has given one."""
    v = window or Window()
    up, down = moved(shape, work, v)
    compute = v.probes * flops(shape, work) / machine.flops
    transfer = max(up, down) / machine.link
    if machine.disk:  # reads and writes share it
        transfer = max(transfer, (up + down) / machine.disk)
    each = transfer * machine.flops / (shape.layers * shape.block)
    return Pace(compute, transfer, each / (2 * v.probes))


def resident(shape: Shape, work: Work, machine: Machine, probes: int = 2) -> float:
    """Seconds of a step of a model that lies on the device."""
    return probes * flops(shape, work) / machine.flops
