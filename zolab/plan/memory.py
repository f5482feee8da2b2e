"""Where the memory goes: one formula for every method, part by part.

    peak = weights + state
           + max over moments (gradients + activations + logits + scratch)

Gradients grow while activations shrink, so they are never all there at once. Which
moment is the fullest depends on the shape: the loss (all activations, and the logits),
the way back (its top, its bottom), the update. Without a way back there are two: the
widest block, and the loss. `zolab.bench.peak` holds the sum against torch's own ledger.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from zolab.plan.activations import block, norm, norm_back
from zolab.plan.methods import method_of, rate, width
from zolab.plan.shape import Shape
from zolab.plan.units import PlanError, size

TILE = 3072  # rows of a tall head that a probe writes at a time: engines/mode.py
KEEP_BELOW = 64 << 20  # a model below this is copied whole: engines/resident.py


@dataclass(frozen=True)
class Work:
    """A step's work: sequences, tokens of each, and how weights are stored."""

    batch: int
    tokens: int
    dtype: str = "bf16"

    def __post_init__(self) -> None:
        if self.batch < 1 or self.tokens < 1:
            raise PlanError(f"batch {self.batch} x {self.tokens}, expected 1 or more")
        width(self.dtype)

    @property
    def count(self) -> int:
        """Tokens in a forward pass."""
        return self.batch * self.tokens

    @property
    def bytes(self) -> int:
        """Bytes of a stored number."""
        return width(self.dtype)


@dataclass(frozen=True)
class Memory:
    """Bytes at one moment, part by part."""

    moment: str
    weights: float = 0.0
    state: float = 0.0
    gradients: float = 0.0
    activations: float = 0.0
    logits: float = 0.0
    scratch: float = 0.0

    @property
    def parts(self) -> dict[str, float]:
        """The parts by name, in the order that a bar is stacked."""
        return {f.name: getattr(self, f.name) for f in fields(self)[1:]}

    @property
    def total(self) -> float:
        """All parts together."""
        return sum(self.parts.values())

    def __str__(self) -> str:
        parts = [f"{name} {size(x)}" for name, x in self.parts.items() if x]
        return f"{size(self.total)} at {self.moment}: {', '.join(parts)}"


def peak(
    shape: Shape,
    method: str,
    work: Work,
    *,
    checkpoint: bool = False,
    rank: int = 8,
    gpu: bool = False,
) -> Memory:
    """The fullest moment of a step. Tensors alone: Python or CUDA come on top.

    `checkpoint` keeps each block's input and computes the rest again; `rank` is
    LoRA's; on a `gpu` torch's optimizers take other temporaries than on a CPU.
    """
    found = moments(shape, method, work, checkpoint=checkpoint, rank=rank, gpu=gpu)
    return max(found, key=lambda m: m.total)


def moments(
    shape: Shape,
    method: str,
    work: Work,
    *,
    checkpoint: bool = False,
    rank: int = 8,
    gpu: bool = False,
) -> list[Memory]:
    """Every moment of a step that may be its fullest."""
    m = method_of(method)
    if m.adapters and rank < 1:
        raise PlanError(f"rank is {rank}, expected 1 or more")
    if m.backward:
        return _with_backward(shape, method, work, checkpoint, rank, gpu)
    if checkpoint:
        raise PlanError(
            f"{method} keeps no activations: there is none to compute again"
        )
    return _forward_only(shape, method, work)


def weights(shape: Shape, method: str, work: Work, rank: int = 8) -> float:
    """Bytes of what is stored, adapters included; NF4 holds the blocks' matrices."""
    m, b = method_of(method), work.bytes
    low = adapters(shape, rank) if m.adapters else 0
    if m.weight is None:
        return b * (shape.parameters + low)
    inside = shape.layers * sum(x * y for x, y in shape.matrices.values())
    return m.weight * inside + b * (shape.parameters - inside + low)


def adapters(shape: Shape, rank: int) -> int:
    """Numbers in LoRA's factors: r (m + n) for each matrix of each block."""
    return shape.layers * sum(rank * (x + y) for x, y in shape.matrices.values())


def _forward_only(shape: Shape, method: str, work: Work) -> list[Memory]:
    n, b = work.count, work.bytes
    w = weights(shape, method, work)
    extra = scratch(shape, b) if method == "mezo" else 0.0
    inside, hidden = n * block(shape, b).forward, n * shape.width * b
    logits = n * forward_logits(shape, b)
    return [
        Memory("a block", w, activations=inside, scratch=extra),
        Memory("the loss", w, activations=hidden, logits=logits, scratch=extra),
    ]


def forward_logits(shape: Shape, b: int) -> float:
    """Bytes a token in an ordinary `.loss`: logits, their fp32 copy, log-softmax."""
    return shape.vocabulary * (8 if b == 4 else b + 8)


def scratch(shape: Shape, b: int) -> float:
    """What a probe writes weights into: one matrix at a time, and vectors in fp32.

    A tall head goes by tiles of rows; a small model is copied whole.
    """
    vectors = shape.layers * shape.vectors + shape.final
    if b * shape.parameters < KEEP_BELOW:
        return b * (shape.parameters - vectors) + 4 * vectors
    return b * largest_op(shape) + 4 * vectors


def largest_op(shape: Shape) -> int:
    """Numbers in the largest weight that one operation takes."""
    rows = shape.vocabulary
    if rows >= 2 * TILE:  # even tiles of whole blocks of 16 rows
        rows = -(-rows // -(-rows // TILE) // 16) * 16
    head = rows * shape.width
    return max(head, *(m * n for m, n in shape.matrices.values()))


def _with_backward(
    shape: Shape, method: str, work: Work, checkpoint: bool, rank: int, gpu: bool
) -> list[Memory]:
    m, n, b, h = method_of(method), work.count, work.bytes, shape.width
    moving = adapters(shape, rank) if m.adapters else shape.parameters
    one = block(shape, b, frozen=m.adapters, rank=rank if m.adapters else 0)
    held = shape.layers * (h * b if checkpoint else one.kept)
    end = norm(shape, b, frozen=m.adapters)
    again = one.kept if checkpoint else 0.0
    entry = h * b if checkpoint else 0.0
    # Gradients: of the head; of the last block's last matrix besides; of all but the
    # first block's others; of everything.
    head = 0 if m.adapters else b * shape.embedding
    matrix = 0 if m.adapters else b * shape.inner * h
    made = b * moving
    late = made - b * moving / shape.layers
    if not m.adapters:
        after = shape.block + shape.positions * h + shape.head
        late = made - b * after + matrix
    w, s = weights(shape, method, work, rank), _state(shape, method, work, moving)
    logits, update = n * shape.vocabulary, _of_update(shape, method, b, rank, gpu)
    top, last = n * (held + end), n * (held + again + one.back)
    table = [  # gradients, activations, logits, scratch
        ("the loss", 0, top, 12 * logits, 0),
        ("the head, backward", head, top + n * h * b, b * logits, 0),
        ("the last norm, backward", head, top + n * norm_back(shape), 0, 0),
        ("the last block, backward", head + matrix, last, 0, 0),
        ("the first block, backward", late, n * (one.kept + one.back + entry), 0, 0),
        ("the embedding, backward", made, n * h * b, 0, 2 * head * shape.tied),
        ("the update", made, 0, 0, update),
    ]
    return [Memory(name, w, s, *parts) for name, *parts in table]


def _state(shape: Shape, method: str, work: Work, moving: int) -> float:
    """What the optimizer remembers; 8-bit Adam keeps small tensors' moments in fp32."""
    if method_of(method).adapters:
        return rate("adamw", work.dtype).state * moving
    each = rate(method, work.dtype).state
    small = shape.layers * shape.vectors + shape.final if method == "adam8" else 0
    return each * (moving - small) + 8 * small


def _of_update(shape: Shape, method: str, b: int, rank: int, gpu: bool) -> float:
    """The update's temporaries.

    On a CPU torch's AdamW takes two of the largest tensor, and bitsandbytes writes it
    out in fp32 five or six times; on a GPU AdamW's default (`foreach`) takes one of all
    tensors. `fused=True` takes none.
    """
    m = method_of(method)
    if m.adapters:
        return 2 * b * rank * max(max(x, y) for x, y in shape.matrices.values())
    on_gpu = {"adamw": b * shape.parameters, "adamw-mixed": 12 * shape.largest}
    wide = 20 if b == 4 else 24
    on_cpu = {"adamw": 2 * b, "adamw-mixed": 12, "adam8": wide}
    return on_gpu.get(method, 0) if gpu else on_cpu.get(method, 0) * shape.largest
