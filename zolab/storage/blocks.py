"""Where a streamed model's blocks live when they are not on the device.

A store keeps numbered blocks of bytes. The first `moving` bytes of a block change and
are written; the rest is filled once. `mark` says how many steps of the run a block has
taken, so that nothing is applied twice after a kill.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Size:
    """Bytes of a block, and how many of them move."""

    nbytes: int
    moving: int


class Store(Protocol):
    """Blocks of bytes, read whole and written in their moving part."""

    marks: list[int]
    direct: bool  # whether a GPU may copy from it itself

    def open(self, sizes: Sequence[Size], layout: str) -> bool:
        """Make room for the blocks; True if they are there already (a run goes on)."""

    def fill(self, block: int, data: Tensor) -> None:
        """Put a block's bytes in, all of them, once."""

    def seal(self, base: str) -> None:
        """All blocks are filled; `base` is the hash of the weights they came from."""

    @property
    def base(self) -> str | None:
        """What `seal` was told, perhaps by an earlier process."""

    def begin(self, run: str) -> None:
        """Name the run; StoreError where the blocks belong to another one."""

    def read(self, block: int, out: Tensor) -> None:
        """The block's bytes into `out` (uint8, at least as many)."""

    def write(self, block: int, data: Tensor, mark: int) -> None:
        """The block's moving bytes from `data`; it has then taken `mark` steps."""

    def close(self) -> None:
        """Give back what the store holds open."""

    def home(self, block: int) -> tuple[Tensor, Tensor]:
        """The block's moving bytes and its others, to look at and not to write to."""


def bytes_of(n: int) -> Tensor:
    """n bytes, outside of inference mode."""
    with torch.inference_mode(False):
        return torch.empty(n, dtype=torch.uint8)
