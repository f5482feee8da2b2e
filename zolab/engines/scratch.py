"""Memory that a probe writes materialised weights into."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zolab.space import Slot


def empty(shape: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory that outlives the call: a closure may leave inference mode in between."""
    with torch.inference_mode(False):
        return torch.empty(shape, dtype=dtype, device=device)


def padded(n: int) -> int:
    """n, and room until the next begins at a multiple of 64."""
    return (n + 63) // 64 * 64


class Pool:
    """One buffer a dtype, handed out front to back and reused by the next op.

    `room` is the least number of elements that a buffer has.
    """

    def __init__(self, room: int = 0) -> None:
        self.room = room
        self.buffers: dict[Any, Tensor] = {}
        self.used: dict[Any, int] = {}

    def reset(self) -> None:
        self.used.clear()

    def take(
        self, slot: Slot, *, rows: int | None = None, dtype: torch.dtype | None = None
    ) -> Tensor:
        shape = slot.shape if rows is None else (rows, *slot.shape[1:])
        n = torch.Size(shape).numel()
        kind = dtype or slot.dtype, slot.device
        start = self.used.get(kind, 0)
        if start + n > (self.buffers[kind].numel() if kind in self.buffers else 0):
            # What this op took before stays alive through its own tensor.
            self.buffers[kind] = empty(max(n, self.room), *kind)
            start = 0
        self.used[kind] = start + padded(n)
        return self.buffers[kind][start : start + n].view(shape)
