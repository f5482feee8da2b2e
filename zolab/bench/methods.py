"""Should I use this at all? MeZO beside the methods that differentiate.

    python -m zolab.bench methods [--model smollm2-135m] [--seconds 60] [--seeds 3]
        [--only mezo lora] [--batch 8] [--held-out 96] [--out DIR]

Prompted sentiment, every run in a process of its own: held-out loss and accuracy
against seconds of training (evaluations are off the clock), and the peak memory of the
process. A record of the same setting is added to, so that methods can be run one by
one. Not part of `all`: it downloads a model and needs the extra `peers`.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zolab.bench.memory import _cpu_meter, _gpu_meter
from zolab.bench.record import RESULTS, cpu_name, machine
from zolab.bench.shapes import Setting
from zolab.models import load_model
from zolab.tasks import Sentiment, evaluate, loss, splits

EVALUATE_AT = (1 / 4, 1 / 2, 1)  # of the seconds


@dataclass(frozen=True)
class Method:
    """A row: what it is called, its lr, and where that lr is from."""

    label: str
    lr: float
    lr_from: str


# Nobody's lr was tuned on this task: the others have a default of their papers, MeZO
# what zolab.suggest says at the start (0.0 here; it stands in the record).
METHODS = {
    "inference": Method("inference alone", 0.0, "nothing moves"),
    "mezo": Method("MeZO", 0.0, "zolab.suggest, before the clock starts"),
    "adamw": Method("AdamW", 2e-5, "BERT's fine-tuning range, arXiv:1810.04805"),
    "adam8": Method("AdamW 8-bit, checkpointing", 2e-5, "as AdamW"),
    "lora": Method("LoRA, checkpointing", 2e-4, "LoRA's and QLoRA's, arXiv:2305.14314"),
    "qlora": Method("QLoRA (NF4)", 2e-4, "arXiv:2305.14314"),
}
RANK = 8
EPS = 1e-3  # MeZO's, the paper's
FITTED = 64  # sentences behind the bias-only row


@dataclass(frozen=True)
class Job:
    """What a child process does; travels as JSON."""

    method: str
    model: str
    seed: int
    seconds: float
    batch: int
    held_out: int
    device: str = "cpu"
    lr: float = 0.0


def run(job: Job) -> dict[str, Any]:
    """Train for `job.seconds`: points (seconds, steps, loss, accuracy) and the peak."""
    torch.set_num_threads(1)
    torch.manual_seed(job.seed)
    reset, peak = _gpu_meter() if job.device == "cuda" else _cpu_meter()
    model, tokenizer = load_model(job.model)
    model.to(job.device)
    task = Sentiment(tokenizer)
    data = splits(train=1000, dev=0, test=job.held_out, seed=job.seed)
    batches = task.batches(data.train, job.batch, seed=job.seed)
    model, step = STEPS[job.method](model, job)
    gc.collect()
    reset()

    def score() -> tuple[float, float]:
        # In batches of the training's size, so that this is never the peak.
        s = evaluate(
            model, task, data.test, train=data.train[:2], batch_size=job.batch
        ).model
        return s.loss, s.accuracy

    still = job.method == "inference"
    points = [(0.0, 0, *score())] if still else []  # where the others start, too
    # One thread: its CPU seconds are the wall's of a machine with no other work.
    now = time.perf_counter if job.device == "cuda" else time.process_time
    first = task.batch(data.train[: job.batch]).to(job.device)
    with torch.no_grad():  # what this machine's seconds are worth at this moment
        loss(model, first)
        began = now()
        loss(model, first).item()
        forward = now() - began
    clock, steps = 0.0, 0
    for share in EVALUATE_AT:
        while clock < share * job.seconds:
            batch = next(batches).to(job.device)
            began = now()
            step(partial(loss, model, batch))
            if job.device == "cuda":
                torch.cuda.synchronize()
            clock, steps = clock + now() - began, steps + 1
        if not still:
            points.append((clock, steps, *score()))
    return {
        "seed": job.seed,
        "lr": job.lr,
        "points": points,
        "peak_mb": peak(),
        "step_seconds": clock / steps,
        "forward_seconds": forward,
        "cpu": cpu_name(),
        "clock": "wall" if job.device == "cuda" else "cpu",
        "load": round(os.getloadavg()[0], 2),
    }


Step = Callable[[Callable[[], Any]], Any]


def _inference(model: Any, job: Job) -> tuple[Any, Step]:
    return model, torch.no_grad()(lambda closure: closure())


def _mezo(model: Any, job: Job) -> tuple[Any, Step]:
    import zolab

    return model, zolab.MeZO(model, lr=job.lr, eps=EPS, seed=job.seed).step


def _backward(model: Any, opt: torch.optim.Optimizer) -> tuple[Any, Step]:
    def step(closure: Callable[[], Any]) -> None:
        opt.zero_grad()
        closure().backward()
        opt.step()

    return model, step


def _adamw(model: Any, job: Job) -> tuple[Any, Step]:
    return _backward(model, torch.optim.AdamW(model.parameters(), lr=job.lr))


def _adam8(model: Any, job: Job) -> tuple[Any, Step]:
    import bitsandbytes as bnb

    _checkpoint(model)
    return _backward(model, bnb.optim.AdamW8bit(model.parameters(), lr=job.lr))


def _lora(model: Any, job: Job) -> tuple[Any, Step]:
    """Rank 8 on every linear of the body; the base is frozen."""
    import bitsandbytes as bnb
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=RANK, lora_alpha=16, target_modules="all-linear")
    inner = get_peft_model(model, config).get_base_model()
    _checkpoint(inner)
    moving = [p for p in inner.parameters() if p.requires_grad]
    return _backward(inner, bnb.optim.AdamW8bit(moving, lr=job.lr))


def _qlora(model: Any, job: Job) -> tuple[Any, Step]:
    """The same on a base in NF4: every linear but the head, which is tied."""
    _to_nf4(model.model)
    model.is_loaded_in_4bit = True  # peft asks
    return _lora(model, job)


def _to_nf4(module: nn.Module) -> None:
    import bitsandbytes as bnb

    for name, child in module.named_children():
        if not isinstance(child, nn.Linear):
            _to_nf4(child)
            continue
        device = child.weight.device
        four = bnb.nn.Linear4bit(
            child.in_features,
            child.out_features,
            bias=child.bias is not None,
            compute_dtype=child.weight.dtype,
            quant_type="nf4",
            device="meta",
        )
        four.weight = bnb.nn.Params4bit(
            child.weight.data, requires_grad=False, quant_type="nf4"
        )
        if child.bias is not None:
            four.bias = child.bias
        setattr(module, name, four.to(device))


def _checkpoint(model: Any) -> None:
    """Keep a block's input, compute the rest again; transformers asks for train()."""
    model.config.use_cache = False
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()


STEPS: dict[str, Callable[[Any, Job], tuple[Any, Step]]] = {
    "inference": _inference,
    "mezo": _mezo,
    "adamw": _adamw,
    "adam8": _adam8,
    "lora": _lora,
    "qlora": _qlora,
}


def advise(job: Job) -> dict[str, Any]:
    """MeZO's lr: zolab.suggest at the start, on three batches."""
    import zolab

    torch.set_num_threads(1)
    model, tokenizer = load_model(job.model)
    model.to(job.device)
    task = Sentiment(tokenizer)
    data = splits(train=1000, dev=0, test=2, seed=job.seed)
    stream = task.batches(data.train, job.batch, seed=job.seed)
    some = [next(stream).to(job.device) for _ in range(3)]
    began = time.perf_counter()
    found = zolab.suggest(model, lambda i: loss(model, some[i]), batches=3)
    return {
        "eps": found.eps,
        "lr": found.lr,
        "reason": found.reason,
        "forwards": found.forwards,
        "seconds": time.perf_counter() - began,
    }


def floor(job: Job) -> dict[str, Any]:
    """What one fitted scalar reaches: a falling loss below this is no learning yet."""
    torch.set_num_threads(1)
    model, tokenizer = load_model(job.model)
    model.to(job.device)
    data = splits(train=1000, dev=0, test=job.held_out, seed=job.seed)
    found = evaluate(
        model, Sentiment(tokenizer), data.test, train=data.train[:FITTED]
    ).bias_only
    return {"loss": found.loss, "accuracy": found.accuracy, "fitted_on": FITTED}


def _child(what: str, job: Job) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "zolab.bench.methods", what, json.dumps(asdict(job))],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: list[str] | None = None) -> int:
    """Run the methods, print their ends, write or extend the record."""
    parser = argparse.ArgumentParser(prog="python -m zolab.bench methods")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--seconds", type=float, default=60, help="of training, a run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--held-out", type=int, default=96, help="sentences")
    parser.add_argument("--only", nargs="+", choices=list(METHODS), default=[*METHODS])
    parser.add_argument("--out", type=Path, default=RESULTS)
    a = parser.parse_args(argv)
    base = Job("", a.model, 0, a.seconds, a.batch, a.held_out, a.device)
    path = a.out / f"bench-methods-{a.device}-{a.model}.json"
    record = _start(path, base)
    for name in a.only:
        if name == "mezo" and "suggestion" not in record:
            record["suggestion"] = _child("advise", base)
            print(f"  suggestion: {record['suggestion']['reason']}", flush=True)
        lr = record["suggestion"]["lr"] if name == "mezo" else METHODS[name].lr
        # What inference needs shows in seconds; the rest of its row is the start.
        seconds = min(5.0, a.seconds) if name == "inference" else a.seconds
        job = replace(base, method=name, seconds=seconds, lr=lr)
        runs = record["methods"].setdefault(name, _row(name))["runs"]
        for seed in range(len(runs), a.seeds):
            runs.append(_child("run", replace(job, seed=seed)))
            _say(METHODS[name].label, runs[-1])
            _write(path, record)
        for r in runs if name == "inference" else ():
            if "bias_only" not in r:
                r["bias_only"] = _child("floor", replace(job, seed=r["seed"]))
        _write(path, record)
    return 0


def _write(path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", "utf-8")


def _row(name: str) -> dict[str, Any]:
    m = METHODS[name]
    return {"label": m.label, "lr_from": m.lr_from, "runs": []}


def _start(path: Path, base: Job) -> dict[str, Any]:
    """The record to add to: the file's, when it has this setting, else a new one."""
    setting = {
        k: v for k, v in asdict(base).items() if k not in ("method", "seed", "lr")
    }
    if path.exists():
        record = json.loads(path.read_text("utf-8"))
        if record["setting"] == setting:
            return record
    where = machine("methods", Setting(base.device, base.model, (1,), 1))
    where["command"] = (
        f"python -m zolab.bench methods --model {base.model} --device {base.device} "
        f"--seconds {base.seconds:g} --batch {base.batch} --held-out {base.held_out}"
    )
    return {
        "item": "methods",
        "setting": setting,
        **where,
        "note": "fp32, one thread; seconds are of training, evaluations off the clock; "
        "the machine had other work at the same time: see each run's load; a run's "
        "clock is the thread's CPU seconds where it says so, else the wall's",
        "methods": {},
    }


def _say(label: str, run: dict[str, Any]) -> None:
    seconds, steps, nats, right = run["points"][-1]
    print(
        f"  {label:27} seed {run['seed']}: {run['peak_mb']:6.0f} MB, {steps:4} steps "
        f"in {seconds:3.0f} s, loss {nats:.3f}, accuracy {right:.3f}",
        flush=True,
    )


JOBS = {"run": run, "advise": advise, "floor": floor}

if __name__ == "__main__":
    what, job = sys.argv[1:]
    print(json.dumps(JOBS[what](Job(**json.loads(job)))))
