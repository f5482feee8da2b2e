"""The loop: rollout -> rewards -> advantages -> loss -> optimizer, again and again.

    train(model, draw, reward, "grpo", optimizer=AdamW(...), steps=30)
    train(model, draw, reward, "es", optimizer=ZOOptimizer(model, estimator=...), ...)

It only wires: each arrow is a function elsewhere. A torch optimizer back-propagates, a
ZOOptimizer asks with forward passes; what is drawn, judged, logged, evaluated and
counted is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from zolab.optimizers import ZOOptimizer
from zolab.rl.batch import Rollout
from zolab.rl.diary import Diary
from zolab.rl.metrics import Metrics
from zolab.rl.recipes import Recipe, recipe
from zolab.rl.stop import stoppable
from zolab.rl.surrogate import Reference
from zolab.rl.update import Draw, Job, Judge, backward, forward

EMA = 0.9  # of the running mean of rewards, which "reinforce_ema" subtracts


@dataclass(frozen=True)
class Trained:
    """`history`, a dict a step; `best` (step, score); `costs`, as `Meter` counts."""

    history: list[Metrics]
    best: tuple[int, float] | None
    costs: dict[str, float]


def train(
    model: nn.Module,
    draw: Draw,
    reward: Judge,
    how: str | Recipe = "grpo",
    *,
    optimizer: torch.optim.Optimizer,
    steps: int,
    seed: int = 0,
    micro: int | None = None,
    max_norm: float = 1.0,
    schedule: Callable[[int], float] | None = None,
    reference: nn.Module | Reference | None = None,
    greedy: Callable[[Rollout], Rollout] | None = None,
    evaluate: Callable[[], Mapping[str, float]] | None = None,
    every: int = 10,
    best_by: str = "pass@1",
    folder: str | Path | None = None,
    save_every: int = 10,
    bar: bool | None = None,
) -> Trained:
    """Train until `steps` steps are done; with a `folder`, from where it broke off.

    `draw`, `reward`, `greedy`, `reference`: see `Job`.  `micro`: rows of a micro-batch.
    `schedule(step)` multiplies each group's lr.  `evaluate()` gives numbers by name: it
    is called before step 1, every `every` steps and at the end, and where `best_by`
    rises the weights are kept.  A ZOOptimizer's journal is its checkpoint.  Ctrl-C
    waits for the step under way, and is raised when all is saved.
    """
    parts = model, optimizer, draw, reward, recipe(how)
    job = Job(*parts, seed, micro, max_norm, reference, greedy)
    learn = forward if isinstance(optimizer, ZOOptimizer) else backward
    diary = Diary(model, optimizer, job.meter, folder, best_by)
    quiet = None if bar is None else not bar
    with (
        stoppable() as stop,
        tqdm(total=steps, initial=diary.step, disable=quiet, unit="step") as t,
    ):
        diary.judge(evaluate, due=diary.step == 0)
        while diary.step < steps and not stop():
            if schedule is not None:
                factor = schedule(diary.step)
                for g in optimizer.param_groups:
                    g["lr"] = g.setdefault("initial_lr", g["lr"]) * factor
            row = learn(job, diary.step, diary.running)
            diary.add(row, keep=EMA)
            diary.judge(evaluate, due=diary.step % every == 0 or diary.step == steps)
            diary.save(
                due=diary.step % save_every == 0 or diary.step == steps or stop()
            )
            t.update()
            t.set_postfix(diary.headline())
    return Trained(diary.history, diary.best, job.meter.state())
