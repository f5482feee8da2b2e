"""Which weights decay: decided by the module they belong to, not by their name.

Published MeZO tests names for "bias", "layer_norm" and "layernorm", and so decays
LLaMA's final `model.norm`, GPT-2's `ln_*` and BERT's `LayerNorm`.
"""

from __future__ import annotations

from typing import Any

from torch import nn


def is_norm(module: nn.Module) -> bool:
    """Whether the module normalises: LayerNorm, T5LayerNorm, LlamaRMSNorm, ..."""
    return "norm" in type(module).__name__.lower()


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Param groups: matrices decay; norms and biases, and all if it is 0, do not."""
    skip: set[int] = set()
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            if is_norm(module) or name.endswith("bias"):
                skip.add(id(p))
    params = [p for p in model.parameters() if p.requires_grad]
    if weight_decay == 0.0:
        return [{"params": params, "weight_decay": 0.0}]
    groups = [
        {
            "params": [p for p in params if id(p) not in skip],
            "weight_decay": weight_decay,
        },
        {"params": [p for p in params if id(p) in skip], "weight_decay": 0.0},
    ]
    return [g for g in groups if g["params"]]
