"""Which directions an estimator asks along: a name, or an object that draws them.

    "rademacher", "near_normal"      every slot, every element, fresh each step
    LowRank(rank=2, every=50)        U V' a matrix, with V kept for `every` steps
    Subspace(rank=8, every=1000)     U Z V' with orthonormal U and V kept
    Blocks(["*.0.*", "*.1.*"])       direction i lives in the slots of pattern i
    Rounded(bits=4)                  near normal on a grid of 16 levels

Any estimator takes any of them as `family`. Direction i of a step must follow from its
keys alone: that is why a log holds coefficients and no directions. A journal's header
holds `settings`, from which `family_from` makes the object again.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Protocol

from zolab.gradient import Direction
from zolab.noise import FAMILIES, make_key

RIGHT = 1 << 32  # queries from here on name the slow factors V


@dataclass(frozen=True)
class Keys:
    """A step's keys: `key(i)` is the key of its direction number i.

    `lr` is the optimizer's now, a number a param group.
    """

    seed: int
    step: int
    lr: tuple[float, ...] = ()

    def __call__(self, query: int) -> int:
        return make_key(self.seed, self.step, query)

    def kept(self, every: int) -> Keys:
        """The keys of the last step that `every` divides."""
        return Keys(self.seed, self.step - self.step % every)

    @property
    def rate(self) -> float:
        """The one lr of all groups; ValueError where they differ."""
        if len(set(self.lr)) != 1:
            raise ValueError(
                f"the groups' lr are {self.lr}, expected one lr: this estimator asks "
                "at points where a step would land"
            )
        return self.lr[0]


class Family(Protocol):
    """Draws direction i of a step; `settings` is {"name": class name, **kwargs}."""

    @property
    def settings(self) -> dict[str, Any]: ...

    def direction(self, key: Keys, i: int) -> Direction: ...


@dataclass(frozen=True)
class LowRank:
    """z = U V' / sqrt(rank) in a matrix: LOZO, and with every=1 EGGROLL's noise.

    U (rows x rank) and V (columns x rank) are random signs; V is drawn anew every
    `every` steps, U each step. A tensor of more axes is a matrix of its first axis by
    the rest, a vector one of a single column. Rank is 1 to 64.

    Y. Chen et al., Enhancing zeroth-order fine-tuning for language models with low-rank
    structures, arXiv:2410.07698 (normal U and V, rank 2, every 50 or 100). Evolution
    strategies at the hyperscale, arXiv:2511.16652.

    Where published code differs: LOZO's update draws U without V from the stream that
    the probe drew V and U from, so on each step with a new V it moves along another
    direction than it asked. Here a key belongs to a factor.
    """

    rank: int = 2
    every: int = 50

    def __post_init__(self) -> None:
        _at_least_one(self, "rank", "every")
        if self.rank > 64:
            raise ValueError(f"rank is {self.rank}, expected at most 64")

    @property
    def settings(self) -> dict[str, Any]:
        return {"name": "LowRank", "rank": self.rank, "every": self.every}

    def direction(self, key: Keys, i: int) -> Direction:
        right = key.kept(self.every)(RIGHT + i)
        return Direction(key(i), "low_rank", right=right, rank=self.rank)


@dataclass(frozen=True)
class Subspace:
    """z = sqrt(m n) / rank U Z V' in a matrix: random subspaces, SubZero.

    U (m x rank) and V (n x rank) have orthonormal columns and are drawn anew every
    `every` steps, Z (rank x rank, near normal) each step. Vectors, and matrices with a
    side of at most `rank`, get near normal z.

    Z. Yu et al., SubZero: random subspace zeroth-order optimization for memory-
    efficient LLM fine-tuning, arXiv:2410.08989.
    """

    rank: int = 8
    every: int = 1000

    def __post_init__(self) -> None:
        _at_least_one(self, "rank", "every")

    @property
    def settings(self) -> dict[str, Any]:
        return {"name": "Subspace", "rank": self.rank, "every": self.every}

    def direction(self, key: Keys, i: int) -> Direction:
        right = key.kept(self.every)(RIGHT + i)
        return Direction(key(i), "subspace", right=right, rank=self.rank)


@dataclass(frozen=True)
class Blocks:
    """Direction i is `family` in the slots that match pattern i, and 0 elsewhere."""

    patterns: tuple[str, ...]
    family: str = "rademacher"

    def __post_init__(self) -> None:
        object.__setattr__(self, "patterns", tuple(self.patterns))
        if self.family not in FAMILIES or not self.patterns:
            raise ValueError(
                f"{len(self.patterns)} patterns of {self.family!r}, expected at least "
                f"one of {FAMILIES}"
            )

    @property
    def settings(self) -> dict[str, Any]:
        patterns = list(self.patterns)
        return {"name": "Blocks", "patterns": patterns, "family": self.family}

    def direction(self, key: Keys, i: int) -> Direction:
        pattern = self.patterns[i % len(self.patterns)]
        return Direction(key(i), self.family, within=pattern)


@dataclass(frozen=True)
class Rounded:
    """z = near normal, rounded at random to `bits` bits; `which` names the rounding.

    Two roundings of one direction are independent given the direction (QuZO).
    """

    bits: int = 4
    which: int = 1

    def __post_init__(self) -> None:
        _at_least_one(self, "bits", "which")
        if self.bits > 8:
            raise ValueError(f"bits is {self.bits}, expected at most 8")

    @property
    def settings(self) -> dict[str, Any]:
        return {"name": "Rounded", "bits": self.bits, "which": self.which}

    def direction(self, key: Keys, i: int) -> Direction:
        return Direction(key(i), "rounded", right=self.which, rank=self.bits)


KNOWN = {
    "LowRank": "zolab.families",
    "Subspace": "zolab.families",
    "Blocks": "zolab.families",
    "Rounded": "zolab.families",
    "Coordinates": "zolab.coordinates",
}


def directions(family: str | Family, key: Keys, n: int) -> list[Direction]:
    """The first n directions of the step that `key` belongs to."""
    if isinstance(family, str):
        return [Direction(key(i), family) for i in range(n)]
    return [family.direction(key, i) for i in range(n)]


def settings_of(family: str | Family) -> str | dict[str, Any]:
    """What a header says of a family."""
    return family if isinstance(family, str) else family.settings


def family_from(settings: str | dict[str, Any]) -> str | Family:
    """The family that a header names; ValueError on an unknown name."""
    if isinstance(settings, str):
        check_family(settings)
        return settings
    kwargs = dict(settings)
    name = kwargs.pop("name")
    if name not in KNOWN:
        raise ValueError(f"unknown family {name!r}, expected one of {(*KNOWN,)}")
    return getattr(importlib.import_module(KNOWN[name]), name)(**kwargs)


def check_family(family: str | Family) -> None:
    """ValueError unless it is a known name or draws directions."""
    if isinstance(family, str) and family not in FAMILIES:
        raise ValueError(
            f"unknown family {family!r}, expected one of {FAMILIES} or an object, as "
            "LowRank() is"
        )


def _at_least_one(family: Any, *names: str) -> None:
    for name in names:
        if getattr(family, name) < 1:
            raise ValueError(f"{name} is {getattr(family, name)}, expected at least 1")
