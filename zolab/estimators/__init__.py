"""Estimators: what to ask, and how the answers become a gradient. One a file."""

from zolab.estimators.base import Estimator, Keys
from zolab.estimators.evolution import EvolutionStrategy
from zolab.estimators.fzoo import FZOO
from zolab.estimators.rank import RankSGD
from zolab.estimators.spsa import SPSA, OneSided
from zolab.estimators.svrg import SVRG

__all__ = [
    "FZOO",
    "SPSA",
    "SVRG",
    "Estimator",
    "EvolutionStrategy",
    "Keys",
    "OneSided",
    "RankSGD",
]
