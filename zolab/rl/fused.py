"""One token at a time through a small Llama, without its modules.

    q, k, v = (x / rms(x)) (g W_qkv)^T    one product; the norm's gain is in the matrix
    p       = softmax([rotate(q) . K_prompt, rotate(q) . K_said])
    x      <- x + (p V) W_o^T,  and the MLP likewise

A tiny model's token is forty small operations, and transformers takes longer to call
them than the processor to do them; here a rollout first copies the weights, joined,
which is worth it below 64 MB. The prompt is read by the model itself, and a group
shares its keys. What comes out differs from the model's own logits by rounding.

Only for fp32 models whose modules are all transformers' own and have no hooks. A probe
of an engine takes the model's forward pass instead: there the bits must not depend on
whether the weights stay or stream.
"""

from __future__ import annotations

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
PLAIN = (nn.Linear, nn.Embedding, nn.ModuleList)
SHORT = 16  # tokens; up to here products and sums beat a batch of tiny matmuls


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


@dataclass
class Layer:
    """A layer's joined weights, each (in, out), and what it has seen.

    `gains` (heads + kv, d) of query and key; keys and values of the prompts
    (P, kv, L, d) and of what was said (N, kv, room, d).
    """

    qkv: Tensor
    bias: Tensor | None
    out: Tensor
    up: Tensor
    down: Tensor
    gains: Tensor | None
    prompt: tuple[Tensor, Tensor]
    said: tuple[Tensor, Tensor]


class Fused:
    """Goes on after the prompts, from the weights as they are now (or at a probe).

    `cache` is the model's after the prompts, `mask` (P, L) what of them is real.
    """

    def __init__(self, model: Any, cache: Any, mask: Tensor, steps: int) -> None:
        body, config = model.model, model.config
        self.eps, self.steps, self.t = config.rms_norm_eps, steps, 0
        self.width, self.kv = (
            body.layers[0].self_attn.head_dim,
            config.num_key_value_heads,
        )
        self.heads, self.group = config.num_attention_heads, 1
        self.position = mask.long().sum(1)
        self.hidden = None if bool(mask.all()) else ~mask[:, None, None]
        pairs = zip(body.layers, cache.layers, strict=True)
        self.layers = [self._layer(m, (c.keys, c.values)) for m, c in pairs]
        self.embed = body.embed_tokens
        self.head = (model.lm_head.weight * body.norm.weight).t().contiguous()
        places = torch.arange(mask.shape[1] + steps, device=mask.device)[None]
        cos, sin = body.rotary_emb(self.head, places)
        half = self.width // 2
        # x * cos + swap(x) * sin, the sign of the rotation in the sine
        self.cos = cos[0, :, None]
        self.sin = torch.cat([-sin[0, :, :half], sin[0, :, half:]], 1)[:, None]

    def _layer(self, layer: Any, prompt: tuple[Tensor, Tensor]) -> Layer:
        attend, mlp = layer.self_attn, layer.mlp
        three = (attend.q_proj, attend.k_proj, attend.v_proj)
        # Every use of a parameter is an operation: at a probe its value is another.
        qkv = [m.weight * layer.input_layernorm.weight for m in three]
        bias = None if three[0].bias is None else [m.bias * 1 for m in three]
        gains = None
        if hasattr(attend, "q_norm"):
            q = attend.q_norm.weight.expand(self.heads, -1) * attend.scaling
            gains = torch.cat([q, attend.k_norm.weight.expand(self.kv, -1)])
        else:
            qkv[0] *= attend.scaling
            if bias is not None:
                bias[0] *= attend.scaling
        up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
        up = up * layer.post_attention_layernorm.weight
        return Layer(
            torch.cat(qkv).t().contiguous(),
            None if bias is None else torch.cat(bias),
            (attend.o_proj.weight * 1).t().contiguous(),
            up.t().contiguous(),
            (mlp.down_proj.weight * 1).t().contiguous(),
            gains,
            prompt,
            prompt,
        )

    def repeat(self, times: int) -> None:
        """Every prompt is answered by `times` rows side by side."""
        self.group = times
        self.position = self.position.repeat_interleave(times)
        for x in self.layers:
            shape = (len(self.position), self.kv, self.steps, self.width)
            x.said = x.prompt[0].new_empty(shape), x.prompt[1].new_empty(shape)

    def keep(self, rows: Tensor) -> None:
        """Only these rows go on; groups are no longer complete."""
        of = rows // self.group
        self.group, self.position = 1, self.position[rows]
        self.hidden = None if self.hidden is None else self.hidden[of]
        for x in self.layers:
            x.prompt = x.prompt[0][of], x.prompt[1][of]
            x.said = x.said[0][rows], x.said[1][rows]

    def say(self, token: Tensor) -> Tensor:
        """(N, V) logits after one more token of each row, (N,)."""
        x = self.embed(token)
        cos, sin = self.cos[self.position], self.sin[self.position]
        for layer in self.layers:
            x += self._attend(layer, self._norm(x), cos, sin)
            gate, up = (self._norm(x) @ layer.up).chunk(2, -1)
            x += F.silu(gate).mul_(up) @ layer.down
        self.position, self.t = self.position + 1, self.t + 1
        return self._norm(x) @ self.head

    def _norm(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)

    def _attend(self, layer: Layer, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        n, t, width = len(x), self.t, self.width
        qkv = x @ layer.qkv if layer.bias is None else x @ layer.qkv + layer.bias
        qkv = qkv.view(n, -1, width)
        qk, v = qkv[:, : -self.kv], qkv[:, -self.kv :]
        if layer.gains is not None:
            qk = self._norm(qk) * layer.gains
        qk = torch.addcmul(qk * cos, qk.roll(width // 2, -1), sin)
        layer.said[0][:, :, t], layer.said[1][:, :, t] = qk[:, self.heads :], v
        q = qk[:, : self.heads].view(n, self.kv, -1, width)
        k, v = (y[:, :, : t + 1] for y in layer.said)
        before = self._grouped(q) @ layer.prompt[0].transpose(2, 3)
        if self.hidden is not None:
            before = before.masked_fill(self.hidden, -torch.inf)
        p = torch.cat([self._apart(before), dots(q, k)], -1).softmax(-1)
        far, near = p.split([before.shape[-1], t + 1], -1)
        y = self._apart(self._grouped(far) @ layer.prompt[1]) + sums(near, v)
        return y.reshape(n, -1) @ layer.out

    def _grouped(self, x: Tensor) -> Tensor:
        """(N, kv, r, d) -> (P, kv, group r, d): the rows of a group read one prompt."""
        n, kv, r, d = x.shape
        x = x.view(-1, self.group, kv, r, d).transpose(1, 2)
        return x.reshape(n // self.group, kv, self.group * r, d)

    def _apart(self, x: Tensor) -> Tensor:
        """The other way round."""
        p, kv, r, d = x.shape
        x = x.view(p, kv, self.group, r // self.group, d).transpose(1, 2)
        return x.reshape(p * self.group, kv, r // self.group, d)


def dots(q: Tensor, k: Tensor) -> Tensor:
    """(N, kv, r, t) products of (N, kv, r, d) and (N, kv, t, d)."""
    if k.shape[2] > SHORT:
        return q @ k.transpose(2, 3)
    return (q[:, :, :, None] * k[:, :, None]).sum(-1)


def sums(p: Tensor, v: Tensor) -> Tensor:
    """(N, kv, r, d) sums of (N, kv, t, d) with the weights (N, kv, r, t)."""
    if v.shape[2] > SHORT:
        return p @ v
    return (p[..., None] * v[:, :, None]).sum(-2)
