"""A registry is a dict from a name to a function; yours goes in by assignment.

    from zolab.rl import ADVANTAGES
    ADVANTAGES["mine"] = lambda scores: scores.totals - 0.5

Wherever a name is taken, the function itself is taken too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def named(table: Mapping[str, Callable[..., Any]], name: Any, what: str) -> Any:
    """The function of that name, or `name` if it is one; ValueError names them all."""
    if callable(name):
        return name
    if name not in table:
        raise ValueError(f"no {what} is called {name!r}; there are {', '.join(table)}")
    return table[name]
