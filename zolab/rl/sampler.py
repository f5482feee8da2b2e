"""Sampling from a causal language model: one static cache, rows that leave when done.

    c_t ~ softmax(logits_t / temperature):  the first token c with F(c) > u, u uniform

Five things are cheaper than in `generate`. A prompt is read once for its whole group.
Keys and values go into room that was made once. No logits processor runs. A row's
log-probability and entropy come from the logits that drew it. Rows that have said EOS
leave the batch as soon as an eighth of it is idle.

All uniforms (T, N) are drawn first: token t of row i depends on the generator and on
nothing that another row did, and a call advances the generator by T x N numbers
whatever is said. By inverse transform a small change of the weights changes few tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from zolab.engines.guards import eval_mode
from zolab.rl.batch import RolloutError
from zolab.rl.fused import Fused, at_a_probe, unfit
from zolab.rl.room import room

LEAVE = 1 / 8  # of the rows in the batch are idle: drop them


@dataclass(frozen=True)
class Sampled:
    """`ids` (N, T) int64, right-padded; `mask` (N, T) bool up to and with the EOS;
    `logps`, `entropy` (N, T) fp32 in nats, 0 beyond the mask."""

    ids: Tensor
    mask: Tensor
    logps: Tensor
    entropy: Tensor


@torch.no_grad()
def sample(
    model: Any,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    *,
    group_size: int = 1,
    max_new_tokens: int,
    temperature: float,
    generator: torch.Generator | None,
    eos: Sequence[int],
    pad: int,
    fuse: bool | None = None,
) -> Sampled:
    """`group_size` completions of each left-padded prompt, a prompt's side by side.

    `prompt_ids`, `prompt_mask` (P, L). At `temperature` 0 the likeliest token is taken,
    no generator is needed, and `logps`, `entropy` are the model's own (temperature 1).
    The model runs in eval mode and is left as it was. `fuse` goes around its modules
    (zolab.rl.fused); None: where that is possible and no probe is being answered.
    """
    n, device = len(prompt_ids) * group_size, prompt_ids.device
    ends = torch.tensor(list(eos), device=device)
    ids = torch.full((max_new_tokens, n), pad, device=device)
    logps = torch.zeros(max_new_tokens, n, device=device)
    entropy = torch.zeros(max_new_tokens, n, device=device)
    uniforms = draws(n, max_new_tokens, generator).to(device) if temperature else None
    with eval_mode(model):
        kind = Fused if around(model, fuse) else Ahead
        ahead = kind(model, prompt_ids, prompt_mask, max_new_tokens)
        logits = ahead.read().repeat_interleave(group_size, 0)
        ahead.repeat(group_size)
        row = torch.arange(n, device=device)  # of each place in the batch
        done = torch.zeros(n, dtype=torch.bool, device=device)
        for t in range(max_new_tokens):
            at = t if len(row) == n else (t, row)  # all rows are in their order
            u = None if uniforms is None else uniforms[at]
            token, *known = draw(logits, temperature, u)
            # An idle row goes on saying things, which the mask below leaves out
            ids[at], (logps[at], entropy[at]) = token, known
            done |= torch.isin(token, ends)
            left = len(row) - int(done.sum())
            if left == 0 or t + 1 == max_new_tokens:
                break
            if left <= (1 - LEAVE) * len(row):
                stay = (~done).nonzero().squeeze(1)
                row, token, done = row[stay], token[stay], done[stay]
                ahead.keep(stay)
            logits = ahead.say(token)
    ids, logps, entropy = (x[: t + 1].t() for x in (ids, logps, entropy))
    mask = to_first(ids, ends)
    return Sampled(ids.where(mask, pad), mask, logps * mask, entropy * mask)


def around(model: Any, fuse: bool | None) -> bool:
    """Whether to go around the model's modules; RolloutError if it must and cannot."""
    if fuse and (why := unfit(model)):
        raise RolloutError(f"the model cannot be fused: {why}")
    return fuse if fuse is not None else not at_a_probe() and not unfit(model)


def to_first(ids: Tensor, ends: Tensor) -> Tensor:
    """(N, T) bool: up to and with the first of `ends`, by its place."""
    is_end = torch.isin(ids, ends).long()
    return is_end.cumsum(1) - is_end == 0


def draw(
    logits: Tensor, temperature: float, u: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """(token, its log-probability, the distribution's entropy), each (B,).

    `logits` (B, V); `u` (B,) fp64 in [0, 1), or None for the likeliest token.
    """
    logp = tempered(logits, temperature).log_softmax(-1)
    p = logp.exp()
    if u is None:
        token = logp.argmax(-1)
    else:
        # fp64: in fp32 tokens of 1e-7 would be drawn never or twice as often
        cdf = p.double().cumsum(-1)
        # u <= 1 - 2^-53 times the total rounds to less than the total: a token of
        # some probability is found
        at = u[:, None] * cdf[:, -1:]
        token = torch.searchsorted(cdf, at, right=True).squeeze(1)
    entropy = torch.special.entr(p).sum(-1)
    return token, logp.gather(1, token[:, None]).squeeze(1), entropy


def described(
    logits: Tensor, ids: Tensor, temperature: float, eos: Sequence[int]
) -> Sampled:
    """What is known of tokens that were drawn elsewhere from `logits` (N, T, V)."""
    mask = to_first(ids, torch.tensor(list(eos), device=ids.device))
    logp = tempered(logits, temperature).log_softmax(-1)
    logps = logp.gather(2, ids[..., None]).squeeze(2)
    entropy = torch.special.entr(logp.exp()).sum(-1)
    return Sampled(ids, mask, logps * mask, entropy * mask)


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """fp32 logits of the distribution that is drawn from; 0 leaves them as they are."""
    wide = logits.float()
    return wide if temperature in (0, 1) else wide / temperature


def draws(n: int, steps: int, generator: torch.Generator | None) -> Tensor:
    """(steps, n) fp64 uniforms: more steps change none of the earlier ones."""
    device = generator.device if generator is not None else None
    return torch.rand(steps, n, dtype=torch.float64, generator=generator, device=device)


class Ahead:
    """A model that goes forward from left-padded prompts, a token at a time."""

    def __init__(self, model: Any, ids: Tensor, mask: Tensor, steps: int) -> None:
        self.model, self.ids, self.length = model, ids, ids.shape[1]
        self.cache = room(model.config, self.length + steps)
        self.position = mask.long().sum(1)  # of the next token
        # No padding, no mask: attention kernels are faster without
        self.mask: Tensor | None = None
        self.prompt_mask = mask
        if not bool(mask.all()):
            self.mask = torch.ones(len(ids), self.length + steps, dtype=torch.long)
            self.mask = self.mask.to(ids.device)
            self.mask[:, : self.length] = mask
        names = accepts(model)
        self.places = "position_ids" in names
        self.last = {"logits_to_keep": 1} if "logits_to_keep" in names else {}

    def read(self) -> Tensor:
        """(P, V) logits after the prompts."""
        position = (self.prompt_mask.long().cumsum(1) - 1).clamp(min=0)
        return self._forward(self.ids, position, self.length)

    def say(self, token: Tensor) -> Tensor:
        """(B, V) logits after one more token of each row, (B,)."""
        self.length += 1
        position, self.position = self.position, self.position + 1
        return self._forward(token[:, None], position[:, None], self.length)

    def repeat(self, times: int) -> None:
        """Every row becomes `times` rows side by side."""
        if times > 1:
            self.cache.batch_repeat_interleave(times)
            self._map(lambda x: x.repeat_interleave(times, 0))

    def keep(self, rows: Tensor) -> None:
        """Only these rows go on."""
        self.cache.batch_select_indices(rows)
        self._map(lambda x: x[rows])

    def _map(self, f: Callable[[Tensor], Tensor]) -> None:
        self.position = f(self.position)
        self.mask = None if self.mask is None else f(self.mask)

    def _forward(self, ids: Tensor, position: Tensor, length: int) -> Tensor:
        where = {"position_ids": position} if self.places else {}
        mask = None if self.mask is None else self.mask[:, :length]
        out = self.model(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=self.cache,
            use_cache=True,
            **where,
            **self.last,
        )
        return out.logits[:, -1]


def accepts(model: Any) -> frozenset[str]:
    """The arguments of the model's forward pass, under an adapter's too."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    kind: Any = type(inner)
    return _accepts(kind.forward)


@cache
def _accepts(forward: Any) -> frozenset[str]:
    return frozenset(inspect.signature(forward).parameters)
