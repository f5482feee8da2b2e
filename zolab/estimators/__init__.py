"""Estimators: what to ask, and how the answers become a gradient. One a file."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from zolab.estimators.base import Estimator, Keys
from zolab.estimators.spsa import SPSA, OneSided

if TYPE_CHECKING:
    from zolab.estimators.blocks import ModuleWise
    from zolab.estimators.cge import CGE
    from zolab.estimators.conservative import Conservative
    from zolab.estimators.evolution import EvolutionStrategy
    from zolab.estimators.forward import ForwardGradient
    from zolab.estimators.fzoo import FZOO
    from zolab.estimators.hizoo import HiZOO
    from zolab.estimators.rank import RankSGD
    from zolab.estimators.svrg import SVRG

# Loaded when named: a chapter that uses none of them does not go stale with them.
_WHERE = {
    "CGE": "cge",
    "Conservative": "conservative",
    "EvolutionStrategy": "evolution",
    "FZOO": "fzoo",
    "ForwardGradient": "forward",
    "HiZOO": "hizoo",
    "ModuleWise": "blocks",
    "RankSGD": "rank",
    "SVRG": "svrg",
}

__all__ = [
    "CGE",
    "FZOO",
    "SPSA",
    "SVRG",
    "Conservative",
    "Estimator",
    "EvolutionStrategy",
    "ForwardGradient",
    "HiZOO",
    "Keys",
    "ModuleWise",
    "OneSided",
    "RankSGD",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"zolab.estimators has no {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
