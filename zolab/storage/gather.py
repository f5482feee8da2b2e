"""Looked-up rows of a table that does not lie where they are wanted.

    out[i] = cast(table[index[i]] + what a run added there + sum s z)

The rows are picked where the table lies, and moved where the result is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zolab.storage import plain

if TYPE_CHECKING:
    from zolab.space import Slot
    from zolab.storage import Draw


def rows(slot: Slot, draws: Sequence[Draw], index: Tensor, out: Tensor) -> None:
    """Fill `out` (n, columns), on any device, with rows `index` (n,) of the slot."""
    there = index.to(slot.base.device)
    if there.numel() and there.device.type == "cpu" and there.min() < 0:
        raise IndexError(f"embedding {slot.name} got the index {int(there.min())}")
    x = slot.base[there].to(out.device).float()
    if slot.delta is not None:
        slot.delta.add(x, index)
    n = x.shape[1]
    if x.device.type == "cpu":
        from zolab.storage import kernel

        fast = kernel(x.device, draws)
        add = fast.add if hasattr(fast, "add") else plain.add
        for row, i in zip(x, index.tolist(), strict=True):
            add(row, draws, i * n)
    else:
        element = index[:, None] * n + torch.arange(n, device=x.device)
        x = plain.moved(x, draws, element)
    out.copy_(x)
