"""A base that is only read: matrices keep their bytes, a run's delta lies beside them.

    engine = zolab.Resident(base="read-only")           or
    engine = zolab.Streamed(write_back="never")         with family=LowRank(...)

So nothing travels back, a file of blocks may be read-only and serve many runs, and a
checkpoint is factors. Vectors (norms, biases) stay on the device and move as usual. The
arithmetic is `zolab.storage.delta`'s, not that of an ordinary run: the log's header
names it, and either kind of engine goes on with the other's log.

The delta grows by r (4 rows + columns) bytes a matrix whenever the family draws a new
V, and a probe adds all of it to the matrix, r additions an element and V.

The parameters are the base. So a call of the model outside of a step runs at base plus
delta, a state dict is refused, and `release` leaves an ordinary model with the sum in
its weights, rounded once to their type.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from zolab import storage
from zolab.engines.mode import Materialise, is_vector
from zolab.engines.outside import enter
from zolab.errors import SpaceError
from zolab.gradient import Update
from zolab.space import Slot, Space
from zolab.storage.delta import Delta, terms


class ReadOnly:
    """The space whose matrices have a delta on `device` (None: where they lie)."""

    def __init__(self, space: Space, device: torch.device | None = None) -> None:
        if odd := [s.name for s in space if s.mask or s.curvature]:
            raise SpaceError(
                f"{odd[0]} has a mask or a curvature, which need a base that moves"
            )
        if packed := [s.name for s in space if s.packed]:
            raise SpaceError(
                f"{packed[0]} is packed: a sum with factors could not be put back into "
                "its codes. Freeze it, or train it with a base that is written."
            )
        self.space = Space(tuple(_with_delta(s, device) for s in space), space.still)
        self.slots = [s for s in self.space if s.delta is not None]
        self.hooks: list[Any] = []

    @property
    def nbytes(self) -> int:
        """What the deltas take."""
        return sum(s.delta.nbytes for s in self.slots if s.delta)

    def growth(self, u: Update) -> int:
        """Bytes that an update opens; ValueError on one that is not of low rank."""
        return sum(s.delta.growth(terms(s, u)) for s in self.slots if s.delta)

    def hook(self, model: nn.Module, visit: Callable[[], Materialise]) -> None:
        """Let calls outside of a step see base plus delta, by the mode of `visit`."""
        mine = {id(p) for s in self.slots for p in s.params}
        holders = [
            m for m in model.modules() if any(id(p) in mine for p in m.parameters())
        ]
        self.hooks = enter(holders, mine, visit, what="whose base is only read")
        self.hooks.append(model.register_state_dict_pre_hook(_refuse))

    def merge(self) -> None:
        """The parameters are base plus delta, where they lie; the hooks are gone."""
        for hook in self.hooks:
            hook.remove()
        for s in self.slots:
            assert s.delta is not None
            if not s.delta.pairs and s.delta.scale == 1.0:
                continue
            here = replace(s, delta=s.delta.to(s.base.device))
            value = storage.materialise(here, (), torch.empty_like(s.base))
            for p in s.params:
                p.data = value

    def values(self) -> dict[str, Tensor]:
        """What a snapshot holds besides vectors: each matrix's factors A and their V's
        streams, and its scale."""
        out = {}
        for s in self.slots:
            assert s.delta is not None
            pairs = s.delta.pairs
            for j, p in enumerate(pairs.values()):
                out[f"{s.name} {j}"] = p.left.cpu()
            words = [[*map(_signed, stream), rank] for stream, rank in pairs]
            out[f"{s.name} streams"] = torch.tensor(words, dtype=torch.int64)
            out[f"{s.name} scale"] = torch.tensor(s.delta.scale, dtype=torch.float32)
        return out

    def load(self, values: Mapping[str, Tensor]) -> None:
        """The deltas that `values` gave."""
        for s in self.slots:
            assert s.delta is not None
            s.delta.pairs.clear()
            s.delta.scale = float(values[f"{s.name} scale"])
            for j, x in enumerate(values[f"{s.name} streams"].tolist()):
                k, k2, rank = (int(n) % (1 << 64) for n in x)
                s.delta.pair(((k, k2), rank)).left.copy_(values[f"{s.name} {j}"])


def _with_delta(s: Slot, device: torch.device | None) -> Slot:
    if is_vector(s):
        return s
    return replace(s, delta=Delta(s.matrix, device or s.base.device))


def _refuse(*args: Any) -> None:
    raise SpaceError(
        "the parameters are the base, which is only read, without what the run added: "
        "opt.engine.release() adds it to them; the log holds it, too"
    )


def _signed(x: int) -> int:
    return x - (1 << 64) if x >> 63 else x
