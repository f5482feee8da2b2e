"""What is measured: a published shape with random weights, a batch, a closure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import OPTConfig


@dataclass(frozen=True)
class Shape:
    """An OPT decoder (arXiv:2205.01068): width, layers, heads, vocabulary, batch."""

    width: int
    layers: int
    heads: int
    vocabulary: int
    batch: int
    tokens: int
    dtype: torch.dtype


SHAPES = {
    "tiny": Shape(64, 2, 2, 512, 2, 16, torch.float32),
    # no published size: opt-125m's tokens a weight read, at a fifth of its weights
    "small": Shape(512, 6, 8, 8192, 4, 128, torch.float32),
    "opt-125m": Shape(768, 12, 12, 50272, 4, 128, torch.float32),
    # Its head is 2 % of its work, as a 13B model's is; 30 % with the full vocabulary.
    "opt-125m-2k": Shape(768, 12, 12, 2048, 4, 128, torch.float32),
    "opt-1.3b": Shape(2048, 24, 32, 50272, 16, 512, torch.bfloat16),
    "opt-6.7b": Shape(4096, 32, 32, 50272, 16, 512, torch.bfloat16),
    "opt-13b": Shape(5120, 40, 40, 50272, 16, 512, torch.bfloat16),
    "opt-30b": Shape(7168, 48, 56, 50272, 16, 512, torch.bfloat16),
    "opt-66b": Shape(9216, 64, 72, 50272, 4, 512, torch.bfloat16),
    "opt-175b": Shape(12288, 96, 96, 50272, 2, 512, torch.bfloat16),
}


@dataclass(frozen=True)
class Setting:
    """Where and how: device, shape's name, CPU thread counts, repeats of a pair."""

    device: str
    shape: str
    threads: tuple[int, ...]
    repeats: int

    @classmethod
    def of(
        cls, device: str, shape: str | None, threads: list[int] | None, repeats: int
    ) -> Setting:
        """The defaults of a device where nothing is given."""
        cuda = device == "cuda"
        name = shape or ("opt-1.3b" if cuda else "opt-125m")
        counts = threads or ([torch.get_num_threads()] if cuda else [1, 2])
        return cls(device, name, tuple(counts), repeats)

    def on(self, threads: int) -> Setting:
        """The same with one thread count, in force from now on."""
        torch.set_num_threads(threads)
        return replace(self, threads=(threads,))

    def __str__(self) -> str:
        s = SHAPES[self.shape]
        kind = str(s.dtype).removeprefix("torch.")
        counts = "/".join(map(str, self.threads))
        return (
            f"{self.shape} {kind}, {s.batch} x {s.tokens} tokens, {self.device}, "
            f"{counts} thread{'s' * (self.threads != (1,))}, {self.repeats} repeats"
        )


def build(setting: Setting) -> tuple[nn.Module, Callable[[], Tensor]]:
    """The model in eval mode and a closure that computes its loss on one batch."""
    from transformers import OPTForCausalLM

    s = SHAPES[setting.shape]
    config = config_of(s)
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(s.dtype)  # built in fp32 and cast, it would be twice as big
    try:
        with torch.device(setting.device):
            model = OPTForCausalLM(config).eval()
            ids = torch.randint(5, s.vocabulary, (s.batch, s.tokens))
    finally:
        torch.set_default_dtype(before)
    return model, lambda: model(input_ids=ids, labels=ids, use_cache=False).loss


def config_of(s: Shape) -> OPTConfig:
    """The shape as transformers describes it."""
    from transformers import OPTConfig

    return OPTConfig(
        vocab_size=s.vocabulary,
        hidden_size=s.width,
        num_hidden_layers=s.layers,
        ffn_dim=4 * s.width,
        num_attention_heads=s.heads,
        word_embed_proj_dim=s.width,
        max_position_embeddings=2048 if s.width > 64 else 64,
    )
