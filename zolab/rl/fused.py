"""A small Llama without its modules: joined weights, and as few operations as will do.

    q, k, v = (x / rms(x)) (g W_qkv)^T    one product; the norm's gain is in the matrix
    x <- x + attention(q, k, v) W_o^T
    x <- x + (silu(n W_gate^T) * n W_up^T) W_down^T,    n = x / rms(x), gain likewise

A tiny model's token is a hundred small operations, and it takes longer to call them
than to do them; here a rollout first copies the weights, joined, and a token is forty,
which is worth it below 64 MB. What comes out differs from the model's own logits by
rounding.

Only for fp32 models whose modules are all transformers' own and have no hooks. A probe
of an engine takes the model's forward pass instead: there the bits must not depend on
whether the weights stay or stream.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from zolab.engines.mode import Materialise

KINDS = ("llama", "qwen2", "qwen3")
LARGEST = 64 << 20  # bytes of weights
STATIC = ("default", "linear", "llama3")  # rotary angles that no length changes
SHORT = 32  # tokens; up to here products and sums beat the library's kernel
PLAIN = (nn.Linear, nn.Embedding, nn.ModuleList)


def unfit(model: Any) -> str:
    """Why this model has to go through its own forward pass; "" if it need not."""
    config = model.config
    if getattr(config, "model_type", "") not in KINDS:
        return f"only {', '.join(KINDS)} are known"
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"} or config.hidden_act != "silu":
        return "its layers attend, or are activated, in another way"
    if config.rope_parameters.get("rope_type", "default") not in STATIC:
        return "its rotary angles depend on the length"
    home = type(model).__module__
    for m in model.modules():
        own = type(m).__module__ == home or type(m).__name__ == "SiLUActivation"
        if not (own or type(m) in PLAIN):
            return f"it has a {type(m).__name__}"
        if m._forward_hooks or m._forward_pre_hooks or "forward" in m.__dict__:
            return "something is hooked into it"
    weights = list(model.parameters())
    if any(p.dtype != torch.float32 for p in weights):
        return "its weights are not fp32"
    if sum(p.nbytes for p in weights) > LARGEST:
        return f"its weights are more than {LARGEST >> 20} MB"
    return ""


def at_a_probe() -> bool:
    """Whether an engine's mode materialises weights here."""
    return any(isinstance(m, Materialise) for m in _get_current_function_mode_stack())


@dataclass(frozen=True)
class Layer:
    """A layer's joined weights, each (in, out); `gains` (heads + kv, d) or None."""

    qkv: Tensor
    bias: Tensor | None
    out: Tensor
    up: Tensor
    down: Tensor
    gains: Tensor | None

    @classmethod
    def of(cls, layer: Any, heads: int, kv: int) -> Layer:
        """Every use of a parameter is an operation: at a probe its value is another."""
        at, mlp = layer.self_attn, layer.mlp
        three = (at.q_proj, at.k_proj, at.v_proj)
        qkv = [m.weight * layer.input_layernorm.weight for m in three]
        bias = None if three[0].bias is None else [m.bias * 1 for m in three]
        gains = None
        if hasattr(at, "q_norm"):
            q = at.q_norm.weight.expand(heads, -1) * at.scaling
            gains = torch.cat([q, at.k_norm.weight.expand(kv, -1)])
        else:
            qkv[0] *= at.scaling
            if bias is not None:
                bias[0] *= at.scaling
        up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
        up = up * layer.post_attention_layernorm.weight
        return cls(
            torch.cat(qkv).t().contiguous(),
            None if bias is None else torch.cat(bias),
            (at.o_proj.weight * 1).t().contiguous(),
            up.t().contiguous(),
            (mlp.down_proj.weight * 1).t().contiguous(),
            gains,
        )


class Fused:
    """Goes forward from left-padded prompts, with the weights as they are now.

    `ids`, `mask` (P, L); `steps` tokens at most are said after them. `seen[layer]`
    (N, L + steps, 2 kv, d) holds the keys and values of every row.
    """

    def __init__(self, model: Any, ids: Tensor, mask: Tensor, steps: int) -> None:
        body, config = model.model, model.config
        self.ids, self.steps, self.eps = ids, steps, config.rms_norm_eps
        self.heads, self.kv = config.num_attention_heads, config.num_key_value_heads
        self.width = body.layers[0].self_attn.head_dim
        self.layers = [Layer.of(x, self.heads, self.kv) for x in body.layers]
        self.embed = body.embed_tokens.weight * 1
        self.head = (model.lm_head.weight * body.norm.weight).t().contiguous()
        room = ids.shape[1] + steps
        self.cos, self.sin = self._turns(body, room)
        self.padded, self.t = not bool(mask.all()), 0
        self.hidden = F.pad(~mask, (0, steps))
        self.place = mask.long().sum(1)  # of the next token
        shape = len(ids), room, 2 * self.kv, self.width
        self.seen = [self.embed.new_empty(shape) for _ in self.layers]

    def _turns(self, body: Any, room: int) -> tuple[Tensor, Tensor]:
        """x * cos + swap(x) * sin rotates; the values' part has cos 1 and sin 0."""
        places = torch.arange(room, device=self.embed.device)[None]
        cos, sin = (x[0, :, None] for x in body.rotary_emb(self.embed, places))
        half = self.width // 2
        sin = torch.cat([-sin[..., :half], sin[..., half:]], -1)
        turned = self.heads + self.kv
        one = torch.ones(room, self.kv, self.width, device=cos.device)
        return (
            torch.cat([cos.expand(-1, turned, -1), one], 1),
            torch.cat([sin.expand(-1, turned, -1), 0 * one], 1),
        )

    def read(self) -> Tensor:
        """(P, V) logits after the prompts."""
        p, length = self.ids.shape
        place, real = torch.arange(length, device=self.ids.device), None
        if self.padded:
            place = (place - self.hidden.sum(1, keepdim=True)).clamp(min=0)
            shape = length, length
            before = torch.ones(shape, dtype=torch.bool, device=place.device).tril()
            # A place of the padding sees itself: to see nothing would be NaN
            real = ~self.hidden[:, None, :length] | (before & before.t())
            real = (real & before)[:, None]
        x = self._through(self.ids, place, real)
        self.t = length
        return x[:, -1] @ self.head

    def repeat(self, times: int) -> None:
        """Every row becomes `times` rows side by side."""
        if times > 1:
            self._rows(lambda x: x.repeat_interleave(times, 0))

    def keep(self, rows: Tensor) -> None:
        """Only these rows go on."""
        self._rows(lambda x: x[rows])

    def _rows(self, f: Callable[[Tensor], Tensor]) -> None:
        self.place, self.hidden = f(self.place), f(self.hidden)
        self.seen = [f(x) for x in self.seen]

    def say(self, token: Tensor) -> Tensor:
        """(N, V) logits after one more token of each row, (N,)."""
        place = self.place[:, None] if self.padded else self.place[:1]
        x = self._through(token[:, None], place, None)
        self.place, self.t = self.place + 1, self.t + 1
        return x[:, 0] @ self.head

    def _through(self, ids: Tensor, place: Tensor, real: Tensor | None) -> Tensor:
        """(n, m, hidden), normed, of tokens `ids` (n, m) at `place` (n or 1, m)."""
        n, m = ids.shape
        x = F.embedding(ids, self.embed).view(n * m, -1)
        cos, sin = self.cos[place], self.sin[place]
        for layer, seen in zip(self.layers, self.seen, strict=True):
            qkv = self._norm(x) @ layer.qkv
            if layer.bias is not None:
                qkv += layer.bias
            qkv = qkv.view(n, m, -1, self.width)
            if layer.gains is not None:
                qk = qkv[:, :, : -self.kv]
                qk.copy_(self._norm(qk) * layer.gains)
            qkv = torch.addcmul(qkv * cos, qkv.roll(self.width // 2, -1), sin)
            seen[:, self.t : self.t + m] = qkv[:, :, self.heads :]
            q = qkv[:, :, : self.heads]
            y = self._next(q, seen) if m == 1 else self._first(q, seen, real)
            x += y.reshape(n * m, -1) @ layer.out
            gate, up = (self._norm(x) @ layer.up).chunk(2, -1)
            x += F.silu(gate).mul_(up) @ layer.down
        return self._norm(x).view(n, m, -1)

    def _norm(self, x: Tensor) -> Tensor:
        return x * x.square().mean(-1, keepdim=True).add_(self.eps).rsqrt_()

    def _first(self, q: Tensor, seen: Tensor, real: Tensor | None) -> Tensor:
        """(P, L, heads, d): the prompts' attention to themselves."""
        each = self.heads // self.kv
        kv = seen[:, : q.shape[1]].repeat_interleave(each, 2) if each > 1 else seen
        k, v = kv[:, : q.shape[1]].transpose(1, 2).chunk(2, 1)
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2), k, v, real, is_causal=real is None, scale=1.0
        )
        return y.transpose(1, 2)

    def _next(self, q: Tensor, seen: Tensor) -> Tensor:
        """(N, 1, heads, d): the last token's attention to all before it."""
        n, now = len(q), self.t + 1
        k, v = seen[:, :now].chunk(2, 2)  # (N, now, kv, d)
        hidden = self.hidden[:, :now] if self.padded else None
        if now > SHORT:
            real = None if hidden is None else ~hidden[:, None, None]
            q = q.view(n, self.kv, -1, self.width)
            y = F.scaled_dot_product_attention(
                q, k.transpose(1, 2), v.transpose(1, 2), real, scale=1.0
            )
            return y.view(n, 1, self.heads, self.width)
        q = q.view(n, 1, self.kv, -1, self.width)
        scores = (q * k[:, :, :, None]).sum(-1)
        if hidden is not None:
            scores.masked_fill_(hidden[:, :, None, None], -torch.inf)
        p = scores.softmax(1)
        return (p[..., None] * v[:, :, :, None]).sum(1)
