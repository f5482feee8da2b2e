"""One run of one row: fit it and judge it, or measure what it costs.

python -m zolab.bench.judge run|measure JSON      what the table's children do
"""

from __future__ import annotations

import copy
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import zolab
from zolab.bench.adapters import Prefix, lora
from zolab.bench.fits import FITS, InContext, held_out, score
from zolab.bench.ledger import ledger
from zolab.bench.rows import ALL, IN_FOUR_BITS, Job, Row, plan_of
from zolab.models import load_model
from zolab.tasks import Batch, Sentiment, accuracy, all_margins, f1, loss, splits

Objective = Callable[[nn.Module, Batch], Tensor]
OBJECTIVES: dict[str, Objective] = {
    "loss": loss,
    "accuracy": lambda model, batch: -accuracy(model, batch),
    "f1": lambda model, batch: -f1(model, batch),
}
POINTS = (1 / 4, 1 / 2, 1)  # of the steps: where a judged run is scored
TIMED = 8  # steps behind the seconds of one


def run(job: Job) -> dict[str, Any]:
    """Fit the row on training sentences, judge it on others.

    {"score": accuracy, f1, loss and `right`, a bit a sentence in hex; "points":
    [step, accuracy] on the way; "flat": the share of steps whose two answers were
    equal; "ended": the step at which losses ceased to be finite}
    """
    row, plan = ALL[job.row], plan_of(job.model)
    model, tokenizer = _model(job)
    model.to(job.device)
    task = Sentiment(tokenizer, words=plan.words, max_tokens=plan.max_tokens)
    data = splits(train=job.train, dev=job.dev, test=2, seed=job.seed)
    judged = data.dev if job.tune else held_out(job.held_out)
    if row.how in FITS:
        margin, label = FITS[row.how](model, task, data.train, judged, job.value)
        return {"score": score(margin, label)}
    steps, points, ended = plan.steps_of(job.row, job.steps or plan.steps), [], None
    flat = 0
    model, step = start(model, row, job)
    stream = task.batches(data.train, row.wide * plan.batch, seed=job.seed)
    stops = [math.ceil(share * steps) for share in POINTS]
    for k in range(steps):
        slope = step(next(stream).to(job.device), 1 - k / steps)
        flat += slope == 0
        if not math.isfinite(slope):
            ended = k
            break
        if k + 1 in stops[:-1] and not job.tune:
            now = score(*all_margins(model, task, judged))
            points.append([k + 1, now["accuracy"]])
    end = score(*all_margins(model, task, judged))
    return {
        "score": end,
        "points": [*points, [steps, end["accuracy"]]],
        "steps": steps,
        "flat": flat / steps,
        "ended": ended,
    }


def measure(job: Job) -> dict[str, Any]:
    """Peak bytes of tensors, and seconds: of a step, or before the first answer.

    On a CPU seconds are the processor's, on one thread; on a GPU the clock's.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler greets on stderr
    row, plan = ALL[job.row], plan_of(job.model)
    base, tokenizer = _model(job)
    task = Sentiment(tokenizer, words=plan.words, max_tokens=plan.max_tokens)
    data = splits(train=job.train, dev=0, test=2, seed=0)
    if row.how == "context":
        task = InContext(**vars(task), shown=data.train[: int(job.value)])
    batches = task.batches(data.train, row.wide * plan.batch)
    batch = next(batches).to(job.device)

    def build() -> Callable[[], Any]:
        model = copy.deepcopy(base).to(job.device)
        if row.how in FITS:
            return torch.no_grad()(lambda: loss(model, batch))
        _, step = start(model, row, job)
        return lambda: step(batch, 1.0)

    peak = ledger(build, device=job.device).peak
    model = base.to(job.device)
    if row.how in FITS:
        began = _now(job)
        if row.how in ("bias", "probe"):
            FITS[row.how](model, task, data.train, data.train[:2], job.value or 1e-2)
        return {"peak_mb": peak / 1e6, "seconds": _now(job) - began}
    _, step = start(model, row, job)
    step(batch, 1.0)  # kernels are compiled
    taken = []
    for _ in range(TIMED):
        batch = next(batches).to(job.device)
        began = _now(job)
        step(batch, 1.0)
        taken.append(_now(job) - began)
    return {"peak_mb": peak / 1e6, "step_seconds": statistics.mean(taken)}


# batch, share of lr -> a slope: 0 when the step saw nothing, nan when it was refused
Step = Callable[[Batch, float], float]


def start(model: Any, row: Row, job: Job) -> tuple[Any, Step]:
    """What moves, and the step that moves it at `job.value` times a share."""
    if row.codec or row.how in ("lean", "adam8", "adam4") or row.options:
        from zolab.bench import grid  # what chapter 14 does without

        return grid.start(model, row, job, OBJECTIVES[row.objective])
    if row.moves == "lora":
        model = lora(model, seed=job.seed)
    if row.moves == "prefix":
        model = Prefix(model, seed=job.seed)
    ask = OBJECTIVES[row.objective]
    if row.how == "adamw":
        adam = torch.optim.AdamW(model.parameters(), lr=job.value)

        def back(batch: Batch, share: float) -> float:
            adam.param_groups[0]["lr"] = share * job.value
            adam.zero_grad()
            found = ask(model, batch)
            found.backward()
            adam.step()
            return float(found.detach())  # any number but 0

        return model, back
    mezo = zolab.MeZO(model, lr=job.value, eps=row.eps, seed=job.seed)

    def forward(batch: Batch, share: float) -> float:
        for group in mezo.param_groups:
            group["lr"] = share * job.value
        try:
            mezo.step(partial(ask, model, batch))
        except zolab.errors.NonFiniteLossError:
            return math.nan
        up, down = mezo.last.losses if mezo.last else (math.nan, math.nan)
        return (up - down) / (2 * row.eps)

    return model, forward


def _model(job: Job) -> tuple[Any, Any]:
    if job.device == "cpu":
        torch.set_num_threads(1)
    torch.manual_seed(job.seed)
    as_read = ALL[job.row].codec == "int4" and job.model in IN_FOUR_BITS
    return load_model(job.model, packed=as_read)


def _now(job: Job) -> float:
    if job.device != "cpu":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


JOBS = {"run": run, "measure": measure}

if __name__ == "__main__":
    what, job = sys.argv[1:]
    print(json.dumps(JOBS[what](Job(**json.loads(job)))))
