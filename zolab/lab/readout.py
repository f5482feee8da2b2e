"""The cheapest part of a language model to train: what reads its last states."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class ReadOut(nn.Module):
    """A copy of the final norm and of the two answers' rows of the head.

    Maps states (B, width) to margins (B,): logit of praise less logit of blame. For
    models shaped like Llama (`model.norm`, `lm_head`).
    """

    def __init__(self, model: Any, task: Any) -> None:
        super().__init__()
        self.norm = copy.deepcopy(model.model.norm)
        rows = model.lm_head.weight[list(task.options())]
        self.rows = nn.Parameter(rows.detach().clone())

    def forward(self, states: Tensor) -> Tensor:
        """(B, width) -> (B,)."""
        both = nn.functional.linear(self.norm(states), self.rows)
        return both[:, 1] - both[:, 0]


@torch.no_grad()
def states(model: Any, task: Any, sentences: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """What the frozen body says after each prompt, before the final norm; and labels.

    (n, width) fp32 and (n,) fp32, in the order of the sentences' lengths.
    """
    rows = sorted(sentences, key=lambda s: len(s.text))
    kept: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen = args[0]
        kept.append(seen[torch.arange(len(seen)), batch.last].float())

    hook = model.model.norm.register_forward_pre_hook(keep)
    try:
        for start in range(0, len(rows), 50):
            batch = task.batch(rows[start : start + 50])
            model.model(input_ids=batch.ids, attention_mask=batch.mask)
    finally:
        hook.remove()
    return torch.cat(kept), torch.tensor([float(s.label) for s in rows])
