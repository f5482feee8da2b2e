"""The materialising mode for blocks that come and go."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from zolab import storage
from zolab.engines.dual import Dual
from zolab.engines.mode import Materialise
from zolab.engines.scratch import Pool
from zolab.errors import StoreError
from zolab.gradient import Term
from zolab.space import Slot, Space
from zolab.storage import gather


class Visiting(Materialise):
    """Refuses slots whose block is not here; keeps vectors for a visit, not a pass.

    All probes of a pass take turns with one scratch, `pool`. `tables` are names of
    embeddings that are not on the device: they give rows only.
    """

    def __init__(
        self,
        space: Space,
        terms: Sequence[Term],
        *,
        seen: set[str],
        absent: Container[str],
        pool: Pool,
        tables: Container[str] = (),
    ) -> None:
        super().__init__(space, terms, keep=False, seen=seen)
        self.absent, self.pool, self.vectors = absent, pool, Pool()
        self.tables = tables
        self.moves |= {n: True for n in self.moves if n in tables}  # by rows, always

    def value(self, slot: Slot, dtype: torch.dtype, *, pooled: bool = False) -> Tensor:
        if slot.name in self.tables:
            raise StoreError(
                f"{slot.name} is not on the device, and something else than an "
                'embedding\'s look-up reads it: leave out embeddings="ram"'
            )
        return super().value(slot, dtype, pooled=pooled)

    def _embedding(self, slot: Slot, index: Tensor) -> Tensor:
        if slot.name not in self.tables:
            return super()._embedding(slot, index)
        flat, columns = index.reshape(-1), slot.shape[1]
        out = torch.empty(flat.numel(), columns, dtype=slot.dtype, device=index.device)
        gather.rows(slot, storage.draws(slot, self.terms), flat, out)
        return out.view(*index.shape, columns)

    def see(self, used: Sequence[Slot]) -> None:
        super().see(used)
        for slot in used:
            if slot.name in self.absent:
                raise StoreError(
                    f"{slot.name} is read outside of its block's forward pass, when "
                    "the block is not on the device. Name larger blocks, or use "
                    "Resident()."
                )

    def forget(self, names: Iterable[str]) -> None:
        """Drop what was materialised of these slots: their block leaves."""
        for name in names:
            self.kept.pop(name, None)
        self.vectors = Pool()


class VisitingDual(Visiting, Dual):
    """The same with dual numbers, for a slope along the terms."""


def visit(want: str) -> type[Visiting]:
    """The mode that answers a probe of this kind."""
    kinds: dict[str, Any] = {"jvp": VisitingDual}
    return kinds.get(want, Visiting)
