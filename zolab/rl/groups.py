"""Groups: whose rewards an answer is compared with.

    "prompt"   the samples of one prompt: GRPO, RLOO
    "batch"    everybody: one baseline for all prompts

A function of the rollout gives any other key, one hashable value a row: the number of
hops of a question (HRPO, of Dr. Zero), or (task, role) for the six baselines of TRR++
(Absolute Zero, arXiv:2505.03335).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from zolab.rl.batch import Rollout, RolloutError
from zolab.rl.registry import named

Key = Callable[[Rollout], Sequence[Hashable]]


def group_ids(rollout: Rollout, key: str | Key = "prompt") -> Tensor:
    """(N,) int64: rows with equal keys share an id, numbered as they first come."""
    keys = list(named(GROUP_KEYS, key, "group key")(rollout))
    if len(keys) != len(rollout):
        raise RolloutError(f"{len(keys)} group keys, expected {len(rollout)}")
    ids: dict[Hashable, int] = {}
    return torch.tensor([ids.setdefault(k, len(ids)) for k in keys])


GROUP_KEYS: dict[str, Key] = {
    "prompt": lambda rollout: rollout.group.tolist(),
    "batch": lambda rollout: [0] * len(rollout),
}
