"""A model that passes through a window: bytes on the device, in RAM, on the link.

    device    slots x block + rest + scratch + vectors + activations of all probes
    link      up: every block once a pass; down: once in `write_back` steps
    RAM       all blocks, in the type that they are stored in

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
    """How a model is streamed: blocks on the device, probes a step and a pass."""

    slots: int = 2
    probes: int = 2
    probes_per_pass: int = 8
    write_back: int = 1

    def __post_init__(self) -> None:
        for name in ("slots", "probes", "probes_per_pass", "write_back"):
            if getattr(self, name) < 1:
                raise PlanError(f"{name} is {getattr(self, name)}, expected 1 or more")

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

    @property
    def total(self) -> float:
        """All four."""
        return self.window + self.rest + self.scratch + self.vectors


def on_device(shape: Shape, b: int, window: Window) -> Kept:
    """What the engine keeps there: the window, the ends, one operation's weight.

    `vectors` are fp32 copies, a probe, of the final norm and of one block's.
    """
    each = 4 * (shape.final + shape.vectors)
    return Kept(
        window=min(window.slots, shape.layers) * b * shape.block,
        rest=b * shape.ends,
        scratch=b * largest_op(shape),
        vectors=window.together * each,
    )


def streamed(shape: Shape, work: Work, window: Window | None = None) -> Memory:
    """The device's fullest moment: one probe computes while the others wait.

    A waiting probe holds its hidden states, h b bytes a token.
    """
    v = window or Window()
    n, b = work.count, work.bytes
    kept, hidden = on_device(shape, b, v), n * shape.width * b
    inside = n * block(shape, b).forward + (v.together - 1) * hidden
    logits = n * forward_logits(shape, b)
    base = (kept.window + kept.rest, 0.0, 0.0)
    extra = kept.scratch + kept.vectors
    moments = [
        Memory("a block", *base, inside, 0.0, extra),
        Memory("the loss", *base, v.together * hidden, logits, extra),
    ]
    return max(moments, key=lambda m: m.total)


def in_ram(shape: Shape, work: Work) -> float:
    """Bytes of the blocks that wait their turn."""
    return float(work.bytes * shape.layers * shape.block)


def moved(
    shape: Shape, work: Work, window: Window | None = None
) -> tuple[float, float]:
    """Bytes a step on the link, (up, down); all weights move."""
    v = window or Window()
    once = in_ram(shape, work)
    return v.passes * once, once / v.write_back
