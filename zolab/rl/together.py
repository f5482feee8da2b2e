"""A whole population answers in one batched forward pass (EGGROLL, for answers).

    draw = together(model, ask, max_new_tokens=7, eos=(2,))
    train(model, draw, reward, "es", optimizer=ZOOptimizer(..., engine=Population()))

`Population` carries the members of a step through one call, so nothing may be read out
of a tensor and no row leaves early: an answer has `max_new_tokens` tokens, of which the
mask hides what follows the first EOS, and a reward is a tensor function of token ids.
On any other engine the same closures give the same losses, one member after another.

Tokens are drawn by inverse transform from the uniforms of (seed, step), which all
members share: they answer differently only because their weights differ.

B. Sarkar et al., Evolution strategies at the hyperscale, arXiv:2511.16652.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Ask = Callable[[int], tuple[Tensor, Tensor]]
"""cursor -> left-padded prompt ids and their mask, (N, P): a row an answer.

It may not draw from torch's generators either (`random.Random(cursor)` is allowed).
"""


@dataclass(frozen=True)
class Answers:
    """`ids` (N, T) int64, `mask` (N, T) bool up to and with the first EOS.

    In a population each stands for all members'; `prompt_mask` (N, P) is everybody's.
    """

    prompt_mask: Tensor
    ids: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.prompt_mask)

    @property
    def tokens(self) -> int:
        """What went forward: real prompt tokens, and every token of the answers."""
        return int(self.prompt_mask.sum()) + len(self) * self.ids.shape[-1]


def together(
    model: nn.Module,
    ask: Ask,
    *,
    max_new_tokens: int,
    eos: Sequence[int],
    temperature: float = 1.0,
) -> Callable[[int, torch.Generator], Answers]:
    """A `draw` that a population can ask; `temperature` 0 takes the likeliest token."""

    def draw(cursor: int, generator: torch.Generator) -> Answers:
        ids, mask = ask(cursor)
        # numpy draws: torch's generators are barred where members are carried together
        rng = np.random.default_rng(generator.initial_seed() % 2**64)
        u = torch.from_numpy(rng.random((max_new_tokens, len(ids)))).to(ids.device)
        said = spoken(model, ids, mask, u, temperature)
        ends = (said.unsqueeze(-1) == torch.tensor([*eos], device=ids.device)).any(-1)
        before = ends.long().cumsum(1) - ends.long()
        return Answers(mask, said, before == 0)

    return draw


def spoken(
    model: Any,
    ids: Tensor,
    mask: Tensor,
    uniforms: Tensor,
    temperature: float,
) -> Tensor:
    """(N, T) token ids; one forward pass of the prompts and one a token."""
    from transformers.cache_utils import DynamicCache

    cache = DynamicCache(config=model.config)
    attention, position = mask.long(), (mask.long().cumsum(1) - 1).clamp(min=0)
    token, out = ids, []
    for u in uniforms:
        logits = model(
            input_ids=token,
            attention_mask=attention,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]
        y = drawn(logits / temperature, u) if temperature else logits.argmax(-1)
        out.append(y)
        token, position = y.unsqueeze(1), position[:, -1:] + 1
        attention = torch.cat([attention, torch.ones_like(attention[:, :1])], 1)
    return torch.stack(out, 1)


def drawn(logits: Tensor, u: Tensor) -> Tensor:
    """(N,): the token at which the cumulated probabilities pass u."""
    cdf = logits.float().softmax(-1).double().cumsum(-1)
    return (
        (cdf <= (u * cdf[:, -1]).unsqueeze(1)).sum(-1).clamp(max=logits.shape[-1] - 1)
    )


def exactly(answers: Answers, targets: Tensor, mask: Tensor) -> Tensor:
    """(N,) fp32: 1 where an answer is its target (N, L), whose last token is EOS."""
    width = min(targets.shape[1], answers.ids.shape[-1])
    same = (answers.ids[:, :width] == targets[:, :width]) | ~mask[:, :width]
    room = mask.sum(1) <= width
    return (same.all(-1) & room).float()
