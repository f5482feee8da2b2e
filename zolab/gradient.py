"""What flows between the five places: directions, probes, answers, gradients, updates.

A zeroth-order gradient is not a tensor. It is a short list of (direction,
coefficient): the direction is a key from which anyone can draw z again, the
coefficient one number that the losses gave.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from zolab.space import Space


def _nothing() -> Mapping[str, Tensor]:
    return MappingProxyType({})


@dataclass(frozen=True)
class Direction:
    """z, named: `key` (64 bits) and `family`; `mask` names a predicate on elements."""

    key: int
    family: str = "rademacher"
    mask: str | None = None


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
    """One point, theta + sum of terms, and what to ask there.

    `want` is "value"; "jvp" (forward gradient) and "tail" (back-propagate the tail's
    slots) belong to engines that can. `objective` names the closure to ask. An anchor
    (SVRG) needs no field: it is the terms that lead back to it, before the probe's.
    """

    terms: tuple[Term, ...] = ()
    want: str = "value"
    objective: str = "loss"


@dataclass(frozen=True)
class Answer:
    """What came back from a probe: only numbers (and a tail's dense gradient)."""

    value: float
    tangent: float | None = None
    tail: Mapping[str, Tensor] | None = None


@dataclass(frozen=True)
class ZOGradient:
    """sum of coefficient * z(direction): `terms`, and a dense part where one exists.

    Scaling and adding are exact on the list: (2 * g).terms doubles the coefficients,
    g + h joins the lists.
    """

    terms: tuple[Term, ...]
    dense: Mapping[str, Tensor] = field(default_factory=_nothing)
    scalars: tuple[float, ...] = ()

    def __mul__(self, factor: float) -> ZOGradient:
        terms = tuple((d, c * factor) for d, c in self.terms)
        dense = {name: t * factor for name, t in self.dense.items()}
        return replace(self, terms=terms, dense=dense)

    __rmul__ = __mul__

    def __add__(self, other: ZOGradient) -> ZOGradient:
        dense = dict(self.dense)
        for name, t in other.dense.items():
            dense[name] = dense[name] + t if name in dense else t
        return ZOGradient(self.terms + other.terms, dense)

    @property
    def nbytes(self) -> int:
        """Bytes that determine it: a coefficient a term (keys follow from the step)."""
        dense = sum(t.numel() * t.element_size() for t in self.dense.values())
        return 4 * len(self.terms) + dense

    def to_dense(self, space: Space) -> dict[str, Tensor]:
        """The tensors it stands for, by slot name, fp32: for teaching and for tests."""
        out = {}
        for slot in space:
            total = self.dense.get(slot.name)
            for d, c in self.terms:
                z = slot.direction(d) * c
                total = z if total is None else total + z
            if total is not None:
                out[slot.name] = total
        return out


@dataclass(frozen=True)
class Update:
    """w <- decay[g] * w - lr[g] * sum coefficient * z, for a slot of group g."""

    terms: tuple[Term, ...]
    lr: tuple[float, ...]
    decay: tuple[float, ...]
    dense: Mapping[str, Tensor] = field(default_factory=_nothing)

    def scales(self, group: int) -> list[float]:
        """What multiplies z: -lr * coefficient, rounded to 16 significant bits."""
        return [round16(-self.lr[group] * c) for _, c in self.terms]

