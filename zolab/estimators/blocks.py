"""Module-wise SPSA: a slope for each block of the model, not one for all.

    g_b = (L(theta + eps z_b) - L(theta - eps z_b)) / (2 eps),   z_b is 0 outside of b
    gradient = sum_b g_b z_b

The squared error of SPSA is about d |grad|^2 with one direction over all d weights;
block by block it is sum_b d_b |grad_b|^2, smaller by about the number of blocks, for
twice as many forward passes as there are blocks. Random directions over the whole
space, as many of them, divide it by the same number: blocks pay where |grad_b| differ.

With `at_once=True` a block moves before the next is asked (the default of ZO-Bench's
code): its later blocks are asked at theta - lr (what was found so far).

Y. Zhang et al., Revisiting zeroth-order optimization for memory-efficient LLM
fine-tuning, arXiv:2402.11592.

Where published code differs: every block re-seeds with the step's one seed, so blocks
of equal shape move alike; here a slot's name is in its stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zolab.estimators.ahead import ahead
from zolab.estimators.base import Keys, Proposal, check_estimator, directions
from zolab.families import Blocks
from zolab.gradient import Probe, Term, ZOGradient, round16


class ModuleWise:
    """Two-sided along one direction a block; `blocks` are globs of slot names."""

    def __init__(
        self,
        blocks: Sequence[str],
        *,
        eps: float = 1e-3,
        at_once: bool = False,
        family: str = "rademacher",
    ) -> None:
        self.family = Blocks(tuple(blocks), family)
        check_estimator(eps, len(blocks), self.family)
        self.eps, self.num_queries, self.at_once = round16(eps), len(blocks), at_once

    @property
    def settings(self) -> dict[str, Any]:
        return {"name": "ModuleWise", "eps": self.eps, "at_once": self.at_once}

    def propose(self, key: Keys) -> Proposal:
        ds = directions(self.family, key, self.num_queries)
        terms: list[Term] = []
        if self.at_once:
            for d in ds:
                here = ahead(terms, key.rate)
                up, down = yield [Probe((*here, (d, s * self.eps))) for s in (1, -1)]
                terms.append((d, (up.value - down.value) / (2 * self.eps)))
            return ZOGradient(tuple(terms))
        answers = yield [Probe(((d, s * self.eps),)) for d in ds for s in (1, -1)]
        for d, up, down in zip(ds, answers[::2], answers[1::2], strict=True):
            terms.append((d, (up.value - down.value) / (2 * self.eps)))
        return ZOGradient(tuple(terms))
