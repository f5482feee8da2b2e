"""What every rule is, and how a journal names one."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Protocol

from zolab.errors import JournalError
from zolab.gradient import Update, ZOGradient


class Rule(Protocol):
    """Scales a gradient into an update: a function of what the journal records.

    `settings` is {"name": class name, **keyword arguments}, from which a replay makes
    the rule again. Optional: `check(estimator)` raises ValueError, before the first
    step, on one that the rule cannot follow.
    """

    settings: dict[str, Any]

    def update(
        self,
        g: ZOGradient,
        step: int,
        lr: Sequence[float],
        weight_decay: Sequence[float],
    ) -> Update:
        """`lr` and `weight_decay` hold one number a param group."""


def rule_from(settings: dict[str, Any]) -> Rule:
    """The rule that a journal's header names."""
    rules = importlib.import_module("zolab.optimizers")
    kwargs = dict(settings)
    name = kwargs.pop("name")
    if not hasattr(rules, name):
        raise JournalError(f"the journal names the rule {name!r}, which zolab has not")
    return getattr(rules, name)(**kwargs)
