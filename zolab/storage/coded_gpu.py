"""The kernels for packed weights on CUDA, in Triton: the bits of `coded_plain`.

A code is decoded and moved in registers: a byte of codes comes in, values go out. The
tensor's columns and group size are known at compile time, so that to find an element's
scale takes products instead of divisions of 64 bits. An update works on bytes, code by
code, and has all its steps inside.

Tested as `gpu` is: bits through Triton's interpreter, speed not measured yet.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl
from torch import Tensor

from zolab.storage import coded_plain, gpu
from zolab.storage.gpu import EXACT, ROWS, _encode, _float, _hash, _moved, _place, _term
from zolab.storage.packed import Packed

if TYPE_CHECKING:
    from zolab.storage import Draw, Step

FAR = tl.constexpr(coded_plain.FAR)


def materialise(
    packed: Packed,
    draws: Sequence[Draw],
    out: Tensor,
    start: int,
    scale: Tensor,
    zero: Tensor | None,
) -> None:
    """out = cast(scale (table[code] - zero) + sum s z): see `coded_plain`."""
    n, first = out.numel(), packed.span(start, 1)[0]
    given, kind = _grid(packed, scale, zero)
    words, family = gpu._pack(draws, out.device)
    snap = packed.snap and len(draws) > 0
    size = (n, start, first, len(draws), len(packed.codec.table) - 1)
    with gpu._on(out):
        _materialise[(gpu._blocks(n),)](
            out, *given, words, *size, **kind, SNAP=snap, FAMILY=family, **EXACT
        )


def rows(
    packed: Packed,
    draws: Sequence[Draw],
    index: Tensor,
    out: Tensor,
    scale: Tensor,
    zero: Tensor | None,
) -> None:
    """The same for looked-up rows: see `coded_plain.rows`."""
    columns = packed.shape[1]
    given, kind = _grid(packed, scale, zero)
    kind |= {"COLUMNS": columns}
    words, family = gpu._pack(draws, out.device)
    snap = packed.snap and len(draws) > 0
    size = (len(draws), len(packed.codec.table) - 1)
    index = index.long().contiguous()
    with gpu._on(out):
        _rows[(index.numel(), gpu._blocks(columns))](
            out, index, *given, words, *size, **kind, SNAP=snap, FAMILY=family, **EXACT
        )


def update(
    packed: Packed, steps: Sequence[Step], scale: Tensor, zero: Tensor | None
) -> None:
    """code <- code + round(step in levels): see `coded_plain.update`."""
    table, begin = [], 0
    for s in steps:
        end = begin + len(s.draws)
        k, k2 = s.rounding or (0, 0)
        table += [begin, end, gpu._bits(s.decay - 1.0), k, k2, s.rounding is not None]
        begin = end
    device, n = packed.codes.device, packed.shape.numel()
    given, kind = _grid(packed, scale, zero)
    words, family = gpu._pack([d for s in steps for d in s.draws], device)
    there = gpu._send(table, device)
    size = (n, len(steps), len(packed.codec.table) - 1)
    even = packed.codec.step is not None
    with gpu._on(packed.codes):
        _update[(gpu._blocks(n),)](
            *given, words, there, *size, **kind, EVEN=even, SNAP=packed.snap,
            FAMILY=family, **EXACT,
        )  # fmt: skip


def _grid(
    packed: Packed, scale: Tensor, zero: Tensor | None
) -> tuple[list[Tensor], dict[str, Any]]:
    """codes, scale, zero, table; and what is known at compile time."""
    _, columns, group = packed.codec.layout(packed.shape)
    scale = scale.contiguous()
    given = [packed.codes, scale, scale if zero is None else zero.contiguous()]
    given += [packed.codec.levels(packed.codes.device)]
    kind = {"COLUMNS": columns, "GROUP": group, "BITS": packed.codec.bits}
    return given, kind | {"ZERO": zero is not None, "R": ROWS}


@triton.jit
def _group(element, COLUMNS: tl.constexpr, GROUP: tl.constexpr):
    """The group of an element of the row-major matrix."""
    each: tl.constexpr = (COLUMNS + GROUP - 1) // GROUP
    return element // COLUMNS * each + element % COLUMNS // GROUP


@triton.jit
def _code(codes, element, there, BITS: tl.constexpr):
    bit = element * BITS
    byte = tl.load(codes + (bit >> 3).to(tl.int64), mask=there, other=0).to(tl.int32)
    return (byte >> (bit & 7).to(tl.int32)) & ((1 << BITS) - 1)


@triton.jit
def _on(code, top):
    return tl.minimum(tl.maximum(code, 0), top)


@triton.jit
def _whole(words, begin, end, row, element, s, FAMILY: tl.constexpr):
    """How many levels each code goes: at least one a term, none where s is 0."""
    total = tl.zeros_like(s)
    for t in range(begin, end):
        c, z = _term(words, t, row, element, FAMILY)
        count = tl.maximum(tl.minimum(tl.floor(tl.div_rn(tl.abs(c), s)), FAR), 1.0)
        total += tl.where(c > 0, count, -count) * z.to(tl.int32).to(tl.float32)
    return tl.where(s == 0, 0.0, total).to(tl.int32)


@triton.jit
def _values(
    codes, scale, zero, table, words, terms, top, row, element, place, there,
    BITS: tl.constexpr, ZERO: tl.constexpr, SNAP: tl.constexpr, FAMILY: tl.constexpr,
):  # fmt: skip
    """s (table[code] - zero), moved: its values, or with `snap` its codes."""
    code = _code(codes, element, there, BITS)
    s = tl.load(scale + place, mask=there, other=0)
    if SNAP:
        code += _whole(words, 0, terms, row, element, s, FAMILY)
    level = tl.load(table + _on(code, top))
    if ZERO:
        level = level - tl.load(zero + place, mask=there, other=0)
    w = s * level
    if not SNAP:
        w = _moved(w, row, element, words, 0, terms, FAMILY)
    return w


@triton.jit
def _materialise(
    out, codes, scale, zero, table, words, n, start, first, terms, top,
    COLUMNS: tl.constexpr, GROUP: tl.constexpr, BITS: tl.constexpr, ZERO: tl.constexpr,
    SNAP: tl.constexpr, FAMILY: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    row, element, offset, there = _place(
        tl.cast(start, tl.int64), n, tl.program_id(0), R
    )
    place = _group(element, COLUMNS, GROUP).to(tl.int64) - first
    w = _values(
        codes, scale, zero, table, words, terms, top, row, element, place, there,
        BITS, ZERO, SNAP, FAMILY,
    )  # fmt: skip
    tl.store(out + offset, _encode(w, out.dtype.element_ty), mask=there)


@triton.jit
def _rows(
    out, index, codes, scale, zero, table, words, terms, top,
    COLUMNS: tl.constexpr, GROUP: tl.constexpr, BITS: tl.constexpr, ZERO: tl.constexpr,
    SNAP: tl.constexpr, FAMILY: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64)
    start = tl.load(index + i) * COLUMNS
    row, element, offset, there = _place(start, COLUMNS, tl.program_id(1), R)
    each: tl.constexpr = (COLUMNS + GROUP - 1) // GROUP
    place = i * each + offset // GROUP
    w = _values(
        codes, scale, zero, table, words, terms, top, row, element, place, there,
        BITS, ZERO, SNAP, FAMILY,
    )  # fmt: skip
    tl.store(out + i * COLUMNS + offset, _encode(w, out.dtype.element_ty), mask=there)


@triton.jit
def _up(share, step, element):
    """1 with probability `share`, by 32 bits an element, or to nearest without."""
    k, k2 = tl.load(step + 3).to(tl.uint64), tl.load(step + 4).to(tl.uint64)
    chance = (_hash(k, k2, element >> 1) >> ((element & 1) * 32)) & 0xFFFFFFFF
    up = chance.to(tl.int64) < (share * 4294967296.0).to(tl.int64)
    up = tl.where(tl.load(step + 5) != 0, up.to(tl.int32), (share >= 0.5).to(tl.int32))
    return up


@triton.jit
def _walked(code, sign, size, table, step, element, top):
    """On an uneven table: whole cells one by one, and the last one by chance."""
    for _ in range(top):  # a `while` would ask the whole block, and fails to compile
        after = _on(code + sign, top)
        cell = tl.abs(tl.load(table + after) - tl.load(table + code))
        over = (size >= cell) & (cell > 0)
        size = tl.where(over, size - cell, size)
        code = tl.where(over, after, code)
    after = _on(code + sign, top)
    cell = tl.abs(tl.load(table + after) - tl.load(table + code))
    share = tl.where(cell > 0, tl.div_rn(size, cell), 0.0)
    return tl.where(_up(share, step, element) != 0, after, code)


@triton.jit
def _stepped(
    code, s, zero, levels, words, step, row, element, top,
    EVEN: tl.constexpr, SNAP: tl.constexpr, FAMILY: tl.constexpr,
):  # fmt: skip
    """The codes after one step."""
    begin, end = tl.load(step), tl.load(step + 1)
    if SNAP:
        code = _on(code + _whole(words, begin, end, row, element, s, FAMILY), top)
    else:
        delta = _float(tl.load(step + 2)) * (tl.load(levels + code) - zero)
        for t in range(begin, end):
            c, z = _term(words, t, row, element, FAMILY)
            delta += tl.div_rn(c * z, s)
        delta = tl.where(s == 0, 0.0, delta)
        sign = (delta > 0).to(tl.int32) - (delta < 0).to(tl.int32)
        size = tl.minimum(tl.abs(delta), FAR)
        if EVEN:
            whole = tl.floor(size)
            count = whole.to(tl.int32) + _up(size - whole, step, element)
            code = _on(code + sign * count, top)
        else:
            code = _walked(code, sign, size, levels, step, element, top)
    return code


@triton.jit
def _update(
    codes, scale, zero, levels, words, table, n, steps, top,
    COLUMNS: tl.constexpr, GROUP: tl.constexpr, BITS: tl.constexpr, ZERO: tl.constexpr,
    EVEN: tl.constexpr, SNAP: tl.constexpr, FAMILY: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    EACH: tl.constexpr = 8 // BITS
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)[:, None]
    byte = row * (64 // EACH) + tl.arange(0, 64 // EACH)[None, :]
    dense = tl.zeros([R, 64 // EACH], tl.int32)
    for k in tl.static_range(EACH):
        there = byte * EACH + k < n
        element = (byte * EACH + k).to(tl.uint64)
        code = _code(codes, element, there, BITS)
        place = _group(element, COLUMNS, GROUP).to(tl.int64)
        s = tl.load(scale + place, mask=there, other=1)
        z = tl.zeros_like(s)
        if ZERO:
            z = tl.load(zero + place, mask=there, other=0)
        for i in range(steps):
            code = _stepped(
                code, s, z, levels, words, table + 6 * i, row.to(tl.uint64), element,
                top, EVEN, SNAP, FAMILY,
            )  # fmt: skip
        dense |= tl.where(there, code, 0) << (k * BITS)
    tl.store(codes + byte, dense.to(tl.uint8), mask=byte * EACH < n)
