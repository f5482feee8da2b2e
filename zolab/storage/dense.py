"""Updates that are tensors: for rules that are no list of directions.

    base = round(decay * base - lr * dense),     where the mask chooses base

One torch op after another in fp32, each rounded by itself, so that a replay gives the
live run's bits. Cost: some four fp32 copies of the slot while it moves, nothing after.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zolab.gradient import Update
from zolab.noise import ROUNDING, make_key, stream, uniform_bits
from zolab.space import Slot
from zolab.storage.plain import stochastic_round


def update(
    slot: Slot, updates: Sequence[tuple[Update, int]], *, seed: int, stochastic: bool
) -> None:
    """Apply (update, step) pairs in order, in place; a Hessian is left out."""
    for u, step in updates:
        assert u.dense is not None and not u.terms
        w, decay, lr = slot.base.float(), u.decay[slot.group], u.lr[slot.group]
        x = w * decay if decay != 1.0 else w.clone()
        move = lr * u.dense(slot)  # asked also at lr = 0: a memory must see the step
        x = torch.where(move == 0, x, x - move)  # -0.0 - 0 would be +0.0
        element = torch.arange(slot.numel, device=x.device).view(slot.shape)
        if slot.mask is not None:
            x = torch.where(slot.mask.chosen(w, slot.id, element), x, w)
        slot.base.copy_(_rounded(x, slot, element, step, seed, stochastic))


def _rounded(
    x: Tensor, slot: Slot, element: Tensor, step: int, seed: int, stochastic: bool
) -> Tensor:
    if not stochastic or slot.dtype == torch.float32:
        return x  # copying rounds to nearest
    bits = uniform_bits(stream(make_key(seed, step, ROUNDING), slot.id), element)
    return stochastic_round(x, bits, slot.dtype)
