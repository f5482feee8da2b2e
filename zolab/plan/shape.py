"""A decoder's numbers, and what follows from them without a single weight.

parameters = embeddings + layers x block + final norm (+ head, when it is not tied)
OPT's block: 4 h^2 + 2 h f in matrices, f + 9 h in vectors; f = 4 h makes 12 h^2
"""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zolab.plan.units import PlanError

FAMILIES = ("opt", "gpt2", "llama")


@dataclass(frozen=True)
class Shape:
    """Width h, layers, heads, key heads, feed-forward f, vocabulary V of a decoder.

    `family` says how a block is made: "opt" (layer norm, ReLU), "gpt2" (layer norm,
    GELU), "llama" (RMS norm, gated SiLU). `positions` are rows of a learned table.
    """

    name: str
    family: str
    width: int
    layers: int
    heads: int
    inner: int
    vocabulary: int
    positions: int = 0
    kv_heads: int = 0  # 0: as many as heads
    head_width: int = 0  # 0: width / heads
    tied: bool = True

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise PlanError(f"family {self.family!r}, expected {', '.join(FAMILIES)}")
        for what in ("width", "layers", "heads", "inner", "vocabulary"):
            if getattr(self, what) < 1:
                raise PlanError(f"{what} is {getattr(self, what)}, expected 1 or more")

    @property
    def queries(self) -> int:
        """Columns of all query heads; h nearly always."""
        return self.heads * (self.head_width or self.width // self.heads)

    @property
    def keys(self) -> int:
        """Columns of all key heads."""
        return self.queries // self.heads * (self.kv_heads or self.heads)

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """(rows, columns) of a block's matrices, by what they do."""
        h, f, q, k = self.width, self.inner, self.queries, self.keys
        if self.family == "gpt2":
            return {"qkv": (3 * h, h), "out": (h, h), "up": (f, h), "down": (h, f)}
        made = {"q": (q, h), "k": (k, h), "v": (k, h), "out": (h, q), "up": (f, h)}
        if self.family == "llama":
            made["gate"] = (f, h)
        return made | {"down": (h, f)}

    @property
    def vectors(self) -> int:
        """Numbers in a block's biases and norms."""
        if self.family == "llama":
            return 2 * self.width
        return 4 * self.width + sum(rows for rows, _ in self.matrices.values())

    @property
    def block(self) -> int:
        """Parameters of one block."""
        return sum(m * n for m, n in self.matrices.values()) + self.vectors

    @property
    def embedding(self) -> int:
        """Parameters of the token table, V h; the head's too when it is tied."""
        return self.vocabulary * self.width

    @property
    def head(self) -> int:
        """Parameters of a head of its own."""
        return 0 if self.tied else self.embedding

    @property
    def ends(self) -> int:
        """All that stands outside of the blocks."""
        return self.embedding + self.positions * self.width + self.final + self.head

    @property
    def final(self) -> int:
        """Parameters of the norm before the head."""
        return self.width * (1 if self.family == "llama" else 2)

    @property
    def parameters(self) -> int:
        """All of them, tied ones once."""
        return self.layers * self.block + self.ends

    @property
    def largest(self) -> int:
        """Numbers in the largest tensor."""
        return max(self.embedding, *(m * n for m, n in self.matrices.values()))


def _opt(size: str, width: int, layers: int, heads: int) -> Shape:
    name = f"facebook/opt-{size}"
    return Shape(name, "opt", width, layers, heads, 4 * width, 50272, 2050)


def _gpt2(size: str, width: int, layers: int, heads: int) -> Shape:
    name = f"openai-community/gpt2{size}"
    return Shape(name, "gpt2", width, layers, heads, 4 * width, 50257, 1024)


def _llama(
    name: str, width: int, layers: int, heads: int, kv: int, inner: int, v: int, t: bool
) -> Shape:
    return Shape(name, "llama", width, layers, heads, inner, v, 0, kv, 0, t)


# OPT: arXiv:2205.01068, table 1. The others: their published configurations.
PUBLISHED = {
    s.name: s
    for s in (
        _opt("125m", 768, 12, 12),
        _opt("1.3b", 2048, 24, 32),
        _opt("2.7b", 2560, 32, 32),
        _opt("6.7b", 4096, 32, 32),
        _opt("13b", 5120, 40, 40),
        _opt("30b", 7168, 48, 56),
        _opt("66b", 9216, 64, 72),
        _opt("175b", 12288, 96, 96),
        _gpt2("", 768, 12, 12),
        _gpt2("-medium", 1024, 24, 16),
        _gpt2("-large", 1280, 36, 20),
        _gpt2("-xl", 1600, 48, 25),
        _llama("HuggingFaceTB/SmolLM2-135M", 576, 30, 9, 3, 1536, 49152, True),
        _llama("HuggingFaceTB/SmolLM2-360M", 960, 32, 15, 5, 2560, 49152, True),
        _llama("HuggingFaceTB/SmolLM2-1.7B", 2048, 24, 32, 32, 8192, 49152, True),
        _llama("meta-llama/Llama-2-7b", 4096, 32, 32, 32, 11008, 32000, False),
        _llama("meta-llama/Llama-2-13b", 5120, 40, 40, 40, 13824, 32000, False),
        _llama("meta-llama/Llama-2-70b", 8192, 80, 64, 8, 28672, 32000, False),
        _llama("meta-llama/Llama-3.2-1B", 2048, 16, 32, 8, 8192, 128256, True),
        _llama("meta-llama/Llama-3.2-3B", 3072, 28, 24, 8, 8192, 128256, True),
        _llama("meta-llama/Llama-3.1-8B", 4096, 32, 32, 8, 14336, 128256, False),
    )
}


def find(name: str) -> Shape:
    """The shape of a published name (its owner may miss) or of a folder's config.json.

    Raises PlanError, which names what is near.
    """
    short = {full.split("/")[-1].lower(): s for full, s in PUBLISHED.items()}
    key = name.lower().removeprefix("random:").split("/")[-1]
    if key in short:
        return short[key]
    file = Path(name) / "config.json"
    if file.is_file():
        try:
            return of_config(json.loads(file.read_text("utf-8")), name)
        except ValueError as why:
            raise PlanError(f"{file} is no JSON: {why}") from None
    near = difflib.get_close_matches(key, short, n=3, cutoff=0.4)
    hint = f"; near: {', '.join(near)}" if near else ""
    raise PlanError(
        f"no published shape is called {name!r}{hint}. Known: {', '.join(short)}, or a "
        "folder with a config.json."
    )


def of_config(config: Any, name: str = "") -> Shape:
    """The shape of a transformers configuration, as object or as its JSON.

    OPT, GPT-2, and whatever has Llama's names (Llama, Mistral, Qwen2, SmolLM2: Qwen's
    three biases a block are left out). Raises PlanError where a number is missing.
    """
    c = config if isinstance(config, dict) else config.to_dict()
    kind = c.get("model_type", "")
    name = name or kind
    try:
        if kind == "gpt2":
            h = c["n_embd"]
            sizes = (h, c["n_layer"], c["n_head"], c.get("n_inner") or 4 * h)
            return Shape(name, "gpt2", *sizes, c["vocab_size"], c["n_positions"])
        h = c["hidden_size"]
        layers, heads = c["num_hidden_layers"], c["num_attention_heads"]
        if kind == "opt":
            if c.get("word_embed_proj_dim", h) != h:
                raise PlanError(f"{name} projects its embeddings: not known")
            sizes = (h, layers, heads, c["ffn_dim"])
            rows = c["max_position_embeddings"] + 2
            return Shape(name, "opt", *sizes, c["vocab_size"], rows)
        return Shape(
            *(name, "llama", h, layers, heads, c["intermediate_size"]),
            vocabulary=c["vocab_size"],
            kv_heads=c.get("num_key_value_heads") or 0,
            head_width=c.get("head_dim") or 0,
            tied=bool(c.get("tie_word_embeddings", False)),
        )
    except KeyError as missing:
        raise PlanError(f"the configuration of {name} lacks {missing}") from None
