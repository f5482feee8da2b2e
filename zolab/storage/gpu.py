"""The kernels for CUDA, in Triton: the same three functions, the same bits.

A program works on 64 ROWS elements, laid out as rows of 64, so that a Rademacher hash
is drawn once a row and not once an element. All terms (and, in `update`, all steps)
run inside the kernel: the weights cross the memory bus once. Products and sums are
not contracted (enable_fp_fusion=False), else decay * w + c z would differ from the
other kernels in its last bit.

The bits are tested on a CPU through Triton's interpreter, and on a GPU where there is
one. Speed is known only where `zolab/data/results` holds a record of a CUDA device.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import struct
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from zolab.gradient import round32
from zolab.noise import FAMILIES, GOLDEN, MUL1, MUL2

if TYPE_CHECKING:
    from zolab.storage import Draw, Step

ROWS = 16
_GOLDEN, _MUL1, _MUL2 = map(tl.constexpr, (GOLDEN, MUL1, MUL2))
KNOWN = (*FAMILIES, "low_rank", "rounded")
RADEMACHER, NEAR_NORMAL, LOW_RANK, ROUNDED, MIXED = map(tl.constexpr, range(5))
assert KNOWN[:2] == ("rademacher", "near_normal")


def materialise(base: Tensor, draws: Sequence[Draw], out: Tensor, start: int) -> None:
    """out = cast(base[start:] + sum s z): see `plain.materialise`."""
    if n := out.numel():
        words, family = _pack(draws, base.device)
        with _on(base):
            _materialise[(_blocks(n),)](
                base, out, words, n, start, len(draws), family, ROWS, **EXACT
            )


def rows(base: Tensor, draws: Sequence[Draw], index: Tensor, out: Tensor) -> None:
    """out[i] = cast(base[index[i]] + sum s z): see `plain.rows`."""
    if out.numel():
        n, index = base.shape[1], index.long().contiguous()
        words, family = _pack(draws, base.device)
        with _on(base):
            _rows[(index.numel(), _blocks(n))](
                base, out, index, words, n, len(draws), family, ROWS, **EXACT
            )


def update(base: Tensor, steps: Sequence[Step]) -> None:
    """base = round(decay * base + sum c z), in place: see `plain.update`."""
    table, first = [], 0
    for s in steps:
        k, k2 = s.rounding or (0, 0)
        last = first + len(s.draws)
        table += [first, last, _bits(s.decay), k, k2, s.rounding is not None]
        first = last
    n, table_there = base.numel(), _send(table, base.device)
    words, family = _pack([d for s in steps for d in s.draws], base.device)
    with _on(base):
        _update[(_blocks(n),)](
            base, table_there, words, n, len(steps), family, ROWS, **EXACT
        )


EXACT: dict[str, Any] = {"enable_fp_fusion": False}


def _blocks(n: int) -> int:
    """Programs for n elements wherever they start: one row of 64 may be cut in two."""
    return triton.cdiv(n + 63, 64 * ROWS)


def _on(base: Tensor) -> AbstractContextManager[Any]:
    return torch.cuda.device(base.device) if base.is_cuda else nullcontext()


def _bits(x: float) -> int:
    return struct.unpack("<I", struct.pack("<f", round32(x)))[0]


def _send(words: list[int], device: torch.device) -> Tensor:
    """64-bit words on the device, without waiting for what runs there."""
    signed = [w - (1 << 64) if w >> 63 else int(w) for w in words]
    return torch.tensor(signed or [0]).to(device, non_blocking=True)


def _pack(draws: Sequence[Draw], device: torch.device) -> tuple[Tensor, int]:
    """Eight words a term, as `_term` reads them; their family, MIXED if they differ."""
    words = [
        [*d.stream, *d.right, KNOWN.index(d.family), _bits(d.scale), d.rank, d.columns]
        for d in draws
    ]
    families = {w[4] for w in words} or {0}
    family = families.pop() if len(families) == 1 else MIXED.value
    return _send([w for eight in words for w in eight], device), family


@triton.jit
def _mix(x):
    x = (x ^ (x >> 30)) * _MUL1
    x = (x ^ (x >> 27)) * _MUL2
    return x ^ (x >> 31)


@triton.jit
def _hash(k, k2, j):
    return _mix(_mix(k + j * _GOLDEN) ^ k2)


@triton.jit
def _popcount(x):
    x = x - ((x >> 1) & 0x5555555555555555)
    x = (x & 0x3333333333333333) + ((x >> 2) & 0x3333333333333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F0F0F0F0F
    return (x * 0x0101010101010101) >> 56


@triton.jit
def _float(word):
    return word.to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def _decode(w):
    """fp32 from what is stored; bf16 by its bits, which every backend does alike."""
    if w.dtype == tl.bfloat16:
        wide = w.to(tl.uint16, bitcast=True).to(tl.uint32) << 16
        return wide.to(tl.float32, bitcast=True)
    else:
        return w.to(tl.float32)


@triton.jit
def _encode(w, kind: tl.constexpr):
    """fp32 to `kind`, to nearest even (the interpreter's own cast truncates bf16)."""
    if kind == tl.bfloat16:
        u = w.to(tl.uint32, bitcast=True)
        up = tl.where(w == w, (u + 0x7FFF + ((u >> 16) & 1)) >> 16, 0x7FC0)
        return up.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return w.to(kind)


@triton.jit
def _place(start, n, block, R: tl.constexpr):
    """Rows (R, 1), elements (R, 64), their offsets from `start`, and which exist."""
    row = start // 64 + block.to(tl.int64) * R + tl.arange(0, R)[:, None]
    element = row * 64 + tl.arange(0, 64)[None, :]
    offset = element - start
    there = (offset >= 0) & (offset < n)
    return row.to(tl.uint64), element.to(tl.uint64), offset, there


@triton.jit
def _rademacher(k, k2, row, element):
    bit = (_hash(k, k2, row) >> (element & 63)) & 1
    return (2 * bit.to(tl.int32) - 1).to(tl.float32)


@triton.jit
def _near_normal(k, k2, element):
    ones = _popcount(_hash(k, k2, element)).to(tl.int32)
    return (ones - 32).to(tl.float32) * 0.25


@triton.jit
def _low_rank(k, k2, r, r2, rank, columns, element):
    unlike = _hash(k, k2, element // columns) ^ _hash(r, r2, element % columns)
    rank = rank.to(tl.int32)
    ones = _popcount(unlike << (64 - rank)).to(tl.int32)  # of the lowest `rank` bits
    return (rank - 2 * ones).to(tl.float32)


@triton.jit
def _rounded(k, k2, c, c2, bits, element):
    """near_normal on the grid of step 2^(4 - bits), by 16 bits an element."""
    bits = bits.to(tl.int32)
    step = ((131 - bits) << 23).to(tl.float32, bitcast=True)
    x = _near_normal(k, k2, element) * ((123 + bits) << 23).to(tl.float32, bitcast=True)
    low = tl.floor(x)
    chance = (_hash(c, c2, element >> 2) >> ((element & 3) * 16)) & 0xFFFF
    up = chance.to(tl.int32).to(tl.float32) < (x - low) * 65536.0
    return (low + up.to(tl.float32)) * step


@triton.jit
def _term(words, t, row, element, FAMILY: tl.constexpr):
    """The scale of term t, and its z at the elements.

    The family is known at compile time. A branch on a loaded value would leave Triton
    without one layout, and each thread with eight hashes for one.
    """
    word = words + 8 * t
    k, k2 = tl.load(word).to(tl.uint64), tl.load(word + 1).to(tl.uint64)
    r, r2 = tl.load(word + 2).to(tl.uint64), tl.load(word + 3).to(tl.uint64)
    kind, s = tl.load(word + 4), _float(tl.load(word + 5))
    rank, columns = tl.load(word + 6), tl.load(word + 7).to(tl.uint64)
    if FAMILY == RADEMACHER:
        z = _rademacher(k, k2, row, element)
    elif FAMILY == NEAR_NORMAL:
        z = _near_normal(k, k2, element)
    elif FAMILY == LOW_RANK:
        z = _low_rank(k, k2, r, r2, rank, columns, element)
    elif FAMILY == ROUNDED:
        z = _rounded(k, k2, r, r2, rank, element)
    else:
        z = _rademacher(k, k2, row, element)
        z = tl.where(kind == NEAR_NORMAL, _near_normal(k, k2, element), z)
        low = _low_rank(k, k2, r, r2, tl.maximum(rank, 1), columns, element)
        z = tl.where(kind == LOW_RANK, low, z)
        z = tl.where(kind == ROUNDED, _rounded(k, k2, r, r2, rank, element), z)
    return s, z


@triton.jit
def _moved(w, row, element, words, first, last, FAMILY: tl.constexpr):
    """w + sum s z, terms in order."""
    for t in range(first, last):
        s, z = _term(words, t, row, element, FAMILY)
        w = w + s * z
    return w


@triton.jit
def _lanes(k, k2, block, lane, R: tl.constexpr):
    """`noise.uniform_bits` of a program's elements: a hash is drawn once for four."""
    quad = (block.to(tl.int64) * R + tl.arange(0, R)[:, None]) * 16
    h = _hash(k, k2, (quad + tl.arange(0, 16)[None, :]).to(tl.uint64))
    h = tl.broadcast_to(h[:, :, None], (R, 16, 4)).reshape(R, 64)
    return ((h >> ((lane & 3) * 16)) & 0xFFFF).to(tl.int32)


@triton.jit
def _finite(w):
    return (w.to(tl.int32, bitcast=True) & 0x7F800000) != 0x7F800000


@triton.jit
def _round(w, bits, half: tl.constexpr):
    """`plain.stochastic_round`, to fp32 numbers that the storage type holds."""
    whole = w.to(tl.int32, bitcast=True)
    if half:
        up = ((whole + (bits >> 3)) & -8192).to(tl.float32, bitcast=True)
        size = tl.abs(w)
        steps = size * 16777216.0
        down = tl.floor(steps)
        more = bits.to(tl.float32) < (steps - down) * 65536.0
        tiny = (down + more.to(tl.float32)) * 5.9604644775390625e-08
        sign = whole & -2147483648
        tiny = (tiny.to(tl.int32, bitcast=True) | sign).to(tl.float32, bitcast=True)
        up = tl.where(size < 6.103515625e-05, tiny, up)
    else:
        up = ((whole + bits) & -65536).to(tl.float32, bitcast=True)
    return tl.where(_finite(w), up, w)


@triton.jit
def _materialise(
    base, out, words, n, start, terms, FAMILY: tl.constexpr, R: tl.constexpr
):
    first = tl.cast(start, tl.int64)
    row, element, offset, there = _place(first, n, tl.program_id(0), R)
    w = tl.load(base + first + offset, mask=there, other=0)
    w = _moved(_decode(w), row, element, words, 0, terms, FAMILY)
    tl.store(out + offset, _encode(w, out.dtype.element_ty), mask=there)


@triton.jit
def _rows(base, out, index, words, n, terms, FAMILY: tl.constexpr, R: tl.constexpr):
    i = tl.program_id(0).to(tl.int64)
    first = tl.load(index + i) * n
    row, element, offset, there = _place(first, n, tl.program_id(1), R)
    w = tl.load(base + first + offset, mask=there, other=0)
    w = _moved(_decode(w), row, element, words, 0, terms, FAMILY)
    tl.store(out + i * n + offset, _encode(w, out.dtype.element_ty), mask=there)


@triton.jit
def _update(base, table, words, n, steps, FAMILY: tl.constexpr, R: tl.constexpr):
    kind: tl.constexpr = base.dtype.element_ty
    block = tl.program_id(0)
    row, element, offset, there = _place(tl.cast(0, tl.int64), n, block, R)
    w = tl.load(base + offset, mask=there, other=0)
    for i in range(steps):
        step = table + 6 * i
        x = _decode(w) * _float(tl.load(step + 2))
        first, last = tl.load(step), tl.load(step + 1)
        x = _moved(x, row, element, words, first, last, FAMILY)
        if kind != tl.float32:  # noqa: SIM102 (known at compile time)
            if tl.load(step + 5) != 0:
                k, k2 = tl.load(step + 3).to(tl.uint64), tl.load(step + 4).to(tl.uint64)
                x = _round(x, _lanes(k, k2, block, element, R), kind == tl.float16)
        w = _encode(x, kind)
    tl.store(base + offset, w, mask=there)
