"""QZO: the codes stand still, their scales learn.

    w = s (level - zero)                              one s for `group` weights
    g = clip((L(s + eps z) - L(s - eps z)) / (2 eps))       to +-clip
    s <- max(s - lr g z, floor)

An update of any size is a step in floating point, so nothing has to be rounded; and
there is one direction for a group of weights, d / group in all. A step along z moves
all weights of a group together: what needs one of them to move alone is out of reach.

    QZO(model, relative=True)      s is unit times a factor f that starts at 1, and f
                                   learns: eps and lr are shares, 1e-3 is 0.1 % of
                                   every weight of a group

S. Shang et al., Fine-tuning quantized neural networks with zeroth-order optimization,
arXiv:2505.13430 (group 128, eps 1e-3, lr 1e-7, clip 100).

Where published code differs: its scales are fp16 tensors that are moved by +eps, -2 eps
and +eps in place, so that they drift and lose updates below half a unit in the last
place; its floor is 1e-7; it clips when it updates and logs the slope that it did not
use (`tests/test_qzo_published.py`).
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from zolab.errors import SpaceError
from zolab.estimators import SPSA
from zolab.families import Family
from zolab.optimizers.floored import Floored
from zolab.optimizers.front import ZOOptimizer
from zolab.quantized.choose import choose
from zolab.quantized.pack import packed_weights


class QZO(ZOOptimizer):
    """SPSA on the scales of a packed model; no code moves.

    `eps` and `lr` are in units of the scales: a probe moves a weight by eps times its
    level, which is up to 7 at 4 bits. With `relative` they are shares of each scale.
    With `unquantized` norms, biases and whatever else is not packed move too, without a
    floor. `dtype` is what the scales are stored in: float16 is here to show what it
    loses. `run` is what `ZOOptimizer` takes besides (seed, journal, engine, masks,
    param_groups, ...); a `weight_decay` of a scale is one of its group's weights.

    Raises SpaceError where nothing is packed, or where the scales are factors already
    and `relative` is not asked for.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 1e-7,
        eps: float = 1e-3,
        clip: float | None = 100.0,
        floor: float = 0.0,
        relative: bool = False,
        unquantized: bool = False,
        num_queries: int = 1,
        family: str | Family = "rademacher",
        dtype: torch.dtype = torch.float32,
        **run: Any,
    ) -> None:
        estimator = SPSA(eps=eps, num_queries=num_queries, family=family, clip=clip)
        rule = Floored(floor=floor)
        packed = packed_weights(model)
        factors = [n for n, p in packed.items() if p.unit is not None]
        if factors and not relative:
            raise SpaceError(
                f"the scales of {factors[0]} are factors: pass relative=True, or pack "
                "the model again"
            )
        choose(model, scales=True, rest=unquantized)
        for p in packed.values():
            if relative:
                p.relative()
            p.scale.data = p.scale.data.to(dtype)
        super().__init__(model, estimator=estimator, rule=rule, lr=lr, **run)
        own = {id(s.packed.scale) for s in self.space.still if s.packed}
        for s in self.space:
            if fnmatchcase(s.name, rule.slots) and id(s.params[0]) not in own:
                raise SpaceError(
                    f"{s.name} is named like a scale and would keep the floor {floor}; "
                    "freeze it by param_groups"
                )
