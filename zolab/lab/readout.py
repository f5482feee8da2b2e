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


class LastMLP(nn.Module):
    """The last block's MLP, free to move, and after it the read-out, held still.

    Maps states (B, width) from before that MLP's norm (`states(..., before=...)`) to
    margins (B,): for models shaped like Llama, three matrices (`mlp.*`).
    """

    def __init__(self, model: Any, task: Any) -> None:
        super().__init__()
        block = model.model.layers[-1]
        norm = block.post_attention_layernorm
        self.before = copy.deepcopy(norm).requires_grad_(False)
        self.mlp = copy.deepcopy(block.mlp)
        self.out = ReadOut(model, task).requires_grad_(False)

    def forward(self, states: Tensor) -> Tensor:
        """(B, width) -> (B,)."""
        return self.out(states + self.mlp(self.before(states)))


@torch.no_grad()
def states(
    model: Any, task: Any, sentences: Sequence[Any], *, before: nn.Module | None = None
) -> tuple[Tensor, Tensor]:
    """What reaches a module (the final norm) after each prompt; and labels.

    (n, width) fp32 and (n,) fp32, in the order of the sentences' lengths.
    """
    before = model.model.norm if before is None else before
    rows = sorted(sentences, key=lambda s: len(s.text))
    kept: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen = args[0]
        kept.append(seen[torch.arange(len(seen)), batch.last].float())

    hook = before.register_forward_pre_hook(keep)
    try:
        for start in range(0, len(rows), 50):
            batch = task.batch(rows[start : start + 50])
            model.model(input_ids=batch.ids, attention_mask=batch.mask)
    finally:
        hook.remove()
    return torch.cat(kept), torch.tensor([float(s.label) for s in rows])
