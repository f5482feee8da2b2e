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
    from zolab.rl.checkpoint import CheckpointError
    from zolab.rl.filters import DATA_FILTERS, TOKEN_FILTERS, displacement
    from zolab.rl.groups import GROUP_KEYS, group_ids
    from zolab.rl.kl import KLS
    from zolab.rl.logps import token_logps
    from zolab.rl.loop import Trained, train
    from zolab.rl.losses import LOSSES, Tokens, pairs
    from zolab.rl.meter import Meter
    from zolab.rl.passk import mean_pass_at_k, pass_at_k
    from zolab.rl.recipes import RECIPES, Recipe, recipe
    from zolab.rl.sampling import dynamic_sampling, informative, overlong_shaping
    from zolab.rl.surrogate import Batch, prepare

# Loaded when named: a chapter that uses none of them does not go stale with them.
_WHERE = {
    "ADVANTAGES": "advantages",
    "AGGREGATIONS": "aggregation",
    "Batch": "surrogate",
    "CheckpointError": "checkpoint",
    "DATA_FILTERS": "filters",
    "GROUP_KEYS": "groups",
    "KLS": "kl",
    "LOSSES": "losses",
    "Meter": "meter",
    "RECIPES": "recipes",
    "Recipe": "recipes",
    "Rollout": "batch",
    "RolloutError": "batch",
    "Scores": "advantages",
    "TOKEN_FILTERS": "filters",
    "Tokens": "losses",
    "Totals": "aggregation",
    "Trained": "loop",
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
    "prepare": "surrogate",
    "recipe": "recipes",
    "token_logps": "logps",
    "train": "loop",
}

__all__ = [
    "ADVANTAGES",
    "AGGREGATIONS",
    "DATA_FILTERS",
    "GROUP_KEYS",
    "KLS",
    "LOSSES",
    "RECIPES",
    "TOKEN_FILTERS",
    "Batch",
    "CheckpointError",
    "Meter",
    "Recipe",
    "Rollout",
    "RolloutError",
    "Scores",
    "Tokens",
    "Totals",
    "Trained",
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
    "prepare",
    "recipe",
    "token_logps",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"zolab.rl has no {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
