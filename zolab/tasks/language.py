"""The language-modelling loss without the logits of all tokens.

    L = - sum over tokens log softmax(W h_t)[y_t] / number of tokens

An ordinary model's `.loss` builds logits of batch x length x vocabulary, and once more
in fp32: 2 x 512 tokens of a vocabulary of 50,000 are 300 MB, more than a block of
OPT-1.3B. Here the head sees a few tokens at a time. A token's loss depends on no other,
so cutting by tokens changes at most the last bits of a sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zolab.errors import LossError

IGNORED = -100


def lm_loss(
    model: nn.Module, batch: Mapping[str, Tensor], *, chunk: int = 256
) -> Tensor:
    """Mean next-token cross entropy, fp32, from at most `chunk` tokens' logits at once.

    `model` is a causal language model of transformers (or a PEFT model around one);
    `batch` its arguments, with `labels` (-100: not counted) or else the tokens that
    `attention_mask` shows. Raises LossError where no label counts, or where the model
    has no head on top of hidden states.
    """
    whole: Any = model
    inner = whole.get_base_model() if hasattr(whole, "get_base_model") else whole
    body, head = _parts(inner)
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    labels = batch.get("labels")
    if labels is None:
        labels = batch["input_ids"]
        if "attention_mask" in batch:
            labels = labels.masked_fill(batch["attention_mask"] == 0, IGNORED)
    hidden = body(**inputs, use_cache=False).last_hidden_state
    hidden, target = hidden[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    target = target.to(hidden.device)
    count = int((target != IGNORED).sum())
    if not count:
        raise LossError("no token counts: every label after the first is -100")
    cap = getattr(inner.config, "final_logit_softcapping", None)
    total = torch.zeros((), device=hidden.device)
    for h, y in zip(hidden.split(chunk), target.split(chunk), strict=True):
        logits = head(h).float()
        if cap is not None:
            logits = cap * torch.tanh(logits / cap)
        total = total + F.cross_entropy(
            logits, y, ignore_index=IGNORED, reduction="sum"
        )
    return total / count


def _parts(model: Any) -> tuple[nn.Module, nn.Module]:
    head = getattr(model, "get_output_embeddings", lambda: None)()
    body = getattr(model, getattr(model, "base_model_prefix", ""), None)
    config = getattr(model, "config", None)
    if head is None or body is None or body is model or config is None:
        raise LossError(
            f"{type(model).__name__} is no causal language model with a body and a head"
        )
    if getattr(config, "is_encoder_decoder", False):
        raise LossError("an encoder-decoder's labels are not its inputs: use its loss")
    scale = getattr(config, "logit_scale", None) or getattr(
        config, "logits_scaling", None
    )
    if scale not in (None, 1, 1.0):
        raise LossError(f"the model scales its logits by {scale}: use its own loss")
    return body, head
