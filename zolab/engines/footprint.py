"""What a streamed model keeps on the device, in bytes, before anything runs.

    window    slots x largest block
    rest      what does not stream: embeddings, final norm, head
    scratch   the largest weight that one op takes, once, in the storage type;
              of a tall head one tile of rows
    vectors   fp32 copies of the vectors, for each probe of a pass: those of the rest,
              and those of one block
    delta     what a run has added so far, where the store is only read

Activations come on top: hidden states for each probe of a pass, and one block's inner
activations; they are the batch's size and the closure's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from zolab.engines.blocks import Block, parts_of
from zolab.engines.mode import TILE, is_vector, tile_rows
from zolab.engines.scratch import padded
from zolab.errors import BudgetError
from zolab.space import Slot, Space

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


@dataclass(frozen=True)
class Footprint:
    """Bytes on the device, by what they are."""

    window: int
    rest: int
    scratch: int
    vectors: int
    delta: int = 0

    @property
    def total(self) -> int:
        return self.window + self.rest + self.scratch + self.vectors + self.delta

    def __str__(self) -> str:
        parts = ["window", "rest", "scratch", "vectors"] + ["delta"] * bool(self.delta)
        return ", ".join(f"{p} {getattr(self, p) / 1e6:.1f} MB" for p in parts)

    def check(self, budget: int | None) -> None:
        """BudgetError where it does not fit."""
        if budget is not None and self.total > budget:
            raise BudgetError(
                f"{self.total / 1e6:.1f} MB must lie on the device ({self}), the "
                f"budget is {budget / 1e6:.1f} MB. Fewer slots, fewer probes a "
                "pass or smaller blocks need less"
                + (", and a V that is kept for more steps." if self.delta else ".")
            )


def footprint(
    model: nn.Module,
    space: Space,
    blocks: Sequence[Block],
    *,
    slots: int,
    probes: int,
    tables: Sequence[nn.Embedding] = (),
) -> Footprint:
    """The device's bytes for a window of `slots` blocks and `probes` probes a pass.

    `tables` are not there: a pass brings looked-up rows, which count as activations.
    """
    inside = {id(p) for b in blocks for piece in b.pieces for p in piece.params}
    rest = {p.data_ptr() or id(p): p for p in model.parameters() if id(p) not in inside}
    buffers = sum(b.nbytes for b in model.buffers())
    by_block = {id(p): b.index for b in blocks for x in b.pieces for p in x.params}
    vectors: dict[int, int] = {}
    for slot in space:
        if is_vector(slot):
            b = by_block.get(id(slot.params[0]), -1)
            vectors[b] = vectors.get(b, 0) + 4 * padded(slot.numel)
    most = max((n for b, n in vectors.items() if b >= 0), default=0)
    return Footprint(
        window=min(slots, len(blocks)) * max(b.nbytes for b in blocks),
        rest=sum(map(_stored, rest.values())) + buffers - _apart(tables),
        scratch=scratch(model, space),
        vectors=probes * (vectors.get(-1, 0) + most),
    )


def scratch(model: nn.Module, space: Space) -> int:
    """Bytes of the largest set of moving matrices that one op may take."""
    slot_of = {id(p): s for s in (*space, *space.still) for p in s.params}
    return max((_op(m, slot_of) for m in model.modules()), default=0)


def _op(module: nn.Module, slot_of: dict[int, Slot]) -> int:
    """A module's own matrices: an op takes one (a linear), or all of them (an LSTM)."""
    slots = [slot_of.get(id(p)) for p in module.parameters(recurse=False)]
    matrices = [s for s in slots if s is not None and not is_vector(s)]
    if isinstance(module, nn.Embedding):  # only looked-up rows, unless a head shares it
        return 0
    sizes = [_bytes(s) for s in matrices]
    together = isinstance(module, nn.RNNBase | nn.MultiheadAttention)
    return sum(sizes) if together else max(sizes, default=0)


def _apart(tables: Sequence[nn.Embedding]) -> int:
    return sum(p.nbytes for p in {id(m.weight): m.weight for m in tables}.values())


def _stored(p: nn.Parameter) -> int:
    """Bytes that a parameter holds; a packed weight's scales are another's."""
    return sum(s.numel() * t.itemsize for _, s, t in parts_of(p))


def _bytes(slot: Slot) -> int:
    tall = len(slot.shape) == 2 and slot.shape[0] >= 2 * TILE
    n = tile_rows(slot.shape[0]) * slot.shape[1] if tall else slot.numel
    return padded(n) * slot.dtype.itemsize


def parse_bytes(text: int | str) -> int:
    """ "8GB" -> 8_000_000_000; "8GiB" -> 8 * 2**30; a number is bytes."""
    if isinstance(text, int):
        return text
    number = text.strip().rstrip("bBkKmMgGtTiI")
    unit = text.strip()[len(number) :].upper() or "B"
    try:
        return round(float(number) * UNITS[unit])
    except (KeyError, ValueError):
        raise ValueError(f"{text!r} is no size; write it like 8GB or 500MiB") from None
