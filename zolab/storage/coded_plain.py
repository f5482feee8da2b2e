"""The reference kernels for packed weights: plain torch ops on any device, in chunks.

Each is the definition that the numba and Triton kernels equal bit for bit. `scale` and
`zero` are fp32: those of the first element's group and on, or of the looked-up rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zolab.noise import uniform32
from zolab.storage import plain
from zolab.storage.packed import Packed, pack_bits, unpack_at, where

if TYPE_CHECKING:
    from zolab.storage import Draw, Step

CHUNK = 1 << 16
FAR = 1024.0  # levels: farther than from one end of any table to the other


def materialise(
    packed: Packed,
    draws: Sequence[Draw],
    out: Tensor,
    start: int,
    scale: Tensor,
    zero: Tensor | None,
) -> None:
    """out = cast(scale (table[code] - zero) + sum s z), from element `start`."""
    flat, first = out.view(-1), packed.span(start, 1)[0]
    for lo in range(0, len(flat), CHUNK):
        hi = min(lo + CHUNK, len(flat))
        element = torch.arange(start + lo, start + hi, device=out.device)
        place = where(element, *packed.codec.layout(packed.shape)[1:]) - first
        z = None if zero is None else zero[place]
        flat[lo:hi] = _values(packed, draws, element, scale[place], z)


def rows(
    packed: Packed,
    draws: Sequence[Draw],
    index: Tensor,
    out: Tensor,
    scale: Tensor,
    zero: Tensor | None,
) -> None:
    """The same for rows `index` (n,); `scale` and `zero` are (n, groups a row)."""
    column = torch.arange(packed.shape[1], device=index.device)
    element = index[:, None] * len(column) + column
    group = column // packed.codec.layout(packed.shape)[2]
    z = None if zero is None else zero[:, group]
    out.copy_(_values(packed, draws, element, scale[:, group], z))


def update(
    packed: Packed, steps: Sequence[Step], scale: Tensor, zero: Tensor | None
) -> None:
    """code <- code + round(step in levels), kept on the table, step after step."""
    bits, n = packed.codec.bits, packed.shape.numel()
    table = packed.codec.levels(packed.codes.device)
    to = _rounded if packed.codec.step else _walked
    for lo in range(0, n, CHUNK):
        hi = min(lo + CHUNK, n)
        element = torch.arange(lo, hi, device=packed.codes.device)
        place = where(element, *packed.codec.layout(packed.shape)[1:])
        s, z = scale[place], 0.0 if zero is None else zero[place]
        code = unpack_at(packed.codes, element, bits)
        for step in steps:
            if packed.snap:
                code = _on(table, code + _whole(step.draws, element, s))
            else:
                delta = _delta(step, table[code] - z, element, s)
                code = to(table, code, delta, step, element)
        dense = pack_bits(code.to(torch.uint8), bits)
        packed.codes[lo * bits // 8 : -(-hi * bits // 8)] = dense


def _values(
    packed: Packed, draws: Sequence[Draw], element: Tensor, s: Tensor, z: Tensor | None
) -> Tensor:
    """s (table[code] - z), moved: its values, or with `snap` its codes."""
    table = packed.codec.levels(element.device)
    code = unpack_at(packed.codes, element, packed.codec.bits)
    if packed.snap:
        code = _on(table, code + _whole(draws, element, s))
    level = table[code] if z is None else table[code] - z
    return s * level if packed.snap else plain.moved(s * level, draws, element)


def _delta(step: Step, level: Tensor, element: Tensor, s: Tensor) -> Tensor:
    """How many levels a step goes, fp32."""
    delta = torch.zeros_like(s) if step.decay == 1.0 else (step.decay - 1.0) * level
    for d in step.draws:
        delta = delta + d.scale * plain.z(d, element) / s
    return torch.where(s == 0, 0.0, delta)


def _rounded(
    table: Tensor, code: Tensor, delta: Tensor, step: Step, element: Tensor
) -> Tensor:
    """Where levels are 1 apart: the whole ones, and the rest by chance."""
    size = delta.abs().clamp(max=FAR)
    whole = size.floor()
    count = whole.long() + _up(size - whole, step, element)
    return _on(table, code + delta.sign().long() * count)


def _walked(
    table: Tensor, code: Tensor, delta: Tensor, step: Step, element: Tensor
) -> Tensor:
    """On an uneven table: whole cells one by one, and the last one by chance."""
    by, size = delta.sign().long(), delta.abs().clamp(max=FAR)
    while True:
        after = _on(table, code + by)
        cell = (table[after] - table[code]).abs()  # 0 at the table's end
        over = (size >= cell) & (cell > 0)
        if not bool(over.any()):
            break
        size = torch.where(over, size - cell, size)
        code = torch.where(over, after, code)
    share = torch.where(cell > 0, size / cell, 0.0)
    return torch.where(_up(share, step, element).bool(), after, code)


def _up(share: Tensor, step: Step, element: Tensor) -> Tensor:
    """1 with probability `share` (by the step's bits), or to nearest without bits."""
    if step.rounding is None:
        return (share >= 0.5).long()
    return (uniform32(step.rounding, element) < (share * 2.0**32).long()).long()


def _whole(draws: Sequence[Draw], element: Tensor, s: Tensor) -> Tensor:
    """How many levels each code goes, int64: at least one a draw."""
    total = torch.zeros_like(element)
    for d in draws:
        count = (abs(d.scale) / s).floor().clamp(1, FAR).long()
        total = total + (count if d.scale > 0 else -count) * plain.z(d, element).long()
    return torch.where(s == 0, 0, total)


def _on(table: Tensor, code: Tensor) -> Tensor:
    """The code, or the end of the table beyond which it lies."""
    return code.clamp(0, len(table) - 1)
