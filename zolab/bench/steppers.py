"""A step of every method on a model of any shape with random weights: what is measured.

8-bit Adam and QLoRA need bitsandbytes; LoRA is written here, ten lines, and needs what
peft's needs.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from zolab.plan import Shape, Work

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Step = Callable[[], Any]
RANK = 8


def stepper(
    shape: Shape,
    method: str,
    work: Work,
    checkpoint: bool = False,
    rank: int = RANK,
    device: str = "cpu",
) -> Step:
    """A random model of this shape, and a function that makes a step on one batch.

    "inference:int4" or "qzo:int4" is a method on matrices in that codec.
    """
    import zolab

    method, _, codec = method.partition(":")
    model = build(shape, work, device)
    if codec:
        zolab.pack(model, codec)
        gc.collect()
    if checkpoint:
        enable = getattr(model, "activation_checkpointing_enable", None)
        (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
        model.train()  # transformers asks for it; dropout is off
    ids = torch.randint(0, shape.vocabulary, (work.batch, work.tokens), device=device)

    def closure() -> Tensor:
        return model(input_ids=ids, labels=ids, use_cache=False).loss

    return STEPS[method](model, closure, rank)


def build(shape: Shape, work: Work, device: str = "cpu") -> Any:
    """A transformers model of this shape with random weights, dropout off."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(DTYPES[work.dtype])
    try:
        with torch.device(device):
            return AutoModelForCausalLM.from_config(_config(shape, work)).eval()
    finally:
        torch.set_default_dtype(before)


def _config(s: Shape, work: Work) -> Any:
    from transformers import GPT2Config, LlamaConfig, OPTConfig

    off: dict[str, Any] = {"tie_word_embeddings": s.tied}
    if s.family == "gpt2":
        zero = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
        sizes = {"n_embd": s.width, "n_layer": s.layers, "n_head": s.heads}
        off |= {"n_positions": s.positions, "n_inner": s.inner}
        return GPT2Config(vocab_size=s.vocabulary, **sizes, **zero, **off)
    sizes = {"hidden_size": s.width, "num_hidden_layers": s.layers}
    sizes |= {"num_attention_heads": s.heads, "vocab_size": s.vocabulary}
    if s.family == "opt":
        off |= {"max_position_embeddings": s.positions - 2, "dropout": 0.0}
        off |= {"word_embed_proj_dim": s.width, "ffn_dim": s.inner}
        return OPTConfig(**sizes, **off)
    off |= {"num_key_value_heads": s.kv_heads or s.heads, "intermediate_size": s.inner}
    off |= {"max_position_embeddings": max(64, work.tokens)}
    return LlamaConfig(**sizes, head_dim=s.queries // s.heads, **off)


def _inference(model: nn.Module, closure: Step, rank: int) -> Step:
    model.requires_grad_(False)
    return torch.no_grad()(closure)


def _mezo(model: nn.Module, closure: Step, rank: int) -> Step:
    import zolab

    opt = zolab.MeZO(model)
    return lambda: opt.step(closure)


def _on_the_grid(name: str) -> Callable[[nn.Module, Step, int], Step]:
    """zolab's QZO, QuZO or ZOQO; an lr that moves next to nothing costs as much."""

    def make(model: nn.Module, closure: Step, rank: int) -> Step:
        import zolab

        engine = zolab.Resident(scratch="one")
        opt = getattr(zolab, name)(model, lr=1e-9, engine=engine)
        return lambda: opt.step(closure)

    return make


def _backward(opt: torch.optim.Optimizer, closure: Step) -> Step:
    def step() -> None:
        opt.zero_grad()
        closure().backward()
        opt.step()

    return step


def _sgd(model: nn.Module, closure: Step, rank: int) -> Step:
    return _backward(torch.optim.SGD(model.parameters(), lr=1e-3), closure)


def _adamw(model: nn.Module, closure: Step, rank: int) -> Step:
    moving = [p for p in model.parameters() if p.requires_grad]
    return _backward(torch.optim.AdamW(moving, lr=1e-5), closure)


def _mixed(model: nn.Module, closure: Step, rank: int) -> Step:
    """16-bit weights and gradients; an fp32 copy of each weight with its own AdamW."""
    pairs = [(p, p.detach().float()) for p in model.parameters()]
    opts = [torch.optim.AdamW([copy], lr=1e-5) for _, copy in pairs]

    def step() -> None:
        model.zero_grad()
        closure().backward()
        for (p, copy), opt in zip(pairs, opts, strict=True):
            assert p.grad is not None
            copy.grad = p.grad.float()
            opt.step()
            copy.grad = None
            p.data.copy_(copy)

    return step


def _adam8(model: nn.Module, closure: Step, rank: int) -> Step:
    import bitsandbytes as bnb

    return _backward(bnb.optim.AdamW8bit(model.parameters(), lr=1e-5), closure)


class Low(nn.Module):
    """A frozen product and LoRA's two factors beside it."""

    def __init__(self, base: nn.Module, rank: int, dtype: torch.dtype) -> None:
        super().__init__()
        w: Tensor = base.weight  # type: ignore[assignment]
        # GPT-2 stores its matrices the other way round
        m, n = w.shape[::-1] if type(base).__name__ == "Conv1D" else w.shape
        if hasattr(base, "in_features"):
            m, n = int(base.out_features), int(base.in_features)  # type: ignore[arg-type]
        self.base = base
        self.down = nn.Linear(n, rank, bias=False, dtype=dtype)
        self.up = nn.Linear(rank, m, bias=False, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x)) * 2.0


def _lora(model: nn.Module, closure: Step, rank: int) -> Step:
    """Factors at every matrix of every block; embeddings and head are left alone."""
    model.requires_grad_(False)
    head = model.get_output_embeddings()  # type: ignore[operator]
    dtype = head.weight.dtype
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            matrix = getattr(getattr(child, "weight", None), "dim", lambda: 0)() == 2
            if matrix and child is not head and not isinstance(child, nn.Embedding):
                setattr(parent, name, Low(child, rank, dtype))
    return _adamw(model, closure, rank)


def _qlora(model: nn.Module, closure: Step, rank: int) -> Step:
    """The same on matrices in NF4."""
    import bitsandbytes as bnb

    head = model.get_output_embeddings()  # type: ignore[operator]
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear) and child is not head:
                w, bias = child.weight, child.bias
                size = (child.in_features, child.out_features, bias is not None)
                four = bnb.nn.Linear4bit(*size, w.dtype, quant_type="nf4")
                four.weight = bnb.nn.Params4bit(w.data, False, quant_type="nf4")
                if bias is not None:
                    four.bias = bias
                setattr(parent, name, four.to(w.device))
    gc.collect()
    return _lora(model, closure, rank)


STEPS: dict[str, Callable[[Any, Step, int], Step]] = {
    "inference": _inference,
    "mezo": _mezo,
    "qzo": _on_the_grid("QZO"),
    "quzo": _on_the_grid("QuZO"),
    "zoqo": _on_the_grid("ZOQO"),
    "sgd": _sgd,
    "adamw": _adamw,
    "adamw-mixed": _mixed,
    "adam8": _adam8,
    "lora": _lora,
    "qlora": _qlora,
}
