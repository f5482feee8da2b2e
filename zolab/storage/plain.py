"""The reference kernels: plain torch ops on any device, in chunks.

Each is the definition that the numba and Triton kernels equal bit for bit. Products
and sums are separate ops: torch.add(alpha=) and addcmul fuse and differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zolab.noise import FAMILIES, elements, low_rank, rounded, uniform_bits
from zolab.subspace import subspace

if TYPE_CHECKING:
    from zolab.storage import Draw, Step

CHUNK = 1 << 20
KNOWN = (*FAMILIES, "coordinate", "low_rank", "subspace", "rounded")


def materialise(base: Tensor, draws: Sequence[Draw], out: Tensor, start: int) -> None:
    """out = cast(base[start:] + sum s z), elementwise, rounded to nearest."""
    src, dst = base.reshape(-1)[start : start + out.numel()], out.view(-1)
    for lo in range(0, dst.numel(), CHUNK):
        part = src[lo : lo + CHUNK]
        element = torch.arange(lo, lo + part.numel(), device=base.device) + start
        dst[lo : lo + CHUNK] = moved(part.float(), draws, element)


def rows(base: Tensor, draws: Sequence[Draw], index: Tensor, out: Tensor) -> None:
    """out[i] = cast(base[index[i]] + sum s z), for a matrix `base`."""
    columns = base.shape[1]
    element = index[:, None] * columns + torch.arange(columns, device=base.device)
    out.copy_(moved(base[index].float(), draws, element))


def update(base: Tensor, steps: Sequence[Step]) -> None:
    """base = round(decay * base + sum c z) for each step, in place."""
    flat = base.view(-1)
    for lo in range(0, flat.numel(), CHUNK):
        part = flat[lo : lo + CHUNK]
        element = torch.arange(lo, lo + part.numel(), device=base.device)
        for step in steps:
            w = part.float()
            if step.decay != 1.0:
                w = w * step.decay
            w = moved(w, step.draws, element)
            if step.rounding is None or base.dtype == torch.float32:
                part.copy_(w)
            else:
                bits = uniform_bits(step.rounding, element)
                part.copy_(stochastic_round(w, bits, base.dtype))


def moved(w: Tensor, draws: Sequence[Draw], element: Tensor) -> Tensor:
    """w + sum s z, the terms in order; a run of coordinates at once."""
    for coordinates, run in groupby(draws, lambda d: d.family == "coordinate"):
        if coordinates:
            w = _pushed(w, list(run), element)
            continue
        for d in run:
            w = w + d.scale * z(d, element)
    return w


def _pushed(w: Tensor, draws: Sequence[Draw], element: Tensor) -> Tensor:
    """w with a number added at each coordinate: thousands of them in one pass."""
    while draws:
        taken: dict[int, float] = {}
        for d in draws:  # the same coordinate a second time waits for another pass
            if d.stream[0] in taken:
                break
            taken[d.stream[0]] = d.scale
        draws = draws[len(taken) :]
        if len(taken) == 1:
            ((only, s),) = taken.items()
            w = torch.where(element == only, w + s, w)
            continue
        at, scale = torch.tensor(sorted(taken.items()), dtype=torch.float64).T
        at = at.long().to(element.device)
        place = torch.searchsorted(at, element).clamp_max(len(at) - 1)
        there = at[place] == element
        w = torch.where(there, w + scale.float().to(w.device)[place], w)
    return w


def z(d: Draw, element: Tensor) -> Tensor:
    """One direction at the int64 indices `element` of its slot, fp32."""
    if d.family == "coordinate":
        return (element == d.stream[0]).float()
    if d.family == "low_rank":
        return low_rank(d.stream, d.right, d.rank, element, d.columns)
    if d.family == "subspace":
        (key, slot), shape = d.stream, (d.rows, d.columns)
        return subspace(key, d.right[0], slot, shape, d.rank, element)
    if d.family == "rounded":
        return rounded(d.stream, d.right, d.rank, element)
    return elements(d.stream, element, d.family)


def add(x: Tensor, draws: Sequence[Draw], start: int) -> None:
    """x += sum s z, in place, for a flat fp32 piece that begins at element `start`."""
    element = torch.arange(start, start + len(x), device=x.device)
    x.copy_(moved(x, draws, element))


def bits(rounding: tuple[int, int], start: int, like: Tensor) -> Tensor:
    """16 uniform bits for each element of a flat piece that begins at `start`."""
    element = torch.arange(start, start + len(like), device=like.device)
    return uniform_bits(rounding, element)


def stochastic_round(w: Tensor, bits: Tensor, dtype: torch.dtype) -> Tensor:
    """w (fp32) to a neighbour in `dtype`, up with the probability that keeps the mean.

    Adds random bits below the last kept one and truncates. fp16 below 2^-14 has a
    fixed step, so there w is counted in steps instead. `bits` are 16 uniform ones.
    """
    if dtype == torch.bfloat16:
        up = (w.view(torch.int32) + bits.int()) & ~0xFFFF
        return torch.where(w.isfinite(), up.view(torch.float32), w).to(dtype)
    up = ((w.view(torch.int32) + (bits.int() >> 3)) & ~0x1FFF).view(torch.float32)
    steps = w.abs() * 2.0**24
    whole = steps.floor()
    tiny = (whole + (bits < (steps - whole) * 65536.0)) * 2.0**-24
    out = torch.where(w.abs() < 2.0**-14, tiny.copysign(w), up)
    return torch.where(w.isfinite(), out, w).to(dtype)
