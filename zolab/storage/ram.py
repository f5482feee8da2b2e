"""Blocks in host memory: one arena, allocated once, pinned where there is a GPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zolab.storage.blocks import Size, bytes_of


class Ram:
    """A model's blocks in one allocation of RAM.

    `pinned` (default: where CUDA is) lets a GPU copy while it computes, at about twice
    the rate of ordinary memory. One arena is one registration with the driver, and no
    rounding of each tensor to a power of two.
    """

    direct = True

    def __init__(self, *, pinned: bool | None = None) -> None:
        self.pinned = torch.cuda.is_available() if pinned is None else pinned
        self.sizes: list[Size] = []
        self.marks: list[int] = []
        self.base: str | None = None

    def open(self, sizes: Sequence[Size], layout: str) -> bool:
        """Allocate; nothing survives the process, so never True."""
        self.sizes, self.starts = list(sizes), [0]
        for size in sizes:
            self.starts.append(self.starts[-1] + size.nbytes)
        self.arena = bytes_of(self.starts[-1])
        if self.pinned:
            self.arena = self.arena.pin_memory()
        self.marks = [0] * len(sizes)
        return False

    def fill(self, block: int, data: Tensor) -> None:
        self._bytes(block).copy_(data[: self.sizes[block].nbytes])

    def seal(self, base: str) -> None:
        self.base = base

    def begin(self, run: str) -> None:
        """There is no earlier run."""

    def read(self, block: int, out: Tensor) -> None:
        n = self.sizes[block].nbytes
        out[:n].copy_(self._bytes(block), non_blocking=self.pinned)

    def write(self, block: int, data: Tensor, mark: int) -> None:
        n = self.sizes[block].moving
        self._bytes(block)[:n].copy_(data[:n], non_blocking=self.pinned)
        self.marks[block] = mark

    def close(self) -> None:
        """Nothing is open."""

    def home(self, block: int) -> tuple[Tensor, Tensor]:
        data, moving = self._bytes(block), self.sizes[block].moving
        return data[:moving], data[moving:]

    def _bytes(self, block: int) -> Tensor:
        return self.arena[self.starts[block] : self.starts[block + 1]]
