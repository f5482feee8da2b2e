"""From a journal to weights: the log and the base are the run.

Each record goes through the same rule and the same kernels as the live step did, in
log order, so the bits are the live run's on every engine, device and thread count.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from zolab.engines.base import Engine
from zolab.engines.resident import ONLY_READ, Resident
from zolab.errors import JournalError
from zolab.families import Family, Keys, directions, family_from
from zolab.gradient import Update, ZOGradient
from zolab.journal import SNAPSHOT, STEP, Journal, Record
from zolab.masks import Bits, mask_from
from zolab.optimizers.base import Rule, rule_from
from zolab.space import Slot, Space

MASKS, HESSIAN = ".masks.safetensors", " hessian"
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
        header = journal.header
        still = header["arithmetic"] == ONLY_READ
        mine = Resident(base="read-only" if still else "written")
        ours = engine or mine
        ours.bind(model, space, seed=header["seed"], rounding=header["rounding"])
        try:
            return play(journal, ours, rule_from(header["rule"]), upto=upto)
        finally:
            mine.release()  # the sum of base and delta is the model's


def play(
    journal: Journal,
    engine: Engine,
    rule: Rule,
    *,
    upto: int | None = None,
    observe: Callable[[Keys, ZOGradient], None] = lambda key, gradient: None,
) -> int:
    """Apply the journal's records to a bound engine; returns the next step.

    `observe` is told each step, for an estimator that goes on from here.
    """
    header = journal.header
    if header["arithmetic"] != engine.arithmetic:
        raise JournalError(
            f"{journal.path} is a run in another arithmetic: its is "
            f"{header['arithmetic']!r}, this engine's {engine.arithmetic!r}"
        )
    family = family_from(header["family"])
    stop = journal.next_step if upto is None else upto
    if stop > journal.next_step:
        raise JournalError(f"{journal.path} has {journal.next_step} steps, not {stop}")
    start = _load_start(journal, engine, stop)
    batch: list[tuple[Update, int]] = []
    for r in journal.records:
        if r.kind == STEP and r.step < stop:
            # Also before a snapshot: a rule with a window must have seen the log.
            key = Keys(header["seed"], r.step, r.lr)
            g = logged_gradient(family, key, r.coefficients, r.scalars)
            observe(key, g)
            if r.step >= start:
                batch.append((made(rule, g, key, header["weight_decay"]), r.step))
            else:
                made(rule, g, key, header["weight_decay"])
        if len(batch) == AT_ONCE:
            engine.apply(batch)
            batch = []
    if batch:
        engine.apply(batch)
    engine.begin(stop, journal.name)
    engine.flush()
    return stop


def logged_gradient(
    family: str | Family,
    key: Keys,
    coefficients: Sequence[float],
    scalars: Sequence[float] = (),
) -> ZOGradient:
    """The gradient of a record: direction i is the family's direction i."""
    ds = directions(family, key, len(coefficients))
    return ZOGradient(tuple(zip(ds, coefficients, strict=True)), tuple(scalars))


def made(rule: Rule, g: ZOGradient, key: Keys, decay: Sequence[float]) -> Update:
    """The rule's update, and the curvature that the gradient brought."""
    u = rule.update(g, key.step, key.lr, decay)
    return replace(u, curvature=(g.terms[0][0], g.scalars[0])) if g.scalars else u


def logged_space(model: nn.Module, journal: Journal) -> Space:
    """The slots that the header names, found in `model` by canonical name."""
    whole = Space.of(model, frozen=True)
    _regrid(whole, journal.header.get("packed", {}))
    have = {s.name: s for s in whole}
    slots = []
    for name, shape, dtype, group in journal.header["slots"]:
        s = have.get(name)
        found = None if s is None else [list(s.shape), str(s.dtype)]
        if s is None or found != [shape, dtype]:
            raise JournalError(
                f"{journal.path} moves {name} {shape} {dtype}; the model has {found}"
            )
        slots.append(Slot(s.name, s.id, s.params, group))
    return shaped(Space(tuple(slots), whole.only(slots).still), journal)


def grid_of(space: Space) -> dict[str, bool]:
    """How packed weights move: by whole levels; by scales that are factors."""
    packed = [s.packed for s in (*space, *space.still) if s.packed]
    if not packed:
        return {}
    relative = all(p.unit is not None for p in packed)
    return {"snap": any(p.snap for p in packed), "relative": relative}


def _regrid(space: Space, grid: Mapping[str, bool]) -> None:
    """Packed weights of the base become such as the run had."""
    for s in space:
        if s.packed is not None and grid:
            s.packed.snap = grid["snap"]
            if grid["relative"]:
                s.packed.relative()


def shaped(space: Space, journal: Journal) -> Space:
    """The space with the masks and the Hessian that the header speaks of."""
    if masks := journal.header.get("masks"):
        bits = _load_bits(journal) if _stored(masks) else {}
        space = space.masked({n: mask_from(m, bits.get(n)) for n, m in masks.items()})
    smooth = journal.header.get("smooth")
    return space if smooth is None else space.curved(smooth)


def save_masks(journal: Journal, space: Space) -> None:
    """The stored bits of masks, beside the log: without them it says nothing."""
    bits = {s.name: s.mask.packed for s in space if isinstance(s.mask, Bits)}
    path = journal.path.with_name(journal.path.name + MASKS)
    # A log without a record is new: a file that lies there is an older run's.
    if bits and not (path.exists() and journal.records):
        part = path.with_suffix(".part")
        save_file(bits, part)
        os.replace(part, path)


def _stored(masks: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a header's masks whose bits lie beside the log."""
    return {n: m for n, m in masks.items() if m["name"] == "Bits"}


def _load_bits(journal: Journal) -> dict[str, Tensor]:
    """The bits beside the log; JournalError unless they are those of the header."""
    path = journal.path.with_name(journal.path.name + MASKS)
    try:
        bits = load_file(path)
    except (OSError, SafetensorError) as error:
        why = "is missing" if isinstance(error, FileNotFoundError) else "is damaged"
        raise JournalError(
            f"{path} {why}: it holds the masks of the run {journal.path}, and without "
            "them the log says nothing"
        ) from error
    for name, settings in _stored(journal.header["masks"]).items():
        if name not in bits or Bits(bits[name]).settings != settings:
            raise JournalError(f"{path} holds another mask of {name} than the log's")
    return bits


def save_snapshot(journal: Journal, engine: Engine, step: int) -> Path:
    """Weights after `step` steps as safetensors beside the log, then the record."""
    path = journal.snapshot_path(step)
    part = path.with_suffix(".part")
    tensors, space = engine.values(), engine.space
    tensors |= {s.name + HESSIAN: s.curvature.hessian for s in space if s.curvature}
    save_file(tensors, part)
    os.replace(part, path)
    journal.snapshot(step, _digest(path))
    return path


def _load_start(journal: Journal, engine: Engine, stop: int) -> int:
    """Put the engine's weights where the replay starts; returns that step."""
    shots = [r for r in journal.records if r.kind == SNAPSHOT and r.step <= stop]
    if shots:
        _load_snapshot(journal, engine, shots[-1])
        return shots[-1].step
    found, wanted = engine.digest(), journal.header["base"]
    if found != wanted:
        raise JournalError(
            f"{journal.path} starts from other base weights (hash {wanted[:8]}, the "
            f"model's is {found[:8]}): load the weights that the run started from"
        )
    return 0


def _load_snapshot(journal: Journal, engine: Engine, record: Record) -> None:
    path = journal.snapshot_path(record.step)
    if not path.exists() or _digest(path) != record.payload[:8]:
        raise JournalError(f"snapshot {path} is missing or not the one that was logged")
    tensors: dict[str, Any] = load_file(path)
    engine.load(tensors, record.step)
    with torch.no_grad():
        for s in engine.space:
            if s.curvature is not None:
                s.curvature.hessian.copy_(tensors[s.name + HESSIAN])


def _digest(path: Path) -> bytes:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "blake2b").digest()[:8]
