"""The ask-and-tell form that every estimator has."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Protocol

from zolab.gradient import Answer, Probe, ZOGradient
from zolab.noise import FAMILIES

Keys = Callable[[int], int]
"""key(query): the key of this step's direction number `query`."""

Proposal = Generator[list[Probe], list[Answer], ZOGradient]


class Estimator(Protocol):
    """A generator a step: yields probes, receives answers, returns a gradient.

    It may ask again (line search, anchors). Direction i of the gradient must be
    `key(i)`: the journal stores coefficients in this order and no keys.
    `num_queries` is the number of coefficients, `settings` what the header records.
    """

    family: str
    num_queries: int

    @property
    def settings(self) -> dict[str, Any]: ...

    def propose(self, key: Keys) -> Proposal: ...


def check_estimator(eps: float, num_queries: int, family: str) -> None:
    """ValueError unless eps > 0, num_queries >= 1 and the family is known."""
    if not eps > 0:
        raise ValueError(f"eps is {eps}, expected a positive probe size")
    if num_queries < 1:
        raise ValueError(f"num_queries is {num_queries}, expected at least 1")
    if family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}, expected one of {FAMILIES}")
