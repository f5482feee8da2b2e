"""A small Llama without its modules, for a CPU: joined weights and two numba loops.

    q, k, v = (x / rms(x)) (g W_qkv)^T    one product; the norm's gain is in the matrix
    x <- x + attention(q, k, v) W_o^T
    x <- x + (silu(n W_gate^T) * n W_up^T) W_down^T,    n = x / rms(x), gain likewise

A tiny model's token is forty small operations, and transformers takes longer to call
them than the processor to do them; here a rollout first copies the weights, joined,
which is worth it below 64 MB. A group shares its prompt's keys and values. What comes
out differs from the model's own logits by rounding.

Only for fp32 models whose modules are all transformers' own and have no hooks. A probe
of an engine takes the model's forward pass instead: there the bits must not depend on
whether the weights stay or stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from zolab.engines.mode import Materialise
from zolab.rl.attend import add_and_norm, attend

KINDS = ("llama", "qwen2", "qwen3")
LARGEST = 64 << 20  # bytes of weights
STATIC = ("default", "linear", "llama3")  # rotary angles that no length changes
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
    if any(p.device.type != "cpu" for p in weights):
        return "it is not on the CPU"
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

    `ids`, `mask` (P, L); `steps` tokens at most are said after them.
    """

    def __init__(self, model: Any, ids: Tensor, mask: Tensor, steps: int) -> None:
        body, config = model.model, model.config
        self.ids, self.steps, self.eps = ids, steps, config.rms_norm_eps
        self.heads, self.kv = config.num_attention_heads, config.num_key_value_heads
        self.width = body.layers[0].self_attn.head_dim
        self.layers = [Layer.of(x, self.heads, self.kv) for x in body.layers]
        self.embed = body.embed_tokens.weight * 1
        self.head = (model.lm_head.weight * body.norm.weight).t().contiguous()
        places = torch.arange(ids.shape[1] + steps)[None]
        cos, sin = body.rotary_emb(self.embed, places)
        half = self.width // 2  # the sign of the rotation goes into the sine
        self.turn = (
            cos[0].numpy(),
            torch.cat([-sin[0, :, :half], sin[0, :, half:]], 1).numpy(),
        )
        self.pad = (~mask).sum(1).numpy()
        self.group, self.t = 1, 0

    def read(self) -> Tensor:
        """(P, V) logits after the prompts."""
        length = self.ids.shape[1]
        nothing = self._room(1, 0)
        self.prompts = [self._room(len(self.ids), length) for _ in self.layers]
        pairs = [(nothing, own) for own in self.prompts]
        x = self._through(self.ids, pairs, -self.pad, self.pad, 0)
        self.place, self.start = length - self.pad, 0 * self.pad
        return x.view(*self.ids.shape, -1)[:, -1] @ self.head

    def repeat(self, times: int) -> None:
        """Every prompt is answered by `times` rows side by side."""
        self.group, n = times, times * len(self.ids)
        self.place, self.start = self.place.repeat(times), self.start.repeat(times)
        self.said = [self._room(n, self.steps) for _ in self.layers]

    def say(self, token: Tensor) -> Tensor:
        """(N, V) logits after one more token of each row, (N,)."""
        pairs = list(zip(self.prompts, self.said, strict=True))
        x = self._through(token[:, None], pairs, self.place, self.start, self.t)
        self.t += 1
        return x @ self.head

    def keep(self, rows: Tensor) -> None:
        """Only these rows go on; their groups need not be complete any more."""
        of, at = rows // self.group, rows.numpy()
        self.group, self.pad = 1, self.pad[of.numpy()]
        self.place, self.start = self.place[at], self.start[at]
        self.prompts = [(k[of], v[of]) for k, v in self.prompts]
        self.said = [(k[rows], v[rows]) for k, v in self.said]

    def _room(self, rows: int, length: int) -> tuple[Tensor, Tensor]:
        shape = rows, self.kv, length, self.width
        return torch.empty(shape), torch.empty(shape)

    def _through(
        self, ids: Tensor, pairs: Any, place: np.ndarray, start: np.ndarray, t: int
    ) -> Tensor:
        """(n m, hidden), normed: `ids` (n, m) after slot t of each row's own room."""
        x = F.embedding(ids.flatten(), self.embed)
        y, n, out = (
            torch.zeros_like(x),
            torch.empty_like(x),
            x.new_empty(*ids.shape, self.heads, self.width),
        )
        for layer, (far, own) in zip(self.layers, pairs, strict=True):
            self._add(x, y, n)
            qkv = n @ layer.qkv if layer.bias is None else n @ layer.qkv + layer.bias
            qkv = qkv.view(*ids.shape, -1, self.width)
            if layer.gains is not None:
                qk = qkv[:, :, : -self.kv]
                qk *= torch.rsqrt(qk.square().mean(-1, keepdim=True) + self.eps)
                qk *= layer.gains
            attend(
                qkv.numpy(), self.heads, *self.turn, place, far[0].numpy(),
                far[1].numpy(), self.pad, self.group, own[0].numpy(), own[1].numpy(),
                start, t, out.numpy(),
            )  # fmt: skip
            self._add(x, out.view(len(x), -1) @ layer.out, n)
            gate, up = (n @ layer.up).chunk(2, -1)
            y = F.silu(gate).mul_(up) @ layer.down
        self._add(x, y, n)
        return n

    def _add(self, x: Tensor, y: Tensor, out: Tensor) -> None:
        add_and_norm(x.numpy(), y.numpy(), self.eps, out.numpy())
