"""Losses, a number a token: what a gradient step may do with an advantage.

    ratio = exp(log p - log p_old)        1 before the first step, where the gradient of
                                          ratio * A is that of log p * A
    policy_gradient   -A log p
    ppo_clip          -min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A)
    dual_clip         the same, for A < 0 at most c |A|: a ratio of 50 pulls no more
    dapo              ppo_clip with clip_high > clip_low: rare tokens may rise further
    gspo              ppo_clip of the row's ratio, exp(mean_t log ratio)
    cispo             -stop(min(ratio, clip_max)) A log p: no token loses its gradient
    dpo               -log sigmoid(beta (D_right - D_wrong)), D = log p - log ref

On policy the loss is about 0 (advantages add up to 0, ratios are 1) and its gradient is
not: look at the gradient's norm. A ratio replaced by 1 has no gradient at all.

gspo and dpo are of rows: they give each token of a row the row's loss, for which
"seq-mean-token-mean" is the mean over rows. dpo's rows come in pairs, right then wrong.

PPO: J. Schulman et al., arXiv:1707.06347. Dual clip: D. Ye et al., arXiv:1912.09729.
DAPO: Q. Yu et al., arXiv:2503.14476. GSPO: C. Zheng et al., arXiv:2507.18071. CISPO:
MiniMax-M1, arXiv:2506.13585. DPO: R. Rafailov et al., arXiv:2305.18290.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from zolab.rl.batch import RolloutError


@dataclass(frozen=True)
class Tokens:
    """Some rows (n) of a batch as a loss sees them.

    `logps` and `old` (n, T) fp32, only the first with a graph; `advantages` (n, 1) or
    (n, T); `mask` (n, T) bool; `ref` the reference policy's log-probabilities; the
    `entropy` has a graph; `moments` (n, T, 2), the sums of p^2 and p^3 over the
    vocabulary, are for the filter that asks.
    """

    logps: Tensor
    old: Tensor
    advantages: Tensor
    mask: Tensor
    ref: Tensor | None = None
    entropy: Tensor | None = None
    moments: Tensor | None = None

    @property
    def log_ratio(self) -> Tensor:
        """log p - log p_old, 0 outside of the mask."""
        return torch.where(self.mask, self.logps - self.old, 0.0)


def policy_gradient(t: Tokens) -> Tensor:
    """-A log p: whatever the ratio is."""
    return -t.advantages * t.logps


def clipped(
    ratio: Tensor,
    advantages: Tensor,
    clip_low: float,
    clip_high: float,
    dual: float | None,
) -> Tensor:
    """The pessimistic one of ratio A and clip(ratio) A, as a loss."""
    bounded = ratio.clamp(1 - clip_low, 1 + clip_high)
    gain = torch.minimum(ratio * advantages, bounded * advantages)
    if dual is not None:
        gain = torch.where(advantages < 0, gain.maximum(dual * advantages), gain)
    return -gain


def ppo_clip(
    t: Tokens,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual: float | None = None,
) -> Tensor:
    """Its gradient is 0 exactly where A pushes a ratio that is beyond its bound."""
    return clipped(t.log_ratio.exp(), t.advantages, clip_low, clip_high, dual)


def gspo(t: Tokens, *, clip_low: float = 3e-4, clip_high: float = 4e-4) -> Tensor:
    """A row's ratio is a geometric mean, so its bounds are a thousand times closer."""
    count = t.mask.sum(1, keepdim=True).clamp(min=1)
    ratio = (t.log_ratio.sum(1, keepdim=True) / count).exp()
    return clipped(ratio, t.advantages, clip_low, clip_high, None).expand_as(t.logps)


def cispo(t: Tokens, *, clip_max: float = 5.0) -> Tensor:
    """The clipped ratio is a weight, and log p keeps its gradient."""
    weight = t.log_ratio.detach().exp().clamp(max=clip_max)
    return -weight * t.advantages * t.logps


def dpo(t: Tokens, *, beta: float = 0.1) -> Tensor:
    """Rows 2 i are right, rows 2 i + 1 wrong; without `ref`, the old policy is it."""
    if len(t.logps) % 2:
        raise RolloutError(f"{len(t.logps)} rows, expected pairs: right, then wrong")
    ref = t.old if t.ref is None else t.ref
    d = torch.where(t.mask, t.logps - ref, 0.0).sum(1)
    pair = -F.logsigmoid(beta * (d[::2] - d[1::2]))
    return pair.repeat_interleave(2).unsqueeze(1).expand_as(t.logps)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "policy_gradient": policy_gradient,
    "ppo_clip": ppo_clip,
    "dual_clip": partial(ppo_clip, dual=3.0),
    "dapo": partial(ppo_clip, clip_high=0.28),
    "gspo": gspo,
    "cispo": cispo,
    "dpo": dpo,
}


def pairs(rewards: Tensor, scored: Tensor, group: Tensor) -> Tensor:
    """(2 m,) int64: of each group whose rewards differ, its first best and first worst.

    Right then wrong, as `dpo` wants them; groups of equal rewards teach no preference.
    """
    found: list[int] = []
    for g in group.unique().tolist():
        rows = ((group == g) & scored).nonzero().squeeze(1)
        r = rewards[rows]
        if len(rows) and r.max() > r.min():
            found += [int(rows[r.argmax()]), int(rows[r.argmin()])]
    return torch.tensor(found, dtype=torch.long)
