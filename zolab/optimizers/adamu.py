"""ZO-AdaMU: the momentum is in what is asked, and the second moment is that of z.

    m_t = beta1 z' + (1 - beta1) z'',  g the slope along m_t   (estimators/adamu.py)
    v_t = beta2 z' z' + (1 - beta2) z'' z''
    w  <- (1 - lr * weight_decay) * w - lr * g m_t / sqrt(v_t + sigma)

    rule = AdaMU(warm=1024, settle=16_000)
    opt = ZOOptimizer(model, estimator=rule.estimator(eps=1e-3), rule=rule)

For the first `warm` steps alpha and the betas are 1: m_t = z' and v_t = z'^2, so MeZO's
slope along normal z moves each weight by lr g sign(z). At the end v_t is z''^2 for
99 %, and m_t / sqrt(v_t) a ratio of numbers that hardly know of one another, up to ten
where z'' is near 0. Nothing of v_t has seen a loss. At beta1 = 0.9 a step weighs 1 in
10 in the next and 1 in 100 in the one after; and as an m without its slope's sign
points uphill as often as down, the paper's memory (the default) carries no gradient.
`signed=True` is the program's.

Cost: 2 passes, no tensor kept; 11 directions a probe and an update, which goes
slot by slot with six fp32 tensors of the slot's size.

S. Jiang et al., AAAI 2024, arXiv:2312.15184, algorithm 1 (equation 6 has v^2 + sigma
under the root).

Where published code differs: it stops in its first step (a missing argument); mended,
it asks along 0.1 z + 0.9 m_{t-1} and moves along another mixture, so the slope is last
step's; its schedule advances at each call, several a tensor; and it keeps m as a tensor
of the weights' size (`tests/test_published_defects_more.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from zolab import storage
from zolab.estimators.adamu import AdaMUProbes, History, Mixed, Mixture
from zolab.gradient import Update, ZOGradient
from zolab.optimizers.sgd import SGD
from zolab.space import Slot


class AdaMU:
    """ZO-AdaMU; one rule a run, with the probes that `estimator` makes.

    `warm` and `settle` are the steps (T1, T2) between which alpha, beta1 and beta2
    fall from 1 to the values given. Raises ValueError beside other probes.
    """

    def __init__(
        self,
        *,
        warm: int,
        settle: int,
        alpha: float = 0.5,
        beta1: float = 0.9,
        beta2: float = 0.01,
        signed: bool = False,
        sigma: float = 1e-8,
    ) -> None:
        if not sigma > 0:  # or a weight whose z is 0 divides 0 by 0
            raise ValueError(f"sigma is {sigma}, expected a positive number")
        self.mixture = Mixture(warm, settle, alpha, beta1, beta2, signed)
        self.sigma = sigma
        self._history = History(self.mixture)

    @property
    def settings(self) -> dict[str, Any]:
        return {"name": "AdaMU"} | asdict(self.mixture) | {"sigma": self.sigma}

    def estimator(self, *, eps: float = 1e-3) -> AdaMUProbes:
        """Probes of size `eps` along the same mixture, with a memory of their own."""
        return AdaMUProbes(self.mixture, eps=eps)

    def check(self, estimator: Any) -> None:
        """ValueError unless the slope will be that along the m that is moved along."""
        if getattr(estimator, "mixture", None) != self.mixture:
            raise ValueError(
                f"the estimator is {type(estimator).__name__}, expected rule.estimator("
                "eps=...): a slope along another direction says nothing of this one"
            )

    def update(
        self,
        g: ZOGradient,
        step: int,
        lr: Sequence[float],
        weight_decay: Sequence[float],
    ) -> Update:
        ((d, slope),) = g.terms
        mixed = self._history.mixed(step, d)
        self._history.push(step, d, slope)
        u = SGD().update(ZOGradient(()), step, lr, weight_decay)
        return replace(u, dense=partial(_move, mixed, slope, self.sigma))

    def state_dict(self) -> list[Any]:
        return self._history.state_dict()

    def load_state_dict(self, state: list[Any]) -> None:
        self._history.load_state_dict(state)


@torch.no_grad()
def _move(mixed: Mixed, slope: float, sigma: float, slot: Slot) -> Tensor:
    """slope m / sqrt(v + sigma) of a slot, fp32."""
    first = storage.tangent(slot, mixed.first)
    second = storage.tangent(slot, mixed.second)
    m = mixed.beta1 * first + (1.0 - mixed.beta1) * second
    v = mixed.beta2 * (first * first) + (1.0 - mixed.beta2) * (second * second)
    return slope * (m / (v + sigma).sqrt())
