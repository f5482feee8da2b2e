"""Other people's training loops. Each module imports its framework, this one none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zolab.integrations.trainer import ZOTrainer

__all__ = ["ZOTrainer"]


def __getattr__(name: str) -> Any:
    if name == "ZOTrainer":
        from zolab.integrations.trainer import ZOTrainer

        return ZOTrainer
    raise AttributeError(f"zolab.integrations has no {name!r}; it has ZOTrainer")
