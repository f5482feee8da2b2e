"""Masks: which elements of a slot move, as a pure predicate that nothing stores.

    smallest, largest   |w| below or above a threshold, asked of the stored weights
    random              the hash of the element's index below a share
    bits                one stored bit an element, for scores that need passes

A mask is asked of the weights as they are stored, never at a probe: theta + eps z
carries weights across a threshold, and a mask that is asked again there differs between
the two probes and the update (a defect that sparse trainers must avoid by a copy). In
one step it is fixed; from step to step a threshold mask follows the weights.

Y. Liu et al., Sparse MeZO, arXiv:2402.15751 (the smallest 20 to 25 % of each layer, the
threshold fixed at the start).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from zolab.noise import make_key, stream, uniform_bits
from zolab.space import Space


class Mask(Protocol):
    """`chosen` says which elements move; `settings` is what a header holds of it."""

    @property
    def settings(self) -> dict[str, Any]: ...

    def chosen(self, w: Tensor, slot: int, element: Tensor) -> Tensor:
        """Bools: of fp32 values `w` of the slot with id `slot` at int64 `element`."""


@dataclass(frozen=True)
class Below:
    """|w| <= threshold."""

    threshold: float

    @property
    def settings(self) -> dict[str, Any]:
        return {"name": "Below", "threshold": self.threshold}

    def chosen(self, w: Tensor, slot: int, element: Tensor) -> Tensor:
        return w.abs() <= self.threshold


@dataclass(frozen=True)
class Above:
    """|w| >= threshold."""

    threshold: float

    @property
    def settings(self) -> dict[str, Any]:
        return {"name": "Above", "threshold": self.threshold}

    def chosen(self, w: Tensor, slot: int, element: Tensor) -> Tensor:
        return w.abs() >= self.threshold


@dataclass(frozen=True)
class Random:
    """A share of all elements, fixed by `seed`."""

    share: float
    seed: int = 0

    @property
    def limit(self) -> int:
        """An element is chosen when its 16 bits are below this."""
        return round(self.share * 65536)

    @property
    def settings(self) -> dict[str, Any]:
        return {"name": "Random", "share": self.share, "seed": self.seed}

    def chosen(self, w: Tensor, slot: int, element: Tensor) -> Tensor:
        bits = uniform_bits(stream(make_key(self.seed, 0), slot), element)
        return bits < self.limit


class Bits:
    """A stored bit an element: `packed` is uint8, element e is bit e % 8 of e // 8."""

    def __init__(self, packed: Tensor) -> None:
        if packed.dtype != torch.uint8 or packed.dim() != 1:
            raise ValueError(
                f"packed is {packed.dtype} of shape {tuple(packed.shape)}, expected "
                "uint8 of one axis; Bits.of packs a tensor of bools"
            )
        self.packed = packed

    @classmethod
    def of(cls, chosen: Tensor) -> Bits:
        """Packed from bools of the slot's shape."""
        flat = torch.nn.functional.pad(
            chosen.reshape(-1).bool(), (0, -chosen.numel() % 8)
        )
        weights = torch.tensor([1 << k for k in range(8)], device=flat.device)
        return cls((flat.view(-1, 8) * weights).sum(1).to(torch.uint8))

    @property
    def settings(self) -> dict[str, Any]:
        seen = hashlib.blake2b(self.packed.cpu().numpy().data, digest_size=8)
        return {"name": "Bits", "digest": seen.hexdigest()}

    def chosen(self, w: Tensor, slot: int, element: Tensor) -> Tensor:
        if self.packed.device != element.device:  # bits from a file, weights on a GPU
            self.packed = self.packed.to(element.device)
        return (self.packed[element >> 3] >> (element & 7)) & 1 != 0


def smallest(space: Space, share: float) -> dict[str, Mask]:
    """The `share` of each slot that is smallest now: Sparse-MeZO."""
    return {s.name: Below(_quantile(s.base, share)) for s in space}


def largest(space: Space, share: float) -> dict[str, Mask]:
    """The `share` of each slot that is largest now: magnitude pruning's keepers."""
    return {s.name: Above(_quantile(s.base, share, up=True)) for s in space}


def random(space: Space, share: float, seed: int = 0) -> dict[str, Mask]:
    """A random `share` of each slot: the control of every other mask."""
    _check(share)
    return {s.name: Random(share, seed) for s in space}


def top(
    scores: Mapping[str, Tensor],
    share: float,
    *,
    per: str = "slot",
    space: Space | None = None,
) -> dict[str, Mask]:
    """The `share` of elements with the highest scores, as bits (`zolab.scores`).

    `per` is what an element competes in: "slot", "row" (an output's weights, as Wanda
    and MaZO rank them) or "all" (layers get different shares, as GraSP's do). With
    `space` the scores' names and shapes must be its slots'. Raises ValueError on a
    score that is not finite: it has no rank.
    """
    _check(share)
    if per not in ("slot", "row", "all"):
        raise ValueError(f"per is {per!r}, expected slot, row or all")
    shapes = {s.name: s.shape for s in space} if space is not None else {}
    for name, s in scores.items():
        if not bool(s.isfinite().all()):
            raise ValueError(f"the scores of {name} are not finite: they have no rank")
        if space is not None and shapes.get(name) != s.shape:
            raise ValueError(
                f"the scores of {name} have shape {tuple(s.shape)}, expected "
                f"{tuple(shapes[name]) if name in shapes else 'no such slot'}"
            )
    if per == "all":
        every = torch.cat([s.reshape(-1) for s in scores.values()])
        bar = every.topk(max(1, round(share * len(every)))).values[-1]
        return {n: Bits.of(s >= bar) for n, s in scores.items()}
    return {n: Bits.of(_best(s, share, per == "row")) for n, s in scores.items()}


def mask_from(settings: Mapping[str, Any], packed: Tensor | None = None) -> Mask:
    """The mask that a header names; `packed` are the bits beside the log."""
    kwargs = dict(settings)
    name = kwargs.pop("name")
    if name == "Bits":
        if packed is None:
            raise ValueError("this mask is stored bits, and they are missing")
        return Bits(packed)
    known = {"Below": Below, "Above": Above, "Random": Random}
    if name not in known:
        raise ValueError(f"unknown mask {name!r}, expected one of {(*known, 'Bits')}")
    return known[name](**kwargs)


def _best(scores: Tensor, share: float, rows: bool) -> Tensor:
    table = scores.reshape(scores.shape[0], -1) if rows else scores.reshape(1, -1)
    count = max(1, round(share * table.shape[1]))
    chosen = torch.zeros_like(table, dtype=torch.bool)
    return chosen.scatter(1, table.topk(count, 1).indices, True).reshape(scores.shape)


def _quantile(w: Tensor, share: float, *, up: bool = False) -> float:
    """The |w| up to which (or from which `up`) that share lies; a value that occurs."""
    _check(share)
    size = w.detach().abs().float().reshape(-1)
    count = max(1, round(share * size.numel()))
    nth = size.numel() - count + 1 if up else count
    return float(size.kthvalue(nth).values)


def _check(share: float) -> None:
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}, expected more than 0 and at most 1")
