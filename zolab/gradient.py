"""What flows between the five places: directions, probes, answers, gradients, updates.

A zeroth-order gradient is not a tensor. It is a short list of (direction,
coefficient): the direction is a key from which anyone can draw z again, the
coefficient one number that the losses gave.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from zolab.space import Slot, Space


@dataclass(frozen=True)
class Direction:
    """z, named: `key` (64 bits) and `family`; every element has variance 1.

    `within` is a glob of slot names outside of which z is 0. Families with structure
    need more: "low_rank" and "subspace" a second key, `right`, and a `rank`; of
    "coordinate" `key` is the index of the one element of slot `within` that is 1; of
    "rounded" `rank` counts bits, and roundings with another `right` are independent.
    """

    key: int
    family: str = "rademacher"
    within: str = ""
    right: int = 0
    rank: int = 0

    def moves(self, name: str) -> bool:
        """Whether z is anything but 0 in the slot of this name."""
        return not self.within or fnmatchcase(name, self.within)


Term = tuple[Direction, float]
"""scale * z(direction); the scale has at most 16 significant bits (`round16`)."""


def round16(x: float) -> float:
    """x to 16 significant bits, so that x * z is exact in fp32 for every family."""
    mantissa, exponent = math.frexp(x)
    return math.ldexp(round(math.ldexp(mantissa, 16)), exponent - 16)


def round32(x: float) -> float:
    """x as the fp32 number that the journal stores; infinite when it does not fit."""
    try:
        return struct.unpack("<f", struct.pack("<f", x))[0]
    except OverflowError:
        return math.copysign(math.inf, x)


@dataclass(frozen=True)
class Probe:
    """One point, theta + sum of terms, and the name of the closure to ask there.

    With `want="jvp"` the point is theta itself, and the question is also the slope
    along the sum of terms (forward-mode differentiation). An anchor (SVRG) needs no
    field: it is the terms that lead back to it, before the probe's own.
    """

    terms: tuple[Term, ...] = ()
    objective: str = "loss"
    want: str = "value"


@dataclass(frozen=True)
class Answer:
    """What came back from a probe: a number, and the slope there if it was asked."""

    value: float
    tangent: float | None = None


@dataclass(frozen=True)
class ZOGradient:
    """sum of coefficient * z(direction), as a list.

    Scaling and adding are exact on the list: 2 * g doubles the coefficients, g + h
    joins the lists. `scalars` are numbers beside it that the log must hold (a
    curvature, losses to use again); they are not scaled.
    """

    terms: tuple[Term, ...]
    scalars: tuple[float, ...] = ()

    def __mul__(self, factor: float) -> ZOGradient:
        return ZOGradient(tuple((d, c * factor) for d, c in self.terms), self.scalars)

    __rmul__ = __mul__

    def __add__(self, other: ZOGradient) -> ZOGradient:
        return ZOGradient(self.terms + other.terms, self.scalars + other.scalars)

    @property
    def nbytes(self) -> int:
        """Bytes that determine it: a coefficient a term (keys follow from the step)."""
        return 4 * (len(self.terms) + len(self.scalars))

    def to_dense(self, space: Space) -> dict[str, Tensor]:
        """The tensors it stands for, by slot name, fp32: for teaching and for tests."""
        out = {}
        for slot in space:
            total = torch.zeros(slot.shape, device=slot.base.device)
            for d, c in self.terms:
                total += c * slot.direction(d)
            out[slot.name] = total
        return out


@dataclass(frozen=True)
class Update:
    """w <- decay[g] * w - lr[g] * sum coefficient * z, for a slot of group g.

    `curvature` is the direction and the size of what a diagonal Hessian takes in
    before that, where the slots have one. `dense` says instead of `terms` what moves a
    slot, fp32 and of its shape, before lr; it is asked once a slot and step, in order.
    `low` is a glob of slot names and the least value that their elements keep.
    """

    terms: tuple[Term, ...]
    lr: tuple[float, ...]
    decay: tuple[float, ...]
    curvature: Term | None = None
    dense: Callable[[Slot], Tensor] | None = None
    low: tuple[str, float] | None = None

    def floor(self, name: str) -> float:
        """The least value in the slot of this name; -inf where there is none."""
        return self.low[1] if self.low and fnmatchcase(name, self.low[0]) else -math.inf

    def scales(self, group: int) -> list[float]:
        """What multiplies z: -lr * coefficient, rounded to 16 significant bits."""
        return [round16(-self.lr[group] * c) for _, c in self.terms]
