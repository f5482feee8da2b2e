"""Directions: pure functions of (seed, step, query, slot, element).

A direction is never stored. Its key is a hash of (seed, step, query); a slot's
stream is a hash of the key and of the slot's name; an element is a hash of the
stream and of the element's index. So any slice of any slot can be drawn in any
order, on any device and any number of threads, with the same bits, and nothing
reads or advances a global generator.

    key  = absorb(seed, step, query)
    K    = mix64(key ^ id(slot)),   K' = mix64(K ^ FLIP)
    h(j) = mix64(mix64(K + j * GOLDEN) ^ K')                      (mod 2^64)

    rademacher    z[e] = +1 if bit e % 64 of h(e // 64) is set, else -1
    near_normal   z[e] = (popcount(h(e)) - 32) / 4
    low_rank      z[i, j] = rank - 2 popcount((h(i) ^ g(j)) mod 2^rank)
    rounded       near_normal, rounded at random to a grid of 2^bits levels over [-8, 8)

`near_normal` is a centred binomial of 64 bits: mean 0, variance 1, kurtosis 2.97,
support [-8, 8] in steps of 1/4. Every value is a small dyadic number, so that a
scale of at most 16 significant bits times z is exact in fp32 and a fused multiply-
add cannot change a bit. So is `low_rank`, the product U V' of two matrices of random
signs with `rank` columns: h and g are the streams of two keys, and a sum of `rank`
products of signs is one exclusive-or and one count.

This file is the recipe in plain torch, and what the numba and Triton kernels of
`zolab.storage` are tested against, bit for bit. mix64 is the finaliser of
SplitMix64 (Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195).
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
FLIP = 0xD1B54A32D192ED03
MUL1, MUL2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
FAMILIES = ("rademacher", "near_normal")
ROUNDING = MASK  # the query whose stream rounds stochastically; no estimator asks it


def mix64(x: int) -> int:
    """One number of 64 bits from another, every output bit from every input bit."""
    x &= MASK
    x = ((x ^ (x >> 30)) * MUL1) & MASK
    x = ((x ^ (x >> 27)) * MUL2) & MASK
    return x ^ (x >> 31)


def make_key(seed: int, step: int, query: int = 0) -> int:
    """The 64-bit key of the direction that `query` of `step` asks in run `seed`."""
    key = 0
    for word in (seed, step, query):
        key = mix64((key ^ (word & MASK)) + GOLDEN)
    return key


def slot_id(name: str) -> int:
    """64 bits from a slot's canonical name, equal on every machine."""
    return int.from_bytes(
        hashlib.blake2b(name.encode(), digest_size=8).digest(), "little"
    )


def stream(key: int, slot: int) -> tuple[int, int]:
    """(K, K') of the stream that `key` has in the slot with id `slot`."""
    k = mix64(key ^ slot)
    return k, mix64(k ^ FLIP)


def direction(
    key: int,
    slot: str | int,
    shape: tuple[int, ...] | int,
    *,
    family: str = "rademacher",
    start: int = 0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """z of one slot: fp32, `shape`, from the slot's name (or id) and the key.

    `start` is the row-major index of the first element, for a slice or a shard.
    Raises ValueError on an unknown family.
    """
    if family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}, expected one of {FAMILIES}")
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    ident = slot_id(slot) if isinstance(slot, str) else slot
    element = torch.arange(start, start + math.prod(shape), device=device)
    return elements(stream(key, ident), element, family).reshape(shape)


def elements(stream: tuple[int, int], element: Tensor, family: str) -> Tensor:
    """z at the int64 indices `element`, in their shape, fp32."""
    if family == "rademacher":
        bit = (_hash(stream, element >> 6) >> (element & 63)) & 1
        return (2 * bit - 1).float()
    return (_popcount(_hash(stream, element)) - 32).float() * 0.25


def low_rank(
    left: tuple[int, int],
    right: tuple[int, int],
    rank: int,
    element: Tensor,
    columns: int,
) -> Tensor:
    """U V' at the row-major indices `element` of a matrix, fp32, variance `rank`.

    U has a row of `rank` (at most 64) signs for each row, from stream `left`; V has one
    for each of the `columns`, from `right`.
    """
    u, v = _hash(left, element // columns), _hash(right, element % columns)
    unlike = _popcount((u ^ v) & _signed((1 << rank) - 1))
    return (rank - 2 * unlike).float()


def rounded(
    stream: tuple[int, int], chance: tuple[int, int], bits: int, element: Tensor
) -> Tensor:
    """near_normal of `stream` on the grid of step 2^(4 - bits), fp32; its mean is kept.

    Up or down by the 16 bits that `chance` has for the element. With the grid's step at
    most 1/4 (six bits or more) every value is on the grid already.
    """
    step = 2.0 ** (4 - bits)
    x = elements(stream, element, "near_normal") / step
    low = x.floor()
    up = uniform_bits(chance, element) < ((x - low) * 65536.0)
    return (low + up) * step


def signs(
    stream: tuple[int, int], rows: int, rank: int, device: torch.device | str = "cpu"
) -> Tensor:
    """The factor of `low_rank` that `stream` draws: (rows, rank) of +-1, fp32."""
    h = _hash(stream, torch.arange(rows, device=device))
    return (2 * ((h[:, None] >> torch.arange(rank, device=device)) & 1) - 1).float()


def uniform_bits(stream: tuple[int, int], element: Tensor) -> Tensor:
    """16 uniform bits an element, as int64: lane e % 4 of h(e // 4)."""
    return (_hash(stream, element >> 2) >> ((element & 3) * 16)) & 0xFFFF


def uniform32(stream: tuple[int, int], element: Tensor) -> Tensor:
    """32 uniform bits an element, as int64: lane e % 2 of h(e // 2)."""
    return (_hash(stream, element >> 1) >> ((element & 1) * 32)) & 0xFFFFFFFF


def bits63(stream: tuple[int, int], element: Tensor) -> Tensor:
    """63 uniform bits an element, as int64 that sorts."""
    return _shift(_hash(stream, element), 1)


# int64 arithmetic wraps like uint64; only a right shift whose high bits are kept must
# be made logical.


def _signed(x: int) -> int:
    return x - (1 << 64) if x >> 63 else x


def _shift(x: Tensor, by: int) -> Tensor:
    """Logical right shift of int64 seen as uint64, by 1 to 63 bits."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _signed(MUL1)
    x = (x ^ _shift(x, 27)) * _signed(MUL2)
    return x ^ _shift(x, 31)


def _hash(stream: tuple[int, int], j: Tensor) -> Tensor:
    k, k2 = map(_signed, stream)
    return _mix(_mix(j * _signed(GOLDEN) + k) ^ k2)


def _popcount(x: Tensor) -> Tensor:
    x = x - (_shift(x, 1) & 0x5555555555555555)
    x = (x & 0x3333333333333333) + (_shift(x, 2) & 0x3333333333333333)
    x = (x + _shift(x, 4)) & 0x0F0F0F0F0F0F0F0F
    return _shift(x * 0x0101010101010101, 56)
