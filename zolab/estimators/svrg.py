"""MeZO-SVRG: mini-batch slopes, corrected by what the batch said at an anchor.

One step is one period: the anchor is the stored point theta_0, a full-batch slope moves
away from it, then `inner` mini-batch steps, each with its own z and its own batch:

    s_0 = slope of "full" at theta_0 along z_0
    theta_1     = theta_0 - anchor lr s_0 z_0
    theta_{j+1} = theta_j - lr [(s_j(theta_j) - s_j(theta_0)) z_j + s_0 z_0]

with s_j the two-sided slope of batch j along z_j, the same z_j and the same batch at
both points. The difference is O(lr), so the batch's noise cancels; with another z or
another batch at the anchor it would double.

Within a period nothing is stored: theta_j is theta_0 plus the terms so far. The period
is one gradient with a coefficient for each of z_0 ... z_inner, so the log holds all
that a replay or a resume needs, and no second copy of the weights exists. Weight decay
is applied once a period; bf16 and fp16 round once a period.

The closure is the first batch ("loss"), further ones are named "batch2", "batch3", ...

    opt.step(batch, full=everything, batch2=another)

The inner points are asked before the optimizer moves, at the lr that it has then, one
for all groups.

T. Gautam et al., Variance-reduced zeroth-order methods for fine-tuning language models,
arXiv:2404.08080. Their q is inner + 1, lr their eta_2 and anchor lr their eta_1. They
keep the anchor and its full-batch estimate as two copies of the weights.

Where published code differs: its anchor is a copy of the list of parameters, and no
weights are kept, so the second slope is asked at the present point; and each slope
draws its own z, in both of its variants. With both mended its steps are these.

Cost a period: 2 passes over "full" and 4 inner forward passes.
"""

from __future__ import annotations

from typing import Any

from zolab.estimators.ahead import ahead
from zolab.estimators.base import (
    Family,
    Keys,
    Proposal,
    check_estimator,
    directions,
)
from zolab.gradient import Answer, Direction, Probe, Term, ZOGradient, round16


class SVRG:
    """A full-batch step and `inner` corrected mini-batch steps, as one gradient."""

    def __init__(
        self,
        *,
        eps: float = 1e-3,
        inner: int = 1,
        anchor: float = 1.0,
        family: str | Family = "rademacher",
    ) -> None:
        check_estimator(eps, 1, family)
        if inner < 1:
            raise ValueError(f"inner is {inner}, expected at least 1 mini-batch step")
        if not 0 < anchor < float("inf"):
            raise ValueError(f"anchor is {anchor}, expected a positive factor of lr")
        self.eps, self.family = round16(eps), family
        self.anchor, self.inner = anchor, inner
        self.num_queries = inner + 1

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "name": "SVRG",
            "eps": self.eps,
            "inner": self.inner,
            "anchor": self.anchor,
        }

    def propose(self, key: Keys) -> Proposal:
        first, *others = directions(self.family, key, self.num_queries)
        full = self._slope((yield self._pair((), first, "full")))
        terms = [(first, self.anchor * full)]
        for j, d in enumerate(others, 1):
            batch = "loss" if j == 1 else f"batch{j}"
            here = self._pair(ahead(terms, key.rate), d, batch)
            answers = yield here + self._pair((), d, batch)
            moved = self._slope(answers[:2]) - self._slope(answers[2:])
            terms[0] = (first, terms[0][1] + full)
            terms.append((d, moved))
        return ZOGradient(tuple(terms))

    def _pair(self, to: tuple[Term, ...], d: Direction, name: str) -> list[Probe]:
        return [Probe((*to, (d, s * self.eps)), name) for s in (1, -1)]

    def _slope(self, pair: list[Answer]) -> float:
        up, down = pair
        return (up.value - down.value) / (2 * self.eps)
