"""Decoding packed weights on the CPU, in numba: runs of one scale, whole bytes.

    out[i] = scale (table[code] - zero)

Evenly spaced levels are a conversion, a subtraction and a product, which the compiler
turns into vectors; others are a table of at most 256 products a group.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from torch import Tensor

from zolab.storage.packed import Packed

NONE = np.empty(0, np.float32)


def decode(packed: Packed, scales: Tensor, out: Tensor, start: int) -> None:
    """`out` (flat fp32) = the values from element `start`; `scales` multiply levels."""
    codec = packed.codec
    _, columns, group = codec.layout(packed.shape)
    zero = NONE if packed.zero is None else packed.zero.reshape(-1).numpy()
    levels = np.array(codec.table, np.float32)
    loop = _even if codec.step is not None else _table
    loop(
        out.numpy(),
        packed.codes.numpy(),
        scales.reshape(-1).numpy(),
        zero,
        levels,
        codec.bits,
        columns,
        group,
        start,
    )


@njit(inline="always")
def _code(codes, e, bits):  # type: ignore[no-untyped-def]
    if bits == 8:
        return codes[e]
    if bits == 4:
        return (codes[e >> 1] >> ((e & 1) << 2)) & 15
    return (codes[e >> 2] >> ((e & 3) << 1)) & 3


@njit(nogil=True, cache=True)
def _even(out, codes, scale, zero, levels, bits, columns, group, start):  # type: ignore[no-untyped-def]
    per_row, first = (columns + group - 1) // group, levels[0]
    i, n = 0, len(out)
    while i < n:
        row, column = (start + i) // columns, (start + i) % columns
        g = row * per_row + column // group
        end = min(n, i + min(columns, (column // group + 1) * group) - column)
        s, z = scale[g], np.float32(0)
        if len(zero):
            z = zero[g]
        while i < end and bits < 8 and (start + i) % (8 // bits):
            level = np.float32(_code(codes, start + i, bits)) + first
            out[i] = s * (level - z)
            i += 1
        whole = (end - i) * bits // 8
        at = (start + i) * bits // 8
        b, o = codes[at : at + whole], out[i : i + whole * 8 // bits]
        if bits == 4:
            for j in range(whole):
                o[2 * j] = s * (np.float32(b[j] & 15) + first - z)
                o[2 * j + 1] = s * (np.float32(b[j] >> 4) + first - z)
        elif bits == 8:
            for j in range(whole):
                o[j] = s * (np.float32(b[j]) + first - z)
        else:
            for j in range(whole):
                o[4 * j] = s * (np.float32(b[j] & 3) + first - z)
                o[4 * j + 1] = s * (np.float32((b[j] >> 2) & 3) + first - z)
                o[4 * j + 2] = s * (np.float32((b[j] >> 4) & 3) + first - z)
                o[4 * j + 3] = s * (np.float32(b[j] >> 6) + first - z)
        i += whole * 8 // bits
        while i < end:
            level = np.float32(_code(codes, start + i, bits)) + first
            out[i] = s * (level - z)
            i += 1


@njit(nogil=True, cache=True)
def _table(out, codes, scale, zero, levels, bits, columns, group, start):  # type: ignore[no-untyped-def]
    per_row = (columns + group - 1) // group
    i, n, value = 0, len(out), np.empty(len(levels), np.float32)
    while i < n:
        row, column = (start + i) // columns, (start + i) % columns
        g = row * per_row + column // group
        end = min(n, i + min(columns, (column // group + 1) * group) - column)
        z = zero[g] if len(zero) else np.float32(0)
        for k in range(len(levels)):
            value[k] = scale[g] * (levels[k] - z)
        for k in range(i, end):
            out[k] = value[_code(codes, start + k, bits)]
        i = end
