"""Rules turn a gradient into an update; the front door is a torch.optim.Optimizer."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from zolab.optimizers.base import Rule
from zolab.optimizers.front import MeZO, ZOOptimizer
from zolab.optimizers.groups import decay_groups
from zolab.optimizers.rebuild import replay
from zolab.optimizers.sgd import SGD

if TYPE_CHECKING:
    from zolab.optimizers.adam import Adam
    from zolab.optimizers.adamu import AdaMU
    from zolab.optimizers.dense import Dense
    from zolab.optimizers.floored import Floored
    from zolab.optimizers.momentum import Momentum
    from zolab.optimizers.sign import SignSGD

# Loaded when named: a chapter that uses none of them does not go stale with them.
_WHERE = {
    "AdaMU": "adamu",
    "Adam": "adam",
    "Dense": "dense",
    "Floored": "floored",
    "Momentum": "momentum",
    "SignSGD": "sign",
}

__all__ = [
    "SGD",
    "AdaMU",
    "Adam",
    "Dense",
    "Floored",
    "MeZO",
    "Momentum",
    "Rule",
    "SignSGD",
    "ZOOptimizer",
    "decay_groups",
    "replay",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"zolab.optimizers has no {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
