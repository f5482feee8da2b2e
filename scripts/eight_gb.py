"""How large a model takes a step in 8 GB? Peak memory of inference and of steps.

    python scripts/eight_gb.py [--shape llama-3b] [--tokens 64] [--out FOLDER]

A published shape in bf16 on the CPU, no download: memory depends on shapes alone.
Writes recipe_eight_gb_SHAPE.json, which the recipe "8 GB" quotes.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import zolab
from zolab import lab
from zolab.bench.memory import _cpu_meter
from zolab.lab.records import RESULTS

# Width, layers, feed-forward, heads and key heads of Llama 3.2 (vocabulary 128,256).
SHAPES = {"llama-1b": (2048, 16, 8192, 32, 8), "llama-3b": (3072, 28, 8192, 24, 8)}


def config(name: str) -> LlamaConfig:
    width, layers, inner, heads, keys = SHAPES[name]
    return LlamaConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        intermediate_size=inner,
        num_attention_heads=heads,
        num_key_value_heads=keys,
        vocab_size=128_256,
        tie_word_embeddings=True,
    )


def build(name: str) -> torch.nn.Module:
    """The shape in bf16, every page written once; the values do not matter."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config(name))
    finally:
        torch.set_default_dtype(before)
    model.to_empty(device="cpu")
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config(name))  # was on meta
    ramp = torch.linspace(-0.02, 0.02, 1_000_003, dtype=torch.bfloat16)
    with torch.no_grad():
        for p in model.parameters():
            flat = p.view(-1)
            for i in range(0, p.numel(), len(ramp)):
                flat[i : i + len(ramp)] = ramp[: p.numel() - i]
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=SHAPES, default="llama-3b")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    model = build(args.shape)
    parameters = sum(p.numel() for p in model.parameters())
    ids = torch.randint(1000, (1, args.tokens))
    reset, peak = _cpu_meter()

    def closure() -> torch.Tensor:
        return model(input_ids=ids, labels=ids, use_cache=False).loss

    reset()
    with torch.no_grad():
        closure()
        closure()
    inference = peak()
    opt = zolab.MeZO(model, lr=1e-7, eps=1e-3)
    reset()
    opt.step(closure)
    began = time.perf_counter()
    loss = opt.step(closure)
    lab.record(
        f"recipe_eight_gb_{args.shape}",
        {
            "shape": args.shape,
            "dtype": "bfloat16",
            "parameters": parameters,
            "batch": 1,
            "tokens": args.tokens,
            "inference_mb": inference,
            "step_mb": peak(),
            "step_seconds": time.perf_counter() - began,
            "loss": loss,
        },
        command=f"python scripts/eight_gb.py --shape {args.shape}",
        folder=args.out,
    )


if __name__ == "__main__":
    main()
