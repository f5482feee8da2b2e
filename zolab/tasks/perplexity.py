"""Perplexity of a language model on texts: what a token costs, on the geometric mean.

    perplexity = exp(nats of all tokens / number of tokens)

The nats of each text are kept, so that two models are compared text by text: their
difference has a far smaller standard error than either has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zolab.errors import LossError
from zolab.tasks.language import IGNORED

Texts = dict[str, Tensor]
"""input_ids and labels, (B, T) int64: padded right, pads are labelled -100."""


def texts(tokenizer: Any, lines: Sequence[str], *, max_tokens: int = 64) -> Texts:
    """A batch of texts, each cut after `max_tokens` tokens, the start token among them.

    Right padding: under a causal mask no token that counts sees a pad.
    """
    start = tokenizer.bos_token_id
    first = [] if start is None else [start]
    ids = [
        (first + tokenizer(x, add_special_tokens=False)["input_ids"])[:max_tokens]
        for x in lines
    ]
    if not ids or min(map(len, ids)) < 2:
        raise LossError("a text of less than two tokens has nothing to predict")
    width = max(map(len, ids))
    out = torch.full((len(ids), width), tokenizer.pad_token_id or 0)
    labels = torch.full((len(ids), width), IGNORED)
    for i, row in enumerate(ids):
        out[i, : len(row)] = labels[i, : len(row)] = torch.tensor(row)
    return {"input_ids": out, "labels": labels}


def some(batch: Mapping[str, Tensor], rows: Any) -> Texts:
    """These rows of a batch (a slice, a list or indices)."""
    return {k: v[rows] for k, v in batch.items()}


@torch.no_grad()
def nats(model: Any, batch: Mapping[str, Tensor], *, size: int = 16) -> Tensor:
    """What each text costs, (B,) fp64 on the CPU; `size` texts' logits at once."""
    out = []
    for a in range(0, len(batch["input_ids"]), size):
        part = some(batch, slice(a, a + size))
        logits = model(input_ids=part["input_ids"]).logits[:, :-1].float()
        each = F.cross_entropy(
            logits.flatten(0, 1),
            part["labels"][:, 1:].flatten(),
            ignore_index=IGNORED,
            reduction="none",
        )
        out.append(each.view(len(logits), -1).sum(1).double().cpu())
    return torch.cat(out)


def tokens(batch: Mapping[str, Tensor]) -> int:
    """How many tokens are predicted."""
    return int((batch["labels"][:, 1:] != IGNORED).sum())


def perplexity(model: Any, batch: Mapping[str, Tensor]) -> float:
    """exp of the mean nats a token."""
    return math.exp(float(nats(model, batch).sum()) / tokens(batch))


def worse(
    mine: Tensor, theirs: Tensor, batch: Mapping[str, Tensor]
) -> tuple[float, float]:
    """Nats a token that `mine` (from `nats`) costs more, and the standard error.

    Texts are the sample; the exponential is the ratio of the perplexities.
    """
    gap, n = mine - theirs, tokens(batch)
    return float(gap.sum()) / n, math.sqrt(len(gap)) * float(gap.std()) / n
