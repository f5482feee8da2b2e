"""The engine for a model that fits on its device: one probe after another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from zolab import storage
from zolab.engines.base import Objectives
from zolab.engines.dual import Dual, with_tangent
from zolab.engines.guards import Seal, eval_mode, generators
from zolab.engines.mode import TILE, Materialise
from zolab.engines.readout import number
from zolab.errors import SpaceError, UnseenSlotError
from zolab.gradient import Answer, Probe, Update
from zolab.space import Space, is_away

KEEP_BELOW = 64 << 20


class Resident:
    """Evaluate probes in turn on weights that stay where they are.

    `scratch="one"` materialises a matrix at a time, `"all"` keeps a copy of every
    slot for the length of a probe (for closures that generate), `"auto"` is "all"
    below 64 MB. `unseen="raise"` refuses slots that the first step never reads;
    `"ignore"` accepts them (a mixture of experts may rest some).
    """

    def __init__(self, *, scratch: str = "auto", unseen: str = "raise") -> None:
        if scratch not in ("auto", "one", "all"):
            raise ValueError(f"scratch is {scratch!r}, expected auto, one or all")
        if unseen not in ("raise", "ignore"):
            raise ValueError(f"unseen is {unseen!r}, expected raise or ignore")
        self.scratch, self.unseen = scratch, unseen
        self.plan: dict[str, Any] = {"engine": "resident", "tile": TILE}

    def bind(self, model: nn.Module, space: Space, *, seed: int, rounding: str) -> None:
        if away := [s.name for s in space if is_away(s.params[0])]:
            raise SpaceError(
                f"{away[0]} has no values (zolab.empty_weights): it takes "
                "engine=zolab.Streamed(fill=...)"
            )
        self.model, self.space, self.seed = model, space, seed
        self.stochastic = rounding == "stochastic"
        size = sum(s.numel * s.dtype.itemsize for s in (*space, *space.still))
        self.keep = self.scratch == "all" or (
            self.scratch == "auto" and size < KEEP_BELOW
        )
        self.plan["scratch"] = "all" if self.keep else "one"
        self.seen: set[str] = set()
        self.seal = Seal(space)
        self._checked = self.unseen == "ignore"

    @contextmanager
    def at(self, probe: Probe) -> Iterator[nn.Module]:
        """Inside, the model computes as if it stood at `probe`; in eval mode."""
        kind = Dual if probe.want == "jvp" else Materialise
        mode = kind(self.space, probe.terms, keep=self.keep, seen=self.seen)
        with eval_mode(self.model), torch.no_grad(), mode:
            yield self.model

    def evaluate(self, probes: list[Probe], objectives: Objectives) -> list[Answer]:
        answers = []
        restore = generators()
        with eval_mode(self.model):  # once for all: `at` finds it done
            for i, probe in enumerate(probes):
                if i:
                    restore()
                answers.append(self.ask(probe, objectives))
        self.check_seen()
        return answers

    def ask(self, probe: Probe, objectives: Objectives) -> Answer:
        """The answer to one probe, with whatever the global generators now hold."""
        with self.at(probe):
            return ask(probe, objectives)

    def apply(self, updates: Sequence[tuple[Update, int]]) -> None:
        for slot in self.space:
            storage.update(slot, updates, seed=self.seed, stochastic=self.stochastic)
        self.seal.set()

    def flush(self) -> None:
        """Nothing is ever pending here."""

    def check(self) -> None:
        self.seal.check()

    def digest(self) -> str:
        return self.space.digest()

    def load(self, values: Mapping[str, Tensor], step: int) -> None:
        with torch.no_grad():
            for slot in self.space:
                slot.base.copy_(values[slot.name])
        self.seal.set()

    def begin(self, step: int, run: str) -> None:
        """Nothing is kept here from one process to the next."""

    def check_seen(self) -> None:
        if self._checked:
            return
        unseen = [s.name for s in self.space if s.name not in self.seen]
        if len(unseen) == len(self.space):
            raise UnseenSlotError(
                f"the closure read none of the {len(unseen)} parameters: does it call "
                "another copy of the model, or return a number that was computed "
                "outside of it?"
            )
        if unseen:
            raise UnseenSlotError(
                f"{len(unseen)} of {len(self.space)} parameters were never read by a "
                f"torch call of the closure: {', '.join(unseen[:4])}. Freeze them "
                "(requires_grad=False), or accept them with "
                'engine=Resident(unseen="ignore").'
            )
        self._checked = True


def ask(probe: Probe, objectives: Objectives) -> Answer:
    """The probe's question, asked where its values are materialised."""
    if probe.objective not in objectives:
        known = ", ".join(objectives)
        raise ValueError(f"no objective {probe.objective!r}; there are {known}")
    closure = objectives[probe.objective]
    return with_tangent(closure) if probe.want == "jvp" else Answer(number(closure()))
