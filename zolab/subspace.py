"""z = sqrt(m n) / r U Z V' with orthonormal U and V: directions that need a reduction.

Orthonormal columns come from a QR decomposition, which no two libraries round alike.
U Z and V are therefore put on a grid of 2^-20 and multiplied exactly, so that z has the
same bits in any slice, in any order and (but for one entry in some 1e9 that lies on the
edge of the grid) on any machine. What is kept between steps is r (m + n) numbers.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from zolab.noise import direction

GRID = 2.0**20


def subspace(
    key: int, right: int, slot: int, shape: tuple[int, int], rank: int, element: Tensor
) -> Tensor:
    """z at the row-major indices `element` of an m x n slot, fp32, mean variance 1."""
    m, n = shape
    u, v = factors(right, slot, m, n, rank)
    z = direction(key, slot, (rank, rank), family="near_normal").double()
    left = (u @ z * GRID).round() / GRID
    left, v = left.to(element.device), v.to(element.device)
    row, column = element // n, element % n
    out = torch.zeros(element.shape, dtype=torch.float64, device=element.device)
    for k in range(rank):
        out += left[row, k] * v[column, k]
    return (out * (math.sqrt(m * n) / rank)).float()


@functools.lru_cache(maxsize=512)
def factors(right: int, slot: int, m: int, n: int, rank: int) -> tuple[Tensor, Tensor]:
    """U (m x rank) and V (n x rank) with orthonormal columns, fp64 on the CPU."""
    a = direction(right, slot, (m, rank), family="near_normal")
    b = direction(right ^ 1, slot, (n, rank), family="near_normal")
    u, v = (torch.linalg.qr(x.double()).Q for x in (a, b))
    return u, (v * GRID).round() / GRID
