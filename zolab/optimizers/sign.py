"""Sign descent: every weight goes by lr, whatever the slope was.

    w <- (1 - lr * weight_decay) * w - lr * sign(c) * z,      g = c z from one query

signSGD takes the sign of each coordinate, sign(c z) = sign(c) sign(z). A Rademacher z
is its own sign, so the two are one rule, and a step moves each weight by exactly lr.
A near-normal z is not: there this is what ZO-LLM calls sign (it has normal z), a step
of MeZO whose slope was rounded to +-1, and sign(c z) would need another direction. With
several queries the sign of sum c_i z_i is no short list of directions: refused.
`Dense(SignSGD())` takes both, a tensor at a time.

Cost: SGD's. A slope of exactly 0 moves nothing but the decay. What one bit gives up is
the slope's size: |c| averages sqrt(2 / pi) |grad|, so near a minimum the steps do not
shrink by themselves; lr must.

S. Liu et al., signSGD via zeroth-order oracle, ICLR 2019. Y. Zhang et al., Revisiting
zeroth-order optimization for memory-efficient LLM fine-tuning, arXiv:2402.11592; in
its code weight_decay has no effect.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from zolab.gradient import Update, ZOGradient
from zolab.optimizers.sgd import SGD


class SignSGD:
    """w <- (1 - lr * weight_decay) * w - lr * sign(c) * z, no state; one query a step.

    Raises ValueError, with nothing moved or logged, for several queries.
    """

    settings: dict[str, Any] = {"name": "SignSGD"}

    def update(
        self,
        g: ZOGradient,
        step: int,
        lr: Sequence[float],
        weight_decay: Sequence[float],
    ) -> Update:
        if len(g.terms) != 1:
            raise ValueError(
                f"SignSGD got {len(g.terms)} directions, expected num_queries=1: the "
                "sign of a sum of directions is not a sum of directions"
            )
        terms = tuple((d, math.copysign(1.0, c) if c else 0.0) for d, c in g.terms)
        return SGD().update(ZOGradient(terms), step, lr, weight_decay)
