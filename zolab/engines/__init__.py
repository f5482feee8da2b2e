"""Engines answer probes and apply updates; what differs is where the weights live."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from zolab.engines.base import Engine
from zolab.engines.resident import Resident

if TYPE_CHECKING:
    from zolab.engines.parallel import Parallel
    from zolab.engines.processes import forked
    from zolab.engines.reuse import Reuse

# Loaded when named: a chapter that uses none of them does not go stale with them.
_WHERE = {"Parallel": "parallel", "Reuse": "reuse", "forked": "processes"}

__all__ = ["Engine", "Parallel", "Resident", "Reuse", "forked"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"zolab.engines has no {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
