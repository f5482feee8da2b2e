"""GGUF's block types: a block of bytes is codes, scales and zero points, and back.

    Q4_0   32 weights   d (q - 8)                  d fp16, 16 bytes of codes
    Q4_1   32 weights   d q + m                    d, m fp16, 16 bytes
    Q8_0   32 weights   d q                        d fp16, 32 signed bytes
    Q4_K   8 x 32       d s_g q - dmin m_g         d, dmin fp16, s and m in 6 bits
    Q6_K   16 x 16      d s_g (q - 32)             6-bit codes, s int8, d fp16

All become scale (code - zero) with scale > 0: an offset m is the zero point -m / d, a
negative d (half of the blocks of Q4_0) turns the codes around, q -> 15 - q, and its
zero point with them. Where d is 0 a block is one number m: code 0, scale |m|, zero
point -1 or 1 (0 and any scale for m = 0), so that every scale has the size of weights.

Back, codes go where they came from. A scale is fp16 in Q4_0, Q4_1 and Q8_0, and a
multiple of the largest in Q4_K and Q6_K, so moved scales lose something.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from zolab.assets import AssetError
from zolab.errors import StoreError
from zolab.storage.codecs import Codec
from zolab.storage.codecs import codec as codec_of

Array = np.ndarray[Any, Any]
Grid = tuple[Array, Array, Array | None]  # codes, one a byte; scales; zero points
TINY = np.float32(1e-8)  # the scale of zeros
FOUR = np.array([0, 4], np.uint8)[:, None]
TWO = np.array([0, 2, 4, 6], np.uint8)[:, None]

UINT4 = codec_of("uint4", group=32)
UINT6 = Codec("uint6", 8, tuple(map(float, range(64))), group=16, zeros=True)
SIGNED = Codec("q8_0", 8, tuple(map(float, range(-128, 128))), group=32)


@dataclass(frozen=True)
class Kind:
    """One block type: its number in the file, weights and bytes a block, its codec.

    `head` are the bytes that are not codes. `grid` reads blocks (n, nbytes), `heads`
    makes (n, head bytes) of scales and zero points, `bodies` the rest of codes and
    zero points.
    """

    name: str
    number: int
    size: int
    nbytes: int
    codec: Codec
    head: slice
    grid: Callable[[Array], Grid]
    heads: Callable[[Array, Array | None], Array]
    bodies: Callable[[Array, Array | None], Array]

    @property
    def groups(self) -> int:
        return self.size // self.codec.group

    def write(self, raw: Array, codes: Array, scale: Array, zero: Array | None) -> None:
        """Put codes, scales and zero points into blocks that hold what was read.

        A block's head stays as it is unless its scales or zero points moved, or it is
        one number that is not 0 (d = 0, m is not) and codes did: such a head says
        nothing of codes.
        """
        if (scale < 0).any():
            raise StoreError(
                f"a scale is {scale.min():.3g}: {self.name} has none below 0, so a "
                "method that moves scales must have a floor"
            )
        was = self.grid(raw)
        same = (scale == was[1]).all(1)
        if zero is not None and was[2] is not None:
            same &= (zero == was[2]).all(1)
        body = np.ones(self.nbytes, bool)
        body[self.head] = False
        new = raw.copy()
        new[:, body] = self.bodies(codes, zero)
        silent = np.repeat(scale == TINY, self.codec.group, 1)
        whole = same & (silent | (self.grid(new)[0] == codes)).all(1)
        if not whole.all():
            rest = None if zero is None else zero[~whole]
            new[~whole, self.head] = self.heads(scale[~whole], rest)
        still = same & (codes == was[0]).all(1)
        raw[~still] = new[~still]

    def decode(self, codes: Array, scale: Array, zero: Array | None) -> Array:
        """The blocks' weights, fp32, (n, size)."""
        level = np.array(self.codec.table, np.float32)[codes].reshape(*scale.shape, -1)
        if zero is not None:
            level = level - zero[..., None]
        return (scale[..., None] * level).reshape(codes.shape)


def _f16(raw: Array) -> Array:
    """(n, 2k) bytes as (n, k) fp32."""
    x = np.ascontiguousarray(raw).view("<f2").astype(np.float32)
    if not np.isfinite(x).all():
        raise AssetError("a block's scale is NaN or infinite, expected finite numbers")
    return x


def _bytes(x: Array) -> Array:
    """(n, k) fp32 as (n, 2k) bytes of fp16."""
    with np.errstate(over="ignore"):
        half = x.astype("<f2")
    if not np.isfinite(half).all():
        worst = float(np.abs(x).max())
        raise StoreError(f"a scale of {worst:.3g} does not fit into fp16 (65504)")
    return half.view(np.uint8)


def _nibbles(raw: Array, half: int) -> Array:
    """Low nibbles of `half` bytes are the first codes, high nibbles the next."""
    x = raw.reshape(len(raw), -1, half)
    return np.stack([x & 15, x >> 4], 2).reshape(len(raw), -1)


def _unnibbles(codes: Array, half: int) -> Array:
    x = codes.reshape(len(codes), -1, 2, half)
    return (x[:, :, 0] | x[:, :, 1] << 4).reshape(len(codes), -1)


def _offset(q: Array, scale: Array, low: Array) -> Grid:
    """scale q + low as scale (code - zero)."""
    if (scale < 0).any():
        raise AssetError(f"a block's scale is {scale.min():.3g}, expected at least 0")
    dead = scale == 0
    scale = np.where(dead, np.where(low == 0, TINY, np.abs(low)), scale)
    apart = q.reshape(*scale.shape, -1)
    q = np.where(dead[..., None], np.uint8(0), apart).reshape(q.shape)
    return q, scale, 0.0 - low / scale


def _turned(q: Array, scale: Array, middle: int) -> Grid:
    """scale (q - middle), of either sign, as |scale| (code - zero)."""
    top, apart = 2 * middle - 1, q.reshape(*scale.shape, -1)
    turned = np.where((scale < 0)[..., None], top - apart, apart)
    codes = np.where((scale == 0)[..., None], middle, turned).astype(np.uint8)
    zero = np.where(scale < 0, top - middle, middle).astype(np.float32)
    scale = np.where(scale == 0, TINY, np.abs(scale))
    return codes.reshape(q.shape), scale, zero


def _back(codes: Array, zero: Array | None, middle: int) -> Array:
    """The codes that were turned around, turned again."""
    assert zero is not None
    apart = codes.reshape(*zero.shape, -1)
    back = np.where((zero != middle)[..., None], 2 * middle - 1 - apart, apart)
    return back.reshape(codes.shape).astype(np.uint8)


def _signed(scale: Array, zero: Array | None, middle: int) -> Array:
    return np.where(zero == middle, scale, -scale)


def _q4_0(raw: Array) -> Grid:
    return _turned(_nibbles(raw[:, 2:], 16), _f16(raw[:, :2]), 8)


def _q4_1(raw: Array) -> Grid:
    head = _f16(raw[:, :4])
    return _offset(_nibbles(raw[:, 4:], 16), head[:, :1], head[:, 1:])


def _q4_1_heads(scale: Array, zero: Array | None) -> Array:
    assert zero is not None
    return _bytes(np.concatenate([scale, -zero * scale], 1))


def _q8_0(raw: Array) -> Grid:
    d = _f16(raw[:, :2])
    if (d < 0).any():
        raise AssetError(f"a block's scale is {d.min():.3g}, expected at least 0")
    code = np.where(d == 0, np.uint8(128), raw[:, 2:] + np.uint8(128))
    return code, np.where(d == 0, TINY, d), None


def _q4_k(raw: Array) -> Grid:
    d = _f16(raw[:, :4])
    low, high, rest = (raw[:, a : a + 4] for a in (4, 8, 12))
    scale = np.concatenate([low & 63, rest & 15 | low >> 2 & 48], 1)
    least = np.concatenate([high & 63, rest >> 4 | high >> 2 & 48], 1)
    low = 0.0 - d[:, 1:] * least.astype(np.float32)
    return _offset(_nibbles(raw[:, 16:], 32), d[:, :1] * scale.astype(np.float32), low)


def _q4_k_heads(scale: Array, zero: Array | None) -> Array:
    """d and dmin are a 63rd of the largest; the others are whole multiples of them."""
    assert zero is not None
    least = zero * scale
    if (least < 0).any():
        raise StoreError(f"a zero point is {zero.min():.3g}: Q4_K has none below 0")
    heads, sixes = [], []
    for x in (scale, least):
        heads.append(_bytes(x.max(1, keepdims=True) / np.float32(63)))
        unit = _f16(heads[-1])
        part = x / np.where(unit == 0, np.float32(1), unit)
        sixes.append(np.rint(part).clip(0, 63).astype(np.uint8))
    s, m = sixes
    low, high = s[:, :4] | s[:, 4:] >> 4 << 6, m[:, :4] | m[:, 4:] >> 4 << 6
    rest = s[:, 4:] & 15 | (m[:, 4:] & 15) << 4
    return np.concatenate([*heads, low, high, rest], 1)


def _q6_k(raw: Array) -> Grid:
    low = raw[:, :128].reshape(-1, 2, 1, 64) >> FOUR
    high = raw[:, 128:192].reshape(-1, 2, 1, 32) >> TWO
    q = (low & 15).reshape(-1, 2, 4, 32) | (high & 3) << 4
    scale = _f16(raw[:, 208:]) * raw[:, 192:208].view(np.int8).astype(np.float32)
    return _turned(q.reshape(len(raw), -1), scale, 32)


def _q6_k_heads(scale: Array, zero: Array | None) -> Array:
    signed = _signed(scale, zero, 32)
    d = _bytes(np.abs(signed).max(1, keepdims=True) / np.float32(127))
    unit = _f16(d)
    part = np.rint(signed / np.where(unit == 0, np.float32(1), unit))
    return np.concatenate([part.clip(-127, 127).astype(np.int8).view(np.uint8), d], 1)


def _q6_k_bodies(codes: Array, zero: Array | None) -> Array:
    q = _back(codes, zero, 32).reshape(-1, 2, 4, 32)
    part = (q & 15).reshape(-1, 2, 2, 64)
    low = (part[:, :, 0] | part[:, :, 1] << 4).reshape(len(codes), -1)
    high = np.bitwise_or.reduce((q >> 4) << TWO, 2).reshape(len(codes), -1)
    return np.concatenate([low, high], 1)


KINDS = {
    k.number: k
    for k in (
        Kind(
            *("Q4_0", 2, 32, 18, UINT4, slice(0, 2), _q4_0),
            lambda scale, zero: _bytes(_signed(scale, zero, 8)),
            lambda codes, zero: _unnibbles(_back(codes, zero, 8), 16),
        ),
        Kind(
            *("Q4_1", 3, 32, 20, UINT4, slice(0, 4), _q4_1, _q4_1_heads),
            lambda codes, zero: _unnibbles(codes, 16),
        ),
        Kind(
            *("Q8_0", 8, 32, 34, SIGNED, slice(0, 2), _q8_0),
            lambda scale, zero: _bytes(scale),
            lambda codes, zero: codes - np.uint8(128),
        ),
        Kind(
            *("Q4_K", 12, 256, 144, UINT4, slice(0, 16), _q4_k, _q4_k_heads),
            lambda codes, zero: _unnibbles(codes, 32),
        ),
        Kind(
            *("Q6_K", 14, 256, 210, UINT6, slice(192, 210), _q6_k, _q6_k_heads),
            _q6_k_bodies,
        ),
    )
}
