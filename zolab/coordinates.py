"""Coordinates as directions: all of them, or a share of each slot drawn anew.

A share is chosen without a list: each element of a slot hashes to 63 bits, and the
`count` smallest of the slot are taken, in the order of their index.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from zolab.families import RIGHT, Keys
from zolab.gradient import Direction
from zolab.noise import bits63, slot_id, stream
from zolab.space import Space


class Coordinates:
    """Direction i is the i-th chosen coordinate; `counts` of `sizes`, slot by slot.

    `every` is the number of steps after which another choice is made; without `counts`
    there is none, and all d coordinates are directions.
    """

    def __init__(
        self,
        sizes: Mapping[str, int] | Sequence[tuple[str, int]],
        counts: Mapping[str, int] | Sequence[tuple[str, int]] | None = None,
        *,
        every: int = 1,
    ) -> None:
        self.sizes, self.every = dict(sizes), every
        self.counts = dict(self.sizes if counts is None else counts)
        if every < 1:
            raise ValueError(f"every is {every}, expected at least 1")
        for name, k in self.counts.items():
            if not 0 <= k <= self.sizes.get(name, -1):
                raise ValueError(
                    f"{k} coordinates of {name!r}, expected 0 to {self.sizes.get(name)}"
                )
        self._both = self.sizes, self.counts
        self.total = sum(self.counts.values())

    @classmethod
    def of(
        cls,
        space: Space,
        share: float | Mapping[str, float] = 1.0,
        *,
        every: int = 1,
    ) -> Coordinates:
        """A share of each slot, the same or by name; at least one coordinate each."""
        sizes = {s.name: s.numel for s in space}
        shares = (
            share if isinstance(share, Mapping) else dict.fromkeys(sizes, float(share))
        )
        if bad := {n: p for n, p in shares.items() if not 0 < p <= 1}:
            raise ValueError(f"shares are {bad}, expected more than 0 and at most 1")
        counts = {n: max(1, round(sizes[n] * shares[n])) for n in sizes}
        return cls(sizes, counts, every=every)

    @property
    def settings(self) -> dict[str, Any]:
        # Pairs, not a mapping: their order is that of the directions.
        sizes, counts = ([[n, k] for n, k in x.items()] for x in self._both)
        return {
            "name": "Coordinates",
            "sizes": sizes,
            "counts": counts,
            "every": self.every,
        }

    def direction(self, key: Keys, i: int) -> Direction:
        if self.counts == self.sizes:
            return _all(tuple(self.sizes.items()))[i]
        kept = key.kept(self.every)(RIGHT)
        return _some(kept, tuple(self.sizes.items()), tuple(self.counts.items()))[i]


Counts = tuple[tuple[str, int], ...]


@functools.lru_cache(maxsize=4)
def _all(sizes: Counts) -> list[Direction]:
    return [Direction(e, "coordinate", name) for name, n in sizes for e in range(n)]


@functools.lru_cache(maxsize=4)
def _some(key: int, sizes: Counts, counts: Counts) -> list[Direction]:
    """Every slot's `count` elements of the smallest hash."""
    out, size = [], dict(sizes)
    for name, count in counts:
        h = bits63(stream(key, slot_id(name)), torch.arange(size[name]))
        chosen = h.argsort(stable=True)[:count].sort().values
        out += [Direction(e, "coordinate", name) for e in chosen.tolist()]
    return out
