"""The ask-and-tell form that every estimator has."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Protocol

from zolab.families import Family, Keys, check_family, directions
from zolab.gradient import Answer, Probe, ZOGradient

__all__ = ["Estimator", "Family", "Keys", "Proposal", "check_estimator", "directions"]

Proposal = Generator[list[Probe], list[Answer], ZOGradient]


class Estimator(Protocol):
    """A generator a step: yields probes, receives answers, returns a gradient.

    It may ask again (line search, anchors). Direction i of the gradient must be the
    family's direction i: the journal stores coefficients in this order and no keys.
    `num_queries` is the number of coefficients, `settings` what the header records.
    Optional: `scalars` is how many numbers beside the coefficients the log holds,
    `smooth` asks for a diagonal Hessian, and `observe(key, gradient)` is told every
    step that was taken, also those that a resume finds in the log.
    """

    family: str | Family
    num_queries: int

    @property
    def settings(self) -> dict[str, Any]: ...

    def propose(self, key: Keys) -> Proposal: ...


def check_estimator(eps: float, num_queries: int, family: str | Family) -> None:
    """ValueError unless eps > 0, num_queries >= 1 and the family is known."""
    if not eps > 0:
        raise ValueError(f"eps is {eps}, expected a positive probe size")
    if num_queries < 1:
        raise ValueError(f"num_queries is {num_queries}, expected at least 1")
    check_family(family)
