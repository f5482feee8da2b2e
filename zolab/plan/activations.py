"""What a block holds a token: kept for the way back, alive on the way, alive back.

    OPT, for the way back: (8 h + f) b bytes a token and layer; with f = 4 h, 12 h b

A norm keeps its input and its output (which is the next product's input), attention q,
k, v and its result, ReLU its result; an RMS norm keeps an fp32 copy of its input, a
gated SiLU four vectors of width f, GELU in five operations five. Attention is the fused
kind (`scaled_dot_product_attention`), which keeps no T x T scores. Dropout is off.
"""

from __future__ import annotations

from dataclasses import dataclass

from zolab.plan.shape import Shape


@dataclass(frozen=True)
class Block:
    """Bytes a token: `kept` for backward, `forward` alive without it, `back` on top.

    A model that `waits` before its next block holds its hidden state, and what its
    frames hold of embeddings.
    """

    kept: float
    forward: float
    back: float
    waits: float = 0.0


def block(shape: Shape, b: int, *, frozen: bool = False, rank: int = 0) -> Block:
    """One block's bytes a token in numbers of `b` bytes.

    With LoRA the norms are frozen and each matrix keeps `rank` numbers more.
    """
    h, f, q, k = shape.width, shape.inner, shape.queries, shape.keys
    attention = (2 * q + 2 * k) * b + 4 * shape.heads
    wide = {"opt": 1, "gpt2": 5, "llama": 4}[shape.family] * f * b
    low = rank * b * len(shape.matrices)
    alive = {"opt": 2 * f + 4 * h, "gpt2": 4 * f + 5 * h, "llama": 3 * f + 4 * h}
    return Block(
        kept=2 * norm(shape, b, frozen=frozen) + attention + wide + low,
        forward=alive[shape.family] * b,
        back=(2 * f + h) * b,
        waits={"opt": 3, "gpt2": 2, "llama": 2}[shape.family] * h * b,
    )


def norm(shape: Shape, b: int, *, frozen: bool = False) -> float:
    """What a norm keeps a token, its output included."""
    h = shape.width
    if shape.family != "llama":
        return 2 * h * b + 8
    # x in fp32; x / rms(x) for the gain's gradient; the output
    return 4 * h + (0 if frozen else h * b) + h * b + 4


def norm_back(shape: Shape) -> float:
    """What a norm's backward holds besides: four fp32 vectors for an RMS norm."""
    return 16 * shape.width if shape.family == "llama" else 0
