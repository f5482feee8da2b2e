"""What a token of a small Llama needs besides matrix products, on a CPU, in numba.

A row's query meets the keys of its prompt, which its group shares, and its own:

    q, k <- rotated by the token's place;     p = softmax(q . [k_prompt, k_own])
    out   = sum p v

Each is a loop over a few kilobytes that stay in the nearest cache. The same in torch
is twenty calls, and each of them reads and writes all rows' numbers again.
"""

from __future__ import annotations

import numpy as np
from numba import njit

FAST = {"reassoc", "contract", "nsz"}  # sums in any order, so in vectors


@njit(nogil=True, cache=True, fastmath=FAST)
def attend(  # type: ignore[no-untyped-def]
    qkv, heads, cos, sin, place, keys, values, pad, group, own_keys, own_values,
    start, t, out,
):  # fmt: skip
    """Attention of `m` new tokens a row; they are written to its own keys and values.

    `qkv` (n, m, heads + 2 kv, d); `cos`, `sin` (places, d), the rotation's sign in the
    sine; `place` (n,) of a row's own slot 0. `keys`, `values` (P, kv, L, d) of prompts
    whose first `pad` (P,) are nothing; row i has prompt i // group. `own_keys`,
    `own_values` (n, kv, room, d), nothing before `start` (n,), filled up to slot t.
    `out` (n, m, heads, d). Queries are scaled already.
    """
    n, m, _, d = qkv.shape
    kv, far, half = own_keys.shape[1], keys.shape[2], d // 2
    q = np.empty(d, np.float32)
    p = np.empty(far + own_keys.shape[2], np.float32)
    for i in range(n):
        of = i // group
        for j in range(m):
            here = t + j
            if here < start[i]:
                out[i, j] = 0
                continue
            c, s = cos[place[i] + here], sin[place[i] + here]
            for h in range(kv):
                new, own, own_v = qkv[i, j, heads + h], own_keys[i, h], own_values[i, h]
                for e in range(half):
                    own[here, e] = new[e] * c[e] + new[e + half] * s[e]
                    own[here, e + half] = (
                        new[e + half] * c[e + half] + new[e] * s[e + half]
                    )
                own_v[here] = qkv[i, j, heads + kv + h]
                for r in range(h * heads // kv, (h + 1) * heads // kv):
                    raw, y = qkv[i, j, r], out[i, j, r]
                    for e in range(half):
                        q[e] = raw[e] * c[e] + raw[e + half] * s[e]
                        q[e + half] = raw[e + half] * c[e + half] + raw[e] * s[e + half]
                    a, b = pad[of] if far else 0, start[i]
                    count = _dots(q, keys[of, h] if far else own, a, far, p, 0)
                    count = _dots(q, own, b, here + 1, p, count)
                    _softmax(p, count)
                    y[:] = 0
                    near = _sums(p, 0, values[of, h] if far else own_v, a, far, y)
                    _sums(p, near, own_v, b, here + 1, y)


@njit(inline="always", fastmath=FAST)
def _dots(q, keys, first, last, p, count):  # type: ignore[no-untyped-def]
    for slot in range(first, last):
        total = np.float32(0)
        for e in range(len(q)):
            total += q[e] * keys[slot, e]
        p[count] = total
        count += 1
    return count


@njit(inline="always", fastmath=FAST)
def _softmax(p, count):  # type: ignore[no-untyped-def]
    top, total = p[:count].max(), np.float32(0)
    for i in range(count):
        p[i] = np.exp(p[i] - top)
        total += p[i]
    for i in range(count):
        p[i] /= total


@njit(inline="always", fastmath=FAST)
def _sums(p, count, values, first, last, y):  # type: ignore[no-untyped-def]
    for slot in range(first, last):
        for e in range(len(y)):
            y[e] += p[count] * values[slot, e]
        count += 1
    return count


@njit(nogil=True, cache=True, fastmath=FAST)
def add_and_norm(x, y, eps, out):  # type: ignore[no-untyped-def]
    """x += y, and out = x / rms(x), row by row of (n, width)."""
    for i in range(len(x)):
        total = np.float32(0)
        for e in range(x.shape[1]):
            x[i, e] += y[i, e]
            total += x[i, e] * x[i, e]
        scale = 1 / np.sqrt(total / x.shape[1] + eps)
        for e in range(x.shape[1]):
            out[i, e] = x[i, e] * np.float32(scale)
