"""Coordinate-wise estimation: finite differences along a share of the axes.

    one-sided   c_i = (L(theta + eps e_i) - L(theta)) / eps
    central     c_i = (L(theta + eps e_i) - L(theta - eps e_i)) / (2 eps)
    gradient = sum_i c_i e_i                                 over the chosen coordinates

No randomness but the choice: with all d coordinates it is the gradient, up to the
curvature along each axis. A direction tells of d slopes at once and mixes them; a
coordinate tells of one and tells it clean. So random directions win while a few
numbers must do, and coordinates win when d of them can be paid, or when most of the
gradient lies on a few axes that a mask knows.

A. Chen et al., DeepZero: scaling up zeroth-order optimization for deep model training,
arXiv:2310.02025: one-sided, eps 5e-3, a share of each layer that ZO-GraSP chose at the
start (`Coordinates.of(space, shares)`), other coordinates of it from time to time.

Cost: n + 1 forward passes for n coordinates, central 2 n. `engines.Reuse` starts a pass
at the first layer that differs, `engines.Parallel` deals them out to processes.
"""

from __future__ import annotations

from typing import Any

from zolab.coordinates import Coordinates
from zolab.estimators.base import Keys, Proposal, check_estimator, directions
from zolab.gradient import Probe, ZOGradient, round16


class CGE:
    """Finite differences along `family.total` coordinates a step."""

    def __init__(
        self, family: Coordinates, *, eps: float = 1e-3, central: bool = False
    ) -> None:
        check_estimator(eps, family.total, family)
        self.family, self.num_queries = family, family.total
        self.eps, self.central = round16(eps), bool(central)

    @property
    def settings(self) -> dict[str, Any]:
        return {"name": "CGE", "eps": self.eps, "central": self.central}

    def propose(self, key: Keys) -> Proposal:
        ds = directions(self.family, key, self.num_queries)
        ups = [Probe(((d, self.eps),)) for d in ds]
        if self.central:
            downs = [Probe(((d, -self.eps),)) for d in ds]
            answers = yield ups + downs
            base, gap = answers[len(ds) :], 2 * self.eps
        else:
            answers = yield [Probe(), *ups]
            base, gap = answers[:1] * len(ds), self.eps
            answers = answers[1:]
        pairs = zip(answers[: len(ds)], base, strict=True)
        slopes = [(a.value - b.value) / gap for a, b in pairs]
        return ZOGradient(tuple(zip(ds, slopes, strict=True)))
