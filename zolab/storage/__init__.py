"""Where stored values become what a forward pass sees, and take an update.

One mechanism, three kernels: `plain` (torch ops, any device, the reference), `cpu`
(numba) and `gpu` (Triton). All give the same bits; a family that a fast kernel does
not know goes through `plain`, and slots that move in part through `partial`.

    materialise   out = cast(decode(base) + sum s_k z_k)                 fp32, in order
    rows          the same for looked-up rows of a matrix
    update        base = round(decay * base + sum c_k z_k), once a step, in place
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from zolab.errors import SpaceError
from zolab.gradient import Direction, Term, Update, round16
from zolab.noise import FAMILIES, ROUNDING, direction, make_key, stream
from zolab.space import Slot
from zolab.storage import coded, delta, gather, partial, plain


@dataclass(frozen=True)
class Draw:
    """One term seen from one slot: its stream, its family and its scale.

    `right`, `rank` and `columns` are what "low_rank" and "subspace" need besides (and
    "rounded", whose `right` rounds and whose `rank` counts bits); of a
    "coordinate" `stream[0]` is the element, of a "subspace" stream and right are
    (key, slot id).
    """

    stream: tuple[int, int]
    family: str
    scale: float
    right: tuple[int, int] = (0, 0)
    rank: int = 0
    rows: int = 1
    columns: int = 1


@dataclass(frozen=True)
class Step:
    """One update seen from one slot; `rounding` is the stream of its random bits.

    `bend` is what a diagonal Hessian takes in first: its draw, with the size as scale.
    """

    decay: float
    draws: tuple[Draw, ...]
    rounding: tuple[int, int] | None
    bend: Draw | None = None


def draws(slot: Slot, terms: Sequence[Term]) -> tuple[Draw, ...]:
    """The terms as the slot sees them; those that are 0 in it are left out."""
    return tuple(_draw(slot, d, s) for d, s in terms if d.moves(slot.name))


def _draw(slot: Slot, d: Direction, s: float) -> Draw:
    if d.family in FAMILIES:
        return Draw(stream(d.key, slot.id), d.family, s)
    if d.family == "coordinate":
        return Draw((d.key, 0), d.family, s)
    if d.family == "rounded":
        chance = stream(make_key(d.key, d.right), slot.id)
        return Draw(stream(d.key, slot.id), d.family, s, chance, d.rank)
    m, n = slot.matrix
    if d.family == "low_rank":  # a sum of `rank` signs has variance `rank`
        k, right = stream(d.key, slot.id), stream(d.right, slot.id)
        unit = round16(s / math.sqrt(d.rank))
        return Draw(k, d.family, unit, right, d.rank, columns=n)
    if d.family == "subspace":
        if min(m, n) <= d.rank:
            return Draw(stream(d.key, slot.id), "near_normal", s)
        return Draw((d.key, slot.id), d.family, s, (d.right, slot.id), d.rank, m, n)
    raise ValueError(f"unknown family {d.family!r}")


def draw_all(slot: Slot, d: Direction) -> Tensor:
    """z in the whole slot, fp32, on its device: for teaching and for tests."""
    device = slot.base.device
    if d.family in FAMILIES and d.moves(slot.name):
        return direction(d.key, slot.id, slot.shape, family=d.family, device=device)
    zeros = torch.zeros(slot.shape, device=device)
    plain.materialise(zeros, draws(slot, [(d, 1.0)]), zeros, 0)
    return zeros


def materialise(
    slot: Slot,
    terms: Sequence[Term],
    out: Tensor,
    *,
    start: int = 0,
    scale: Tensor | None = None,
) -> Tensor:
    """Fill contiguous `out` with the slot's elements from `start`, moved by `terms`.

    `out` is fp32, or of the storage type (then rounded to nearest, once). `scale`
    stands for a packed weight's scales in these elements' groups, where they move.
    """
    moves = draws(slot, terms)
    if slot.delta is not None:
        delta.materialise(slot, moves, out, start)
    elif slot.packed is not None:
        coded.materialise(slot.packed, moves, out, start, scale)
    elif slot.mask is None and slot.curvature is None:
        kernel(out.device, moves).materialise(slot.base, moves, out, start)
    else:
        partial.materialise(slot, moves, out, start)
    return out


def tangent(slot: Slot, terms: Sequence[Term]) -> Tensor:
    """sum s z in the whole slot, fp32: what `materialise` adds to the base."""
    out = torch.zeros(slot.shape, device=slot.base.device)
    if slot.mask is None and slot.curvature is None:
        moves = draws(slot, terms)
        kernel(out.device, moves).materialise(out, moves, out, 0)
    else:
        partial.tangent(slot, draws(slot, terms), out)
    return out


def rows(
    slot: Slot,
    terms: Sequence[Term],
    index: Tensor,
    out: Tensor,
    *,
    scale: Tensor | None = None,
) -> Tensor:
    """Fill `out` (n, columns) with rows `index` (n,) of a matrix, moved by `terms`.

    `scale` stands for the scales of a packed weight's looked-up rows.
    """
    moves = draws(slot, terms)
    if slot.delta is not None:
        gather.rows(slot, moves, index, out)
    elif slot.packed is not None:
        coded.rows(slot.packed, moves, index, out, scale)
    elif slot.mask is None and slot.curvature is None:
        kernel(out.device, moves).rows(slot.base, moves, index, out)
    else:
        partial.rows(slot, moves, index, out)
    return out


def update(
    slot: Slot, updates: Sequence[tuple[Update, int]], *, seed: int, stochastic: bool
) -> None:
    """Apply (update, step) pairs in order, in place, rounding once a step.

    bf16 and fp16 round stochastically with bits keyed by (seed, step, slot), or to
    nearest when `stochastic` is false.
    """
    if slot.delta is not None:
        delta.update(slot, updates)
        return
    low = max((u.floor(slot.name) for u, _ in updates), default=-math.inf)
    if low > -math.inf:  # each step ends at the floor
        for u, step in updates:
            _update(slot, [(u, step)], seed, stochastic)
            slot.base.clamp_(min=low)
    else:
        _update(slot, updates, seed, stochastic)


def _update(
    slot: Slot, updates: Sequence[tuple[Update, int]], seed: int, stochastic: bool
) -> None:
    if any(u.dense for u, _ in updates):
        if slot.packed is not None:
            raise SpaceError(
                f"{slot.name} is packed in {slot.packed.codec.name}: a dense rule "
                "would need its values. Use the rule itself, which moves along keys."
            )
        from zolab.storage import dense

        dense.update(slot, updates, seed=seed, stochastic=stochastic)
        return
    steps = []
    for u, step in updates:
        g = slot.group
        pairs = zip(u.terms, u.scales(g), strict=True)
        moved = tuple((d, c) for (d, _), c in pairs if c)  # -0.0 + 0 z would be +0.0
        bits = stream(make_key(seed, step, ROUNDING), slot.id) if stochastic else None
        bend = draws(slot, [u.curvature])[0] if u.curvature and slot.curvature else None
        steps.append(Step(u.decay[g], draws(slot, moved), bits, bend))
    base = slot.base
    if slot.packed is not None:
        coded.update(slot.packed, steps)
    elif slot.mask is None and slot.curvature is None:
        kernel(base.device, [d for s in steps for d in s.draws]).update(base, steps)
    else:
        partial.update(slot, steps)


def kernel(device: torch.device, moves: Sequence[Draw] = ()) -> ModuleType:
    """The fastest kernels this machine has for `device` that know the draws' families.

    Loaded when first asked. ZOLAB_KERNELS=plain forces the reference everywhere.
    """
    if os.environ.get("ZOLAB_KERNELS") == "plain":
        return plain
    fast = _load(device.type)
    return fast if all(d.family in fast.KNOWN for d in moves) else plain


@functools.cache
def _load(kind: str) -> ModuleType:
    try:
        if kind == "cpu":
            from zolab.storage import cpu

            return cpu
        if kind == "cuda":
            from zolab.storage import gpu

            return gpu
    except ImportError:  # no numba, no Triton: a GPU server, macOS, Windows
        pass
    return plain
