"""Gradient descent: the estimate times the learning rate, with decoupled decay.

w <- (1 - lr * weight_decay) * w - lr * g
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zolab.gradient import Update, ZOGradient, round32


class SGD:
    """w <- (1 - lr * weight_decay) * w - lr * g, no state."""

    settings: dict[str, Any] = {"name": "SGD"}

    def update(
        self,
        g: ZOGradient,
        step: int,
        lr: Sequence[float],
        weight_decay: Sequence[float],
    ) -> Update:
        pairs = zip(lr, weight_decay, strict=True)
        decay = tuple(round32(1.0 - a * wd) for a, wd in pairs)
        return Update(g.terms, tuple(lr), decay)
