"""What this machine has, what zolab needs, and which scale fits."""

from __future__ import annotations

import importlib.metadata as metadata
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

SCALES = ("tiny", "laptop", "overnight", "gpu")

# The machine that a scale is made for: cores, GB of RAM, GB of GPU memory.
NEEDS: dict[str, tuple[int, float, float]] = {
    "tiny": (1, 2, 0),
    "laptop": (4, 8, 0),
    "overnight": (4, 8, 0),
    "gpu": (4, 16, 60),
}

# Core packages that zolab can do without, and what is lost then.
OPTIONAL = {
    "numba": "the CPU kernels fall back to plain torch, several times slower",
    "llvmlite": "the CPU kernels fall back to plain torch, several times slower",
    "gguf": "load_model cannot read GGUF files",
}
# Packages of the extras, and what each is for.
EXTRAS = {
    "triton": "the GPU kernels",
    "matplotlib": "figures",
    "jupyterlab": "make lab",
    "nbval": "the notebooks' tests",
    "jupyter-book": "make book",
}


@dataclass(frozen=True)
class Check:
    """One line of the report; `bad` lines make the verdict."""

    state: Literal["ok", "note", "bad"]
    name: str
    detail: str

    def __str__(self) -> str:
        return f"{self.state:<5} {self.name:<13} {self.detail}"


def examine(*, scale: str | None = None, folder: Path = Path()) -> list[Check]:
    """Every check, in reading order; with `scale`, whether that scale fits is one."""
    return [
        _python(),
        *_packages(),
        _cpu(),
        _memory(),
        _disk(folder),
        _gpu(),
        _scale(scale),
    ]


def fitting_scale() -> str:
    """The largest scale for this machine; `overnight` is only for those who ask."""
    return next(s for s in ("gpu", "laptop", "tiny") if s == "tiny" or not _lacks(s))


def cores() -> int:
    """Cores this process may use, which a container makes fewer than the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ram_gb() -> float | None:
    """GB of memory for this process, a container's limit included; None: unknown."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return None
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
    return total / 2**30


def gpu_gb() -> float:
    """GB on the CUDA device that torch would use, 0 without one."""
    try:
        import torch
    except ImportError:
        return 0.0
    if not torch.cuda.is_available():
        return 0.0
    return torch.cuda.get_device_properties(0).total_memory / 2**30


def _python() -> Check:
    text = f"{platform.python_version()} on {platform.platform(terse=True)}"
    return Check("ok", "python", text)


def _packages() -> Iterator[Check]:
    bounds, tested = _bounds(), _tested()
    for name in sorted({"torch", "transformers", *bounds}):
        found = _version(name)
        if found is None:
            lost = OPTIONAL.get(name)
            yield Check("note" if lost else "bad", name, f"missing: {lost or 'needed'}")
        elif name in bounds and _numbers(found) < _numbers(bounds[name]):
            yield Check("bad", name, f"{found}; zolab needs {bounds[name]} or newer")
        else:
            yield Check("ok", name, _compared(found, tested.get(name)))
    for name, use in EXTRAS.items():
        found = _version(name)
        text = _compared(found, tested.get(name)) if found else f"not here ({use})"
        yield Check("ok" if found else "note", name, text)


def _compared(found: str, tested: str | None) -> str:
    if tested is None or _numbers(found) == _numbers(tested):
        return found
    return f"{found} (tested with {tested})"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _bounds() -> dict[str, str]:
    """Lower bounds of the core packages, from zolab's own metadata when installed."""
    try:
        lines = metadata.requires("zolab") or []
    except metadata.PackageNotFoundError:
        return {}
    core = (re.match(r"([\w.-]+)>=([\w.]+)$", line) for line in lines)
    return {m[1]: m[2] for m in core if m}


def _tested() -> dict[str, str]:
    """The exact set that was tested; only a checkout has it."""
    path = Path(__file__).parent.parent / "constraints.txt"
    if not path.exists():
        return {}
    pins = re.findall(r"^([\w.-]+)==([^\s;]+)", path.read_text("utf-8"), re.M)
    return {name.lower().replace("_", "-"): version for name, version in pins}


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version.split("+")[0]))


def _cpu() -> Check:
    try:
        import torch
    except ImportError:
        return Check("ok", "cpu", f"{cores()} cores")
    threads = torch.get_num_threads()
    text = f"{cores()} cores, torch uses {threads} threads"
    if threads > cores():
        return Check("note", "cpu", f"{text}: set OMP_NUM_THREADS={cores()}")
    return Check("ok", "cpu", text)


def _memory() -> Check:
    ram = ram_gb()
    if ram is None:
        return Check("note", "memory", "unknown on this system")
    return Check("ok" if ram >= NEEDS["tiny"][1] else "bad", "memory", f"{ram:.1f} GB")


def _disk(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free / 2**30
    return Check("ok" if free >= 5 else "note", "disk", f"{free:.0f} GB free here")


def _gpu() -> Check:
    memory = gpu_gb()
    if memory:
        import torch

        name = torch.cuda.get_device_name(0)
        return Check("ok", "gpu", f"{name}, {memory:.0f} GB, CUDA {torch.version.cuda}")
    seen = _driver_gpu()
    if seen:
        return Check(
            "note",
            "gpu",
            f"the driver shows {seen}, but this torch ({_version('torch')}) does not "
            "see it: install a torch build for CUDA, or look at CUDA_VISIBLE_DEVICES",
        )
    return Check("ok", "gpu", "none; everything runs on the CPU")


def _driver_gpu() -> str | None:
    """The first GPU that the NVIDIA driver reports, whether torch sees it or not."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    ask = [command, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(ask, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.strip().splitlines()
    return lines[0] if done.returncode == 0 and lines else None


def _scale(asked: str | None) -> Check:
    if asked is None:
        return Check("ok", "scale", f"{fitting_scale()} fits this machine")
    lacks = _lacks(asked)
    if lacks:
        return Check("bad", "scale", f"{asked} does not fit: {', '.join(lacks)}")
    return Check("ok", "scale", f"{asked} fits this machine")


def _lacks(scale: str) -> list[str]:
    """What this machine lacks for `scale`, in words; unknown memory lacks nothing."""
    want_cores, want_ram, want_gpu = NEEDS[scale]
    ram, gpu = ram_gb(), gpu_gb() if want_gpu else 0.0
    lacks = []
    if cores() < want_cores:
        lacks.append(f"{cores()} of {want_cores} cores")
    if ram is not None and ram < 0.9 * want_ram:
        lacks.append(f"{ram:.1f} of {want_ram:g} GB of memory")
    if gpu < 0.9 * want_gpu:
        lacks.append(f"{gpu:.0f} of {want_gpu:g} GB of GPU memory that torch sees")
    return lacks
