"""Train, look at it while it trains, stop it, and go on later from the journal.

Every finished step is in the journal before the next begins, so nothing that ends a
run loses more than the step under way; the weights are those of the finished steps.
"""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from zolab.engines.guards import generators
from zolab.errors import NonFiniteLossError
from zolab.lab.curve import Curve
from zolab.lab.screen import Screen
from zolab.noise import make_key
from zolab.optimizers import ZOOptimizer

IN_A_ROW = 10  # refused steps, and the run gives up


@dataclass(frozen=True)
class Watched:
    """How far the run came, its curve, and why it ended."""

    steps: int
    curve: Curve
    ended: str


def watch(
    opt: ZOOptimizer,
    objective: Callable[[nn.Module, Any], Any],
    batches: Iterator[Any],
    *,
    steps: int,
    score: Callable[[nn.Module], float] | None = None,
    every: int = 50,
    marks: Mapping[str, float] | None = None,
) -> Watched:
    """Step until `steps` are done or somebody stops it; then the journal is closed.

    objective(model, batch): one number, to be made small.  batches: from batch number
    `opt.steps` on; one with `.to` goes to the model's device.  score(model): shown
    after each `every` steps beside `marks`, the heights to beat.  Stop: the button, or
    an interrupt, which waits for the step under way (a second does not); outside a
    notebook it is raised when all is closed.

    A step whose loss is not finite is refused, shown and counted; ten in a row raise.
    Global generators are seeded at every step, so an objective that samples does so
    again after a resume.  The curve lies beside the journal, as JOURNAL.csv.
    """
    path = None if opt.journal is None else opt.journal.path
    beside = path.with_name(path.name + ".csv") if path else None
    curve = Curve(beside, done=opt.steps)
    asked = threading.Event()
    screen = Screen(steps, opt.steps, marks or {}, asked.set)
    ended = "broken off by an error: the journal has every finished step"
    interrupted: list[int] = []
    try:
        with _held(asked, interrupted):
            if score and opt.steps not in curve.scores and opt.steps < steps:
                curve.add(opt.steps, score=score(opt.model))
            _loop(opt, objective, batches, steps, score, every, curve, screen, asked)
        ended = _why(opt, steps, path)
    except KeyboardInterrupt:
        ended = _why(opt, steps, path)
        raise
    finally:
        if opt.journal is not None:
            opt.journal.close()
        screen.close(curve, opt.steps, ended)
    if interrupted and not screen.live:
        raise KeyboardInterrupt
    return Watched(opt.steps, curve, ended)


def _loop(
    opt: ZOOptimizer,
    objective: Callable[[nn.Module, Any], Any],
    batches: Iterator[Any],
    steps: int,
    score: Callable[[nn.Module], float] | None,
    every: int,
    curve: Curve,
    screen: Screen,
    asked: threading.Event,
) -> None:
    refused, note = 0, ""
    while opt.steps < steps and not asked.is_set():
        step, batch = opt.steps, next(batches)
        if hasattr(batch, "to"):
            batch = batch.to(next(opt.model.parameters()).device)
        try:
            with seeded(opt.seed, step):
                loss = opt.step(partial(objective, opt.model, batch))
            curve.add(step, loss=loss)
            refused = 0
        except NonFiniteLossError as why:
            curve.add(step)
            refused += 1
            note = f"step {step} refused: losses {list(why.losses)}, nothing moved"
            if refused == IN_A_ROW:
                raise
        due = score is not None and (opt.steps % every == 0 or opt.steps == steps)
        if score is not None and due:
            curve.add(opt.steps, score=score(opt.model))
        screen.draw(curve, opt.steps, note=note, now=due)


def _why(opt: ZOOptimizer, steps: int, path: Path | None) -> str:
    if opt.steps >= steps:
        return f"done: {opt.steps} steps. Ask for more steps to go on."
    again = "Run the cell again to go on." if path else "Without a journal it is over."
    return f"stopped after step {opt.steps} of {steps}. {again}"


@contextmanager
def seeded(seed: int, step: int) -> Iterator[None]:
    """Global generators as a function of (seed, step); afterwards as they were."""
    restore = generators()
    number = make_key(seed, step, 0) & 0xFFFFFFFF
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number)
    try:
        yield
    finally:
        restore()


@contextmanager
def _held(asked: threading.Event, interrupted: list[int]) -> Iterator[None]:
    """The first Ctrl-C asks to stop, a second one raises KeyboardInterrupt."""
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is None:
        yield
        return

    def handler(number: int, frame: Any) -> None:
        interrupted.append(number)
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
