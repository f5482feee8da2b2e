"""The kernels for packed weights: decode and move, look up rows, step on the grid.

    materialise   out = cast(scale (table[code] - zero) + sum s z)
    rows          the same for looked-up rows of a matrix
    update        code <- code + round(((decay - 1) (table[code] - zero) scale
                                        + sum c z) / scale),        kept on the table

A chunk is decoded into the cache and moved there, so codes are read once. An update
stays in units of levels: what does not move keeps its code exactly, and a step of a
millionth of a level is rounded up with probability one in a million (32 random bits).
On a table whose levels are not equally far apart the rounding is between neighbours.

With `snap` (ZOQO) a move is sign(c) z levels, max(floor(|c| / scale), 1) of them.
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

CHUNK = 1 << 15  # fp32 elements: 128 kB stay in the L2 cache


def materialise(
    packed: Packed,
    draws: Sequence[Draw],
    out: Tensor,
    start: int,
    scale: Tensor | None = None,
) -> None:
    """out = cast(elements from `start`, moved); `scale` replaces the stored scales."""
    flat, scales = out.view(-1), packed.scales(scale)
    fast = _fast(out, draws)

    def work(lo: int, hi: int) -> None:
        whole = flat.dtype == torch.float32
        x = flat if whole else torch.empty(min(CHUNK, hi - lo), device=flat.device)
        for a in range(lo, hi, CHUNK):
            b = min(a + CHUNK, hi)
            part = flat[a:b] if whole else x[: b - a]
            if packed.snap and draws:
                element = torch.arange(start + a, start + b, device=flat.device)
                part.copy_(_snapped(packed, draws, element, scales))
            else:
                _decode(packed, scales, part, start + a)
                if draws:
                    fast.add(part, draws, start + a)
            if not whole:
                flat[a:b] = part

    _split(flat, start, work)


def rows(
    packed: Packed,
    draws: Sequence[Draw],
    index: Tensor,
    out: Tensor,
    scale: Tensor | None = None,
) -> None:
    """out[i] = row index[i]; `scale` are these rows' scales, (n, groups a row)."""
    columns = packed.shape[1]
    element = index[:, None] * columns + torch.arange(columns, device=index.device)
    if packed.snap and draws:
        out.copy_(_snapped(packed, draws, element, packed.scales()))
        return
    level = _levels(packed, element)
    if scale is None:
        own = packed.scales().reshape(-1)[
            where(element, *packed.codec.layout(packed.shape)[1:])
        ]
    else:
        unit = 1.0 if packed.unit is None else packed.unit[index].float()
        group = packed.codec.layout(packed.shape)[2]
        own = (scale * unit).repeat_interleave(group, 1)[:, :columns]
    out.copy_(plain.moved(own * level, draws, element))


def update(packed: Packed, steps: Sequence[Step]) -> None:
    """Move the codes, step after step, in place."""
    n, scales = packed.shape.numel(), packed.scales().reshape(-1)
    table = packed.codec.levels(packed.codes.device)

    def work(lo: int, hi: int) -> None:
        each = 8 // packed.codec.bits
        for a in range(lo, hi, CHUNK):
            b = min(a + CHUNK, hi)
            element = torch.arange(a, b, device=packed.codes.device)
            place = where(element, *packed.codec.layout(packed.shape)[1:])
            code, s = unpack_at(packed.codes, element, packed.codec.bits), scales[place]
            for step in steps:
                code = _stepped(packed, step, code, element, place, s, table)
            packed.codes[a // each : -(-b // each)] = pack_bits(
                code.to(torch.uint8), packed.codec.bits
            )

    _split(packed.codes.new_empty(n), 0, work)


def _stepped(
    packed: Packed,
    step: Step,
    code: Tensor,
    element: Tensor,
    place: Tensor,
    s: Tensor,
    table: Tensor,
) -> Tensor:
    """The codes after one step."""
    top = len(table) - 1
    if packed.snap:
        return (code + _whole(step.draws, element, s)).clamp(0, top)
    if step.decay == 1.0:
        delta = torch.zeros_like(s)
    else:
        level = table[code]
        if packed.zero is not None:
            level = level - packed.zero.reshape(-1)[place]
        delta = (step.decay - 1.0) * level
    for d in step.draws:
        delta = delta + d.scale * plain.z(d, element) / s
    size = delta.abs()
    if packed.codec.step is None:
        return _walk(code, delta.sign().long(), size, step, element, table)
    whole = size.floor()
    up = _up(size - whole, step, element)
    return (code + delta.sign().long() * (whole.long() + up)).clamp(0, top)


def _walk(
    code: Tensor, sign: Tensor, size: Tensor, step: Step, element: Tensor, table: Tensor
) -> Tensor:
    """Whole cells of an uneven table one by one, and the last one by chance."""
    top = len(table) - 1
    for _ in range(top):
        after = (code + sign).clamp(0, top)
        cell = (table[after] - table[code]).abs()
        over = (size >= cell) & (cell > 0)
        if not bool(over.any()):
            break
        size = torch.where(over, size - cell, size)
        code = torch.where(over, after, code)
    after = (code + sign).clamp(0, top)
    cell = (table[after] - table[code]).abs()
    share = torch.where(cell > 0, size / cell, 0.0).clamp(max=1.0)
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
        count = (abs(d.scale) / s).floor().clamp(min=1).long()
        total = total + (count if d.scale > 0 else -count) * plain.z(d, element).long()
    return total


def _snapped(
    packed: Packed, draws: Sequence[Draw], element: Tensor, scales: Tensor
) -> Tensor:
    """Values of the codes after a move by whole levels."""
    place = where(element, *packed.codec.layout(packed.shape)[1:])
    s, table = scales.reshape(-1)[place], packed.codec.levels(element.device)
    code = unpack_at(packed.codes, element, packed.codec.bits)
    level = table[(code + _whole(draws, element, s)).clamp(0, len(table) - 1)]
    return s * (
        level if packed.zero is None else level - packed.zero.reshape(-1)[place]
    )


def _levels(packed: Packed, element: Tensor) -> Tensor:
    """table[code] - zero at these elements, fp32."""
    table = packed.codec.levels(element.device)
    level = table[unpack_at(packed.codes, element, packed.codec.bits)]
    if packed.zero is None:
        return level
    return (
        level
        - packed.zero.reshape(-1)[
            where(element, *packed.codec.layout(packed.shape)[1:])
        ]
    )


def _decode(packed: Packed, scales: Tensor, out: Tensor, start: int) -> None:
    """out (flat fp32) = scale (table[code] - zero), from element `start`."""
    from zolab.storage import kernel

    fast = kernel(out.device)
    if fast is not plain and out.device.type == "cpu":
        from zolab.storage import decode

        decode.decode(packed, scales, out, start)
        return
    element = torch.arange(start, start + len(out), device=out.device)
    place = where(element, *packed.codec.layout(packed.shape)[1:])
    out.copy_(scales.reshape(-1)[place] * _levels(packed, element))


def _fast(out: Tensor, draws: Sequence[Draw]):  # type: ignore[no-untyped-def]
    from zolab.storage import kernel

    fast = kernel(out.device, draws)
    return fast if hasattr(fast, "add") else plain


def _split(flat: Tensor, start: int, work) -> None:  # type: ignore[no-untyped-def]
    from zolab.storage import partial

    partial._split(flat, start, work)
