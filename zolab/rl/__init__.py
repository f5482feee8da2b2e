"""Learning from rewards: pure functions, registries, and one loop that wires them.

    rollout -> rewards -> advantages -> loss -> optimizer

Each arrow is a function of tensors that can be tested without a model.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zolab.rl.advantages import ADVANTAGES, Scores, advantage
    from zolab.rl.aggregation import AGGREGATIONS, Totals, aggregate
    from zolab.rl.batch import Rollout, RolloutError
    from zolab.rl.filters import DATA_FILTERS, TOKEN_FILTERS, displacement
    from zolab.rl.groups import GROUP_KEYS, group_ids
    from zolab.rl.kl import KLS
    from zolab.rl.logps import token_logps
    from zolab.rl.losses import LOSSES, Tokens, pairs
    from zolab.rl.passk import mean_pass_at_k, pass_at_k
    from zolab.rl.sampling import dynamic_sampling, informative, overlong_shaping

# Loaded when named: a chapter that uses none of them does not go stale with them.
_WHERE = {
    "ADVANTAGES": "advantages",
    "AGGREGATIONS": "aggregation",
    "DATA_FILTERS": "filters",
    "GROUP_KEYS": "groups",
    "KLS": "kl",
    "LOSSES": "losses",
    "Rollout": "batch",
    "RolloutError": "batch",
    "Scores": "advantages",
    "TOKEN_FILTERS": "filters",
    "Tokens": "losses",
    "Totals": "aggregation",
    "advantage": "advantages",
    "aggregate": "aggregation",
    "displacement": "filters",
    "dynamic_sampling": "sampling",
    "group_ids": "groups",
    "informative": "sampling",
    "mean_pass_at_k": "passk",
    "overlong_shaping": "sampling",
    "pairs": "losses",
    "pass_at_k": "passk",
    "token_logps": "logps",
}

__all__ = [
    "ADVANTAGES",
    "AGGREGATIONS",
    "DATA_FILTERS",
    "GROUP_KEYS",
    "KLS",
    "LOSSES",
    "TOKEN_FILTERS",
    "Rollout",
    "RolloutError",
    "Scores",
    "Tokens",
    "Totals",
    "advantage",
    "aggregate",
    "displacement",
    "dynamic_sampling",
    "group_ids",
    "informative",
    "mean_pass_at_k",
    "overlong_shaping",
    "pairs",
    "pass_at_k",
    "token_logps",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"zolab.rl has no {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
