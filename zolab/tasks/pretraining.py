"""What a base model knows before any reward: demonstrations, and nothing else.

    loss = mean over the answers' tokens (EOS too) of - log p(token | all before it)

A Llama of a tenth of a million parameters, seconds on one core. The prompt's tokens
are not learnt: they are random.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100


class Task(Protocol):
    """Prompts on both sides of a split, and demonstrations on one."""

    @property
    def max_new_tokens(self) -> int:
        """The longest answer, EOS included."""

    def prompts(self, count: int, *, seed: int, held_out: bool = False) -> list[str]:
        """Prompts of one side of the split."""

    def demonstrations(self, count: int, *, seed: int) -> list[tuple[str, str]]:
        """(prompt, answer) pairs."""


def blank(
    tokenizer: Any,
    *,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    inner: int = 192,
    positions: int = 64,
    seed: int = 0,
) -> Any:
    """A Llama with random weights from `seed`, in eval mode."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        intermediate_size=inner,
        max_position_embeddings=positions,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def pretrain(
    model: Any,
    tokenizer: Any,
    task: Task,
    *,
    steps: int,
    batch: int,
    lr: float,
    warmup: int = 50,
    seed: int = 0,
) -> Iterator[float]:
    """Train in place with AdamW, linear warm-up, then a cosine to 0; yields losses."""
    opt = torch.optim.AdamW(model.parameters(), lr, (0.9, 0.98), weight_decay=0.01)
    for step in range(steps):
        done = max(0, step - warmup) / max(1, steps - warmup)
        rate = min(1, (step + 1) / warmup) * (1 + math.cos(math.pi * done)) / 2
        opt.param_groups[0]["lr"] = lr * rate
        pairs = task.demonstrations(batch, seed=seed * steps + step)
        ids, labels = batch_of(tokenizer, pairs)
        logits = model(input_ids=ids).logits[:, :-1]
        loss = F.cross_entropy(
            logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED
        )
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        yield float(loss.detach())


def batch_of(tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> tuple[Tensor, Tensor]:
    """(ids, labels), (B, L): right-padded, since no real token sees what follows it."""
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    asked = tokenizer([p for p, _ in pairs])["input_ids"]
    told = tokenizer([a for _, a in pairs], add_special_tokens=False)["input_ids"]
    width = max(len(a) + len(b) + 1 for a, b in zip(asked, told, strict=True))
    ids = torch.full((len(pairs), width), pad)
    labels = torch.full_like(ids, IGNORED)
    for i, (a, b) in enumerate(zip(asked, told, strict=True)):
        row = torch.tensor([*a, *b, eos])
        ids[i, : len(row)] = row
        labels[i, len(a) : len(row)] = row[len(a) :]
    return ids, labels
