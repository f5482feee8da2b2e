"""Advantages: how much better than expected an answer was, and what "expected" means.

    grad J = E[ sum_t grad log p(y_t) A ]

    reinforce      R - mean of the batch          too small by (N - 1) / N
    reinforce_ema  R - running mean of earlier batches               unbiased
    plain          R                                                 unbiased, noisy
    rloo           R - mean of the others of the group               unbiased
    remax          R - R(greedy answer)                              unbiased
    dr_grpo        R - mean of the group          rloo times (G - 1) / G
    grpo           (R - mean of the group) / (std of the group + std_eps)       biased
    reinforce_pp   token returns, whitened over the whole batch                 biased

A division by the group's std weighs prompts by 1 / std: those nearly solved and nearly
hopeless the most. "Unbiased" and the factors are proved by enumeration in the tests.

A reward of None is a row that cannot be scored: it gets advantage 0 and is in nobody's
baseline; so is a row that is alone in its group. Everything here is on the whole batch,
before micro-batches, and carries no graph.

REINFORCE: R. Williams, Machine Learning 8 (1992). RLOO: W. Kool et al. (2019); A.
Ahmadian et al., arXiv:2402.14740. ReMax: Z. Li et al., arXiv:2310.10505. GRPO: Z. Shao
et al., arXiv:2402.03300. Dr. GRPO: Z. Liu et al., arXiv:2503.20783. REINFORCE++: J. Hu,
arXiv:2501.03262.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zolab.rl.batch import Rollout, RolloutError
from zolab.rl.registry import named


@dataclass(frozen=True)
class Scores:
    """What an advantage may look at, of N rows.

    `rewards` (N,) fp64, 0 where `scored` (N,) bool is not; `group` (N,); `mask` (N, T);
    `penalty` (N, T), a reward of each token (-beta times a KL estimate); `greedy` (N,),
    the reward of the greedy answer to the row's prompt; `running`, the mean reward of
    earlier batches.
    """

    rewards: Tensor
    scored: Tensor
    group: Tensor
    mask: Tensor
    penalty: Tensor | None = None
    greedy: Tensor | None = None
    running: float | None = None

    @classmethod
    def of(
        cls,
        rollout: Rollout,
        rewards: Sequence[float | None],
        *,
        group: Tensor | None = None,
        penalty: Tensor | None = None,
        greedy: Sequence[float | None] | None = None,
        running: float | None = None,
    ) -> Scores:
        """Of a rollout and one reward a row; RolloutError where they do not fit."""
        values, scored = numbers(rewards, len(rollout), "rewards")
        base = None
        if greedy is not None:
            base, known = numbers(greedy, len(rollout), "greedy rewards")
            scored &= known
        group = rollout.group if group is None else group
        penalty = None if penalty is None else penalty.detach().double().cpu()
        return cls(
            torch.where(scored, values, 0.0),
            scored,
            group.cpu(),
            rollout.mask.cpu(),
            penalty,
            base,
            running,
        )

    @property
    def totals(self) -> Tensor:
        """(N,): the reward of an answer, with what its tokens were given."""
        if self.penalty is None:
            return self.rewards
        return self.rewards + (self.penalty * self.mask).sum(1)


def numbers(
    rewards: Sequence[float | None], rows: int, what: str
) -> tuple[Tensor, Tensor]:
    """(values fp64, whether there is one); RolloutError on a wrong count or a NaN."""
    if len(rewards) != rows:
        raise RolloutError(f"{len(rewards)} {what}, expected {rows}: one a row")
    scored = torch.tensor([r is not None for r in rewards])
    values = torch.tensor([0.0 if r is None else r for r in rewards]).double()
    if not values.isfinite().all():
        bad = int((~values.isfinite()).nonzero()[0])
        raise RolloutError(
            f"{what}: row {bad} has {rewards[bad]}, expected a finite number, or None "
            "for a row that cannot be scored"
        )
    return values, scored


def advantage(name: str | Callable[[Scores], Tensor], scores: Scores) -> Tensor:
    """(N, 1) or (N, T) fp32: one a row, or one a token."""
    a: Tensor = named(ADVANTAGES, name, "advantage")(scores)
    a = a if a.ndim == 2 else a.unsqueeze(1)
    # Equal rewards differ from their mean by a rounding: that is no signal.
    signal = scores.scored.unsqueeze(1) & (a.abs() > 1e-12)
    return torch.where(signal, a, 0.0).float()


def plain(s: Scores) -> Tensor:
    """R: what was good gets likelier; with 0/1 rewards, imitation of the right ones."""
    return s.totals


def reinforce(s: Scores) -> Tensor:
    """R - mean of the batch."""
    return s.totals - mean(s.totals, s.scored)


def reinforce_ema(s: Scores) -> Tensor:
    """R - the running mean; in the first batch, which has none, R - mean."""
    return reinforce(s) if s.running is None else s.totals - s.running


def rloo(s: Scores) -> Tensor:
    """R_i - mean of R_j, j another row of the group."""
    r, n, total = *groups(s), grouped_sum(s, s.totals)
    return torch.where(n > 1, r - (total - r) / (n - 1).clamp(min=1), 0.0)


def remax(s: Scores) -> Tensor:
    """R - R(greedy answer)."""
    if s.greedy is None:
        raise RolloutError("remax wants the rewards of greedy answers; greedy is None")
    return s.totals - s.greedy


def dr_grpo(s: Scores) -> Tensor:
    """R - mean of the group."""
    r, n = groups(s)
    return torch.where(n > 1, r - grouped_sum(s, r) / n.clamp(min=1), 0.0)


def grpo(s: Scores, *, std_eps: float = 1e-4, ddof: int = 1) -> Tensor:
    """(R - mean) / (std + std_eps) of the group; the sample std, as in TRL and verl.

    `ddof=0` is the population's, smaller by sqrt((G - 1) / G): 7 % at G = 8.
    """
    away, (_, n) = dr_grpo(s), groups(s)
    std = (grouped_sum(s, away.square()) / (n - ddof).clamp(min=1)).sqrt()
    # Equal rewards differ from their mean by a rounding, which 1 / std_eps enlarges.
    return torch.where(std > 1e-12, away / (std + std_eps), 0.0)


def reinforce_pp(s: Scores, *, gamma: float = 1.0) -> Tensor:
    """(N, T): the discounted reward yet to come, whitened over the batch's tokens.

    The answer's reward arrives with its last token.
    """
    mask = s.mask & s.scored.unsqueeze(1)
    ends = torch.zeros_like(s.mask, dtype=torch.double)
    last = (s.mask.sum(1) - 1).clamp(min=0).unsqueeze(1)
    ends.scatter_(1, last, s.rewards.unsqueeze(1))
    token = ends if s.penalty is None else ends + s.penalty * s.mask
    to_come, later = torch.zeros_like(token), torch.zeros(len(token)).double()
    for t in reversed(range(token.shape[1])):
        later = token[:, t] + gamma * later
        to_come[:, t] = later
    away = to_come - mean(to_come, mask)
    std = (away.square() * mask).sum() / (mask.sum() - 1).clamp(min=1)
    return torch.where(mask & (std > 1e-18), away / (std.sqrt() + 1e-8), 0.0)


def mean(x: Tensor, where: Tensor) -> Tensor:
    """The mean of x where the flag is; 0 of nothing."""
    return (x * where).sum() / where.sum().clamp(min=1)


def groups(s: Scores) -> tuple[Tensor, Tensor]:
    """(rewards, how many scored rows the row's group has); RolloutError if no group.

    A group each row is what inferred ids produce: every advantage would be 0 for ever.
    """
    if len(s.group) > 1 and len(s.group.unique()) == len(s.group):
        raise RolloutError(
            f"{len(s.group)} rows in {len(s.group)} groups of one: nothing to compare "
            "with. Ids are one a prompt, not one a row; or use reinforce or remax."
        )
    return s.totals, grouped_sum(s, torch.ones_like(s.totals))


def grouped_sum(s: Scores, x: Tensor) -> Tensor:
    """(N,): the sum of x over the scored rows of each row's group."""
    ids = s.group.unique(return_inverse=True)[1]
    sums = torch.zeros(int(ids.max()) + 1, dtype=x.dtype)
    return sums.index_add_(0, ids, x * s.scored)[ids]


ADVANTAGES: dict[str, Callable[..., Tensor]] = {
    "plain": plain,
    "reinforce": reinforce,
    "reinforce_ema": reinforce_ema,
    "rloo": rloo,
    "remax": remax,
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "reinforce_pp": reinforce_pp,
}
