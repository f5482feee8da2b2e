"""The kernels for the CPU, in numba: sixty-four elements from one hash.

A Rademacher block is one 64-bit hash. Its bits select between +s and -s in a vector
of 64 floats, which the compiler turns into masked AVX-512 (or compare-and-blend)
code, so that a pass costs what reading and writing the weights costs. bf16 and fp16
go through an fp32 chunk that stays in the L2 cache. Threads take whole blocks; since
an element depends on its index alone, their number changes no bit.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from zolab.noise import FAMILIES, GOLDEN, MUL1, MUL2
from zolab.storage.lanes import add_signs, hashes, ones, popcount
from zolab.storage.plain import stochastic_round

if TYPE_CHECKING:
    from zolab.storage import Draw, Step

U = np.uint64
KNOWN = (*FAMILIES, "low_rank", "rounded")
LOW_RANK, ROUNDED = U(2), U(3)
CHUNK = 1 << 15  # fp32 elements: 128 kB, which with its source stays in the L2 cache
PIECE = 1 << 18  # a thread's next helping: 1 MB, some 170 us
BLOCK = 256  # elements whose hashes are drawn before they are used
PARALLEL = 1 << 17  # below this many elements waking threads costs more than it saves


def materialise(base: Tensor, draws: Sequence[Draw], out: Tensor, start: int) -> None:
    """out = cast(base[start:] + sum s z): see `plain.materialise`."""
    src, dst = base.view(-1)[start : start + out.numel()], out.view(-1)
    packed = _pack(draws)

    def work(lo: int, hi: int) -> None:
        if src.dtype == dst.dtype == torch.float32:
            _add(dst.numpy(), src.numpy(), *packed, start, lo, hi)
            return
        chunk = torch.empty(min(CHUNK, hi - lo))
        for a in range(lo, hi, CHUNK):
            b = min(a + CHUNK, hi)
            x = chunk[: b - a].copy_(src[a:b])
            _add(x.numpy(), x.numpy(), *packed, start + a, 0, b - a)
            dst[a:b].copy_(x)

    split(dst.numel(), start, work)


def rows(base: Tensor, draws: Sequence[Draw], index: Tensor, out: Tensor) -> None:
    """out[i] = cast(base[index[i]] + sum s z): see `plain.rows`."""
    x = base[index].float()
    _add_rows(x.numpy(), index.numpy(), *_pack(draws))
    out.copy_(x)


def update(base: Tensor, steps: Sequence[Step]) -> None:
    """base = round(decay * base + sum c z), in place: see `plain.update`."""
    flat = base.view(-1)
    if base.dtype == torch.float32:
        x, packed = flat.numpy(), _pack_steps(steps)
        split(flat.numel(), 0, lambda lo, hi: _update(x, *packed, 0, lo, hi))
        return
    one_by_one = [(s.rounding, _pack_steps([s])) for s in steps]

    def work(lo: int, hi: int) -> None:
        for a in range(lo, hi, CHUNK):
            part = flat[a : min(a + CHUNK, hi)]
            for rounding, packed in one_by_one:
                w = part.float()
                _update(w.numpy(), *packed, a, 0, len(w))
                if rounding is not None:
                    w = stochastic_round(w, bits(rounding, a, w), part.dtype)
                part.copy_(w)

    split(flat.numel(), 0, work)


def add(x: Tensor, draws: Sequence[Draw], start: int) -> None:
    """x += sum s z, in place, for a flat fp32 piece: see `plain.add`."""
    _add(x.numpy(), x.numpy(), *_pack(draws), start, 0, len(x))


def bits(rounding: tuple[int, int], start: int, like: Tensor) -> Tensor:
    """16 uniform bits for each element of a flat piece: see `plain.bits`."""
    out = np.empty(len(like), np.int32)
    _bits(out, U(rounding[0]), U(rounding[1]), start)
    return torch.from_numpy(out)


def _pack(draws: Sequence[Draw]) -> tuple[np.ndarray, np.ndarray]:
    """Two streams, family, rank, columns of a term as uint64; scales as fp32."""
    words = [
        [*d.stream, *d.right, KNOWN.index(d.family), d.rank, d.columns] for d in draws
    ]
    scales = np.array([d.scale for d in draws], np.float32)
    return np.array(words, U).reshape(-1, 7), scales


def _pack_steps(steps: Sequence[Step]) -> tuple[np.ndarray, ...]:
    """All steps' terms one after another, where each step's begin, and its decay."""
    words, scales = _pack([d for s in steps for d in s.draws])
    first = np.cumsum([0, *(len(s.draws) for s in steps)])
    return words, scales, first, np.array([s.decay for s in steps], np.float32)


@functools.lru_cache(maxsize=1)
def _pool(pid: int, threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="zolab")


def split(n: int, start: int, work: Callable[[int, int], Any]) -> None:
    """work(lo, hi) over [0, n) in pieces that begin where a hash does.

    Threads take the next piece when they are free. Equal shares would wait for the
    slowest: after a matrix product OpenMP's threads spin for a while on the cores that
    ours need (10th percentile for 3072 x 768 on two cores: 2.3 ms in equal shares, 1.5
    in pieces, 2.1 on one thread).
    """
    threads = torch.get_num_threads()
    if threads == 1 or n < PARALLEL:
        work(0, n)
        return
    piece = max(64, min(PIECE, n // (4 * threads)) // 64 * 64)
    cuts = [0, *range(-start % 64 + piece, n, piece), n]
    pieces = iter(list(zip(cuts, cuts[1:], strict=False)))

    def drain() -> None:
        for lo, hi in pieces:  # next() of a list's iterator is atomic
            work(lo, hi)

    jobs = [_pool(os.getpid(), threads).submit(drain) for _ in range(threads - 1)]
    drain()
    for job in jobs:
        if not job.cancel():  # not waiting for one that found nothing left to begin
            job.result()


@njit(inline="always")
def _mix(x):  # type: ignore[no-untyped-def]
    x = (x ^ (x >> U(30))) * U(MUL1)
    x = (x ^ (x >> U(27))) * U(MUL2)
    return x ^ (x >> U(31))


@njit(inline="always")
def _hash(k, k2, j):  # type: ignore[no-untyped-def]
    return _mix(_mix(k + j * U(GOLDEN)) ^ k2)


@njit(inline="always")
def _sign(k, k2, s, e):  # type: ignore[no-untyped-def]
    return s if (_hash(k, k2, e >> U(6)) >> (e & U(63))) & U(1) else -s


@njit(nogil=True, cache=True)
def _add_low_rank(dst, src, word, s, start, lo, hi):  # type: ignore[no-untyped-def]
    """dst = src + s * (U V') on [lo, hi); a hash has a row's signs, or a column's."""
    rank, columns = np.int64(word[5]), np.int64(word[6])
    kept = U(0xFFFFFFFFFFFFFFFF) >> U(64 - rank)
    right = np.empty(columns, U)
    for j in range(columns):
        right[j] = _hash(word[2], word[3], U(j)) & kept
    i = lo
    while i < hi:
        row, first = (start + i) // columns, (start + i) % columns
        left = _hash(word[0], word[1], U(row)) & kept
        n = min(columns - first, hi - i)
        d, x, v = dst[i : i + n], src[i : i + n], right[first : first + n]
        for j in range(n):
            d[j] = x[j] + s * np.float32(rank - 2 * popcount(left ^ v[j]))
        i += n


@njit(nogil=True, cache=True)
def _add_counts(dst, src, word, s, start, lo, hi):  # type: ignore[no-untyped-def]
    """dst = src + s * (near_normal, or that rounded) on [lo, hi): a count of ones.

    A grid of step 1/4 or finer (six bits or more) holds every value already. Sums are
    made beside dst, for which src may stand: loops that overlap become no vectors.
    """
    cell = 2.0 ** (4 - np.int64(word[5])) if word[4] == ROUNDED else 0.25
    unit, fine = np.float32(max(cell, 0.25)), np.float32(min(0.25 / cell, 1.0))
    count, chance = np.empty(BLOCK, np.int32), np.empty(BLOCK // 4, U)
    lane, sums, scale = chance.view(np.uint16), np.empty(BLOCK, np.float32), s * unit
    i = lo
    while i < hi:
        skip = (start + i) % 4  # a hash holds four elements' chances
        first, n = start + i - skip, min(BLOCK - skip, hi - i)
        for j in range(0, skip + n, 64):
            ones(count, j, word[0], word[1], U(first + j))
        x, y, c = src[i : i + n], sums[:n], count[skip : skip + n]
        if fine == 1:
            for j in range(n):
                y[j] = x[j] + scale * (np.float32(c[j]) - np.float32(32))
        else:
            hashes(chance, 0, word[2], word[3], U(first // 4))
            u = lane[skip : skip + n]
            for j in range(n):
                z = (np.float32(c[j]) - np.float32(32)) * fine
                low = np.floor(z)
                more = np.float32(u[j]) < (z - low) * np.float32(65536)
                y[j] = x[j] + scale * (low + (np.float32(1) if more else np.float32(0)))
        d = dst[i : i + n]
        for j in range(n):
            d[j] = y[j]
        i += n


@njit(nogil=True, cache=True)
def _add_one(dst, src, word, s, start, lo, hi):  # type: ignore[no-untyped-def]
    """dst = src + s * z on [lo, hi); element i of the arrays has index start + i."""
    k, k2 = word[0], word[1]
    if word[4] == LOW_RANK:
        _add_low_rank(dst, src, word, s, start, lo, hi)
        return
    if word[4] > U(0):
        _add_counts(dst, src, word, s, start, lo, hi)
        return
    i = lo
    while i < hi and (start + i) % 64:
        dst[i] = src[i] + _sign(k, k2, s, U(start + i))
        i += 1
    while i + 64 <= hi:
        add_signs(dst, src, i, _hash(k, k2, U((start + i) // 64)), s)
        i += 64
    while i < hi:
        dst[i] = src[i] + _sign(k, k2, s, U(start + i))
        i += 1


@njit(nogil=True, cache=True)
def _add(dst, src, words, scales, start, lo, hi):  # type: ignore[no-untyped-def]
    """dst = src + sum of terms on [lo, hi), chunk by chunk, terms in order."""
    if len(scales) == 1:
        _add_one(dst, src, words[0], scales[0], start, lo, hi)
        return
    for a in range(lo, hi, CHUNK):
        b = min(a + CHUNK, hi)
        if len(scales) == 0:
            dst[a:b] = src[a:b]
        for t in range(len(scales)):
            _add_one(dst, src if t == 0 else dst, words[t], scales[t], start, a, b)


@njit(nogil=True, cache=True)
def _add_rows(x, index, words, scales):  # type: ignore[no-untyped-def]
    """x[i] += sum of terms at row index[i] of the whole matrix."""
    columns = x.shape[1]
    for i in range(x.shape[0]):
        row, start = x[i], index[i] * columns
        for t in range(len(scales)):
            _add_one(row, row, words[t], scales[t], start, 0, columns)


@njit(nogil=True, cache=True)
def _update(x, words, scales, first, decay, start, lo, hi):  # type: ignore[no-untyped-def]
    """x = decay * x + sum of terms, step after step, while a chunk is in the cache."""
    for a in range(lo, hi, CHUNK):
        b = min(a + CHUNK, hi)
        for step in range(len(decay)):
            if decay[step] != np.float32(1.0):
                for i in range(a, b):
                    x[i] = x[i] * decay[step]
            for t in range(first[step], first[step + 1]):
                _add_one(x, x, words[t], scales[t], start, a, b)


@njit(nogil=True, cache=True)
def _bits(out, k, k2, start):  # type: ignore[no-untyped-def]
    """16 uniform bits an element: lane e % 4 of h(e // 4)."""
    chance = np.empty(BLOCK // 4, U)
    lane = chance.view(np.uint16)
    i = 0
    while i < len(out):
        skip = (start + i) % 4
        n = min(BLOCK - skip, len(out) - i)
        hashes(chance, 0, k, k2, U((start + i) // 4))
        out[i : i + n] = lane[skip : skip + n]
        i += n
