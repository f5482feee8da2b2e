"""Simultaneous perturbation: the slope along a random direction, from two losses.

    g_i = (L(theta + eps z_i) - L(theta - eps z_i)) / (2 eps)
    gradient = 1/q sum_i g_i z_i

A slope over a finite step is a mean of slopes on the way, so that

    E[gradient] = E[z z' m(z)],   m(z) = mean of grad L(theta + t z), |t| <= eps

For normal z this is the gradient of E L(theta + eps z), the loss smoothed (Stein's
identity). For signs it is another smoothing: component i is the mean of dL/dtheta_i
with theta_i moved uniformly within +-eps and the others by +-eps; no loss need have
that gradient. L = x^4 / 4 gives x^3 + 3 eps^2 x with normal z and x^3 + eps^2 x with
signs. (`near_normal` has E z^4 = 2.97, so 2.97 there.) The difference from grad L is of
order eps^2 in both.

With `clip` a slope is at most that, up or down: g_i <- min(max(g_i, -clip), clip). The
coefficient is bounded and z is not touched, so a step keeps its direction and a log
its meaning (QZO, arXiv:2505.13430).

The cosine with grad L is about sqrt(q / d). With Rademacher z the second moment of the
estimate is d |grad|^2 + O(1), with normal z (d + 2) |grad|^2.

J. C. Spall, Multivariate stochastic approximation using a simultaneous perturbation
gradient approximation, IEEE TAC 37 (1992). S. Malladi et al., Fine-tuning language
models with just forward passes (MeZO), arXiv:2305.17333.
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
from zolab.gradient import Probe, ZOGradient, round16


class SPSA:
    """Two-sided, `num_queries` directions a step: 2 q forward passes.

    `eps` is the probe size in units of the weights, kept to 16 significant bits.
    """

    asked: str | Family  # directions of the probes; those of the gradient are `family`

    def __init__(
        self,
        *,
        eps: float = 1e-3,
        num_queries: int = 1,
        family: str | Family = "rademacher",
        clip: float | None = None,
    ) -> None:
        check_estimator(eps, num_queries, family)
        if clip is not None and not clip > 0:
            raise ValueError(f"clip is {clip}, expected a positive bound of the slope")
        self.eps, self.num_queries, self.family = round16(eps), num_queries, family
        self.asked, self.clip = family, clip

    @property
    def settings(self) -> dict[str, Any]:
        name = type(self).__name__
        found = {"name": name, "eps": self.eps, "num_queries": self.num_queries}
        return found if self.clip is None else found | {"clip": self.clip}

    def propose(self, key: Keys) -> Proposal:
        ds = directions(self.family, key, self.num_queries)
        asked = directions(self.asked, key, self.num_queries)
        probes = [Probe(((d, s * self.eps),)) for d in asked for s in (1, -1)]
        answers = yield probes
        terms = []
        for d, up, down in zip(ds, answers[::2], answers[1::2], strict=True):
            slope = (up.value - down.value) / (2 * self.eps)
            terms.append((d, self.clipped(slope) / self.num_queries))
        return ZOGradient(tuple(terms))

    def clipped(self, slope: float) -> float:
        """The slope, at most `clip` up or down."""
        return slope if self.clip is None else min(max(slope, -self.clip), self.clip)


class OneSided(SPSA):
    """One-sided: the clean loss is shared, q + 1 forward passes.

    g_i = (L(theta + eps z_i) - L(theta)) / eps, with a bias of order eps z'Hz / 2
    that the two-sided difference cancels.
    """

    def propose(self, key: Keys) -> Proposal:
        ds = directions(self.family, key, self.num_queries)
        clean, *ups = yield [Probe(), *(Probe(((d, self.eps),)) for d in ds)]
        terms = []
        for d, up in zip(ds, ups, strict=True):
            slope = (up.value - clean.value) / self.eps
            terms.append((d, self.clipped(slope) / self.num_queries))
        return ZOGradient(tuple(terms))
