"""QuZO: weights stay on their grid; a step is rounded at random, two ways a direction.

    u          a near normal direction; u1, u2 = two roundings of it to `bits` bits
    g          = (L(w + eps u1) - L(w - eps u1)) / (2 eps)
    w          <- SR(w - lr g u2)         on the weights' own levels

SR goes up or down at random so that its mean is what was to be stored: a step of a
hundredth of a level is a whole level for one weight in a hundred. That is how a step
can be smaller than the grid.

u1 and u2 have the mean u and are independent given u, so E[u2 u1'] = I and E[g u2] is
the gradient. With one rounding for both (`shared=True`) it is E[u1 u1'] = 1 + Var e, e
= u1 - u, times the gradient. On the grid of `Rounded`, whose step is the same for all,
that is one factor, 1.16 at 4 bits, and an lr 1.16 times smaller undoes it; where each
tensor has its own grid, as in the paper, it is a factor a tensor. Two roundings cost
something too: the estimate's second moment is (1 + Var e)^2 d |grad|^2, so that a
direction says (1 + Var e)^2 times less than its own rounding shared would. From 6 bits
on u is on the grid already: u1 = u2 = u and QuZO is MeZO with stochastic rounding.

J. Zhou et al., QuZO: quantized zeroth-order fine-tuning for large language models,
arXiv:2502.12346. Theirs rounds each direction's step by itself; here the sum of a
step's directions is rounded once, which has the same mean and less noise.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from zolab.estimators import SPSA
from zolab.families import Rounded
from zolab.optimizers.front import ZOOptimizer
from zolab.quantized.choose import choose


class TwoRoundings(SPSA):
    """SPSA that asks along one rounding of a direction and moves along another."""

    def __init__(
        self,
        *,
        eps: float = 1e-3,
        bits: int = 4,
        num_queries: int = 1,
        shared: bool = False,
        clip: float | None = None,
    ) -> None:
        family = Rounded(bits, 1 if shared else 2)
        super().__init__(eps=eps, num_queries=num_queries, family=family, clip=clip)
        self.asked = Rounded(bits, 1)


class QuZO(ZOOptimizer):
    """Packed weights that move on their own levels, any codec's.

    `eps` and `lr` are in units of the weights; `bits` are those of a direction.
    `rounding="nearest"` shows what a step below half a level comes to. `run` is what
    `ZOOptimizer` takes besides (seed, journal, engine, weight_decay, ...). Raises
    SpaceError where nothing is packed, and on masks.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 1e-6,
        eps: float = 1e-3,
        bits: int = 4,
        num_queries: int = 1,
        shared: bool = False,
        clip: float | None = None,
        **run: Any,
    ) -> None:
        estimator = TwoRoundings(
            eps=eps, bits=bits, num_queries=num_queries, shared=shared, clip=clip
        )
        choose(model, codes=True)
        super().__init__(model, estimator=estimator, lr=lr, **run)
