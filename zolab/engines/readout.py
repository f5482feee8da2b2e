"""What a closure gave back, as numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zolab.errors import LossError
from zolab.gradient import Answer

LOW = (torch.bfloat16, torch.float16)


def number(loss: Any) -> float:
    """What the closure returned, as a Python float.

    Raises LossError unless it is a number or a tensor of one element in fp32 or
    fp64: a bf16 loss near 4 has steps of 0.016, which divided by 2 eps is noise.
    """
    if isinstance(loss, Tensor):
        if loss.numel() != 1:
            shape = tuple(loss.shape)
            raise LossError(f"the closure returned shape {shape}, expected one number")
        if loss.dtype in LOW:
            raise LossError(
                f"the loss is {loss.dtype}, expected float32: two of its neighbours "
                "differ by more than a probe does. Compute it from logits.float()."
            )
        return float(loss.item())
    try:
        value = float(loss)
    except (TypeError, ValueError):
        kind = type(loss).__name__
        raise LossError(f"the closure returned {kind}, expected one number") from None
    return value


def finite(answers: Sequence[Answer]) -> bool:
    """Whether every answer is a finite number."""
    return all(math.isfinite(a.value) for a in answers)
