"""What forward passes can say of single weights: slopes, gradients, curvatures.

    g = mean_k c_k z_k                        c_k the slope along z_k
    h = mean_k b_k (z_k * z_k - 1) / 2        b_k = (L+ - 2 L0 + L-) / eps^2

Both are right on average and noisy: an element of g is off by about |grad| / sqrt(q),
whatever its own size is. h needs z with a varying square: signs see no curvature an
element, near normal z do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zolab import storage
from zolab.engines.resident import Resident
from zolab.errors import ScoreError
from zolab.gradient import Direction, Probe, Term, round16
from zolab.noise import make_key
from zolab.scores.wanda import Ask
from zolab.space import Space


@dataclass(frozen=True)
class Estimate:
    """Gradient and diagonal curvature by slot name, fp32."""

    gradient: dict[str, Tensor]
    curvature: dict[str, Tensor]


class Asker:
    """Losses of a model at probes, its weights as they are stored.

    A mask that the space already has is left out: a score looks at every element.
    """

    def __init__(self, model: nn.Module, space: Space, seed: int) -> None:
        self.space, self.seed = space.masked({}), seed
        self.engine = Resident(unseen="ignore")
        self.engine.bind(model, self.space, seed=seed, rounding="nearest")

    def directions(self, number: int, q: int, family: str) -> list[Direction]:
        """The q directions of closure `number`."""
        if q < 1:
            raise ScoreError(f"num_queries is {q}, expected at least 1")
        return [Direction(make_key(self.seed, number, k), family) for k in range(q)]

    def losses(self, ask: Ask, points: Sequence[tuple[Term, ...]]) -> list[float]:
        """The loss at each point; ScoreError when one is not finite."""
        answers = self.engine.evaluate([Probe(p) for p in points], {"loss": ask})
        values = [a.value for a in answers]
        if not all(map(math.isfinite, values)):
            raise ScoreError(f"the losses are {values[:4]}, expected finite numbers")
        return values

    def slopes(
        self, ask: Ask, ds: Sequence[Direction], eps: float, at: tuple[Term, ...] = ()
    ) -> list[float]:
        """The two-sided slope along each direction, at the stored point or at `at`."""
        points = [(*at, (d, s * eps)) for d in ds for s in (1, -1)]
        found = self.losses(ask, points)
        pairs = zip(found[::2], found[1::2], strict=True)
        return [(up - down) / (2 * eps) for up, down in pairs]

    def dense(self, terms: Iterable[Term]) -> dict[str, Tensor]:
        """sum c z as tensors, by slot name; c to 16 significant bits."""
        exact = [(d, round16(c)) for d, c in terms]
        return {s.name: storage.tangent(s, exact) for s in self.space}


def magnitude(space: Space) -> dict[str, Tensor]:
    """|w| of every slot, fp32. `masks.smallest` and `largest` keep no bits for it."""
    return {s.name: s.base.float().abs() for s in space}


def curvature(
    model: nn.Module,
    asks: Sequence[Ask],
    *,
    space: Space | None = None,
    num_queries: int = 64,
    eps: float = 1e-3,
    seed: int = 0,
) -> Estimate:
    """g and h from 2 q + 1 forward passes a closure, averaged over the closures.

    Two fp32 copies of the space while it runs. Raises ScoreError without a closure and
    on losses that are not finite.
    """
    if not asks:
        raise ScoreError("no closure, so no forward pass: nothing to score with")
    asker, eps = Asker(model, space or Space.of(model), seed), round16(eps)
    g = {s.name: torch.zeros(s.shape, device=s.base.device) for s in asker.space}
    h = {n: torch.zeros_like(x) for n, x in g.items()}
    share = 1 / (num_queries * len(asks))
    for number, ask in enumerate(asks):
        ds = asker.directions(number, num_queries, "near_normal")
        around = [((d, s * eps),) for d in ds for s in (1, -1)]
        middle, *found = asker.losses(ask, [(), *around])
        for d, up, down in zip(ds, found[::2], found[1::2], strict=True):
            slope, bend = (up - down) / (2 * eps), (up - 2 * middle + down) / eps**2
            for s in asker.space:
                z = s.direction(d)
                g[s.name] += share * slope * z
                h[s.name] += share * bend * (z * z - 1) / 2
    return Estimate(g, h)
