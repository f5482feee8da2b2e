"""MaZO: one mask for many tasks, by what freezing a weight would cost each of them.

With a diagonal curvature h the loss is a sum over weights, and a frozen weight i costs

    global_i = g_i^2 / (2 h_i)                        at the minimum
    greedy_i = lr g_i^2 - lr^2 h_i g_i^2 / 2          in the next step of descent
    S = global + alpha greedy + beta |w|

Each task's S is normalised within a row, the tasks are added, and the best of each row
move for all of them: `masks.top(mazo(...), share, per="row")`.

Z. Zhang et al., MaZO: masked zeroth-order optimization for multi-task fine-tuning of
large language models, arXiv:2502.11513. Their code is not public. Ours to answer for:
g and h come from `curvature` (forward passes) or from anywhere else; h is not let fall
below its slot's mean size, since a noisy h near 0 would win every row; a row is divided
by the sum of its sizes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from zolab.errors import ScoreError
from zolab.scores.passes import Estimate
from zolab.space import Space


def mazo(
    space: Space,
    tasks: Mapping[str, Estimate],
    *,
    lr: float,
    alpha: float = 1.0,
    beta: float = 1.0,
    floor: float | None = None,
) -> dict[str, Tensor]:
    """The summed score of every slot, fp32; `floor` is the least h (None: mean |h|).

    Raises ScoreError without a task, and when an estimate has another slot or shape
    than the space or is not finite.
    """
    if not tasks:
        raise ScoreError("no task: nothing to score with")
    out: dict[str, Tensor] = {}
    for s in space:
        total = torch.zeros(s.shape, device=s.base.device)
        for name, found in tasks.items():
            g, h = (_of(part, s.name, s.shape, name) for part in vars(found).values())
            least = float(h.abs().mean()) if floor is None else floor
            mine = score(g, h.clamp_min(max(least, 1e-30)), lr, alpha)
            total += by_row(mine + beta * s.base.float().abs())
        out[s.name] = total
    return out


def score(g: Tensor, h: Tensor, lr: float, alpha: float) -> Tensor:
    """global + alpha greedy; h must be positive."""
    square = g.square()
    return square / (2 * h) + alpha * (lr * square - lr * lr * h * square / 2)


def by_row(x: Tensor) -> Tensor:
    """Each row over the sum of its sizes; a vector is one row."""
    rows = x.reshape(x.shape[0], -1) if x.dim() > 1 else x.reshape(1, -1)
    return (rows / rows.abs().sum(1, keepdim=True).clamp_min(1e-30)).reshape(x.shape)


def _of(part: Mapping[str, Tensor], slot: str, shape: torch.Size, task: str) -> Tensor:
    if slot not in part:
        raise ScoreError(f"task {task!r} says nothing of {slot}")
    x = part[slot].float()
    if x.shape != shape:
        raise ScoreError(
            f"task {task!r} has shape {tuple(x.shape)} for {slot}, expected "
            f"{tuple(shape)}"
        )
    if not bool(x.isfinite().all()):
        raise ScoreError(f"task {task!r} is not finite in {slot}")
    return x
