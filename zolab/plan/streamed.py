"""A model that passes through a window: bytes on the device, in RAM, on the link.

    device    slots x block + rest + scratch + vectors + activations of all probes
    link      up: every block once a pass; down: once in `write_back` steps
    RAM       all blocks, in the type that they are stored in

With `write_back="never"` nothing goes down. Vectors lie on the device, and so does what
a run adds: r (4 rows + columns) bytes a matrix for every V that the family draws.

`on_device` is the one function that knows what the engine keeps; its sum is the one of
`zolab.engines.footprint`, in closed form. ZO2, arXiv:2503.12668, streams like this.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from zolab.plan.activations import block
from zolab.plan.memory import Memory, Work, forward_logits, largest_op
from zolab.plan.shape import Shape
from zolab.plan.units import PlanError


@dataclass(frozen=True)
class Window:
    """How a model is streamed: blocks on the device, probes a step and a pass.

    `rank` and `drawn`, how many V a run draws (1,000 steps of LowRank(2, every=50)),
    count where the store is only read: `write_back="never"`. With `embeddings="ram"`
    tables that no head is tied to stay in host memory.
    """

    slots: int = 2
    probes: int = 2
    probes_per_pass: int = 8
    write_back: int | str = 1
    rank: int = 2
    drawn: int = 20
    embeddings: str = "device"

    def __post_init__(self) -> None:
        if self.embeddings not in ("device", "ram"):
            raise PlanError(f"embeddings is {self.embeddings}, expected device or ram")
        for name in ("slots", "probes", "probes_per_pass", "write_back", "rank"):
            n = getattr(self, name)
            if name == "write_back" and n == "never":
                continue
            if not isinstance(n, int) or n < 1:
                raise PlanError(f"{name} is {n}, expected 1 or more")

    @property
    def reads(self) -> bool:
        """Whether the store is only read."""
        return self.write_back == "never"

    @property
    def together(self) -> int:
        """Probes that are alive in a pass."""
        return min(self.probes, self.probes_per_pass)

    @property
    def passes(self) -> int:
        """Passes over the weights a step."""
        return math.ceil(self.probes / self.probes_per_pass)


@dataclass(frozen=True)
class Kept:
    """Bytes that lie on the device besides activations."""

    window: float
    rest: float
    scratch: float
    vectors: float
    delta: float = 0.0

    @property
    def total(self) -> float:
        """All five."""
        return self.window + self.rest + self.scratch + self.vectors + self.delta


def on_device(shape: Shape, b: int, window: Window) -> Kept:
    """What the engine keeps there: the window, the ends, one operation's weight.

    `vectors` are fp32 copies, a probe, of the final norm and of one block's.
    """
    stay = shape.layers * shape.vectors if window.reads else 0
    each = 4 * (shape.final + (stay or shape.vectors))
    return Kept(
        window=min(window.slots, shape.layers) * b * _block(shape, window),
        rest=b * (shape.ends + stay - _tables(shape, window)),
        scratch=b * largest_op(shape),
        vectors=window.together * each,
        delta=window.drawn * one_v(shape, window.rank) if window.reads else 0.0,
    )


def one_v(shape: Shape, rank: int) -> float:
    """Bytes that every matrix's factors take, fp32 A and 8-bit V, once."""
    ends = [(shape.vocabulary, shape.width)] * (1 if shape.tied else 2)
    if shape.positions:
        ends.append((shape.positions, shape.width))
    inside = sum(4 * m + n for m, n in shape.matrices.values())
    return rank * (shape.layers * inside + sum(4 * m + n for m, n in ends))


def _tables(shape: Shape, window: Window) -> int:
    """Numbers in embedding tables that are not on the device."""
    if window.embeddings == "device":
        return 0
    own = 0 if shape.tied else shape.embedding
    return own + shape.positions * shape.width


def _block(shape: Shape, window: Window) -> int:
    """Numbers of a block that travel."""
    return shape.block - (shape.vectors if window.reads else 0)


def streamed(shape: Shape, work: Work, window: Window | None = None) -> Memory:
    """The device's fullest moment: one probe computes while the others wait.

    A waiting probe holds its hidden states, h b bytes a token, and the embeddings that
    the model's own frames still name: as much again, twice as much in OPT.
    """
    v = window or Window()
    n, b = work.count, work.bytes
    kept, hidden = on_device(shape, b, v), n * shape.width * b
    inside, waits = n * block(shape, b).forward, n * block(shape, b).waits
    if shape.family == "gpt2":  # its positions, once for all sequences
        waits += work.tokens * shape.width * b
    waiting = (v.together - 1) * waits
    logits = n * forward_logits(shape, b)
    base = (kept.window + kept.rest, 0.0, 0.0)
    extra = kept.scratch + kept.vectors + kept.delta
    moments = [
        Memory("a block", *base, inside + waiting, 0.0, extra),
        Memory("the loss", *base, hidden + waiting, logits, extra),
    ]
    return max(moments, key=lambda m: m.total)


def in_ram(shape: Shape, work: Work, window: Window | None = None) -> float:
    """Bytes of the blocks that wait their turn, and of tables that stay there."""
    v = window or Window()
    return float(work.bytes * (_tables(shape, v) + shape.layers * _block(shape, v)))


def moved(
    shape: Shape, work: Work, window: Window | None = None
) -> tuple[float, float]:
    """Bytes a step on the link, (up, down); all weights move."""
    v = window or Window()
    once = float(work.bytes * shape.layers * _block(shape, v))
    return v.passes * once, 0.0 if v.reads else once / int(v.write_back)
