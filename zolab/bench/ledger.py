"""The peak of what tensors hold: the allocator's own ledger, to the byte.

    peak = max over time of sum of (allocated - freed)

On a CPU torch's profiler hears of every block that the allocator hands out, the ones
inside of an operation too; on a GPU torch counts by itself. What Python, the libraries
and the C library's free lists hold is not in it: `zolab.bench.peak` measures that. On
a CPU the ledger is of the calling thread: a streamed engine's probes have threads of
their own, and what they allocate is not seen.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

MARK = "zolab.ledger"


@dataclass(frozen=True)
class Ledger:
    """Bytes of tensors: at the peak, when the run began, and blocks at the peak.

    `blocks` counts sizes in bytes that lived at the peak; empty on a GPU.
    """

    peak: int
    start: int
    blocks: Counter[int] = field(default_factory=Counter)


def ledger(
    build: Callable[[], Callable[[], Any]],
    *,
    times: int = 2,
    device: str | None = None,
) -> Ledger:
    """Build, then run what `build` returned `times` times; the peak is of the runs.

    The first run makes what an optimizer keeps, the second meets it, so two runs show
    the peak of all later ones. Everything must be allocated inside of `build`.
    `device`: "cpu" or "cuda", where `build` allocates; None: on a GPU if there is one.
    """
    if times < 1:
        raise ValueError(f"times is {times}, expected 1 or more")
    if device != "cpu" and torch.cuda.is_available():
        return _of_gpu(build, times)
    seen = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    with _quiet():
        seen.__enter__()
    try:
        run = build()
        with record_function(MARK):
            pass
        for _ in range(times):
            run()
    finally:
        with _quiet():
            seen.__exit__(None, None, None)
    assert seen.profiler is not None and seen.profiler.kineto_results is not None
    return _of_events(seen.profiler.kineto_results.events())


@contextmanager
def _quiet() -> Iterator[None]:
    """The profiler says on the process's stderr that it starts and stops: not here."""
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def _of_events(events: Any) -> Ledger:
    began = next(e.start_ns() for e in events if e.name() == MARK)
    memory = [e for e in events if e.name() == "[memory]"]
    total, live, start, peak = 0, Counter[int](), 0, -1
    blocks = Counter[int]()
    for e in sorted(memory, key=lambda e: e.start_ns()):
        size = e.nbytes()
        total += size
        live[abs(size)] += 1 if size > 0 else -1
        if e.start_ns() < began:
            start = total
        elif total > peak:
            peak, blocks = total, +live
    return Ledger(max(peak, start), start, blocks)


def _of_gpu(build: Callable[[], Callable[[], Any]], times: int) -> Ledger:
    base = torch.cuda.memory_allocated()
    run = build()
    start = torch.cuda.memory_allocated() - base
    torch.cuda.reset_peak_memory_stats()
    for _ in range(times):
        run()
    return Ledger(torch.cuda.max_memory_allocated() - base, start)
