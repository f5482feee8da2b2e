"""Slots that move only in part: under a mask, or divided by the root of a Hessian.

    w -> w + (sum s z) / sqrt(H)         where the mask chooses w, else w as it is

Both are asked of the stored weights, chunk by chunk, in the order in which the step's
probes and its update ask them: the mask of a probe is the mask of its update. H is
what the last step left; an update takes the new curvature in before it moves.

    H <- (1 - smooth) H + c H z * z

The sums of z are the fast kernels', the rest is torch on a chunk in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zolab.storage import plain

if TYPE_CHECKING:
    from zolab.space import Slot
    from zolab.storage import Draw, Step

CHUNK = 1 << 18


def materialise(slot: Slot, draws: Sequence[Draw], out: Tensor, start: int) -> None:
    """out = cast(the slot's elements from `start`, moved in part)."""
    src, dst = slot.base.view(-1)[start : start + out.numel()], out.view(-1)
    for lo in range(0, dst.numel(), CHUNK):
        part = src[lo : lo + CHUNK]
        dst[lo : lo + CHUNK] = _moved(slot, part.float(), draws, start + lo)


def tangent(slot: Slot, draws: Sequence[Draw], out: Tensor) -> None:
    """out = what a probe of these draws adds to the whole slot, fp32."""
    flat, base = out.view(-1), slot.base.view(-1)
    for lo in range(0, len(flat), CHUNK):
        w = base[lo : lo + CHUNK].float()
        push = _push(slot, w, draws, lo)
        element = torch.arange(lo, lo + len(w), device=w.device)
        flat[lo : lo + CHUNK] = push * _chosen(slot, w, element)


def rows(slot: Slot, draws: Sequence[Draw], index: Tensor, out: Tensor) -> None:
    """out[i] = row index[i] of a matrix, moved in part."""
    columns = slot.shape[1]
    element = index[:, None] * columns + torch.arange(columns, device=out.device)
    w = slot.base[index].float()
    if slot.curvature is None:
        x = plain.moved(w, draws, element)
    else:
        push = plain.moved(torch.zeros_like(w), draws, element)
        x = w + push * (1 / slot.curvature.hessian[index].sqrt())
    out.copy_(torch.where(_chosen(slot, w, element), x, w))


def update(slot: Slot, steps: Sequence[Step]) -> None:
    """base = round(decay * base + what moves) for each step, in place."""
    flat = slot.base.view(-1)
    for lo in range(0, flat.numel(), CHUNK):
        part = flat[lo : lo + CHUNK]
        element = torch.arange(lo, lo + part.numel(), device=part.device)
        for step in steps:
            if step.bend is not None:
                _bend(slot, step.bend, element)
            w = part.float()
            x = _moved(slot, w, step.draws, lo, step.decay)
            if step.rounding is not None and part.dtype != torch.float32:
                bits = plain.uniform_bits(step.rounding, element)
                x = plain.stochastic_round(x, bits, part.dtype)
            part.copy_(x)


def _moved(
    slot: Slot, w: Tensor, draws: Sequence[Draw], start: int, decay: float = 1.0
) -> Tensor:
    x = w if decay == 1.0 else w * decay
    if slot.curvature is None:
        x = x.clone()
        _kernel(x, draws).add(x, draws, start)
    else:
        x = x + _push(slot, w, draws, start)
    if slot.mask is None:
        return x
    element = torch.arange(start, start + len(w), device=w.device)
    return torch.where(_chosen(slot, w, element), x, w)


def _push(slot: Slot, w: Tensor, draws: Sequence[Draw], start: int) -> Tensor:
    """sum s z, over sqrt(H) where there is one."""
    push = torch.zeros_like(w)
    _kernel(w, draws).add(push, draws, start)
    if slot.curvature is None:
        return push
    h = slot.curvature.hessian.view(-1)[start : start + len(w)]
    return push * (1 / h.sqrt())


def _chosen(slot: Slot, w: Tensor, element: Tensor) -> Tensor:
    if slot.mask is None:
        return torch.ones_like(w, dtype=torch.bool)
    return slot.mask.chosen(w, slot.id, element)


def _bend(slot: Slot, bend: Draw, element: Tensor) -> None:
    assert slot.curvature is not None
    h = slot.curvature.hessian.view(-1)[int(element[0]) : int(element[-1]) + 1]
    z = plain.z(bend, element)
    h.copy_((1 - slot.curvature.smooth) * h + bend.scale * (h * (z * z)))


def _kernel(x: Tensor, draws: Sequence[Draw]):  # type: ignore[no-untyped-def]
    from zolab.storage import kernel

    fast = kernel(x.device, draws)
    return fast if hasattr(fast, "add") else plain
