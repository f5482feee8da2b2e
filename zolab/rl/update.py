"""One step of learning from rewards: back-propagated, or with forward passes only.

    backward    draw, judge, prepare;  updates times: micro-batches, clip, step
    surrogate   draw, judge, prepare;  one zeroth-order step on the same surrogate
    reward      one zeroth-order step on -mean reward; every probe draws its answers

A step's random numbers are a function of (seed, step): it does not matter how often a
run is evaluated or broken off, and all probes of a step draw the same uniforms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from zolab.engines.guards import uninterrupted
from zolab.errors import NonFiniteLossError
from zolab.noise import make_key
from zolab.optimizers import ZOOptimizer
from zolab.rl import metrics
from zolab.rl.batch import Rollout
from zolab.rl.logps import token_logps
from zolab.rl.meter import Meter
from zolab.rl.metrics import Metrics, Tally
from zolab.rl.recipes import Recipe
from zolab.rl.sampling import dynamic_sampling
from zolab.rl.surrogate import Batch, Reference, prepare, surrogate

Draw = Callable[[int, torch.Generator], Any]
Judge = Callable[[Rollout], Any]
Values = Sequence[float | None]


@dataclass
class Job:
    """What a run is made of; `draw` and `reward` are closures over model and task.

    `draw(cursor, generator)` gives the rollout of the cursor's prompts, all of its
    randomness from the generator. `reward(rollout)` gives a number or None a row, or
    an object with those as `totals`. `greedy(rollout)` gives the greedy answers to
    its prompts, a row a group with the group's id (ReMax). `reference` is a model or a
    function of the rollout.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    draw: Draw
    reward: Judge
    recipe: Recipe
    seed: int = 0
    micro: int | None = None
    max_norm: float = 1.0
    reference: nn.Module | Reference | None = None
    greedy: Callable[[Rollout], Rollout] | None = None
    meter: Meter = field(default_factory=Meter)


def generator(seed: int, cursor: int) -> torch.Generator:
    """A fresh generator, a pure function of its two numbers."""
    return torch.Generator().manual_seed(make_key(seed, cursor, 0) >> 1)


def collect(job: Job, step: int) -> tuple[Rollout, Values, Metrics]:
    """The step's rollout, its rewards, and what the judge says for the log."""
    said: Metrics = {}

    def once(i: int) -> tuple[Rollout, Values]:
        cursor = step * job.recipe.tries + i
        with job.meter.phase("generate"):
            rollout = job.draw(cursor, generator(job.seed, cursor))
        job.meter.drew(len(rollout), rollout.tokens)
        judged = job.reward(rollout)
        if hasattr(judged, "metrics"):
            said.update(judged.metrics())
        return rollout, totals(judged)

    if job.recipe.tries == 1:
        return *once(0), said
    rollout, rewards, drawn = dynamic_sampling(once, tries=job.recipe.tries)
    return rollout, rewards, said | {"drawn": float(drawn)}


def ready(job: Job, step: int, running: float | None) -> tuple[Batch, Metrics]:
    """The step's batch and the metrics of its rollout."""
    rollout, rewards, row = collect(job, step)
    if job.recipe.recompute:
        with torch.no_grad(), job.meter.phase("train"):
            old = token_logps(job.model, rollout).logps
        job.meter.passed(rollout)
        rollout = rollout.scored(old)
    batch = prepare(
        rollout,
        rewards,
        job.recipe,
        reference=as_function(job.reference, job.meter),
        greedy=baseline(job, rollout) if job.greedy else None,
        running=running,
    )
    return batch, row | metrics.of_rollout(rollout, batch.scores, batch.advantages)


def baseline(job: Job, rollout: Rollout) -> Values:
    """A row's greedy reward: that of its group's greedy answer."""
    assert job.greedy is not None
    with job.meter.phase("generate"):
        likely = job.greedy(rollout)
    job.meter.drew(len(likely), likely.tokens)
    of = dict(zip(likely.group.tolist(), totals(job.reward(likely)), strict=True))
    return [of[g] for g in rollout.group.tolist()]


def backward(job: Job, step: int, running: float | None) -> Metrics:
    """`recipe.updates` gradient steps on one rollout; a non-finite gradient is refused.

    A batch without any signal (all rewards equal) makes no step: Adam's momentum would
    move the weights on its own.
    """
    batch, row = ready(job, step, running)
    parameters = [p for g in job.optimizer.param_groups for p in g["params"]]
    parts = batch.parts(job.micro, signal_only=job.recipe.signal_only)
    tally, loss, norm, refused = Tally(), 0.0, 0.0, 0
    for _ in range(job.recipe.updates if parts else 0):
        with job.meter.phase("train"):
            job.optimizer.zero_grad(set_to_none=True)
            loss = 0.0
            for rows in parts:
                part = surrogate(job.model, batch, job.recipe, rows, tally=tally)
                part.backward()
                loss += part.item()
                job.meter.passed(batch.rollout.rows(rows), back=True)
            norm = float(nn.utils.clip_grad_norm_(parameters, job.max_norm))
            if math.isfinite(norm):
                with uninterrupted():
                    job.optimizer.step()
            else:
                refused += 1
            tally.first = False
    job.optimizer.zero_grad(set_to_none=True)
    moved = {"loss": loss, "grad_norm": norm, "refused": float(refused)}
    return row | moved | tally.result()


def forward(job: Job, step: int, running: float | None) -> Metrics:
    """One step of a ZOOptimizer, on rewards alone or on a fixed rollout's surrogate."""
    optimizer = job.optimizer
    assert isinstance(optimizer, ZOOptimizer)
    row: Metrics = {}
    if job.recipe.objective == "reward":
        objective, count = on_rewards(job, step)
    else:
        batch, row = ready(job, step, running)
        objective, count = on_surrogate(job, batch)
    try:
        with job.meter.phase("train"):
            loss, refused = optimizer.step(objective), 0
        assert optimizer.last is not None
        probes = optimizer.last.losses
    except NonFiniteLossError as why:
        loss, refused, probes = math.nan, 1, why.losses
    count(len(probes))
    if job.recipe.objective == "reward":
        row = {"reward": -loss, "population_spread": max(probes) - min(probes)}
    return row | {"loss": loss, "refused": float(refused)}


Counted = Callable[[int], None]
"""Told how many probes were asked, it tells the meter what they cost."""


def on_rewards(job: Job, step: int) -> tuple[Callable[[], Any], Counted]:
    """-mean reward of answers that are drawn where it is asked."""
    calls: list[tuple[int, int]] = []

    def objective() -> Any:
        answers = job.draw(step, generator(job.seed, step))
        calls.append((len(answers), answers.tokens))
        rewards = totals(job.reward(answers))
        if isinstance(rewards, Tensor):  # of a population, all members' at once
            return -rewards.float().mean()
        known = [r for r in rewards if r is not None]
        return -sum(known) / len(known) if known else math.nan

    def count(probes: int) -> None:
        rows, tokens = map(sum, zip(*calls, strict=True))
        each = probes / len(calls)  # a population calls once for many probes
        job.meter.drew(round(each * rows), round(each * tokens))

    return objective, count


def on_surrogate(job: Job, batch: Batch) -> tuple[Callable[[], Tensor], Counted]:
    """The loss of a fixed rollout at the weights of the moment."""
    parts = batch.parts(job.micro, signal_only=job.recipe.signal_only)

    def objective() -> Tensor:
        if not parts:  # all rewards equal: no direction is better, and none is taken
            return token_logps(job.model, batch.drawn.rows(slice(1))).logps.sum() * 0
        losses = [surrogate(job.model, batch, job.recipe, rows) for rows in parts]
        return torch.stack(losses).sum()

    def count(probes: int) -> None:
        if parts:
            job.meter.passed(batch.rollout.rows(torch.cat(parts)), times=probes)

    return objective, count


def as_function(reference: Any, meter: Meter) -> Reference | None:
    """A reference model as a function of the rollout."""
    if not isinstance(reference, nn.Module):
        known: Reference | None = reference
        return known

    def scored(rollout: Rollout) -> Tensor:
        meter.passed(rollout)
        return token_logps(reference, rollout).logps

    return scored


def totals(judged: Any) -> Any:
    """One reward a row, of a list or of an object that has them as `totals`."""
    return getattr(judged, "totals", judged)
