"""The front door: a torch.optim.Optimizer whose step asks, combines, logs, moves.

opt = MeZO(model, lr=1e-6, eps=1e-3)
loss = opt.step(lambda: model(**batch).loss)
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zolab.engines.base import Engine
from zolab.engines.guards import uninterrupted
from zolab.engines.readout import finite
from zolab.engines.resident import Resident
from zolab.errors import JournalError, NonFiniteLossError
from zolab.estimators import SPSA, Estimator
from zolab.families import Family, Keys, settings_of
from zolab.gradient import Answer, Probe, ZOGradient
from zolab.journal import Journal, storable
from zolab.masks import Mask
from zolab.optimizers.base import Rule
from zolab.optimizers.groups import decay_groups
from zolab.optimizers.rebuild import (
    grid_of,
    logged_gradient,
    made,
    play,
    save_masks,
    save_snapshot,
)
from zolab.optimizers.sgd import SGD
from zolab.space import Space

Closure = Callable[[], Any]


@dataclass(frozen=True)
class Last:
    """What the last step saw: the probes' losses in order, its gradient, its time."""

    losses: tuple[float, ...]
    gradient: ZOGradient
    seconds: float


class ZOOptimizer(torch.optim.Optimizer):
    """propose, evaluate, combine, log, update: any estimator, rule and engine.

    `param_groups` are torch's (params, lr, weight_decay), so any torch lr scheduler
    works. `journal` is a path: a missing file starts a run, an existing one is
    replayed onto the model, which must hold the base weights. It survives a killed
    process; with `fsync=True` also a power cut, at a few milliseconds a step.
    `rounding` is how bf16 and fp16 store an update: "stochastic" or "nearest".
    `notes` (JSON values by name: the data, the batch size) stand in the journal's
    header, and who resumes must bring the same. `masks` (`zolab.masks`, by slot name)
    leave weights where they are.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        estimator: Estimator,
        rule: Rule | None = None,
        engine: Engine | None = None,
        journal: str | os.PathLike[str] | None = None,
        seed: int = 0,
        lr: float = 1e-6,
        weight_decay: float = 0.0,
        param_groups: list[dict[str, Any]] | None = None,
        rounding: str = "stochastic",
        fsync: bool = False,
        notes: Mapping[str, Any] | None = None,
        masks: Mapping[str, Mask] | None = None,
    ) -> None:
        if rounding not in ("stochastic", "nearest"):
            raise ValueError(
                f"rounding is {rounding!r}, expected stochastic or nearest"
            )
        if not lr >= 0 or not weight_decay >= 0:
            raise ValueError(f"lr {lr} and weight_decay {weight_decay} must be >= 0")
        whole = Space.of(model)
        groups = param_groups or decay_groups(model, weight_decay)
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})
        self.model, self.estimator, self.rule = model, estimator, rule or SGD()
        if hasattr(self.rule, "check"):
            self.rule.check(estimator)
        self.space = whole.grouped(self.param_groups).masked(masks or {})
        self.smooth: float | None = getattr(estimator, "smooth", None)
        if self.smooth is not None:
            self.space = self.space.curved(self.smooth)
        self.seed, self.steps, self.rounding = int(seed), 0, rounding
        self.engine = engine or Resident()
        self.engine.bind(model, self.space, seed=self.seed, rounding=rounding)
        self.last: Last | None = None
        self.journal: Journal | None = None
        self._torn = False
        if journal is not None:
            self._open(journal, fsync, dict(notes or {}))
        else:
            self.engine.begin(0, "")

    def step(self, closure: Closure, /, **objectives: Closure) -> float:  # type: ignore[override]
        """One step; returns the mean of the probes' losses.

        `closure` takes no argument and returns one number, computed with the model:
        it runs once a probe and must use the same batch each time. Named objectives
        are closures that an estimator may ask for. Nothing has moved when it raises.
        """
        if self._torn:
            raise JournalError("an update broke off half way: rebuild from the journal")
        began = time.perf_counter()
        self.engine.check()
        closures: Mapping[str, Closure] = {"loss": closure, **objectives}
        lr = storable([float(g["lr"]) for g in self.param_groups])
        gradient, losses = self._estimate(closures, lr)
        self._move(Keys(self.seed, self.steps, lr), gradient)
        self.last = Last(losses, gradient, time.perf_counter() - began)
        return sum(losses) / len(losses)

    def snapshot(self) -> Path:
        """Write the weights beside the journal, so that a replay may start there."""
        if self.journal is None:
            raise JournalError("a snapshot belongs to a journal; pass journal=path")
        self.engine.flush()
        return save_snapshot(self.journal, self.engine, self.steps)

    def rebase(self) -> None:
        """Accept weights that were edited since the last step."""
        self._bind()
        self._torn = False
        if self.journal is not None:
            self.snapshot()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if hasattr(self, "space"):
            raise ValueError("the groups are fixed: the log's slots follow from them")
        super().add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        mine: dict[str, Any] = {"steps": self.steps, "seed": self.seed}
        for name in ("rule", "estimator"):
            if hasattr(part := getattr(self, name), "state_dict"):
                mine[name] = part.state_dict()
        curved = {s.name: s.curvature.hessian for s in self.space if s.curvature}
        return super().state_dict() | {"zolab": mine | {"hessian": curved}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        mine = state_dict["zolab"]
        if mine["seed"] != self.seed:
            raise ValueError(f"the state has seed {mine['seed']}, this run {self.seed}")
        super().load_state_dict(state_dict)
        self.steps = mine["steps"]
        for name in mine.keys() & {"rule", "estimator"}:
            getattr(self, name).load_state_dict(mine[name])
        for s in self.space:
            if s.curvature is not None:
                s.curvature.hessian.copy_(mine["hessian"][s.name])
        self._bind()

    def _bind(self) -> None:
        self.engine.bind(self.model, self.space, seed=self.seed, rounding=self.rounding)
        run = self.journal.name if self.journal is not None else ""
        self.engine.begin(self.steps, run)

    def _estimate(
        self, closures: Mapping[str, Closure], lr: tuple[float, ...]
    ) -> tuple[ZOGradient, tuple[float, ...]]:
        step, losses = self.steps, []
        proposal = self.estimator.propose(Keys(self.seed, step, lr))
        probes: list[Probe] = next(proposal)
        while True:
            answers: list[Answer] = self.engine.evaluate(probes, closures)
            losses += [a.value for a in answers]
            if not finite(answers):
                if self.journal is not None:
                    self.journal.refuse(step)
                self.steps += 1
                raise NonFiniteLossError(step, tuple(losses))
            try:
                probes = proposal.send(answers)
            except StopIteration as done:
                return done.value, tuple(losses)

    def _move(self, key: Keys, found: ZOGradient) -> None:
        """Log, then apply what a replay will apply."""
        coefficients = storable([c for _, c in found.terms])
        scalars = storable(found.scalars)
        gradient = logged_gradient(self.estimator.family, key, coefficients, scalars)
        decay = self._weight_decay()
        if self.journal is not None and decay != self.journal.header["weight_decay"]:
            raise JournalError(
                f"weight_decay is {decay}, the journal's header says "
                f"{self.journal.header['weight_decay']}: only lr may change in a run"
            )
        update = made(self.rule, gradient, key, decay)
        self.engine.accept(update)
        with uninterrupted():
            if self.journal is not None:
                self.journal.append(key.step, key.lr, coefficients, scalars)
            self._torn = True
            self.engine.apply([(update, key.step)])
            self._torn = False
            self.steps = key.step + 1
        self._observe(key, gradient)

    def _observe(self, key: Keys, gradient: ZOGradient) -> None:
        """Tell an estimator that remembers; a replay tells it again."""
        if hasattr(self.estimator, "observe"):
            self.estimator.observe(key, gradient)

    def _weight_decay(self) -> list[float]:
        return [float(g["weight_decay"]) for g in self.param_groups]

    def _header(self) -> dict[str, Any]:
        return {
            "arithmetic": self.engine.arithmetic,
            "torch": torch.__version__,
            "seed": self.seed,
            "estimator": self.estimator.settings,
            "family": settings_of(self.estimator.family),
            "rule": self.rule.settings,
            "rounding": self.rounding,
            "queries": self.estimator.num_queries,
            "scalars": getattr(self.estimator, "scalars", 0),
            "smooth": self.smooth,
            "masks": {s.name: s.mask.settings for s in self.space if s.mask},
            "packed": grid_of(self.space),
            "groups": len(self.param_groups),
            "weight_decay": self._weight_decay(),
            "slots": [
                [s.name, list(s.shape), str(s.dtype), s.group] for s in self.space
            ],
            "plan": self.engine.plan,
        }

    def _open(
        self, path: str | os.PathLike[str], fsync: bool, notes: dict[str, Any]
    ) -> None:
        header = self._header()
        if clash := notes.keys() & (header.keys() | {"base"}):
            raise ValueError(f"the header has its own {sorted(clash)}: rename the note")
        version = header.pop("torch")
        wanted = notes | header
        exists = os.path.exists(path) and os.path.getsize(path) > 0
        if not exists:
            wanted |= {"torch": version, "base": self.engine.digest()}
        self.journal = Journal(path, wanted, fsync=fsync)
        try:
            named = notes.keys() | ({"masks"} if header["masks"] else set())
            if silent := named - self.journal.header.keys():
                raise JournalError(
                    f"{path} belongs to another run: it says nothing of its "
                    f"{', '.join(sorted(silent))}"
                )
            if exists:
                self.steps = play(
                    self.journal, self.engine, self.rule, observe=self._observe
                )
            else:
                self.engine.begin(0, self.journal.name)
            save_masks(self.journal, self.space)
        except BaseException:
            self.journal.close()  # a notebook keeps the error, and us in its frames
            raise


class MeZO(ZOOptimizer):
    """Published MeZO's algorithm with exact restore: SPSA, SGD, resident weights.

    S. Malladi et al., Fine-tuning language models with just forward passes,
    arXiv:2305.17333. `lr` 1e-7 to 1e-6 and `eps` 1e-3 are the paper's for all weights
    of a large model, `lr` 5e-5 to 1e-4 and `eps` 1e-2 for LoRA. `weight_decay` spares
    norms and biases. `num_queries` directions cost 2 forward passes each. `clip` bounds
    each one's slope. With `masks=masks.smallest(Space.of(model), 0.25)` it is
    Sparse-MeZO, with `family=LowRank()` LOZO.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 1e-6,
        eps: float = 1e-3,
        seed: int = 0,
        journal: str | os.PathLike[str] | None = None,
        weight_decay: float = 0.0,
        num_queries: int = 1,
        family: str | Family = "rademacher",
        clip: float | None = None,
        engine: Engine | None = None,
        param_groups: list[dict[str, Any]] | None = None,
        rounding: str = "stochastic",
        fsync: bool = False,
        notes: Mapping[str, Any] | None = None,
        masks: Mapping[str, Mask] | None = None,
    ) -> None:
        super().__init__(
            model,
            estimator=SPSA(eps=eps, num_queries=num_queries, family=family, clip=clip),
            engine=engine,
            journal=journal,
            seed=seed,
            lr=lr,
            weight_decay=weight_decay,
            param_groups=param_groups,
            rounding=rounding,
            fsync=fsync,
            notes=notes,
            masks=masks,
        )
