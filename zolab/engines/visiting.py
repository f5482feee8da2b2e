"""The materialising mode for blocks that come and go."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import Any

from zolab.engines.dual import Dual
from zolab.engines.mode import Materialise
from zolab.engines.scratch import Pool
from zolab.errors import StoreError
from zolab.gradient import Term
from zolab.space import Slot, Space


class Visiting(Materialise):
    """Refuses slots whose block is not here; keeps vectors for a visit, not a pass.

    All probes of a pass take turns with one scratch, `pool`.
    """

    def __init__(
        self,
        space: Space,
        terms: Sequence[Term],
        *,
        seen: set[str],
        absent: Container[str],
        pool: Pool,
    ) -> None:
        super().__init__(space, terms, keep=False, seen=seen)
        self.absent, self.pool, self.vectors = absent, pool, Pool()

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
