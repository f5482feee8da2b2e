"""Accuracy against bytes: methods that learn on the grid, each beside its twin.

    python -m zolab.bench grid [--model smollm2-135m] [--device cuda] [--minutes 25]
        [--seeds 5] [--steps N] [--only qzo steps] [--costs] [--workers 8] [--out DIR]

The protocol is that of `zolab.bench.table`: three values of the knob on validation,
five other seeds on held-out snippets. What has no backward pass takes 300 steps, what
has one a tenth. The twins: AdamW on the scales of the same codes (the second phase of
EfficientQAT, arXiv:2407.11062) of QZO, QLoRA (arXiv:2305.14314) and AdamW with states
of 8 bits (arXiv:2110.02861, bitsandbytes) and of 4 (arXiv:2309.01507, torchao) of what
moves all weights. A row whose library is not there is named, and the others go on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import zolab
from zolab.bench.adapters import lora
from zolab.bench.rows import GRID, Job, Row
from zolab.bench.table import command
from zolab.tasks import Batch

EVERY = (
    *("q_proj", "k_proj", "v_proj", "o_proj"),
    *("gate_proj", "up_proj", "down_proj"),
)  # QLoRA's targets: all linears of a block
Objective = Callable[[nn.Module, Batch], Tensor]
Step = Callable[[Batch, float], float]


def start(model: Any, row: Row, job: Job, ask: Objective) -> tuple[Any, Step]:
    """The model in its codec, and the step that moves it, as `judge.start`."""
    if row.codec and not zolab.packed_weights(model):  # a file's codes are left alone
        zolab.pack(model, row.codec)
    if row.how in FIRST:
        return model, _backward(FIRST[row.how](model, job), model, job, ask)
    return model, _forward(_on_the_grid(model, row, job), model, job, ask)


def _on_the_grid(model: Any, row: Row, job: Job) -> zolab.ZOOptimizer:
    """`value` is the knob's; a probe decodes one matrix at a time."""
    known: dict[str, Any] = {row.knob: job.value, "seed": job.seed, **row.options}
    known["engine"] = zolab.Resident(scratch="one")
    if row.how == "zoqo":
        return zolab.ZOQO(model, lr=1e-9, **known)  # a level at each step
    kinds: dict[str, Any] = {"lean": zolab.MeZO, "quzo": zolab.QuZO, "qzo": zolab.QZO}
    return kinds[row.how](model, eps=row.eps, **known)


def _forward(opt: Any, model: Any, job: Job, ask: Objective) -> Step:
    rates = [g["lr"] for g in opt.param_groups]

    def step(batch: Batch, share: float) -> float:
        for group, lr in zip(opt.param_groups, rates, strict=True):
            group["lr"] = share * lr
        try:
            opt.step(partial(ask, model, batch))
        except zolab.errors.NonFiniteLossError:
            return math.nan
        up, down = opt.last.losses
        return (up - down) / (2 * opt.estimator.eps)

    return step


def _backward(opt: Any, model: Any, job: Job, ask: Objective) -> Step:
    """One block's activations at a time; transformers asks for train()."""
    model.config.use_cache = False
    model.gradient_checkpointing_enable({"use_reentrant": False})

    def step(batch: Batch, share: float) -> float:
        model.train()
        for group in opt.param_groups:
            if isinstance(group["lr"], Tensor):  # torchao compiles its step for one
                group["lr"].fill_(share * job.value)
            else:
                group["lr"] = share * job.value
        opt.zero_grad()
        found = ask(model, batch)
        found.backward()
        opt.step()
        model.eval()
        return float(found.detach())  # any number but 0

    return step


def _moving(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def _adamw(model: Any, job: Job) -> torch.optim.Optimizer:
    return torch.optim.AdamW(_moving(model), lr=job.value)


def _adam8(model: Any, job: Job) -> torch.optim.Optimizer:
    import bitsandbytes as bnb

    return bnb.optim.AdamW8bit(_moving(model), lr=job.value)


def _adam4(model: Any, job: Job) -> torch.optim.Optimizer:
    from torchao.optim import AdamW4bit

    return AdamW4bit(_moving(model), lr=job.value)


def _steps(model: Any, job: Job) -> torch.optim.Optimizer:
    """The scales, by their gradient; no decay, as in QZO."""
    for p in zolab.packed_weights(model).values():
        p.scale.requires_grad_(True)
    return torch.optim.AdamW(_moving(model), lr=job.value, weight_decay=0.0)


def _qlora(model: Any, job: Job) -> torch.optim.Optimizer:
    lora(model, seed=job.seed, targets=EVERY)
    return torch.optim.AdamW(_moving(model), lr=job.value)


FIRST = {
    "adamw": _adamw,
    "adam8": _adam8,
    "adam4": _adam4,
    "steps": _steps,
    "qlora": _qlora,
}


def main(argv: list[str] | None = None) -> int:
    """Fill the table, print its rows."""
    return command(argv, "grid", GRID, "qzo")
