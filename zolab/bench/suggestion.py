"""Is zolab.suggest right? Its lr beside a sweep, on the embedded language model.

    python -m zolab.bench suggestion [--only "all weights"] [--out DIR]

Four cases of chapter 11's task (answer with up or down): 100 steps at the suggested eps
and the suggested lr times 1/9, 1/3, 1, 2, 3 and 9, three seeds each, and the held-out
loss after them. The record holds the U curves, too.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import zolab
from zolab.bench.record import RESULTS, machine
from zolab.bench.shapes import Setting
from zolab.tasks import Sentiment, loss, splits

FACTORS = (1 / 9, 1 / 3, 1, 2, 3, 9)  # at 2 stands the best first step
SEEDS = 3
STEPS = 100
BATCHES = 4  # that the suggestion sees
CASES = ("read-out", "norm gains", "all weights", "all weights, bf16")
PATH = "bench-suggestion-cpu-tiny.json"


@dataclass(frozen=True)
class Case:
    """A fresh model, the loss of a batch, batches by seed, the held-out loss."""

    make: Callable[[], Any]
    loss: Callable[[Any, Any], Any]
    batches: Callable[[int], Any]
    held_out: Callable[[Any], float]


def main(argv: list[str] | None = None) -> int:
    """Run the cases, print a line each, write or extend the record."""
    parser = argparse.ArgumentParser(prog="python -m zolab.bench suggestion")
    parser.add_argument("--only", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    a = parser.parse_args(argv)
    torch.set_num_threads(1)
    path = a.out / PATH
    record = {"item": "suggestion", "steps": a.steps, "factors": FACTORS, "cases": {}}
    if path.exists():
        record = json.loads(path.read_text("utf-8"))
    record |= machine("suggestion", Setting("cpu", "tiny", (1,), SEEDS))
    record["command"] = "python -m zolab.bench suggestion"
    for name in a.only:
        record["cases"][name] = row = run(case(name), a.steps)
        print(
            f"  {name:18} eps {row['eps']:.1e}, lr {row['lr']:.1e}; "
            f"best of the sweep {row['best']:.1e}",
            flush=True,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    return 0


def run(c: Case, steps: int) -> dict[str, Any]:
    """The suggestion (seed 0) and the held-out losses around it."""
    model = c.make()
    stream = c.batches(0)
    some = [next(stream) for _ in range(BATCHES)]
    found = zolab.suggest(model, lambda i: c.loss(model, some[i]), batches=BATCHES)
    ends = [
        [end(c, f * found.lr, found.eps, seed, steps) for seed in range(SEEDS)]
        for f in FACTORS
    ]
    middle = [statistics.median(math.inf if x is None else x for x in e) for e in ends]
    return {
        "eps": found.eps,
        "lr": found.lr,
        "trace": found.trace,
        "share": found.share,
        "curve": [[e, y if math.isfinite(y) else None] for e, y in found.curve],
        "forwards": found.forwards,
        "reason": found.reason,
        "start": c.held_out(c.make()),
        "ends": ends,
        "best": FACTORS[middle.index(min(middle))] * found.lr,
    }


def end(c: Case, lr: float, eps: float, seed: int, steps: int) -> float | None:
    """The held-out loss after `steps`; None when the run left the numbers."""
    model, stream = c.make(), c.batches(seed)
    opt = zolab.MeZO(model, lr=lr, eps=eps, seed=seed)
    try:
        for _ in range(steps):
            batch = next(stream)
            opt.step(partial(c.loss, model, batch))
    except zolab.ZolabError:
        return None
    found = c.held_out(model)
    return found if math.isfinite(found) else None


def case(name: str) -> Case:
    """One of CASES."""
    dtype = torch.bfloat16 if "bf16" in name else torch.float32
    model, tokenizer = zolab.load_model("tiny", dtype=dtype)
    task = Sentiment(tokenizer, words=("down", "up"), max_tokens=24)
    data = splits(train=1000, dev=200, test=2)
    if name == "read-out":
        return _read_out(model, task, data)
    dev = task.batch(data.dev)

    def make() -> nn.Module:
        fresh, _ = zolab.load_model("tiny", dtype=dtype)
        for n, p in fresh.named_parameters():
            p.requires_grad_(name != "norm gains" or "norm" in n)
        return fresh

    @torch.no_grad()
    def held_out(m: nn.Module) -> float:
        return loss(m, dev).item()

    return Case(make, loss, partial(_batches, task, data.train), held_out)


def _read_out(model: Any, task: Sentiment, data: Any) -> Case:
    """What chapter 11 trains: 384 numbers on frozen states, 64 sentences a batch."""
    from zolab.lab.readout import ReadOut, states

    def rows(sentences: Sequence[Any]) -> tuple[Any, Any]:
        return states(model, task, sentences)

    (x, y), held = rows(data.train), rows(data.dev)

    def batches(seed: int) -> Any:
        g = torch.Generator().manual_seed(seed)
        while True:
            i = torch.randint(len(x), (64,), generator=g)
            yield x[i], y[i]

    def ask(m: nn.Module, batch: tuple[Any, Any]) -> Any:
        return F.binary_cross_entropy_with_logits(m(batch[0]), batch[1])

    def held_out(m: nn.Module) -> float:
        return ask(m, held).item()

    return Case(partial(ReadOut, model, task), ask, batches, held_out)


def _batches(task: Sentiment, train: Sequence[Any], seed: int) -> Any:
    return task.batches(train, 16, seed=seed)
