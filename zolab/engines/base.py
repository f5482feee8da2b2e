"""What every engine does: answer probes, apply updates, be at a point."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor, nn

from zolab.gradient import Answer, Probe, Update
from zolab.space import Space

Objectives = Mapping[str, Callable[[], Any]]


class Engine(Protocol):
    """An engine is configured first and bound to a model and its space later."""

    space: Space
    plan: dict[str, Any]
    arithmetic: str

    def bind(self, model: nn.Module, space: Space, *, seed: int, rounding: str) -> None:
        """Take charge of the model; `plan` is then what the journal's header holds."""

    def evaluate(self, probes: list[Probe], objectives: Objectives) -> list[Answer]:
        """One answer a probe, in order; the stored weights do not change."""

    def accept(self, u: Update) -> None:
        """Raise where `apply` would: it is asked before the update is logged."""

    def apply(self, updates: Sequence[tuple[Update, int]]) -> None:
        """Apply (update, step) pairs in order; may stay pending until `flush`."""

    def flush(self) -> None:
        """Make the stored weights what the log says."""

    def check(self) -> None:
        """Raise BaseChangedError if anybody else wrote to the weights."""

    def digest(self) -> str:
        """The hash of the base weights, as `Space.digest` computes it."""

    def values(self) -> dict[str, Tensor]:
        """What a snapshot holds, by name: for `load`."""

    def load(self, values: Mapping[str, Tensor], step: int) -> None:
        """Put in the slots' values (by name) that `step` steps had made."""

    def begin(self, step: int, run: str) -> None:
        """The next step is `step`, of the run whose log's identity is `run`."""

    def at(self, probe: Probe) -> AbstractContextManager[nn.Module]:
        """Inside the context the model computes as if it stood at the probe."""
