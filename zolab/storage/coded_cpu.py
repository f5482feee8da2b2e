"""The kernels for packed weights on the CPU, in numba: chunks that stay in the cache.

A byte of codes is looked up whole: its entry in a table of 256 has the levels of all
its codes. Scales follow in runs of one group, then the terms, as for plain weights.
An update keeps codes as floats, so that its loops are vectors.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

from zolab.storage import cpu
from zolab.storage.coded_plain import FAR
from zolab.storage.cpu import U, _add_one
from zolab.storage.lanes import hashes
from zolab.storage.packed import Packed

if TYPE_CHECKING:
    from zolab.storage import Draw, Step

CHUNK = 1 << 13  # fp32 elements: 32 kB
SMALL = 1 << 11  # an update's: it has four such arrays
_FAR = np.float32(FAR)


class Grid(NamedTuple):
    """A packed tensor as numba sees it; `first` is the group of scale[0]."""

    codes: np.ndarray  # uint8
    scale: np.ndarray
    zero: np.ndarray  # empty: none
    levels: np.ndarray  # fp32 (256, codes a byte): of every byte
    ranks: np.ndarray  # the same with the codes themselves
    bits: int
    columns: int
    group: int
    first: int
    top: np.float32  # the last code
    even: bool  # whether neighbouring levels are 1 apart


def materialise(
    packed: Packed,
    draws: Sequence[Draw],
    out: Tensor,
    start: int,
    scale: Tensor,
    zero: Tensor | None,
) -> None:
    """out = cast(scale (table[code] - zero) + sum s z): see `coded_plain`."""
    g = _grid(packed, scale, zero, packed.span(start, 1)[0])
    flat, terms = out.view(-1), cpu._pack(draws)

    def work(lo: int, hi: int) -> None:
        if flat.dtype == torch.float32:
            _materialise(flat.numpy(), g, *terms, packed.snap, start, lo, hi)
            return
        chunk = torch.empty(min(cpu.CHUNK, hi - lo))
        for a in range(lo, hi, cpu.CHUNK):
            x = chunk[: min(cpu.CHUNK, hi - a)]
            _materialise(x.numpy(), g, *terms, packed.snap, start + a, 0, len(x))
            flat[a : a + len(x)] = x

    cpu.split(len(flat), start, work)


def rows(
    packed: Packed,
    draws: Sequence[Draw],
    index: Tensor,
    out: Tensor,
    scale: Tensor,
    zero: Tensor | None,
) -> None:
    """The same for looked-up rows: see `coded_plain.rows`."""
    g = _grid(packed, scale, zero, 0)._replace(columns=packed.shape[1])
    x = out if out.dtype == torch.float32 else torch.empty(out.shape)
    _rows(x.numpy(), g, index.numpy(), *cpu._pack(draws), packed.snap)
    if x is not out:
        out.copy_(x)


def update(
    packed: Packed, steps: Sequence[Step], scale: Tensor, zero: Tensor | None
) -> None:
    """code <- code + round(step in levels): see `coded_plain.update`."""
    g, n = _grid(packed, scale, zero, 0), packed.shape.numel()
    words, scales, begin, _ = cpu._pack_steps(steps)
    shrink = np.array([s.decay - 1.0 for s in steps], np.float32)
    bits = np.array([s.rounding or (0, 0) for s in steps], U)
    near = np.array([s.rounding is None for s in steps])
    rule = (words, scales, begin, shrink, bits, near, packed.snap)
    cpu.split(n, 0, lambda lo, hi: _update(g, *rule, lo, hi))


def _grid(packed: Packed, scale: Tensor, zero: Tensor | None, first: int) -> Grid:
    codec = packed.codec
    return Grid(
        packed.codes.numpy(),
        scale.reshape(-1).numpy(),
        np.empty(0, np.float32) if zero is None else zero.reshape(-1).numpy(),
        *_tables(codec.bits, codec.table),
        codec.bits,
        *codec.layout(packed.shape)[1:],
        first,
        np.float32(len(codec.table) - 1),
        codec.step is not None,
    )


@functools.lru_cache
def _tables(bits: int, table: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The levels and the codes that each of the 256 bytes holds."""
    byte, each = np.arange(256)[:, None], 8 // bits
    code = np.minimum(byte >> bits * np.arange(each) & (1 << bits) - 1, len(table) - 1)
    return np.array(table, np.float32)[code], code.astype(np.float32)


@njit(inline="always")
def _run(g, e):
    """Where the scale of element e stands, and how many elements from e on share it."""
    row, column = e // g.columns, e % g.columns
    place = row * ((g.columns + g.group - 1) // g.group) + column // g.group - g.first
    return place, min(g.columns - column, g.group - column % g.group)


@njit(nogil=True, cache=True)
def _look_up(x, table, g, e):
    """x = what `table` has for the codes of the elements from e on."""
    each = 8 // g.bits
    n, i = len(x), 0
    while i < n and (e + i) % each:
        x[i] = table[g.codes[(e + i) // each], (e + i) % each]
        i += 1
    byte, whole = g.codes[(e + i) // each :], (n - i) // each
    o = x[i : i + whole * each]
    if each == 1:
        for j in range(whole):
            o[j] = table[byte[j], 0]
    elif each == 2:
        for j in range(whole):
            o[2 * j], o[2 * j + 1] = table[byte[j], 0], table[byte[j], 1]
    else:
        for j in range(whole):
            for k in range(4):
                o[4 * j + k] = table[byte[j], k]
    i += whole * each
    while i < n:
        x[i] = table[g.codes[(e + i) // each], (e + i) % each]
        i += 1


@njit(nogil=True, cache=True)
def _decode(x, g, words, scales, snap, e, shift):
    """x = the values of the elements from e on; `shift` is added to a scale's place."""
    n = len(x)
    if snap and len(scales):
        _look_up(x, g.ranks, g, e)
        _snap(x, g, words, scales, e, shift)
        for j in range(n):  # the lowest code of byte c is c
            x[j] = g.levels[np.int64(x[j]), 0]
    else:
        _look_up(x, g.levels, g, e)
    i = 0
    while i < n:
        place, size = _run(g, e + i)
        o = x[i : i + size]
        s = g.scale[place + shift]
        z = g.zero[place + shift] if len(g.zero) else np.float32(0)
        for j in range(len(o)):
            o[j] = s * (o[j] - z)
        i += size


@njit(nogil=True, cache=True)
def _terms(x, y, word, scale, e):
    """y = s z at the elements from e on; x becomes -0, which adds nothing."""
    x[:] = np.float32(-0.0)
    _add_one(y, x, word, scale, e, 0, len(x))


@njit(nogil=True, cache=True, error_model="numpy")
def _snap(code, g, words, scales, e, shift):
    """code += sum sign(c) z levels, max(floor(|c| / scale), 1) of them, as floats."""
    n = len(code)
    z, total, none = np.empty_like(code), np.zeros_like(code), np.empty_like(code)
    for t in range(len(scales)):
        _terms(none, z, words[t], np.float32(1), e)
        c, i = np.abs(scales[t]), 0
        while i < n:
            place, size = _run(g, e + i)
            s = g.scale[place + shift]
            count = np.float32(0) if s == 0 else min(max(np.floor(c / s), 1), _FAR)
            count = np.float32(count if scales[t] > 0 else -count)
            to, step = total[i : i + size], z[i : i + size]
            for j in range(len(to)):
                to[j] += count * np.trunc(step[j])
            i += size
    for j in range(n):
        code[j] = min(max(code[j] + total[j], np.float32(0)), g.top)


@njit(nogil=True, cache=True)
def _materialise(out, g, words, scales, snap, start, lo, hi):
    """out[lo:hi] = the values of the elements start + lo .. start + hi."""
    for a in range(lo, hi, CHUNK):
        x = out[a : min(a + CHUNK, hi)]
        _decode(x, g, words, scales, snap, start + a, 0)
        if not snap:
            for t in range(len(scales)):
                _add_one(x, x, words[t], scales[t], start + a, 0, len(x))


@njit(nogil=True, cache=True)
def _rows(out, g, index, words, scales, snap):
    per_row = (g.columns + g.group - 1) // g.group
    for i in range(len(index)):
        start, shift = index[i] * g.columns, (i - index[i]) * per_row
        _decode(out[i], g, words, scales, snap, start, shift)
        if not snap:
            for t in range(len(scales)):
                _add_one(out[i], out[i], words[t], scales[t], start, 0, g.columns)


@njit(nogil=True, cache=True)
def _update(g, words, scales, begin, shrink, bits, near, snap, lo, hi):
    """The codes of [lo, hi), whole bytes, after all steps."""
    hold, chance = np.empty((3, SMALL), np.float32), np.empty(SMALL // 2, U)
    half, whole = chance.view(np.uint16), chance.view(np.uint32)
    for a in range(lo, hi, SMALL):
        n = min(SMALL, hi - a)
        code, delta, z = hold[0, :n], hold[1, :n], hold[2, :n]
        _look_up(code, g.ranks, g, a)
        for t in range(len(shrink)):
            some = slice(begin[t], begin[t + 1])
            if snap:
                _snap(code, g, words[some], scales[some], a, 0)
                continue
            _delta(delta, z, code, g, words[some], scales[some], shrink[t], a)
            if not near[t]:
                for j in range(0, (n + 1) // 2, 64):
                    hashes(chance, j, bits[t, 0], bits[t, 1], U(a // 2 + j))
            if g.even:
                _round(code, delta, half, near[t], g.top)
            else:
                _walk(code, delta, whole, near[t], g)
        _pack(g.codes, code, g.bits, a)


@njit(nogil=True, cache=True, error_model="numpy")
def _delta(delta, z, code, g, words, scales, shrink, e):
    """delta = (decay - 1) (level - zero) + sum c z / scale, 0 where the scale is."""
    n = len(delta)
    if shrink == 0:
        delta[:] = 0
    else:
        i = 0
        while i < n:
            place, size = _run(g, e + i)
            zero = g.zero[place] if len(g.zero) else np.float32(0)
            d, c = delta[i : i + size], code[i : i + size]
            for j in range(len(d)):
                d[j] = shrink * (g.levels[np.int64(c[j]), 0] - zero)
            i += size
    for t in range(len(scales)):
        _terms(z, z, words[t], scales[t], e)
        i = 0
        while i < n:
            place, size = _run(g, e + i)
            d, x, s = delta[i : i + size], z[i : i + size], g.scale[place]
            if s == 0:
                d[:] = 0
            else:
                for j in range(len(d)):
                    d[j] += x[j] / s
            i += size


@njit(nogil=True, cache=True)
def _round(code, delta, lane, near, top):
    """code += delta, up by chance: 32 bits, compared as two halves that floats hold."""
    half = np.float32(65536)
    for j in range(len(code)):
        d = delta[j]
        size = min(np.abs(d), _FAR)
        whole = np.floor(size)
        share = size - whole
        if near:
            up = share >= np.float32(0.5)
        else:
            high = np.floor(share * half)
            low = np.floor((share * half - high) * half)
            u, v = np.float32(lane[2 * j + 1]), np.float32(lane[2 * j])
            up = (u < high) | ((u == high) & (v < low))
        count = whole + (np.float32(1) if up else np.float32(0))
        code[j] = min(max(code[j] + np.copysign(count, d), np.float32(0)), top)


@njit(nogil=True, cache=True, error_model="numpy")
def _walk(code, delta, chance, near, g):
    """On an uneven table: whole cells one by one, and the last one by chance."""
    for j in range(len(code)):
        k, size = np.int64(code[j]), min(np.abs(delta[j]), _FAR)
        by, end = (1, np.int64(g.top)) if delta[j] > 0 else (-1, 0)
        while size > 0 and k != end:
            cell = np.abs(g.levels[k + by, 0] - g.levels[k, 0])
            if size < cell:
                share = size / cell
                if near:
                    up = share >= np.float32(0.5)
                else:
                    up = np.int64(chance[j]) < np.int64(share * np.float32(2.0**32))
                k += by if up else 0
                break
            size -= cell
            k += by
        code[j] = k


@njit(nogil=True, cache=True)
def _pack(codes, code, bits, e):
    """Bytes of codes, low bits first, from element e on, where a byte begins."""
    each = 8 // bits
    whole, rest = len(code) // each, len(code) % each
    byte = codes[e // each : e // each + whole]
    if each == 1:
        for j in range(whole):
            byte[j] = np.int32(code[j])
    elif each == 2:
        for j in range(whole):
            byte[j] = np.int32(code[2 * j] + code[2 * j + 1] * np.float32(16))
    else:
        for j in range(whole):
            c = code[4 * j : 4 * j + 4]
            low, high = c[0] + c[1] * np.float32(4), c[2] + c[3] * np.float32(4)
            byte[j] = np.int32(low + high * np.float32(16))
    if rest:
        last = 0.0
        for k in range(rest):
            last += code[whole * each + k] * 2.0 ** (bits * k)
        codes[e // each + whole] = np.int32(last)
