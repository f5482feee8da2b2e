"""Slots that move only in part: under a mask, or divided by the root of a Hessian.

    w -> w + (sum s z) / sqrt(H)         where the mask chooses w, else w as it is

Both are asked of the stored weights, chunk by chunk, in the order in which the step's
probes and its update ask them: the mask of a probe is the mask of its update. H is
what the last step left; an update takes the new curvature in before it moves.

    H <- (1 - smooth) H + c H z * z

The sums of z and the masks are the fast kernels' on a chunk in the cache, H is torch's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zolab.storage import plain

if TYPE_CHECKING:
    from zolab.space import Slot
    from zolab.storage import Draw, Step

CHUNK = 1 << 16  # fp32 elements: 256 kB, and as much for the values before


def materialise(slot: Slot, draws: Sequence[Draw], out: Tensor, start: int) -> None:
    """out = cast(the slot's elements from `start`, moved in part)."""
    src, dst = slot.base.view(-1)[start : start + out.numel()], out.view(-1)

    def work(lo: int, hi: int) -> None:
        for a in range(lo, hi, CHUNK):
            w, to = src[a : min(a + CHUNK, hi)].float(), dst[a : min(a + CHUNK, hi)]
            x = to if to.dtype == torch.float32 else torch.empty_like(w)
            _move(slot, x.copy_(w), w, draws, start + a)
            if x is not to:
                to.copy_(x)

    _split(dst, start, work)


def tangent(slot: Slot, draws: Sequence[Draw], out: Tensor) -> None:
    """out = what a probe of these draws adds to the whole slot, fp32."""
    flat, base = out.view(-1), slot.base.view(-1)
    for lo in range(0, len(flat), CHUNK):
        w = base[lo : lo + CHUNK].float()
        flat[lo : lo + CHUNK] = _push(slot, w, draws, lo) * _chosen(slot, w, lo)


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
    chosen = True if slot.mask is None else slot.mask.chosen(w, slot.id, element)
    out.copy_(torch.where(torch.as_tensor(chosen, device=w.device), x, w))


def update(slot: Slot, steps: Sequence[Step]) -> None:
    """base = round(decay * base + what moves) for each step, in place."""
    flat = slot.base.view(-1)

    def work(lo: int, hi: int) -> None:
        for a in range(lo, hi, CHUNK):
            part = flat[a : min(a + CHUNK, hi)]
            for step in steps:
                if step.bend is not None:
                    _bend(slot, step.bend, a, len(part))
                w = part.float()
                x = w * step.decay if step.decay != 1.0 else w.clone()
                _move(slot, x, w, step.draws, a)
                if step.rounding is not None and part.dtype != torch.float32:
                    bits = _kernel(x, ()).bits(step.rounding, a, x)
                    x = plain.stochastic_round(x, bits, part.dtype)
                part.copy_(x)

    _split(flat, 0, work)


def _move(slot: Slot, x: Tensor, w: Tensor, draws: Sequence[Draw], start: int) -> None:
    """x = x + sum s z [/ sqrt(H)] where the mask chooses w, else w; in place."""
    if draws and slot.curvature is not None:
        x += _push(slot, w, draws, start)
    elif draws:
        _kernel(x, draws).add(x, draws, start)
    if slot.mask is None:
        return
    if _kernel(x, ()) is plain or x.device.type != "cpu":
        x.copy_(torch.where(_chosen(slot, w, start), x, w))
    else:
        from zolab.storage.select import put_back

        put_back(x, w, slot.mask, slot.id, start)


def _push(slot: Slot, w: Tensor, draws: Sequence[Draw], start: int) -> Tensor:
    """sum s z, over sqrt(H) where there is one."""
    push = torch.zeros_like(w)
    _kernel(w, draws).add(push, draws, start)
    if slot.curvature is None:
        return push
    h = slot.curvature.hessian.view(-1)[start : start + len(w)]
    return push * (1 / h.sqrt())


def _chosen(slot: Slot, w: Tensor, start: int) -> Tensor:
    """Bools of a flat piece that begins at element `start`."""
    if slot.mask is None:
        return torch.ones_like(w, dtype=torch.bool)
    element = torch.arange(start, start + len(w), device=w.device)
    return slot.mask.chosen(w, slot.id, element)


def _bend(slot: Slot, bend: Draw, start: int, count: int) -> None:
    assert slot.curvature is not None
    h = slot.curvature.hessian.view(-1)[start : start + count]
    z = plain.z(bend, torch.arange(start, start + count, device=h.device))
    h.copy_((1 - slot.curvature.smooth) * h + bend.scale * (h * (z * z)))


def _split(flat: Tensor, start: int, work: Callable[[int, int], None]) -> None:
    """work(lo, hi) over all elements, on all threads where the kernels have them."""
    fast = _kernel(flat, ())
    if flat.device.type == "cpu" and fast is not plain:
        fast.split(flat.numel(), start, work)
    else:
        work(0, flat.numel())


def _kernel(x: Tensor, draws: Sequence[Draw]) -> Any:
    from zolab.storage import kernel

    fast = kernel(x.device, draws)
    return fast if hasattr(fast, "add") else plain
