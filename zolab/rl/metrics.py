"""What a step says of itself, as plain numbers: of the rollout, and of the update.

Before the first update every ratio is 1: `ratio_error` is the largest distance. In fp32
at temperature 1 rounding alone brings it to some 1e-5 (1.6e-5 was the most we met, and
it grows as 1 / temperature); far above that, sampler and trainer disagree. The loss
says nothing on policy; the gradient's norm does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from zolab.rl.advantages import Scores
from zolab.rl.batch import Rollout
from zolab.rl.kl import k1, k3
from zolab.rl.losses import Tokens
from zolab.rl.sampling import informative

Metrics = dict[str, float]


def of_rollout(rollout: Rollout, scores: Scores, advantages: Tensor) -> Metrics:
    """Rewards, groups, lengths, and the true entropy (from logits, of a token)."""
    known = scores.rewards[scores.scored]
    values = [
        float(r) if s else None
        for r, s in zip(scores.rewards, scores.scored, strict=True)
    ]
    useful = informative(values, scores.group)
    groups, signal = scores.group.unique(), scores.group[useful].unique()
    tokens = max(1, int(rollout.mask.sum()))
    lengths = rollout.lengths.float()
    return {
        "reward": float(known.mean()) if len(known) else math.nan,
        "reward_std": float(known.std()) if len(known) > 1 else 0.0,
        "unscored": float((~scores.scored).float().mean()),
        "zero_std": 1 - len(signal) / len(groups),
        "advantage_std": float(advantages.std()) if advantages.numel() > 1 else 0.0,
        "entropy": float((rollout.entropy * rollout.mask).sum()) / tokens,
        "length": float(lengths.mean()),
        "length_max": float(lengths.max()),
        "truncated": float(rollout.truncated.float().mean()),
    }


class Tally:
    """Ratios, clipping and KL over the tokens of a step's updates, micro by micro."""

    def __init__(self) -> None:
        self.first = True  # no update has been made yet
        self.tokens = self.sums = 0.0
        self.low = self.high = self.kept = 0.0
        self.k1 = self.k3 = self.reference = 0.0
        self.error = self.largest = 0.0

    @torch.no_grad()
    def add(self, t: Tokens, loss: Callable[[Tokens], Tensor], keep: Tensor) -> None:
        """Tokens of one micro-batch, at the weights that its gradient is taken at."""
        if not int(t.mask.sum()):
            return
        ratio = t.log_ratio.exp()[t.mask]
        self.tokens += ratio.numel()
        self.sums += float(ratio.sum())
        self.largest = max(self.largest, float(ratio.max()))
        if self.first:
            self.error = max(self.error, float((ratio - 1).abs().max()))
        still = dead(t, loss)
        self.low += float((still & (t.advantages < 0)).sum())
        self.high += float((still & (t.advantages > 0)).sum())
        self.kept += float((keep & t.mask).sum())
        base = t.old if t.ref is None else t.ref
        now = t.logps
        self.k1 += float(k1(now, base)[t.mask].sum())
        self.k3 += float(k3(now, base)[t.mask].sum())
        self.reference = float(t.ref is not None)

    def result(self) -> Metrics:
        """Means over tokens; the KL is from the reference, or from the old policy."""
        n = max(1.0, self.tokens)
        whom = "ref" if self.reference else "old"
        return {
            "ratio_error": self.error,
            "ratio": self.sums / n if self.tokens else 1.0,
            "ratio_max": self.largest,
            "clip_low": self.low / n,
            "clip_high": self.high / n,
            "filtered": 1 - self.kept / n if self.tokens else 0.0,
            f"kl_{whom}/k1": self.k1 / n,
            f"kl_{whom}/k3": self.k3 / n,
        }


def dead(t: Tokens, loss: Callable[[Tokens], Tensor]) -> Tensor:
    """(n, T) bool: tokens with an advantage whose loss has no slope: clipped ones.

    Asked of the loss itself, so that it holds for every loss.
    """
    with torch.enable_grad():
        leaf = t.logps.detach().requires_grad_()
        alone = replace(t, logps=leaf, entropy=None)
        total = torch.where(t.mask, loss(alone), 0.0).sum()
        (slope,) = torch.autograd.grad(total, leaf)
    return (slope == 0) & (t.advantages != 0) & t.mask
