"""Masks for the CPU, in numba: what a mask does not choose is put back.

    x[i] = x[i] if the mask chooses element start + i, else w[i]

One pass over a chunk that lies in the cache. Each loop decides as the mask's own
`chosen` does, to the bit; a mask that is not known here goes through `chosen`.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numba import njit
from torch import Tensor

from zolab.masks import Above, Below, Bits, Mask, Random
from zolab.noise import make_key, stream
from zolab.storage.cpu import U, _hash


def put_back(x: Tensor, w: Tensor, mask: Mask, slot: int, start: int) -> None:
    """x = w where `mask` chooses nothing; flat fp32 pieces that begin at `start`."""
    to, kept = x.numpy(), w.numpy()
    if isinstance(mask, Below):
        _between(to, kept, np.float32(0), np.float32(mask.threshold))
    elif isinstance(mask, Above):
        _between(to, kept, np.float32(mask.threshold), np.float32(math.inf))
    elif isinstance(mask, Random):
        k, k2 = stream(make_key(mask.seed, 0), slot)
        _lanes(to, kept, U(k), U(k2), U(mask.limit), start)
    elif isinstance(mask, Bits):
        _packed(to, kept, mask.packed.numpy(), start)
    else:
        element = torch.arange(start, start + len(x))
        x.copy_(torch.where(mask.chosen(w, slot, element), x, w))


@njit(nogil=True, cache=True)
def _between(x, w, low, high):  # type: ignore[no-untyped-def]
    for i in range(len(x)):
        size = abs(w[i])
        x[i] = x[i] if (size >= low) & (size <= high) else w[i]


@njit(nogil=True, cache=True)
def _packed(x, w, packed, start):  # type: ignore[no-untyped-def]
    i = 0
    while i < len(x):
        first = (start + i) & 7
        byte, n = packed[(start + i) >> 3] >> first, min(8 - first, len(x) - i)
        for k in range(n):
            x[i + k] = x[i + k] if (byte >> k) & 1 else w[i + k]
        i += n


@njit(nogil=True, cache=True)
def _lanes(x, w, k, k2, limit, start):  # type: ignore[no-untyped-def]
    """A hash has four elements' 16 bits."""
    i = 0
    while i < len(x):
        first = (start + i) & 3
        h = _hash(k, k2, U((start + i) >> 2)) >> U(16 * first)
        n = min(4 - first, len(x) - i)
        for j in range(n):
            x[i + j] = x[i + j] if (h >> U(16 * j)) & U(0xFFFF) < limit else w[i + j]
        i += n
