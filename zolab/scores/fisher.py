"""The diagonal of the Fisher information: which weights the loss is sensitive to.

    F_i = mean over closures of (dL / dw_i)^2

`fisher` back-propagates, once, before training. `fisher_forward` asks for it in forward
passes. One slope c along z says nothing of single weights: with signs (c z_i)^2 = c^2
for each of them. Two different directions do, since the mean of c z_i c' z'_i is
(dL / dw_i)^2, so all pairs of q directions give

    F_i ~ ((sum_k c_k z_ki)^2 - sum_k c_k^2) / (q (q - 1))

right on average, with noise of about |grad|^2 / q an element: of a million weights only
those that hold more than a share 1/q of |grad|^2 can be told from the rest.

W. Guo et al., Zeroth-order fine-tuning of LLMs with extreme sparsity, arXiv:2406.02913,
move the weights of highest Fisher information, computed with first-order gradients.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zolab.errors import ScoreError
from zolab.gradient import round16
from zolab.scores.passes import Asker
from zolab.scores.wanda import Ask
from zolab.space import Space


def fisher(space: Space, asks: Sequence[Ask]) -> dict[str, Tensor]:
    """Mean squared gradients by back-propagation, fp32; a closure is a sample.

    One example a closure gives the (empirical) Fisher diagonal, a batch its gradient's
    square. Raises ScoreError without a closure, on a slot that the loss does not
    depend on, and on gradients that are not finite.
    """
    if not asks:
        raise ScoreError("no closure, so no forward pass: nothing to score with")
    total = {s.name: torch.zeros(s.shape, device=s.base.device) for s in space}
    weights = [s.params[0] for s in space]
    for ask in asks:
        with torch.enable_grad():
            grads = torch.autograd.grad(ask(), weights, allow_unused=True)
        for s, g in zip(space, grads, strict=True):
            if g is None:
                raise ScoreError(f"the loss does not depend on {s.name}: select others")
            if not bool(g.isfinite().all()):
                raise ScoreError(f"the gradient of {s.name} is not finite")
            total[s.name] += g.float().square() / len(asks)
    return total


def fisher_forward(
    model: nn.Module,
    asks: Sequence[Ask],
    *,
    space: Space | None = None,
    num_queries: int = 64,
    eps: float = 1e-3,
    seed: int = 0,
) -> dict[str, Tensor]:
    """The same from 2 q forward passes a closure, without bias; may be negative.

    Raises ScoreError without a closure, with one direction (which has no pair), and on
    losses that are not finite.
    """
    if not asks or num_queries < 2:
        raise ScoreError(
            f"{len(asks)} closures and {num_queries} directions, expected at least one "
            "closure and two directions"
        )
    asker, eps = Asker(model, space or Space.of(model), seed), round16(eps)
    total = {s.name: torch.zeros(s.shape, device=s.base.device) for s in asker.space}
    q = num_queries
    for number, ask in enumerate(asks):
        ds = asker.directions(number, q, "rademacher")
        slopes = asker.slopes(ask, ds, eps)
        alone = sum(c * c for c in slopes)
        sums = asker.dense(zip(ds, slopes, strict=True))
        for name, x in sums.items():
            total[name] += (x.square() - alone) / (q * (q - 1) * len(asks))
    return total
