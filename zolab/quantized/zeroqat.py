"""ZeroQAT: quantisation-aware training from forward passes alone.

    opt = zolab.ZeroQAT(model, bits=2, lr=1e-5, clip_lr=1e-2)
    loss = opt.step(lambda: model(**batch).loss)
    opt.finish()                                the same answers, from packed weights

Weights, clipping thresholds, scale and shift are ordinary parameters (see `fake`),
probed and moved together; the loss is the rounded model's. In a weight it is a
staircase: a probe that crosses no threshold finds the slope 0, wherever it stands. So
eps is to be seen beside the grid step s. Of weights spread evenly a share
min(1, 2 eps / s) changes its level, and each by s: what the model feels of z has with
it a cosine of the root of that share.

The light variant packs the linears first, with their clipped scales. Its weights are
a quarter of a byte each at 2 bits, and do not move; what was gamma is a factor on the
scale, what were t and delta act on the activations alone, and nothing else moves. (The
paper's abstract says "freezes and pre-quantizes most parameters".)

Q. Tan et al., ZeroQAT, arXiv:2509.00031.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from zolab.engines.base import Engine
from zolab.estimators import SPSA, Estimator
from zolab.families import Family
from zolab.optimizers.base import Rule
from zolab.optimizers.front import ZOOptimizer
from zolab.optimizers.groups import decay_groups
from zolab.quantized.convert import HEADS, fake_quantize, fakes, finish, lighten
from zolab.quantized.pack import packed_weights


class ZeroQAT(ZOOptimizer):
    """SPSA and SGD on a fake-quantised model; quantises it unless that is done.

    `bits`, `group`, `activation_bits`, `skip`, `clip`, `unit`: see `fake_quantize`.
    `lr` moves weights, `clip_lr` (default `lr`) thresholds, scale and shift: two param
    groups. `light` packs all linears but those whose weights match `keep`, or takes
    them as they are packed (`zolab.pack(model, by=...)`). Another `estimator` or `rule`
    takes the place of SPSA's and SGD's.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        bits: int = 2,
        group: int = 64,
        activation_bits: int | None = None,
        light: bool = False,
        keep: Sequence[str] = (),
        skip: Sequence[str] = HEADS,
        clip: float | str = 0.98,
        unit: float = 1.0,
        lr: float = 1e-6,
        clip_lr: float | None = None,
        eps: float = 1e-3,
        num_queries: int = 1,
        family: str | Family = "rademacher",
        estimator: Estimator | None = None,
        rule: Rule | None = None,
        engine: Engine | None = None,
        seed: int = 0,
        journal: str | os.PathLike[str] | None = None,
        weight_decay: float = 0.0,
        rounding: str = "stochastic",
        fsync: bool = False,
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        if not fakes(model) and not (light and packed_weights(model)):
            fake_quantize(
                model,
                bits,
                group=group,
                activation_bits=activation_bits,
                skip=skip,
                clip=clip,
                unit=unit,
            )
        if light:
            lighten(model, keep, skip=skip, unit=unit)
        found = [f.extra_repr() for f in fakes(model).values()]
        super().__init__(
            model,
            estimator=estimator
            or SPSA(eps=eps, num_queries=num_queries, family=family),
            rule=rule,
            engine=engine,
            journal=journal,
            seed=seed,
            lr=lr,
            param_groups=groups(model, lr, clip_lr, weight_decay),
            rounding=rounding,
            fsync=fsync,
            notes={"fake_quantized": found, **(notes or {})},
        )

    def finish(self) -> nn.Module:
        """The model with its linears packed, in place: `finish`. The run is over."""
        self.engine.flush()
        return finish(self.model)


def groups(
    model: nn.Module, lr: float, clip_lr: float | None, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Param groups: weights (norms and biases apart if they decay), then the learned.

    For any optimizer, also torch's: `torch.optim.AdamW(groups(model, 1e-3, 1e-2))`.
    """
    learned = [p for f in fakes(model).values() for p in f.learned if p.requires_grad]
    own = {id(p) for p in learned}
    out = []
    for g in decay_groups(model, weight_decay):
        rest = [p for p in g["params"] if id(p) not in own]
        out.append({**g, "params": rest, "lr": lr})
    rate = lr if clip_lr is None else clip_lr
    out.append({"params": learned, "lr": rate, "weight_decay": 0.0})
    return [g for g in out if g["params"]]
