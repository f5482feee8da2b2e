"""Small things to move instead of all weights: LoRA and a prefix, on a frozen base.

    LoRA (arXiv:2106.09685):    W x + (alpha / r) B A x,  A random, B = 0
    prefix (arXiv:2101.00190):  every attention also sees m keys and values of its own

Twenty lines each, so that a GPU server without peft can run the table. The prefix
begins as the keys and values of m random tokens, as in MeZO (arXiv:2305.17333): random
numbers in their place are far from anything that the model has seen.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zolab.errors import ZolabError

RANK, ALPHA = 8, 16
TARGETS = ("q_proj", "v_proj")
TOKENS = 5


class LoRA(nn.Module):
    """A frozen linear layer and its low-rank addition."""

    def __init__(
        self, base: nn.Linear, generator: torch.Generator, rank: int = RANK
    ) -> None:
        super().__init__()
        self.base, self.scale = base, ALPHA / rank
        n, m = base.out_features, base.in_features
        like: dict[str, Any] = {
            "device": base.weight.device,
            "dtype": base.weight.dtype,
        }
        a = torch.randn(rank, m, generator=generator) / math.sqrt(m)
        self.a = nn.Parameter(a.to(**like))
        self.b = nn.Parameter(torch.zeros(n, rank, **like))

    def forward(self, x: Tensor) -> Tensor:
        """(..., m) -> (..., n)."""
        return self.base(x) + self.scale * F.linear(F.linear(x, self.a), self.b)


def lora(
    model: nn.Module, *, seed: int = 0, targets: tuple[str, ...] = TARGETS
) -> nn.Module:
    """Put LoRA on every linear of these names, in place; the rest is frozen.

    The weights may be packed: on NF4 it is QLoRA (arXiv:2305.14314).
    """
    model.requires_grad_(False)
    g = torch.Generator().manual_seed(seed)
    found = [n for n, _ in model.named_modules() if n.rpartition(".")[2] in targets]
    if not found:
        raise ZolabError(f"the model has no layer called {' or '.join(targets)}")
    for name in found:
        place, _, leaf = name.rpartition(".")
        parent = model.get_submodule(place)
        setattr(parent, leaf, LoRA(getattr(parent, leaf), g))
    return model


class Prefix(nn.Module):
    """A causal model that sees `tokens` more keys and values in every layer.

    It has `model` and `lm_head`, as the tasks expect. kv: (layers, 2, heads, tokens,
    head width), all that moves.
    """

    def __init__(self, inner: Any, *, tokens: int = TOKENS, seed: int = 0) -> None:
        super().__init__()
        inner.requires_grad_(False)
        self.model = _Seen(inner.model, tokens, seed)
        self.lm_head = inner.lm_head


class _Seen(nn.Module):
    """The body behind the prefix."""

    def __init__(self, body: Any, tokens: int, seed: int) -> None:
        super().__init__()
        self.body = body
        g = torch.Generator().manual_seed(seed)
        ids = torch.randint(body.config.vocab_size, (1, tokens), generator=g)
        device = next(body.parameters()).device
        with torch.no_grad():
            out = body(input_ids=ids.to(device), use_cache=True)
        layers = out.past_key_values.layers
        kv = torch.stack([torch.cat([x.keys, x.values]) for x in layers])
        self.kv, self.ids = nn.Parameter(kv.clone()), ids

    def forward(self, input_ids: Tensor) -> Any:
        from transformers import DynamicCache

        cache = DynamicCache()
        # One call takes the parameter, so a probe is made once, not once a layer.
        rows = self.kv.unsqueeze(2).expand(-1, -1, len(input_ids), -1, -1, -1)
        for i, (k, v) in enumerate(rows):
            cache.update(k, v, i)
        return self.body(input_ids=input_ids, past_key_values=cache, use_cache=True)
