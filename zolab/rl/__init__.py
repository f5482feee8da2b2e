"""Learning from rewards: pure functions, registries, and one loop that wires them.

    rollout -> rewards -> advantages -> loss -> optimizer

Each arrow is a function of tensors that can be tested without a model.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zolab.rl.batch import Rollout, RolloutError

# Loaded when named: a chapter that uses none of them does not go stale with them.
_WHERE = {
    "Rollout": "batch",
    "RolloutError": "batch",
}

__all__ = ["Rollout", "RolloutError"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"zolab.rl has no {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
