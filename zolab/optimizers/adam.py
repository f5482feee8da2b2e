"""Adam for random signs and one query, where the second moment is one number.

    g_t = c_t z_t with z * z = 1, so g_t * g_t = c_t^2 in every coordinate:
    m_t = beta1 m_{t-1} + (1 - beta1) g_t         a window of keys, as in `momentum`
    v_t = beta2 v_{t-1} + (1 - beta2) c_t^2       one number, exact
    w  <- (1 - lr * weight_decay) * w
          - lr * m_t / (1 - beta1^t) / (sqrt(v_t / (1 - beta2^t)) + adam_eps)

t counts accepted steps. The decay is AdamW's. This *is* dense Adam on these gradients
(to beta1^W), and shows what it can do here: with one number for all coordinates there
is no adaptation per weight, only a step whose length does not depend on the loss's
scale. A gain of Adam over momentum must come from there, or from z that are not signs.

Cost: `terms()` directions a step, 44 at beta1 = 0.9, and no tensor; `fold` = k pays it
every k steps, as in `momentum`. Any other family, or several queries, needs
sum_i c_i^2 z_i * z_i with its cross terms coordinate by coordinate: no list of
directions, and as a window at beta2 = 0.999 it would be some 4,600 keys a step. Both
are refused; `Dense(Adam())` keeps two tensors and takes them.

D. P. Kingma and J. Ba, Adam, arXiv:1412.6980. I. Loshchilov and F. Hutter, AdamW,
arXiv:1711.05101. Published MeZO-Adam and ZO-LLM's ZO-Adam (arXiv:2402.11592) keep both
moments as dense tensors, twice the weights; ZO-LLM's takes no weight decay.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from zolab.gradient import Update, ZOGradient
from zolab.optimizers.momentum import Window, check_beta, folds, rewound, window_of
from zolab.optimizers.sgd import SGD

Moment = tuple[int, float, float, float]
"""A step, v after it, and beta1^t and beta2^t."""


class Adam:
    """Adam on `family="rademacher"`, `num_queries=1`; one rule a run.

    Raises ValueError, with nothing moved or logged, on any other gradient.
    """

    def __init__(
        self,
        *,
        beta1: float = 0.9,
        beta2: float = 0.999,
        adam_eps: float = 1e-8,
        window: int | None = None,
        fold: int = 1,
    ) -> None:
        check_beta("beta1", beta1)
        check_beta("beta2", beta2)
        if not adam_eps > 0:  # or the first step without a slope divides 0 by 0
            raise ValueError(f"adam_eps is {adam_eps}, expected a positive number")
        self.window = window_of(beta1) if window is None else window
        self.beta1, self.beta2, self.adam_eps = beta1, beta2, adam_eps
        self.fold = fold
        self._memory = Window(beta1, self.window, fold)
        self._moments: list[Moment] = []  # of the last two steps

    @property
    def settings(self) -> dict[str, Any]:
        names = ("beta1", "beta2", "adam_eps", "window")
        return {"name": "Adam"} | {n: getattr(self, n) for n in names} | folds(self)

    def terms(self) -> float:
        """Directions that a step draws again for its update; SGD draws one."""
        return self._memory.terms()

    def update(
        self,
        g: ZOGradient,
        step: int,
        lr: Sequence[float],
        weight_decay: Sequence[float],
    ) -> Update:
        c = _coefficient(g)
        past = rewound(self._moments, step)
        _, v, b1, b2 = past[-1] if past else (-1, 0.0, 1.0, 1.0)
        v = self.beta2 * v + (1.0 - self.beta2) * (c * c)
        b1, b2 = b1 * self.beta1, b2 * self.beta2
        scale = math.sqrt(v / (1.0 - b2)) + self.adam_eps
        rate = 1.0 / (1.0 - b1) / scale
        m = self._memory.push(g * (1.0 - self.beta1), step, rate)
        self._moments = [*past[-1:], (step, v, b1, b2)]
        return SGD().update(m, step, lr, weight_decay)

    def state_dict(self) -> dict[str, Any]:
        """The window and the moments, for a run without a journal."""
        moments = [list(m) for m in self._moments]
        return {"window": self._memory.state_dict(), "moments": moments}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._memory.load_state_dict(state["window"])
        self._moments = [(step, v, b1, b2) for step, v, b1, b2 in state["moments"]]


def _coefficient(g: ZOGradient) -> float:
    families = sorted({d.family for d, _ in g.terms})
    signs = families == ["rademacher"] and not any(d.within for d, _ in g.terms)
    if not signs or len(g.terms) != 1:
        raise ValueError(
            f"Adam got {len(g.terms)} directions of {', '.join(families)}, expected 1 "
            "of rademacher: only there is the second moment one number (z * z = 1). "
            "Otherwise it is a tensor, or some 4,600 keys a step at beta2 = 0.999: "
            "use Momentum, or Dense(Adam()), which keeps two tensors"
        )
    return g.terms[0][1]
