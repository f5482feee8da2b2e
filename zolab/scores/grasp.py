"""ZO-GraSP: how much of each layer to move, from slopes at two points.

    S = -w * (H g),    H g ~ (g(theta + mu g) - g(theta)) / mu,    g = mean_k c_k z_k

GraSP keeps what the gradient flow |g|^2 depends on. DeepZero needs it only for the
share of each layer: the weights with the largest |S| of all layers are counted, and
within a layer random ones move. So no score is stored, and no bits.

C. Wang et al., Picking winning tickets before training by preserving gradient flow,
arXiv:2002.07376. A. Chen et al., DeepZero, arXiv:2310.02025 (192 directions).

Where published code differs: DeepZero's draws new directions at theta + mu g, so the
noise of two estimates is divided by mu. Here both points are asked along the same z:
what is left is (1/q) sum z z' applied to H g. It also draws the layers' random weights
anew while it trains; a mask of ours is fixed.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from zolab.errors import ScoreError
from zolab.gradient import round16
from zolab.masks import Mask, Random
from zolab.scores.passes import Asker
from zolab.scores.wanda import Ask
from zolab.space import Space


def grasp(
    model: nn.Module,
    ask: Ask,
    *,
    space: Space | None = None,
    num_queries: int = 192,
    eps: float = 1e-3,
    mu: float = 1e-2,
    seed: int = 0,
) -> dict[str, Tensor]:
    """S of every slot, fp32, from 4 q forward passes; `ask` must not change its batch.

    The second point is a list of q terms, so no weight moves; each of its probes draws
    all of them. Raises ScoreError on losses that are not finite.
    """
    asker = Asker(model, space or Space.of(model), seed)
    ds, eps = asker.directions(0, num_queries, "rademacher"), round16(eps)
    here = asker.slopes(ask, ds, eps)
    way = tuple(
        (d, round16(mu * c / num_queries)) for d, c in zip(ds, here, strict=True)
    )
    there = asker.slopes(ask, ds, eps, at=way)
    change = [(b - a) / (mu * num_queries) for a, b in zip(here, there, strict=True)]
    hg = asker.dense(zip(ds, change, strict=True))
    return {s.name: -s.base.float() * hg[s.name] for s in asker.space}


def ratios(scores: Mapping[str, Tensor], share: float) -> dict[str, float]:
    """The share of each slot among the `share` of all elements with the largest |S|."""
    if not 0 < share <= 1:
        raise ScoreError(f"share is {share}, expected more than 0 and at most 1")
    sizes = torch.cat([s.reshape(-1).abs() for s in scores.values()])
    if not bool(sizes.isfinite().all()):
        raise ScoreError("a score is not finite: it has no rank")
    best = torch.zeros(len(sizes), dtype=torch.bool, device=sizes.device)
    best[sizes.topk(max(1, round(share * len(sizes)))).indices] = True
    parts = best.split([s.numel() for s in scores.values()])
    return {n: float(p.double().mean()) for n, p in zip(scores, parts, strict=True)}


def layered(ratios: Mapping[str, float], *, seed: int = 0) -> dict[str, Mask]:
    """Random weights of each slot, as many as its ratio says; nothing is stored."""
    for name, ratio in ratios.items():
        if not 0 <= ratio <= 1:
            raise ScoreError(f"{name} has the ratio {ratio}, expected 0 to 1")
    return {name: Random(ratio, seed) for name, ratio in ratios.items()}
