"""The engine for a model that fits on its device: one probe after another."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from zolab.engines.readonly import ReadOnly

KEEP_BELOW = 64 << 20
WRITTEN = "w = round(decay * w + c * z), fp32, in log order"
ONLY_READ = "w = base + sum A V', A = decay * A + c * U, fp32, in log order"


class Resident:
    """Evaluate probes in turn on weights that stay where they are.

    `scratch="one"` materialises a matrix at a time, `"all"` keeps a copy of every
    slot for the length of a probe (for closures that generate), `"auto"` is "all"
    below 64 MB. `unseen="raise"` refuses slots that the first step never reads;
    `"ignore"` accepts them (a mixture of experts may rest some). `base="read-only"`
    leaves matrices as they are and keeps what a run adds to them beside them, for
    `family=LowRank(...)`: see `zolab.engines.readonly`.
    """

    def __init__(
        self, *, scratch: str = "auto", unseen: str = "raise", base: str = "written"
    ) -> None:
        if scratch not in ("auto", "one", "all"):
            raise ValueError(f"scratch is {scratch!r}, expected auto, one or all")
        if unseen not in ("raise", "ignore"):
            raise ValueError(f"unseen is {unseen!r}, expected raise or ignore")
        if base not in ("written", "read-only"):
            raise ValueError(f"base is {base!r}, expected written or read-only")
        self.scratch, self.unseen = scratch, unseen
        self.only_read = base == "read-only"
        self.arithmetic = ONLY_READ if self.only_read else WRITTEN
        self.device: torch.device | None = None  # where the model lies
        self.given: Space | None = None
        self.readonly: ReadOnly | None = None
        self.plan: dict[str, Any] = {"engine": "resident", "tile": TILE}

    def bind(self, model: nn.Module, space: Space, *, seed: int, rounding: str) -> None:
        if away := [s.name for s in space if is_away(s.params[0])]:
            raise SpaceError(
                f"{away[0]} has no values (zolab.empty_weights): it takes "
                "engine=zolab.Streamed(fill=...)"
            )
        space = self.take_over(model, space)
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
        self.hold()

    @contextmanager
    def at(self, probe: Probe) -> Iterator[nn.Module]:
        """Inside, the model computes as if it stood at `probe`; in eval mode."""
        with eval_mode(self.model), torch.no_grad(), self.mode(probe):
            yield self.model

    def mode(self, probe: Probe) -> Materialise:
        """What makes the model's parameters read as those at `probe`."""
        kind = Dual if probe.want == "jvp" else Materialise
        return kind(self.space, probe.terms, keep=self.keep, seen=self.seen)

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

    def accept(self, u: Update) -> None:
        if self.readonly is not None:
            self.readonly.growth(u)

    def values(self) -> dict[str, Tensor]:
        more = self.readonly.values() if self.readonly is not None else {}
        return {s.name: s.base.contiguous() for s in self.space if not s.delta} | more

    def load(self, values: Mapping[str, Tensor], step: int) -> None:
        with torch.no_grad():
            for slot in self.space:
                if slot.delta is None:
                    slot.base.copy_(values[slot.name])
        if self.readonly is not None:
            self.readonly.load(values)
        self.seal.set()

    def begin(self, step: int, run: str) -> None:
        """Nothing is kept here from one process to the next."""

    def release(self) -> None:
        """Leave the model as an ordinary one; where its base is only read, merged."""
        if self.readonly is not None:
            self.readonly.merge()
            self.readonly = None

    def take_over(self, model: nn.Module, space: Space) -> Space:
        """The space that this engine moves, once no other engine holds the model."""
        if self.readonly is not None and self.given is space:
            raise SpaceError(
                "a base that is only read takes neither edits nor a state dict: start "
                "again from its log, or release the engine, which merges"
            )
        held = getattr(model, "_zolab_engine", lambda: None)()
        if held is not None and held.model is model:
            held.release()
        self.release()
        self.given = space
        if not self.only_read:
            return space
        from zolab.engines.readonly import ReadOnly  # most runs never need it

        self.readonly = ReadOnly(space, self.device)
        return self.readonly.space

    def hold(self) -> None:
        """From here on the model is this engine's."""
        self.model._zolab_engine = weakref.ref(self)  # type: ignore[assignment]
        if self.readonly is not None:
            self.readonly.hook(self.model, lambda: self.mode(Probe()))

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
