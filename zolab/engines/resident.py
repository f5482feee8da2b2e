"""The engine for a model that fits on its device: one probe after another."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from zolab import storage
from zolab.engines.base import Objectives
from zolab.engines.guards import Seal, eval_mode, generators
from zolab.engines.mode import LOW, TILE, Materialise
from zolab.errors import LossError, UnseenSlotError
from zolab.gradient import Answer, Probe, Update
from zolab.space import Space

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
        self.model, self.space, self.seed = model, space, seed
        self.stochastic = rounding == "stochastic"
        size = sum(s.numel * s.base.element_size() for s in space)
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
        mode = Materialise(self.space, probe.terms, keep=self.keep, seen=self.seen)
        with eval_mode(self.model), torch.no_grad(), mode:
            yield self.model

    def evaluate(self, probes: list[Probe], objectives: Objectives) -> list[Answer]:
        answers = []
        restore = generators()
        for i, probe in enumerate(probes):
            if probe.objective not in objectives:
                known = ", ".join(objectives)
                raise ValueError(f"no objective {probe.objective!r}; there are {known}")
            if i:
                restore()
            with self.at(probe):
                answers.append(Answer(number(objectives[probe.objective]())))
        self._check_seen()
        return answers

    def apply(self, updates: Sequence[tuple[Update, int]]) -> None:
        for slot in self.space:
            storage.update(slot, updates, seed=self.seed, stochastic=self.stochastic)
        self.seal.set()

    def flush(self) -> None:
        """Nothing is ever pending here."""

    def check(self) -> None:
        self.seal.check()

    def _check_seen(self) -> None:
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


def number(loss: Any) -> float:
    """What the closure returned, as a Python float.

    Raises LossError unless it is a number or a tensor of one element in fp32 or
    fp64: a bf16 loss near 4 has steps of 0.016, which divided by 2 eps is noise.
    """
    if isinstance(loss, Tensor):
        if loss.numel() != 1:
            shape = tuple(loss.shape)
            raise LossError(f"the closure returned shape {shape}, expected one number")
        if loss.dtype in LOW:
            raise LossError(
                f"the loss is {loss.dtype}, expected float32: two of its neighbours "
                "differ by more than a probe does. Compute it from logits.float()."
            )
        return float(loss.item())
    try:
        value = float(loss)
    except (TypeError, ValueError):
        kind = type(loss).__name__
        raise LossError(f"the closure returned {kind}, expected one number") from None
    return value


def finite(answers: Sequence[Answer]) -> bool:
    """Whether every answer is a finite number."""
    return all(math.isfinite(a.value) for a in answers)
