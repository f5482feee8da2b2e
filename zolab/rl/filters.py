"""Which tokens a step may learn from: a filter is a function to a mask (n, T) bool.

    overlong        rows that ran out of room: their reward says nothing of the end
    capo            tokens whose own step would leave a trust region, by prediction
    llds            wrong rows' tokens that have already fallen below the old policy

`overlong` is known before the update: its rows leave the data, and the denominators
count without them. The others depend on the policy of the moment: their tokens give 0
and stay in the denominators, which must be known before the first micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from zolab.rl.batch import Rollout
from zolab.rl.losses import Tokens


def not_truncated(rollout: Rollout) -> Tensor:
    """Overlong filtering: (N, T), False for rows without an EOS."""
    return ~rollout.truncated.unsqueeze(1) & rollout.mask


def capo(
    t: Tokens,
    *,
    step: float = 1.0,
    max_shift: float = 0.05,
    min_gain: float = 0.0,
) -> Tensor:
    """Keep tokens whose predicted step is a small shift of the policy and a gain.

        dz = step A (e_y - p)                     what a token does to its own logits
        shift = 1/2 dz' F dz,   F = diag(p) - p p'         the KL that this makes
        gain = A (e_y - p)' dz - 1/2 A dz' F dz       by how much A log p grows

    The head alone is modelled, and each token alone; `step` is lr |h|^2, h the last
    hidden state. It asks for `moments`, with which no (n, T, vocabulary) is kept.

    In the manner of L. Melo, A. Abate, Y. Gal, Curvature-Aware Policy Optimization,
    arXiv:2510.00819, which masks tokens by predicted objective and policy shift of a
    last-layer model (fewer than 8 %); the formulas here are derived from that idea, not
    copied: read before it counts as theirs.
    """
    shift, gain = predicted(t, step)
    return (shift <= max_shift) & (gain >= min_gain)


def predicted(t: Tokens, step: float) -> tuple[Tensor, Tensor]:
    """(shift in nats, gain of A log p), each (n, T), of a token's own step."""
    if t.moments is None:
        raise ValueError("capo wants token_logps(..., moments=True); moments is None")
    p, (p2, p3) = t.logps.detach().exp(), t.moments.unbind(-1)
    a = t.advantages
    length = 1 - 2 * p + p2  # |e_y - p|^2
    spread = p - 2 * p.square() + p3 - (p - p2).square()  # (e_y - p)' F (e_y - p)
    bent = spread * (step * a).square() / 2
    return bent, step * a.square() * length - a * bent


def not_fallen(t: Tokens, *, drop: float = 0.5) -> Tensor:
    """Wrong rows push a token down by at most `drop` nats a rollout.

    The guard of `displacement` as a filter: what stops the fall of shared prefixes is
    that negative advantages stop pushing, and nothing pulls back.
    """
    return (t.advantages >= 0) | (t.log_ratio.detach() >= -drop)


def displacement(t: Tokens, *, right_only: bool = True) -> Tensor:
    """(n, T), a penalty: tokens that fell, of rows that fell as a whole.

        max(0, log p_old - log p) 1[sum_t log p < sum_t log p_old] (1[A >= 0])

    Lazy likelihood displacement: wrong answers share prefixes with right ones, and
    pushing them down lowers both; then gradients grow and the run collapses. The
    penalty acts only where that happens. `right_only=False` is the first version.

    W. Deng et al., On group relative policy optimization collapse in agent search,
    arXiv:2512.04220 (LLDS).
    """
    fell = t.log_ratio.detach().sum(1, keepdim=True) < 0
    if right_only:
        fell = fell & (t.advantages >= 0)
    return torch.where(fell, torch.relu(-t.log_ratio), 0.0)  # slope 0 where equal


DATA_FILTERS: dict[str, Callable[[Rollout], Tensor]] = {"overlong": not_truncated}
TOKEN_FILTERS: dict[str, Callable[..., Tensor]] = {"capo": capo, "llds": not_fallen}
