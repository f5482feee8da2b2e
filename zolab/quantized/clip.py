"""Clip search: how much of each group's range to keep, by the least square error.

    (high, low) = argmin over a grid of |Q(w) - w|^2,   a group
                  where Q spans from low * min w to high * max w

The fair cheap baseline of everything that learns thresholds: no data, no pass.
W. Shao et al., OmniQuant, arXiv:2308.13137, learn the two numbers by back-propagation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zolab.storage.codecs import Codec, by_group, fit, grouped_codes
from zolab.storage.packed import Packed, pack_tensor

GRID = tuple(1 - i / 16 for i in range(12))  # from all to 5/16 of the range


def clip_search(name: str, w: Tensor, codec: Codec) -> Packed:
    """A quantizer: `zolab.pack(model, "uint2", by=clip_search)`."""
    best, *_ = searched(w, codec)
    return best


def searched(
    w: Tensor, codec: Codec, grid: Sequence[float] = GRID
) -> tuple[Packed, Tensor, Tensor]:
    """The packed tensor, and the shares (rows, groups) of max w and min w it keeps.

    A symmetric codec has one share for both.
    """
    x, levels = by_group(w.detach().float(), codec), codec.levels(w.device)
    least = torch.full(x.shape[:-1], torch.inf, device=w.device)
    high, low, zero = (torch.ones_like(least) for _ in range(3))
    scale = torch.ones_like(least)
    for a in grid:
        for b in grid if codec.zeros else (a,):
            s, z = fit(w, codec, high=a, low=b)
            level = grouped_codes(x, codec, s, z)
            level = levels[level.long()] if codec.step is None else level + levels[0]
            level = level if z is None else level - z[..., None]
            error = (s[..., None] * level - x).square().sum(-1)  # padding: 0 is a level
            better = error < least
            least = torch.where(better, error, least)
            high, low = high.masked_fill(better, a), low.masked_fill(better, b)
            scale = torch.where(better, s, scale)
            zero = zero if z is None else torch.where(better, z, zero)
    found = pack_tensor(w, codec, scale=scale, zero=zero if codec.zeros else None)
    return found, high, low
