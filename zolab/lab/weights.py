"""Real weights that need no download: rows of SmolLM2-135M, 66 kB in the wheel.

The file they come from keeps its layers in four bits (Q4_1) and its embedding in eight
(Q8_0: w = scale * code, groups of 32). So `embedding` is near the trained weights, its
rounding error a sixteenth of what four bits make; `layer` is not: it lies on a grid of
16 levels a group, and to round it again measures that grid. data/smollm2/card.json says
where both come from.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from zolab.assets import cached, check
from zolab.errors import ZolabError
from zolab.storage.packed import unpack_bits

ROWS = Path(__file__).parent.parent / "data" / "smollm2"
VOCABULARY = 49_152


@dataclass(frozen=True)
class RealWeights:
    """`embedding` (n, 576) and `layer` (4, 1536), fp32, bit for bit the file's values.

    `low` and `scale` (4, 48), fp32, are the layer's own rulers: w = scale * code + low.
    """

    embedding: Tensor
    layer: Tensor
    scale: Tensor
    low: Tensor


def smollm2_rows(count: int = 102) -> RealWeights:
    """The packaged rows; for more than 102 the file is read, if it is in the cache.

    The rows are spread evenly over the vocabulary. Without the file there are 102,
    however many are asked for. Raises AssetError when a file is not the one that was
    measured, ZolabError on a count that no vocabulary has.
    """
    if not 1 <= count <= VOCABULARY:
        raise ZolabError(f"count is {count}, expected 1 to {VOCABULARY:,} rows")
    card = json.loads((ROWS / "card.json").read_text("utf-8"))
    check(ROWS / "rows.safetensors", card["sha256"])
    raw = load_file(ROWS / "rows.safetensors")
    scale, low = raw["layer.scale"].float(), raw["layer.low"].float()
    codes = unpack_bits(raw["layer.codes"], 4, len(scale) * 1536).float()
    grouped = codes.view(*scale.shape, 32) * scale[..., None] + low[..., None]
    embedding = _more(count) if count > 102 else None
    if embedding is None:
        embedding = _decoded(raw["embedding.codes"], raw["embedding.scale"])[:count]
    return RealWeights(embedding, grouped.reshape(len(scale), -1), scale, low)


def _decoded(codes: Tensor, scale: Tensor) -> Tensor:
    """Q8_0: 32 codes share a scale."""
    grouped = codes.float().view(*scale.shape, 32) * scale.float()[..., None]
    return grouped.reshape(codes.shape)


def _more(count: int) -> Tensor | None:
    """`count` rows from the whole file; None where it was never fetched."""
    path = cached("smollm2-135m")
    return None if path is None else _rows(path, "token_embd.weight", count)


def _rows(path: Path, name: str, count: int) -> Tensor:
    """`count` rows of a tensor in a GGUF file, evenly spread, fp32."""
    from gguf import dequantize

    tensor = _tensors(path)[name]
    rows = tensor.data[:: len(tensor.data) // count][:count]
    return torch.from_numpy(dequantize(rows, tensor.tensor_type).copy())


@cache
def _tensors(path: Path) -> dict[str, Any]:
    from gguf import GGUFReader  # seconds: it reads the whole vocabulary

    return {t.name: t for t in GGUFReader(path).tensors}
