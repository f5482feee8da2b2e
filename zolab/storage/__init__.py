"""Where stored values become what a forward pass sees, and take an update.

One mechanism, three kernels: `plain` (torch ops, any device, the reference), `cpu`
(numba) and `gpu` (Triton). All give the same bits.

    materialise   out = cast(decode(base) + sum s_k z_k)                 fp32, in order
    rows          the same for looked-up rows of a matrix
    update        base = round(decay * base + sum c_k z_k), once a step, in place
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from zolab.gradient import Term, Update
from zolab.noise import ROUNDING, make_key, stream
from zolab.space import Slot
from zolab.storage import plain


@dataclass(frozen=True)
class Draw:
    """One term seen from one slot: its stream, its family and its scale."""

    stream: tuple[int, int]
    family: str
    scale: float


@dataclass(frozen=True)
class Step:
    """One update seen from one slot; `rounding` is the stream of its random bits."""

    decay: float
    draws: tuple[Draw, ...]
    rounding: tuple[int, int] | None


def draws(slot: Slot, terms: Sequence[Term]) -> tuple[Draw, ...]:
    """The terms as the slot sees them."""
    return tuple(Draw(stream(d.key, slot.id), d.family, s) for d, s in terms)


def materialise(
    slot: Slot, terms: Sequence[Term], out: Tensor, *, start: int = 0
) -> Tensor:
    """Fill contiguous `out` with the slot's elements from `start`, moved by `terms`.

    `out` is fp32, or of the storage type (then rounded to nearest, once).
    """
    kernel(out.device).materialise(slot.base, draws(slot, terms), out, start)
    return out


def rows(slot: Slot, terms: Sequence[Term], index: Tensor, out: Tensor) -> Tensor:
    """Fill `out` (n, columns) with rows `index` (n,) of a matrix, moved by `terms`."""
    kernel(out.device).rows(slot.base, draws(slot, terms), index, out)
    return out


def update(
    slot: Slot, updates: Sequence[tuple[Update, int]], *, seed: int, stochastic: bool
) -> None:
    """Apply (update, step) pairs in order, in place, rounding once a step.

    bf16 and fp16 round stochastically with bits keyed by (seed, step, slot), or to
    nearest when `stochastic` is false.
    """
    steps = []
    for u, step in updates:
        g = slot.group
        pairs = zip(u.terms, u.scales(g), strict=True)
        moved = tuple((d, c) for (d, _), c in pairs if c)  # -0.0 + 0 z would be +0.0
        bits = stream(make_key(seed, step, ROUNDING), slot.id) if stochastic else None
        steps.append(Step(u.decay[g], draws(slot, moved), bits))
    base = slot.base
    kernel(base.device).update(base, steps)


def kernel(device: torch.device) -> ModuleType:
    """The fastest kernels this machine has for `device`, loaded when first asked.

    ZOLAB_KERNELS=plain forces the reference everywhere.
    """
    if os.environ.get("ZOLAB_KERNELS") == "plain":
        return plain
    return _load(device.type)


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
