"""What a step of every estimator costs, beside its own forward passes and the peers.

    python -m zolab.bench estimators [--shape opt-125m] [--repeats 3] [--peers PYTHON]
        [--only spsa fzoo] [--out DIR]

A row is a process of its own, as in zolab.bench.memory: first the peak of inference,
then that of two steps, then pairs of a step and as many forward passes as it asked
for, in turn, in CPU seconds of the one thread, so that a busy machine slows both. The
log is open meanwhile. A record of the same setting is added to. `--peers` names an
interpreter that has the packages of zolab.bench.peers; without it ours stand alone.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zolab.bench.memory import _cpu_meter
from zolab.bench.peers import PEERS
from zolab.bench.record import RESULTS, machine
from zolab.bench.shapes import SHAPES, Setting, build

SHAPE, REPEATS = "opt-125m", 3
LONG = 20.0  # CPU seconds of a row after which no further pair is begun


def measure(name: str, setting: Setting) -> dict[str, Any]:
    """One row: passes, bytes, MB of inference and of a step, pairs of seconds."""
    model, closure = build(setting)

    @torch.no_grad()
    def forwards(times: int) -> None:
        for _ in range(times):
            closure()

    reset, peak = _cpu_meter()
    forwards(1)
    reset()
    forwards(1)
    row: dict[str, Any] = {"inference_mb": peak()}
    with tempfile.TemporaryDirectory() as folder:
        reset()
        job = (Theirs if name in PEERS else Ours)(name, model, Path(folder) / "run")
        job.step(closure)
        row["passes"] = passes = job.passes(closure)
        row["step_mb"] = peak()
        row["pairs"] = []
        for i in range(setting.repeats):
            if sum(map(sum, row["pairs"])) > LONG:  # of a slow row, fewer pairs
                break
            jobs = {
                "step": lambda: job.step(closure),
                "forwards": lambda: forwards(passes),
            }
            order = list(jobs)[:: -1 if i % 2 else 1]
            found = {n: _seconds(jobs[n]) for n in order}
            row["pairs"].append([found["step"], found["forwards"]])
        row["bytes"] = job.bytes
    return row | {"load": round(os.getloadavg()[0], 2)}


class Ours:
    """A row of the zoo with its log."""

    def __init__(self, name: str, model: nn.Module, path: Path) -> None:
        # Imported here: inference does not need it, and what a step needs counts.
        from zolab.bench.zoo import stepper

        self.opt, self.step = stepper(name, model, path)
        self.path, self.start = path, path.stat().st_size

    def passes(self, closure: Callable[[], Any]) -> int:
        """How many losses a step asks for; a population answers them together."""
        self.step(closure)
        assert self.opt.last is not None
        return len(self.opt.last.losses)

    @property
    def bytes(self) -> float:
        """Of the log, a step."""
        return (self.path.stat().st_size - self.start) / self.opt.steps


class Theirs:
    """A row of a peer, which keeps no log."""

    bytes = None

    def __init__(self, name: str, model: nn.Module, path: Path) -> None:
        self.step = PEERS[name].make(model)

    def passes(self, closure: Callable[[], Any]) -> int:
        """How often a step calls the closure."""
        calls = 0

        def counted() -> Any:
            nonlocal calls
            calls += 1
            return closure()

        self.step(counted)
        return calls


def _seconds(job: Callable[[], Any]) -> float:
    """CPU seconds: one thread's are the wall's of a machine with no other work."""
    began = time.process_time()
    job()
    return time.process_time() - began


def main(argv: list[str] | None = None) -> int:
    """Run the rows, print one line each, write or extend the record."""
    from zolab.bench.zoo import ROWS

    parser = argparse.ArgumentParser(prog="python -m zolab.bench estimators")
    parser.add_argument("--shape", default=SHAPE, choices=list(SHAPES))
    parser.add_argument("--repeats", type=int, default=REPEATS, help="pairs a row")
    parser.add_argument(
        "--peers", metavar="PYTHON", help="an interpreter that has them"
    )
    parser.add_argument("--only", nargs="+", choices=[*ROWS, *PEERS], metavar="ROW")
    parser.add_argument("--out", type=Path, default=RESULTS)
    a = parser.parse_args(argv)
    setting = Setting("cpu", a.shape, (1,), a.repeats)
    path = a.out / f"bench-estimators-cpu-{a.shape}.json"
    record = _start(path, setting)
    for name in [n for n in ROWS if n in (a.only or ROWS)]:
        record["rows"][name] = _row(sys.executable, name, setting)
        _say(ROWS[name].label, record["rows"][name])
        _write(path, record)
    if a.peers is None:
        print("  peers: none; --peers PYTHON names an interpreter that has them")
        return 0
    for name in [n for n in PEERS if n in (a.only or PEERS)]:
        found = _row(a.peers, name, setting)
        if "missing" in found:
            print(f"  {PEERS[name].label}: no module {found['missing']} there")
            continue
        record["rows"][name] = found
        _say(PEERS[name].label, found)
        _write(path, record)
    return 0


def _start(path: Path, setting: Setting) -> dict[str, Any]:
    """The record to add to: the file's, when it has this setting, else a new one."""
    if path.exists():
        record = json.loads(path.read_text("utf-8"))
        if record["setting"] == str(setting):
            return record | machine("estimators", setting) | _command(setting)
    where = machine("estimators", setting) | _command(setting)
    return {"item": "estimators", "setting": str(setting), **where, "rows": {}}


def _command(setting: Setting) -> dict[str, str]:
    return {
        "command": f"python -m zolab.bench estimators --shape {setting.shape} "
        f"--repeats {setting.repeats} --peers PYTHON"
    }


def _row(python: str, name: str, setting: Setting) -> dict[str, Any]:
    """The row from a process of its own, or {"missing": module}."""
    words = [name, setting.shape, str(setting.repeats)]
    root = str(Path(__file__).parents[2])
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    done = subprocess.run(
        [python, "-m", "zolab.bench.estimators", *words],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=env,
    )
    return json.loads(done.stdout.splitlines()[-1])


def ratio(row: dict[str, Any]) -> float:
    """The median of a step's seconds over those of its own forward passes."""
    return statistics.median(a / b for a, b in row["pairs"])


def memory(row: dict[str, Any]) -> float:
    """A step's peak over that of inference."""
    return row["step_mb"] / row["inference_mb"]


def _say(label: str, row: dict[str, Any]) -> None:
    size = "-" if row["bytes"] is None else f"{row['bytes']:.0f}"
    print(
        f"  {label:36} {row['passes']:3} passes, {ratio(row):6.2f} of their seconds, "
        f"{memory(row):5.2f} of inference's memory, {size:>4} bytes a step",
        flush=True,
    )


def _write(path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", "utf-8")


def child(name: str, shape: str, repeats: int) -> dict[str, Any]:
    """What a process of its own says of a row."""
    try:
        found = measure(name, Setting("cpu", shape, (1,), repeats).on(1))
    except ModuleNotFoundError as why:
        if name not in PEERS:
            raise
        return {"missing": why.name}
    if name in PEERS:
        found["version"] = importlib.metadata.version(PEERS[name].package)
    return found


if __name__ == "__main__":
    print(json.dumps(child(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
