"""The peak of every method, measured, beside the plan's sum: tensors, and the process.

    python -m zolab.bench peak [--shape smollm2-135m] [--batch 4x64] [--only mezo adamw]

Tensors are read from torch's ledger (`zolab.bench.ledger`): nothing to subtract. What
the operating system sees has the process's own overhead besides: Python, torch, the
libraries' code and buffers. It is measured in a second process that does the same on a
model of no size, and subtracted. What is left over the tensors is what the C library
holds and cannot reuse. 8-bit Adam and QLoRA need bitsandbytes.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from zolab.bench.ledger import ledger
from zolab.bench.memory import _cpu_meter, _gpu_meter
from zolab.bench.record import RESULTS, machine
from zolab.bench.shapes import Setting
from zolab.bench.steppers import RANK, stepper
from zolab.plan import METHODS, Shape, Work, batch, find, peak

NOTHING = Shape("nothing", "opt", 32, 1, 2, 64, 64, 64)
FEW = 4  # tokens of a step on a model of no size
ROWS = (  # method, dtype, checkpointing
    ("inference", "fp32", False),
    ("mezo", "fp32", False),
    ("mezo", "bf16", False),
    ("sgd", "fp32", False),
    ("adamw", "fp32", False),
    ("adamw", "fp32", True),
    ("adamw-mixed", "bf16", False),
    ("adam8", "fp32", False),
    ("lora", "fp32", False),
    ("qlora", "fp32", False),
)
PEERS = ("adam8", "qlora")


@dataclass(frozen=True)
class Job:
    """What a child process does; travels as JSON."""

    what: str  # "process", "nothing" or "tensors"
    shape: dict[str, Any]
    method: str
    work: dict[str, Any]
    checkpoint: bool


def tensors(
    shape: Shape, method: str, work: Work, *, checkpoint: bool = False, rank: int = RANK
) -> int:
    """Bytes of tensors at the peak of two steps, by torch's ledger."""
    _warm(shape, method, work, checkpoint, rank)
    return ledger(lambda: stepper(shape, method, work, checkpoint, rank)).peak


def _warm(shape: Shape, method: str, work: Work, checkpoint: bool, rank: int) -> None:
    """Libraries load, kernels compile and caches fill on a model of no size."""
    small, few = replace(NOTHING, family=shape.family), replace(work, batch=1, tokens=4)
    stepper(small, method, few, checkpoint, rank)()
    gc.collect()


def process(job: Job) -> float:
    """Bytes of this process at the peak of two steps after a first."""
    torch.set_num_threads(1)
    shape, work = Shape(**job.shape), Work(**job.work)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    reset, high = _gpu_meter() if device == "cuda" else _cpu_meter()
    _warm(shape, job.method, work, job.checkpoint, RANK)
    if job.what == "tensors":
        return tensors(shape, job.method, work, checkpoint=job.checkpoint)
    if job.what == "nothing":
        shape = replace(NOTHING, family=shape.family)
        work = replace(work, batch=1, tokens=FEW)
    step = stepper(shape, job.method, work, job.checkpoint, device=device)
    step()
    reset()
    step()
    step()
    return high() * 1e6


def run(
    shape: Shape, work: Work, rows: Sequence[tuple[str, str, bool]], repeats: int
) -> Iterator[dict[str, Any]]:
    """One row's numbers after another, in MB."""
    for method, dtype, checkpoint in rows:
        w = replace(work, dtype=dtype)
        job = Job("process", asdict(shape), method, asdict(w), checkpoint)
        alone = [_child(replace(job, what="nothing")) for _ in range(repeats)]
        yield {
            "method": method,
            "dtype": dtype,
            "checkpoint": checkpoint,
            "plan_mb": peak(shape, method, w, checkpoint=checkpoint).total / 1e6,
            "tensors_mb": _child(replace(job, what="tensors")) / 1e6,
            "process_mb": [_child(job) / 1e6 for _ in range(repeats)],
            "overhead_mb": [x / 1e6 for x in alone],
        }


def _child(job: Job) -> float:
    done = subprocess.run(
        [sys.executable, "-m", "zolab.bench.peak", json.dumps(asdict(job))],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    return float(done.stdout.splitlines()[-1])


def main(argv: list[str] | None = None) -> int:
    """Measure, print a line a row, write the record."""
    parser = argparse.ArgumentParser(prog="python -m zolab.bench peak")
    parser.add_argument("--shape", default="smollm2-135m", help="as in zolab plan")
    parser.add_argument("--batch", default="4x64", help="sequences x tokens")
    parser.add_argument("--only", nargs="+", choices=list(METHODS), default=[*METHODS])
    parser.add_argument("--repeats", type=int, default=3, help="processes a number")
    parser.add_argument("--out", type=Path, default=RESULTS)
    a = parser.parse_args(argv)
    shape, work = find(a.shape), Work(*batch(a.batch), "fp32")
    here = importlib.util.find_spec("bitsandbytes") is not None
    rows = [r for r in ROWS if r[0] in a.only and (here or r[0] not in PEERS)]
    found = []
    for row in run(shape, work, rows, a.repeats):
        found.append(row)
        print(f"  {said(row)}", flush=True)
    name = shape.name.split("/")[-1].lower()
    record = {
        "item": "peak",
        **machine("peak", Setting("cpu", name, (1,), a.repeats)),
        "command": f"python -m zolab.bench peak --shape {name} --batch {a.batch} "
        f"--repeats {a.repeats} --only {' '.join(a.only)}",
        "shape": name,
        "batch": a.batch,
        "rows": found,
    }
    a.out.mkdir(parents=True, exist_ok=True)
    path = a.out / f"bench-peak-cpu-{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    return 0


def said(row: dict[str, Any]) -> str:
    """A row in words: the sum, its ratio to the ledger and to the process's share."""
    label = METHODS[row["method"]].label + ", checkpointing" * row["checkpoint"]
    plan, seen = row["plan_mb"], row["tensors_mb"]
    whole = statistics.median(row["process_mb"])
    own = statistics.median(row["overhead_mb"])
    return (
        f"{label:22} {row['dtype']}: plan {plan:6.0f} MB, tensors {seen:6.0f} MB "
        f"(plan / tensors {plan / seen:.3f}), process {whole:6.0f} MB of which "
        f"overhead {own:4.0f} MB (plan / rest {plan / (whole - own):.3f})"
    )


if __name__ == "__main__":
    print(process(Job(**json.loads(sys.argv[1]))))
