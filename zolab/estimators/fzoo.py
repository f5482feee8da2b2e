"""FZOO: one-sided differences over the spread of the losses: normalised descent.

    c_i = (L(theta + eps z_i) - L(theta)) / (N std),   std over L_1 ... L_N (by N - 1)
    gradient = sum_i c_i z_i

std is close to eps |grad|, so the gradient is close to grad / |grad|: its length does
not depend on eps or on the loss's unit, steps are long where the loss is flat. An
affine map of the loss, a L + b with a > 0, changes nothing but rounding.

S. Dang et al., FZOO: fast zeroth-order optimizer for fine-tuning large language models
towards Adam-scale speed, arXiv:2506.09034. Theirs: N 8, eps 1e-4, lr 5e-5 for OPT-13B.

Cost: N + 1 forward passes a step, in one ask.

Where published code differs: it divides by std also when all losses tie, and the
weights are NaN from then on; here a tie is a gradient of zeros. Their variant with
N / 2 + 1 passes takes the other half from the last step. It is not here: those losses
are not in the journal, and a resumed run would not be the run that was stopped.

What normalising costs: an eps so small that the losses differ by rounding alone still
gives a step of full length, in a random direction. `zolab.suggest` finds an eps above
that.
"""

from __future__ import annotations

import math
from typing import Any

from zolab.estimators.base import (
    Family,
    Keys,
    Proposal,
    check_estimator,
    directions,
)
from zolab.estimators.shaping import deviations
from zolab.gradient import Probe, ZOGradient, round16


class FZOO:
    """Normalised one-sided differences along `num_queries` (N) >= 2 directions."""

    def __init__(
        self,
        *,
        eps: float = 1e-4,
        num_queries: int = 8,
        family: str | Family = "rademacher",
    ) -> None:
        check_estimator(eps, num_queries, family)
        if num_queries < 2:
            raise ValueError(
                f"num_queries is {num_queries}, expected at least 2: one loss has no "
                "standard deviation"
            )
        self.eps, self.num_queries, self.family = round16(eps), num_queries, family

    @property
    def settings(self) -> dict[str, Any]:
        return {"name": "FZOO", "eps": self.eps, "num_queries": self.num_queries}

    def propose(self, key: Keys) -> Proposal:
        n = self.num_queries
        ds = directions(self.family, key, n)
        clean, *ups = yield [Probe(), *(Probe(((d, self.eps),)) for d in ds)]
        _, root = deviations([up.value for up in ups])  # std * sqrt(n - 1)
        if root == 0:
            return ZOGradient(tuple((d, 0.0) for d in ds))
        size = math.sqrt(n - 1) / n
        terms = []
        for d, up in zip(ds, ups, strict=True):
            terms.append((d, size * ((up.value - clean.value) / root)))
        return ZOGradient(tuple(terms))
