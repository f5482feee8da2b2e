"""The peak memory of a step over that of inference, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from zolab.bench.record import Line
from zolab.bench.shapes import Setting, build

JOBS = ("inference", "loaded", "step", "published")


def run(setting: Setting) -> list[Line]:
    """Peak of each job in MB, and the ratios; three processes a job."""
    peaks: dict[str, list[float]] = {job: [] for job in JOBS}
    for _ in range(min(3, setting.repeats)):
        for job in JOBS:
            peaks[job].append(_child(job, setting))

    def ratio(job: str, to: str = "inference") -> tuple[float, ...]:
        return tuple(a / b for a, b in zip(peaks[job], peaks[to], strict=True))

    cuda = setting.device == "cuda"
    return [
        Line(
            "peak of a step / of inference",
            ratio("step"),
            1.05 if cuda else 1.10,
            1.0,
            1.03 if cuda else 1.08,
        ),
        Line(
            "  the same, kernels loaded in both", ratio("step", "loaded"), expected=1.03
        ),
        Line("  published, in place", ratio("published"), expected=1.2),
        Line("  inference", tuple(peaks["inference"]), unit="MB"),
    ]


def _child(job: str, setting: Setting) -> float:
    words = [job, setting.device, setting.shape, str(setting.threads[0])]
    done = subprocess.run(
        [sys.executable, "-m", "zolab.bench.memory", *words],
        check=True,
        capture_output=True,
        text=True,
    )
    return float(json.loads(done.stdout))


def peak_of(job: str, setting: Setting) -> float:
    """MB at the peak of two forwards, or of two steps, weights and Python included."""
    model, closure = build(setting)
    for p in model.parameters():
        p.requires_grad_(job in ("step", "published"))
    if job == "loaded":  # numba and LLVM: some 90 MB, whatever the model's size
        _load_kernels(setting.device)
    reset, peak = _gpu_meter() if setting.device == "cuda" else _cpu_meter()
    reset()
    if job in ("inference", "loaded"):
        with torch.no_grad():
            closure()
            closure()
    else:
        # Imported here: inference does not need it, and what a step needs counts.
        import zolab
        from zolab.engines.inplace import PublishedMeZO

        opt: Any = PublishedMeZO(model)
        if job == "step":
            opt = zolab.MeZO(model, engine=zolab.Resident(scratch="one"))
        opt.step(closure)
        opt.step(closure)
    return peak()


def _load_kernels(device: str) -> None:
    from zolab import storage
    from zolab.gradient import Direction
    from zolab.space import Space

    (slot,) = Space.of(torch.nn.Linear(64, 64, bias=False, device=device))
    out = torch.empty_like(slot.base)
    storage.materialise(slot, ((Direction(1), 1.0),), out)


def _gpu_meter() -> tuple[Callable[[], None], Callable[[], float]]:
    return (
        torch.cuda.reset_peak_memory_stats,
        lambda: torch.cuda.max_memory_allocated() / 1e6,
    )


def _cpu_meter() -> tuple[Callable[[], None], Callable[[], float]]:
    """Linux forgets an earlier peak (building the model) when asked; else it stays.

    getrusage would not do on Linux: a child inherits the peak of what started it.
    """
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def reset() -> None:
        if clear.exists():
            clear.write_text("5")

    def peak() -> float:
        if not status.exists():  # macOS counts bytes; Windows has no such module
            import resource

            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        lines = status.read_text().splitlines()
        high = next(x for x in lines if x.startswith("VmHWM"))
        return int(high.split()[1]) * 1024 / 1e6

    return reset, peak


if __name__ == "__main__":
    name, device, shape, threads = sys.argv[1:]
    one = Setting.of(device, shape, [int(threads)], 1).on(int(threads))
    print(peak_of(name, one))
