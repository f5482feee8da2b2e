"""A measured line, how it is printed, and the record that chapters read."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zolab.bench.shapes import Setting

RESULTS = Path(__file__).parents[1] / "data" / "results"
PACKAGES = (
    *("torch", "numpy", "numba", "triton", "transformers"),
    *("peft", "bitsandbytes", "accelerate", "torchao"),
)


@dataclass(frozen=True)
class Line:
    """One number: its repeats, what it may reach and what physics allows.

    `target` is an upper bound, or with `at_least` a lower one; None: shown for
    comparison. `expected` is what was written down before it was measured.
    """

    name: str
    values: tuple[float, ...]
    target: float | None = None
    limit: float | None = None
    expected: float | None = None
    at_least: bool = False
    unit: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def met(self) -> bool | None:
        """Whether the median reaches the target; None without one."""
        if self.target is None:
            return None
        return (self.median >= self.target) == self.at_least or (
            self.median == self.target
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "unit": self.unit,
            "median": self.median,
            "min": min(self.values),
            "max": max(self.values),
            "values": list(self.values),
            "target": self.target,
            "at_least": self.at_least,
            "limit": self.limit,
            "expected": self.expected,
            "met": self.met,
        }


def show(lines: Sequence[Line]) -> None:
    """Print a table: median, range, limit, expected, target and whether it is met."""
    width = max(len(x.name) for x in lines)
    head = (
        f"{'median':>9} {'min .. max':>17} {'limit':>7} {'expected':>8} {'target':>7}"
    )
    print(f"  {'':{width}} {head}")
    for x in lines:
        span = f"{min(x.values):.4g} .. {max(x.values):.4g}"
        sign = "" if x.target is None else (">=" if x.at_least else "<=")
        target = sign + _short(x.target)
        verdict = {None: "", True: "met", False: "MISSED"}[x.met]
        print(
            f"  {x.name:{width}} {x.median:9.4g} {span:>17} {_short(x.limit):>7} "
            f"{_short(x.expected):>8} {target:>7} {verdict} {x.unit}".rstrip()
        )


def write(item: str, setting: Setting, lines: Sequence[Line], out: Path) -> Path:
    """Write `bench-ITEM-DEVICE-SHAPE.json`; returns its path."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"bench-{item}-{setting.device}-{setting.shape}.json"
    record = {"item": item, "setting": str(setting), **machine(item, setting)}
    record["lines"] = [x.as_json() for x in lines]
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path


def machine(item: str, setting: Setting) -> dict[str, Any]:
    """Where and when: device, processor, versions, commit, load, date."""
    here = Path(__file__).parent
    now = datetime.datetime.now(datetime.UTC)
    cuda = setting.device == "cuda"
    threads = " ".join(map(str, setting.threads))
    return {
        "command": f"python -m zolab.bench {item} --device {setting.device} "
        f"--shape {setting.shape} --threads {threads} --repeats {setting.repeats}",
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": list(setting.threads),
        "load": [round(x, 2) for x in os.getloadavg()],
        "versions": {"python": platform.python_version()} | _versions(),
        "commit": _git(here, "rev-parse", "--short=10", "HEAD"),
        "changed": bool(_git(here, "status", "--porcelain", "--", str(here.parent))),
        "date": now.isoformat(timespec="seconds"),
    }


def _short(x: float | None) -> str:
    return "" if x is None else f"{x:.3g}"


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def cpu_name() -> str:
    """The processor's model, as the system names it."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    names = [x for x in text.splitlines() if x.startswith("model name")]
    return names[0].split(":")[1].strip() if names else platform.machine()


def _git(where: Path, *args: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(where), *args], capture_output=True, text=True, timeout=20
        )
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
