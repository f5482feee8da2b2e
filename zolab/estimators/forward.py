"""Forward gradient: the exact slope along a direction, from one pass of dual numbers.

    g_i = grad L . z_i           (a Jacobian-vector product, no eps)
    gradient = 1/q sum_i g_i z_i

E[gradient] = E[z z'] grad L = grad L exactly, for any z of independent entries with
variance 1, where SPSA averages slopes over a step of eps z; the variance is that of
SPSA with a small eps. It needs a differentiable loss, and the memory of a forward pass
with a second number beside each activation; none is kept.

A. G. Baydin et al., Gradients without backpropagation, arXiv:2202.08587 (normal z).
M. Ren et al., Scaling forward gradient with local losses, arXiv:2210.03310.

Cost: q passes of about two forward passes' arithmetic.
"""

from __future__ import annotations

from typing import Any

from zolab.estimators.base import (
    Family,
    Keys,
    Proposal,
    check_estimator,
    directions,
)
from zolab.gradient import Probe, ZOGradient


class ForwardGradient:
    """`num_queries` exact slopes a step; the closure returns the loss as a tensor."""

    def __init__(
        self, *, num_queries: int = 1, family: str | Family = "rademacher"
    ) -> None:
        check_estimator(1.0, num_queries, family)
        self.num_queries, self.family = num_queries, family

    @property
    def settings(self) -> dict[str, Any]:
        return {"name": "ForwardGradient", "num_queries": self.num_queries}

    def propose(self, key: Keys) -> Proposal:
        ds = directions(self.family, key, self.num_queries)
        answers = yield [Probe(((d, 1.0),), want="jvp") for d in ds]
        terms = []
        for d, a in zip(ds, answers, strict=True):
            assert a.tangent is not None
            terms.append((d, a.tangent / self.num_queries))
        return ZOGradient(tuple(terms))
