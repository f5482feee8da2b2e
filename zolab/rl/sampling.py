"""What is done to rewards and groups before an advantage: DAPO's other two parts.

Overlong shaping, with L the most tokens and C a soft zone before it:

    0 if T <= L - C,    (L - C - T) / C in the zone,    -1 beyond L

Dynamic sampling: a group whose answers all fared alike has no advantage, so draw until
enough groups differ. The gradient's batch stays as large as it looks; the prompts drift
to middling difficulty, and what was thrown away was paid for.

Q. Yu et al., DAPO, arXiv:2503.14476.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from zolab.rl.batch import Rollout, RolloutError, concatenate

Values = Sequence[float | None]


def overlong_shaping(lengths: Tensor, *, longest: int, soft: int) -> Tensor:
    """(N,) in [-1, 0], to add to the rewards; ValueError unless 0 < soft <= longest."""
    if not 0 < soft <= longest:
        raise ValueError(f"soft is {soft}, expected 1 to longest = {longest}")
    return ((longest - soft - lengths) / soft).clamp(-1, 0)


def informative(rewards: Values, group: Tensor) -> Tensor:
    """(N,) bool: rows of groups whose scored rewards are not all equal."""
    useful, group = [], group.cpu()
    for g in group.unique().tolist():
        rows = (group == g).nonzero().squeeze(1).tolist()
        if len({rewards[i] for i in rows} - {None}) > 1:
            useful.append(g)
    return torch.isin(group, torch.tensor(useful, dtype=group.dtype))


def dynamic_sampling(
    draw: Callable[[int], tuple[Rollout, Values]], *, tries: int
) -> tuple[Rollout, list[float | None], int]:
    """Draw until as many useful groups are there as one draw has groups.

    `draw(i)` is the i-th try.  Returns the rollout, its rewards and how many rows were
    drawn in all.  RolloutError after `tries` draws without one useful group; fewer than
    wanted are taken as they are.
    """
    parts: list[Rollout] = []
    kept: list[float | None] = []
    groups, drawn, wanted = 0, 0, 0
    for i in range(tries):
        rollout, rewards = draw(i)
        wanted = wanted or len(rollout.group.unique())
        drawn += len(rollout)
        rows = informative(rewards, rollout.group)
        ids = rollout.group.cpu()
        for g in ids[rows].unique().tolist():
            mine = (ids == g).nonzero().squeeze(1)
            part = rollout.rows(mine)
            parts.append(part.regrouped(torch.full((len(part),), groups)))
            kept += [rewards[j] for j in mine.tolist()]
            groups += 1
            if groups == wanted:
                return concatenate(parts), kept, drawn
    if not parts:
        raise RolloutError(
            f"{tries} draws of {len(rollout)} rows, and in every group all rewards are "
            "equal: the task is too easy or too hard for this policy"
        )
    return concatenate(parts), kept, drawn
