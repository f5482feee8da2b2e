"""Evolution strategies: a population around theta, weighted by how it fared.

    antithetic    c_i = (u_i+ - u_i-) / (2 q),   losses at theta + eps z, theta - eps z
    one-sided     c_i = u_i / q,                 losses at theta + eps z
    gradient = sum_i c_i z_i

u is the population's losses, shaped: "none" is L / eps; "zscore" is (L - mean) / std;
"ranks" is rank / (n - 1) - 1/2, the lowest loss at -1/2. A shaped loss has no unit, so
eps does not divide it and the lr of a paper that "absorbs 1 / sigma" is the lr here.

We lower a loss: of a reward R the closure returns -R. Theirs, theta + lr R z, is ours,
theta - lr (-R) z.

Antithetic and unshaped this is SPSA with q queries, to the bit. One-sided and unshaped
it is right on average and useless: the variance is that of L / eps, not of a slope.

T. Salimans et al., Evolution strategies as a scalable alternative to reinforcement
learning, arXiv:1703.03864 (antithetic, ranks). X. Qiu et al., Evolution strategies at
scale, arXiv:2509.24372: one-sided, zscore, eps 1e-3, q 30, lr 5e-4, normal z.

Cost: 2 q forward passes a step, one-sided q.

Where published code differs: es-at-scale seeds every layer alike, so equal shapes move
alike (here a slot's name is in its stream); OpenAI's ranks break ties by position, and
a population of equal rewards moves (here ties share a rank, and equal losses give 0).
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
from zolab.estimators.shaping import SHAPINGS
from zolab.gradient import Probe, ZOGradient, round16


class EvolutionStrategy:
    """`num_queries` (q) directions; `shaping` is "none", "zscore" or "ranks"."""

    def __init__(
        self,
        *,
        eps: float = 1e-3,
        num_queries: int = 16,
        family: str | Family = "rademacher",
        antithetic: bool = True,
        shaping: str = "zscore",
    ) -> None:
        check_estimator(eps, num_queries, family)
        if shaping not in SHAPINGS:
            raise ValueError(f"shaping is {shaping!r}, expected one of {[*SHAPINGS]}")
        if shaping != "none" and not antithetic and num_queries < 2:
            raise ValueError(
                f"num_queries is {num_queries}, expected at least 2: one loss has no "
                f"{shaping}"
            )
        self.eps, self.num_queries, self.family = round16(eps), num_queries, family
        self.antithetic, self.shaping = bool(antithetic), shaping

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "name": "EvolutionStrategy",
            "eps": self.eps,
            "num_queries": self.num_queries,
            "antithetic": self.antithetic,
            "shaping": self.shaping,
        }

    def propose(self, key: Keys) -> Proposal:
        q, unit = self.num_queries, self.eps if self.shaping == "none" else 1.0
        ds = directions(self.family, key, q)
        signs = (1, -1) if self.antithetic else (1,)
        answers = yield [Probe(((d, s * self.eps),)) for d in ds for s in signs]
        u = SHAPINGS[self.shaping]([a.value for a in answers])
        if self.antithetic:
            pairs = zip(u[::2], u[1::2], strict=True)
            slopes = [(up - down) / (2 * unit) for up, down in pairs]
        else:
            slopes = [up / unit for up in u]
        return ZOGradient(tuple((d, s / q) for d, s in zip(ds, slopes, strict=True)))
