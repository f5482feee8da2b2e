"""Descent that stops at a floor: for numbers that mean nothing below it.

    w <- max((1 - lr * weight_decay) * w - lr * g, floor)     in slots that match

A scale below 0 mirrors its whole group of weights; QZO keeps it at 0 or above
(arXiv:2505.13430). Other slots move as with `SGD`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from zolab.gradient import Update, ZOGradient
from zolab.optimizers.sgd import SGD


class Floored(SGD):
    """SGD whose elements keep at least `floor` in the slots that match a glob."""

    def __init__(self, *, slots: str = "*_scale", floor: float = 0.0) -> None:
        if not math.isfinite(floor):
            raise ValueError(f"floor is {floor}, expected a number")
        self.slots, self.floor = slots, float(floor)
        self.settings = {"name": "Floored", "slots": slots, "floor": self.floor}

    def update(
        self,
        g: ZOGradient,
        step: int,
        lr: Sequence[float],
        weight_decay: Sequence[float],
    ) -> Update:
        u = super().update(g, step, lr, weight_decay)
        return replace(u, low=(self.slots, self.floor))
