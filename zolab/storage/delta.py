"""Matrices that are only read: what a run adds to one is kept beside it, as factors.

    w = scale * base + sum_j A_j V_j'        A_j (rows, r) fp32, V_j (columns, r) signs

    A_j   <- decay * A_j + c / sqrt(r) U     for a term c U V_j' / sqrt(r)
    scale <- decay * scale                   once a step

A direction of the family LowRank draws U anew each step and keeps V for `every` steps,
so the updates between are one A. A new V opens a new pair: 4 r rows + r columns bytes.

A is fp32 and V is signs: a product is exact, so a sum has one rounding a term, in
order, and the same bits in any slice, with or without fused multiply-add, on any
device. It is another arithmetic than rounding each update into the weight: bf16 loses
nothing of an update, since what the forward pass sees is rounded and what is kept is
not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zolab.gradient import Update, round32
from zolab.noise import signs
from zolab.storage import plain

if TYPE_CHECKING:
    from zolab.space import Slot
    from zolab.storage import Draw

CHUNK = 1 << 16  # fp32 elements on a CPU: 256 kB
ON_GPU = 1 << 24

Name = tuple[tuple[int, int], int]  # a factor V: its stream, its rank


@dataclass(eq=False)
class Pair:
    """A' (r, rows) in fp32 and V' (r, columns) in int8."""

    left: Tensor
    right: Tensor

    @property
    def nbytes(self) -> int:
        return self.left.nbytes + self.right.nbytes


class Delta:
    """What a run has added to one matrix, on `device`; pairs in the order they came."""

    def __init__(self, shape: tuple[int, int], device: torch.device) -> None:
        self.rows, self.columns = shape
        self.device = device
        self.scale, self.pairs = 1.0, dict[Name, Pair]()

    @property
    def nbytes(self) -> int:
        return sum(p.nbytes for p in self.pairs.values())

    def growth(self, draws: Sequence[Draw]) -> int:
        """Bytes that an update of these draws would open."""
        new = {(d.right, d.rank) for d in draws} - self.pairs.keys()
        return sum(rank * (4 * self.rows + self.columns) for _, rank in new)

    def pair(self, name: Name) -> Pair:
        """The pair with this V, a new one where there is none."""
        if name not in self.pairs:
            stream, rank = name
            right = signs(stream, self.columns, rank, self.device).T.to(torch.int8)
            left = torch.zeros(rank, self.rows, device=self.device)
            self.pairs[name] = Pair(left, right.contiguous())
        return self.pairs[name]

    def take(self, decay: float, draws: Sequence[Draw]) -> None:
        """One step: decay, then its terms in order."""
        if decay != 1.0:
            self.scale = round32(self.scale * decay)
            for p in self.pairs.values():
                p.left *= decay
        for d in draws:
            left = self.pair((d.right, d.rank)).left
            left += d.scale * signs(d.stream, self.rows, d.rank, self.device).T

    def add(self, x: Tensor, rows: slice | Tensor) -> None:
        """x <- scale * x + sum A V' on some of the rows, in place; x is fp32."""
        if self.scale != 1.0:
            x *= self.scale
        for p in self.pairs.values():
            right = p.right.float()
            for a, v in zip(p.left[:, rows], right, strict=True):
                x.addcmul_(a[:, None], v)

    def to(self, device: torch.device) -> Delta:
        """The same on another device."""
        out = Delta((self.rows, self.columns), device)
        out.scale = self.scale
        for name, p in self.pairs.items():
            out.pairs[name] = Pair(p.left.to(device), p.right.to(device))
        return out


def materialise(slot: Slot, draws: Sequence[Draw], out: Tensor, start: int) -> None:
    """out = cast(w + sum s z) on whole rows, those from element `start` on."""
    delta, (_, n) = _of(slot), slot.matrix
    src, dst = slot.base.view(-1, n), out.view(-1, n)
    first = start // n
    for a, b in _chunks(len(dst), n, out.device):
        x = src[first + a : first + b].to(torch.float32, copy=True)
        delta.add(x, slice(first + a, first + b))
        _kernel(x, draws).add(x.view(-1), draws, (first + a) * n)
        dst[a:b].copy_(x)


def update(slot: Slot, updates: Sequence[tuple[Update, int]]) -> None:
    """Take (update, step) pairs in order; the base is not touched."""
    for u, _ in updates:
        _of(slot).take(u.decay[slot.group], terms(slot, u))


def terms(slot: Slot, u: Update) -> tuple[Draw, ...]:
    """What an update adds to the slot; ValueError where it is no list of low rank."""
    from zolab.storage import draws

    found = {"a tensor"} if u.dense else {d.family for d, _ in u.terms} - {"low_rank"}
    found |= {"a floor"} if u.floor(slot.name) > -math.inf else set()
    if found:
        raise ValueError(
            f"a matrix that is only read takes updates along family=LowRank(...), and "
            f"{slot.name} was given {', '.join(sorted(found))}"
        )
    pairs = zip(u.terms, u.scales(slot.group), strict=True)
    return draws(slot, [(d, c) for (d, _), c in pairs if c])


def _of(slot: Slot) -> Delta:
    assert slot.delta is not None
    return slot.delta


def _chunks(count: int, n: int, device: torch.device) -> Iterator[tuple[int, int]]:
    step = max(1, (CHUNK if device.type == "cpu" else ON_GPU) // n)
    for a in range(0, count, step):
        yield a, min(a + step, count)


def _kernel(x: Tensor, draws: Sequence[Draw]):  # type: ignore[no-untyped-def]
    from zolab.storage import kernel

    fast = kernel(x.device, draws)
    return fast if hasattr(fast, "add") else plain
