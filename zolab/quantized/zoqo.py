"""ZOQO: whole levels only; of the losses nothing but which was lower.

    m(x)  = max(floor(x / s), 1)                 x counted in levels, at least one
    code+ = clamp(code + m(eps) z), code- = clamp(code - m(eps) z)      z random signs
    code  <- clamp(code - m(lr) sign(L(code+) - L(code-)) z)

Nothing is rounded at random and nothing is a float but the losses. What it cannot do
is a small step: below one level lr changes nothing, and every weight goes a level or
more at every step. So it never comes to rest closer than that.

N. Bar and R. Giryes, ZOQO: zero-order quantized optimization, arXiv:2501.06736.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from zolab.errors import SpaceError
from zolab.estimators import SPSA
from zolab.optimizers.front import ZOOptimizer
from zolab.optimizers.sign import SignSGD
from zolab.quantized.choose import choose
from zolab.quantized.pack import packed_weights


class ZOQO(ZOOptimizer):
    """Packed weights that move by whole levels; `eps` and `lr` in units of the weights.

    `run` is what `ZOOptimizer` takes besides (seed, journal, engine, ...). Raises
    SpaceError where nothing is packed, on levels that are not evenly spaced (nf4,
    e4m3) and on masks, ValueError on a weight decay, which would be less than a level.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 1e-3,
        eps: float = 1e-3,
        **run: Any,
    ) -> None:
        for name, p in packed_weights(model).items():
            if p.codec.step is None:
                raise SpaceError(
                    f"{name} is in {p.codec.name}, whose levels are not evenly spaced: "
                    "a whole number of them is no step. Take int8, int4 or QuZO"
                )
        choose(model, codes=True, snap=True)
        super().__init__(model, estimator=SPSA(eps=eps), rule=SignSGD(), lr=lr, **run)
        if any(g["weight_decay"] for g in self.param_groups):
            raise ValueError(
                "weight_decay takes less than a level, which ZOQO cannot: leave it 0"
            )
