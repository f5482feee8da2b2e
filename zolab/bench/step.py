"""The time of a step over the time of its two forward passes, in one process.

The pairs are interleaved, so that a busy machine slows both halves of a ratio. The
physical limit is the same step with kernels that only copy: each weight goes once
into the scratch for each probe and is passed over once in place.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

import zolab
from zolab import storage
from zolab.bench.record import Line
from zolab.bench.shapes import Setting, build
from zolab.engines.inplace import PublishedMeZO

Seconds = dict[str, tuple[float, float]]  # wall, CPU time of the process


def run(setting: Setting) -> list[Line]:
    """Lines for every thread count of a CPU, or for the GPU."""
    lines = []
    for threads in setting.threads:
        rounds = measure(setting.on(threads))
        where = "" if setting.device == "cuda" else f", {threads} thread(s)"
        lines += summarise(rounds, where, setting.device, threads)
    return lines


def measure(setting: Setting) -> list[Seconds]:
    """One round a repeat, each of two forwards, a step, its limit and the published."""
    model, closure = build(setting)
    ours = zolab.MeZO(model, lr=1e-9, engine=zolab.Resident(scratch="one"))
    published = PublishedMeZO(model, lr=1e-9)

    def forwards() -> None:
        with torch.no_grad():
            closure()
            closure()

    def limit() -> None:
        with copying():
            ours.step(closure)

    def peer() -> None:
        published.step(closure)
        ours.rebase()

    jobs = {"forwards": forwards, "step": lambda: ours.step(closure), "limit": limit}
    for job in jobs.values():
        job()  # compiles, allocates, warms up
    rounds = []
    for i in range(setting.repeats):
        order = list(jobs) if i % 2 else list(jobs)[::-1]
        found = {name: timed(jobs[name], setting.device) for name in order}
        if i < 3:  # slow, and far from its comparison
            found["published"] = timed(peer, setting.device)
        rounds.append(found)
    return rounds


def summarise(
    rounds: list[Seconds], where: str, device: str, threads: int
) -> list[Line]:
    """The paired ratios of wall time, and those of CPU time."""

    def ratio(name: str, clock: int) -> tuple[float, ...]:
        pairs = [(r[name][clock], r["forwards"][clock]) for r in rounds if name in r]
        return tuple(a / b for a, b in pairs)

    cuda = device == "cuda"
    limit = sorted(ratio("limit", 0))[len(rounds) // 2]
    wanted = 1.10 if cuda else 1.15
    lines = [
        Line(f"step / two forwards{where}", ratio("step", 0), wanted, limit, 1.1),
        Line(f"  copies alone (the limit){where}", ratio("limit", 0), expected=1.08),
        Line(
            f"  published, in place{where}",
            ratio("published", 0),
            expected=None if cuda else (3.1 if threads == 1 else 3.8),
        ),
        Line(
            f"  two forwards{where}",
            tuple(r["forwards"][0] for r in rounds),
            unit="s",
        ),
    ]
    if not cuda:
        lines.insert(1, Line(f"  the same in CPU time{where}", ratio("step", 1)))
    return lines


def timed(job: Callable[[], Any], device: str) -> tuple[float, float]:
    """Seconds of a job: on the wall, and of this process's CPU."""
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        job()
        end.record()
        torch.cuda.synchronize()
        seconds = start.elapsed_time(end) / 1000
        return seconds, seconds
    wall, cpu = time.perf_counter(), time.process_time()
    job()
    return time.perf_counter() - wall, time.process_time() - cpu


@contextmanager
def copying() -> Iterator[None]:
    """Inside, kernels copy: materialise is a memcpy, update one pass in place."""

    def materialise(base: Tensor, draws: Any, out: Tensor, start: int) -> None:
        out.view(-1).copy_(base.view(-1)[start : start + out.numel()])

    def rows(base: Tensor, draws: Any, index: Tensor, out: Tensor) -> None:
        out.copy_(base[index])

    def update(base: Tensor, steps: Any) -> None:
        base.mul_(1.0)

    kernels = SimpleNamespace(materialise=materialise, rows=rows, update=update)
    before = storage.kernel
    storage.kernel = lambda device, moves=(): kernels  # type: ignore
    try:
        yield
    finally:
        storage.kernel = before
