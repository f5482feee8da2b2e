"""From a journal to weights: the log and the base are the run.

Each record goes through the same rule and the same kernels as the live step did, in
log order, so the bits are the live run's on every engine, device and thread count.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from zolab.engines.base import Engine
from zolab.engines.resident import Resident
from zolab.errors import JournalError
from zolab.gradient import Direction, Update, ZOGradient
from zolab.journal import SNAPSHOT, STEP, Journal, Record
from zolab.noise import make_key
from zolab.optimizers.base import Rule, rule_from
from zolab.space import Slot, Space

AT_ONCE = 256  # records a pass over the weights: a chunk stays in cache for all of them


def replay(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    upto: int | None = None,
    engine: Engine | None = None,
) -> int:
    """Give `model` the weights that the journal's first `upto` steps made; all if None.

    `model` must hold the base weights, unless the journal has a snapshot at or before
    `upto`. Returns the number of the next step. Raises JournalError on a damaged or
    foreign log, with the weights as they were.
    """
    with Journal(path, readonly=True) as journal:
        space = logged_space(model, journal)
        engine = engine or Resident()
        header = journal.header
        engine.bind(model, space, seed=header["seed"], rounding=header["rounding"])
        return play(journal, engine, rule_from(header["rule"]), upto=upto)


def play(
    journal: Journal, engine: Engine, rule: Rule, *, upto: int | None = None
) -> int:
    """Apply the journal's records to a bound engine; returns the next step."""
    header = journal.header
    stop = journal.next_step if upto is None else upto
    if stop > journal.next_step:
        raise JournalError(f"{journal.path} has {journal.next_step} steps, not {stop}")
    start = _load_start(journal, engine, stop)
    batch: list[tuple[Update, int]] = []
    for r in journal.records:
        if r.kind == STEP and r.step < stop:
            # Also before a snapshot: a rule with a window must have seen the log.
            g = logged_gradient(
                header["seed"], r.step, header["family"], r.coefficients
            )
            update = rule.update(g, r.step, r.lr, header["weight_decay"])
            if r.step >= start:
                batch.append((update, r.step))
        if len(batch) == AT_ONCE:
            engine.apply(batch)
            batch = []
    if batch:
        engine.apply(batch)
    engine.flush()
    return stop


def logged_gradient(
    seed: int, step: int, family: str, coefficients: Sequence[float]
) -> ZOGradient:
    """The gradient of a record: direction i is key(seed, step, i)."""
    keys = (make_key(seed, step, i) for i in range(len(coefficients)))
    return ZOGradient(
        tuple(
            (Direction(k, family), c) for k, c in zip(keys, coefficients, strict=True)
        )
    )


def logged_space(model: nn.Module, journal: Journal) -> Space:
    """The slots that the header names, found in `model` by canonical name."""
    have = {s.name: s for s in Space.of(model, frozen=True)}
    slots = []
    for name, shape, dtype, group in journal.header["slots"]:
        s = have.get(name)
        found = None if s is None else [list(s.shape), str(s.dtype)]
        if s is None or found != [shape, dtype]:
            raise JournalError(
                f"{journal.path} moves {name} {shape} {dtype}; the model has {found}"
            )
        slots.append(Slot(s.name, s.id, s.params, group))
    return Space(tuple(slots))


def save_snapshot(journal: Journal, space: Space, step: int) -> Path:
    """Weights after `step` steps as safetensors beside the log, then the record."""
    path = journal.snapshot_path(step)
    part = path.with_suffix(".part")
    save_file({s.name: s.base.contiguous() for s in space}, part)
    os.replace(part, path)
    journal.snapshot(step, _digest(path))
    return path


def _load_start(journal: Journal, engine: Engine, stop: int) -> int:
    """Put the engine's weights where the replay starts; returns that step."""
    shots = [r for r in journal.records if r.kind == SNAPSHOT and r.step <= stop]
    if shots:
        _load_snapshot(journal, engine.space, shots[-1])
        return shots[-1].step
    found, wanted = engine.space.digest(), journal.header["base"]
    if found != wanted:
        raise JournalError(
            f"{journal.path} starts from other base weights (hash {wanted[:8]}, the "
            f"model's is {found[:8]}): load the weights that the run started from"
        )
    return 0


def _load_snapshot(journal: Journal, space: Space, record: Record) -> None:
    path = journal.snapshot_path(record.step)
    if not path.exists() or _digest(path) != record.payload[:8]:
        raise JournalError(f"snapshot {path} is missing or not the one that was logged")
    tensors: dict[str, Any] = load_file(path)
    with torch.no_grad():
        for s in space:
            s.params[0].data.copy_(tensors[s.name])


def _digest(path: Path) -> bytes:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "blake2b").digest()[:8]
