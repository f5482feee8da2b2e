"""Teacher-forced log-probabilities of a rollout, under the distribution it came from.

    log p(y_t) = z_y / T - logsumexp(z / T),     z the logits at the position before y_t
    H_t = logsumexp(z / T) - sum_v p_v z_v / T   the entropy, and not -log p of a sample

One forward pass over prompt and completion; positions count real tokens only. The head
sees `chunk` tokens at a time, and with gradients each chunk is computed again in the
backward pass (checkpointing), so logits of all tokens never exist: of 256 rows of 128
tokens and a vocabulary of 50,000 they would be 6.6 GB, and twice that with a graph.

A model is anything that is called as transformers' causal language models are:
model(input_ids=, attention_mask=, position_ids=, use_cache=False).logits.

What makes a trainer disagree with its sampler, in order of damage: logits at t instead
of t - 1, dropout left on, a missing attention mask, a forgotten temperature, another
dtype. All but wrong position ids under rotary embeddings move the first ratio from 1.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zolab.engines.guards import eval_mode
from zolab.errors import LossError
from zolab.rl.batch import Rollout
from zolab.tasks.language import _parts as body_and_head

CHUNK = 1024


@dataclass(frozen=True)
class Scored:
    """(n, T) fp32 `logps` and `entropy` (nats), 0 outside of the mask.

    `moments` (n, T, 2), if asked for, without a graph: the sums of p^2 and of p^3.
    """

    logps: Tensor
    entropy: Tensor
    moments: Tensor | None = None


def token_logps(
    model: nn.Module, rollout: Rollout, *, chunk: int = CHUNK, moments: bool = False
) -> Scored:
    """Of the completion's tokens, in eval mode; with a graph where grad mode is on."""
    hidden, head = before_head(model, rollout)
    n, t = rollout.completion_ids.shape
    flat, target = hidden.reshape(n * t, -1), rollout.completion_ids.reshape(-1)

    def some(h: Tensor, y: Tensor) -> Tensor:
        return numbers(head(h).float() / rollout.temperature, y, moments)

    again = torch.is_grad_enabled() and len(flat) > chunk
    parts = [
        checkpoint(some, h, y, use_reentrant=False) if again else some(h, y)
        for h, y in zip(flat.split(chunk), target.split(chunk), strict=True)
    ]
    found = torch.cat(parts).view(n, t, -1)
    found = torch.where(rollout.mask.unsqueeze(-1), found, 0.0)
    extra = found[..., 2:].detach() if moments else None
    return Scored(found[..., 0], found[..., 1], extra)


def numbers(z: Tensor, y: Tensor, moments: bool) -> Tensor:
    """(tokens, 2 or 4): log p, entropy, and the moments, of tempered logits z."""
    logp = z.log_softmax(-1)
    p = logp.exp()
    # 0 log 0 is 0: a logit of -inf bars a token.
    entropy = -torch.where(p > 0, p * logp, 0.0).sum(-1)
    columns = [logp.gather(-1, y.unsqueeze(-1)).squeeze(-1), entropy]
    if moments:
        columns += [p.square().sum(-1), p.pow(3).sum(-1)]
    return torch.stack(columns, -1)


def before_head(
    model: nn.Module, rollout: Rollout
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """What predicts each completion token (n, T, ...), and what makes it logits."""
    attention = rollout.attention_mask
    inputs = {
        "input_ids": rollout.input_ids,
        "attention_mask": attention.long(),
        "position_ids": (attention.long().cumsum(1) - 1).clamp(min=0),
        "use_cache": False,
    }
    width = rollout.completion_ids.shape[1]
    whole: Any = model
    inner = whole.get_base_model() if hasattr(whole, "get_base_model") else whole
    try:
        body, head = body_and_head(inner)
    except LossError:  # no body of its own: its logits as they are
        body, head = model, nn.Identity()
    taken = inspect.signature(body.forward).parameters.values()
    if not any(p.name == "position_ids" or p.kind is p.VAR_KEYWORD for p in taken):
        del inputs["position_ids"]  # a model without positions, or with its own
    with eval_mode(model):
        out = body(**inputs)
    hidden = out.logits if body is model else out.last_hidden_state
    cap = None
    if body is not model:
        cap = getattr(inner.config, "final_logit_softcapping", None)

    def logits(h: Tensor) -> Tensor:
        z = head(h)
        return z if cap is None else cap * torch.tanh(z / cap)

    return hidden[:, -width - 1 : -1], logits
