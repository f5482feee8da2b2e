"""HiZOO: SPSA in units of the curvature, which a third loss tells.

    d  = z / sqrt(H)                                 z near normal, H ones at the start
    g  = (L(theta + eps d) - L(theta - eps d)) / (2 eps)
    H <- (1 - smooth) H + smooth |L+ + L- - 2 L0| / (2 eps^2) H z * z
    w <- w - lr g z / sqrt(H)                        with the new H

H is a tensor beside the weights, fp32, of their size: this is the one estimator here
that costs memory. It follows from the log like the weights do (the record holds g and
the size of what H takes in), and a snapshot holds it.

z must not be signs: with z * z = 1 every coordinate of H would get the same number.
Near-normal z are what their second derivatives need (z^2 has variance 2).

Y. Zhao et al., Second-order fine-tuning without pain for LLMs: a Hessian informed
zeroth-order optimizer, arXiv:2402.15173. Theirs for OPT-13B: lr 1e-6, smooth 1e-8.

Cost: 3 forward passes a step (the published code makes a fourth for its log).

Where published code differs: H has the weights' dtype, and in bf16 or fp16 both
(1 - 1e-8) H and what is added round away, so that H stays 1; its default smooth is 0.
"""

from __future__ import annotations

from typing import Any

from zolab.estimators.base import Keys, Proposal, check_estimator
from zolab.gradient import Direction, Probe, ZOGradient, round16


class HiZOO:
    """One direction a step; `smooth` (0 to 1) is how fast H follows the curvature."""

    num_queries, scalars = 1, 1
    family = "near_normal"

    def __init__(self, *, eps: float = 1e-3, smooth: float = 1e-8) -> None:
        check_estimator(eps, 1, self.family)
        if not 0 <= smooth < 1:
            raise ValueError(f"smooth is {smooth}, expected 0 <= smooth < 1")
        self.eps, self.smooth = round16(eps), smooth

    @property
    def settings(self) -> dict[str, Any]:
        return {"name": "HiZOO", "eps": self.eps, "smooth": self.smooth}

    def propose(self, key: Keys) -> Proposal:
        d = Direction(key(0), self.family)
        clean, up, down = yield [
            Probe(),
            *(Probe(((d, s * self.eps),)) for s in (1, -1)),
        ]
        slope = (up.value - down.value) / (2 * self.eps)
        bend = abs(up.value + down.value - 2 * clean.value) / (2 * self.eps**2)
        return ZOGradient(((d, slope),), scalars=(self.smooth * bend,))
