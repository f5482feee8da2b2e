"""Recorded runs: what was measured once, where, with which code, by which command."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import zolab
from zolab import fresh
from zolab.lab.scales import scale
from zolab.lab.show import Shown, say, show, table

BEGAN = time.monotonic()  # when the chapter's first cell imported lab
RESULTS = Path(__file__).parent.parent / "data" / "results"


def record(
    name: str, data: Mapping[str, Any], *, command: str, folder: Path = RESULTS
) -> Path:
    """Write data and where it comes from to results/NAME.json; returns the path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    text = json.dumps({"from": provenance(command), "data": dict(data)}, indent=1)
    new = path.with_suffix(".new")
    new.write_text(text + "\n", "utf-8")
    new.replace(path)
    say(f"recorded: {path.name}")
    return path


def recorded(name: str, *, folder: Path = RESULTS) -> dict[str, Any] | None:
    """What `record` wrote, with "from" and "data"; None when nobody recorded it."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def provenance(command: str) -> dict[str, Any]:
    """Device, versions, commit, date, command, and the modules that computed."""
    cuda = torch.cuda.is_available()
    return {
        "command": command,
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "scale": scale(),
        "device": torch.cuda.get_device_name() if cuda else _cpu(),
        "threads": torch.get_num_threads(),
        "versions": {
            "zolab": zolab.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "modules": {m: fresh.of_module(m) for m in fresh.loaded()},
    }


def begin(chapter: str) -> None:
    """Show the chapter's cost card; at scale tiny, compute on one thread.

    A model of a million weights gains nothing from a second thread, and on a busy
    machine, where threads wait for one another, loses a factor of five.
    """
    if scale() == "tiny":
        torch.set_num_threads(1)
    show(cost_card(chapter))


def cost_card(chapter: str, *, folder: Path = RESULTS) -> Shown:
    """Seconds and peak memory of a chapter at each scale, as recorded."""
    rows = []
    for name in ("tiny", "laptop", "overnight", "gpu"):
        found = recorded(f"{chapter}_cost_{name}", folder=folder)
        if found is None:
            rows.append([name, "not recorded yet", "", ""])
            continue
        cost, origin = found["data"], found["from"]
        seconds, peak = f"{cost['seconds']:.0f} s", f"{cost['peak_gb']:.1f} GB"
        rows.append([name, seconds, peak, f"{origin['device']}, {origin['date']}"])
    return table(["scale", "time", "memory", "measured on"], rows)


def cost(chapter: str, *, folder: Path = RESULTS) -> None:
    """Say what this process has cost so far; with ZOLAB_RECORD=1 put it on the card."""
    seconds, peak = time.monotonic() - BEGAN, peak_gb()
    say(f"this run: {seconds:.0f} s, {peak:.1f} GB at the peak, scale {scale()}")
    if os.environ.get("ZOLAB_RECORD") == "1":
        data = {"seconds": seconds, "peak_gb": peak}
        command = f"ZOLAB_RECORD=1 zolab run {chapter} --scale {scale()}"
        record(f"{chapter}_cost_{scale()}", data, command=command, folder=folder)


def memory_ratio(*, folder: Path = RESULTS) -> float | None:
    """Peak of a step over peak of inference, the worst that the bench recorded."""
    found = []
    for path in folder.glob("bench-memory-*.json"):
        lines = json.loads(path.read_text("utf-8"))["lines"]
        found += [x["median"] for x in lines if x["name"].startswith("peak of a step")]
    return max(found, default=None)


def peak_gb() -> float:
    """Peak memory of this process, and of the GPU where there is one."""
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    unit = 1e9 if sys.platform == "darwin" else 1e6  # bytes there, kB elsewhere
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    if torch.cuda.is_available():
        peak += torch.cuda.max_memory_allocated() / 1e9
    return peak


def _cpu() -> str:
    n = torch.get_num_threads()
    return f"CPU, {platform.machine()}, {n} thread{'s' if n > 1 else ''}"


def commit() -> str:
    """The checkout's commit, with + when files differ from it; "" without git."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        run = subprocess.run(
            ["git", *words], cwd=here, capture_output=True, text=True, check=True
        )
        return run.stdout.strip()

    try:
        edited = git("status", "--porcelain", "--untracked-files=no", "--", "..")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if edited else "")
    except (OSError, subprocess.CalledProcessError):
        return ""
