"""Estimators: what to ask, and how the answers become a gradient. One a file."""

from zolab.estimators.base import Estimator, Keys
from zolab.estimators.spsa import SPSA, OneSided

__all__ = ["SPSA", "Estimator", "Keys", "OneSided"]
