"""A cache whose keys and values have their room from the start.

Transformers' dynamic cache copies all that it holds at every token; its static one
attends to the room that is still empty. This one writes a token where it belongs and
shows attention the part that is filled.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer


class Room(DynamicLayer):
    """One layer's keys and values, (B, heads, room, width), the first ones filled."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room, self.filled = room, 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the new tokens; returns views of everything so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.all_keys, self.all_values = map(self._new, (key_states, value_states))
        start, self.filled = self.filled, self.filled + key_states.shape[-2]
        self.all_keys[:, :, start : self.filled] = key_states
        self.all_values[:, :, start : self.filled] = value_states
        self._show()
        return self.keys, self.values

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row becomes `repeats` rows side by side."""
        self._rows(lambda x: x.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Only these rows go on."""
        self._rows(lambda x: x[indices])

    def _rows(self, f: Any) -> None:
        if self.filled:
            for name in ("all_keys", "all_values"):
                old, shown = (
                    getattr(self, name),
                    getattr(self, name)[:, :, : self.filled],
                )
                kept = f(shown)
                new = old.new_empty(kept.shape[0], *old.shape[1:])
                new[:, :, : self.filled] = kept
                setattr(self, name, new)
            self._show()

    def _show(self) -> None:
        self.keys = self.all_keys[:, :, : self.filled]
        self.values = self.all_values[:, :, : self.filled]

    def _new(self, x: Tensor) -> Tensor:
        return torch.empty(
            *x.shape[:2], self.room, x.shape[-1], dtype=x.dtype, device=x.device
        )


def room(config: Any, length: int) -> DynamicCache:
    """A cache for `length` tokens; layers of another kind (sliding) stay theirs."""
    cache = DynamicCache(config=config)
    if cache.layers:
        cache.layers = [
            Room(length) if type(layer) is DynamicLayer else layer
            for layer in cache.layers
        ]
    return cache
