"""Filling the table: which runs it needs, which it lacks, and a file after each.

A row that has a knob tries its values on validation sentences with a seed of its own;
the best is judged on held-out snippets with seeds 0, 1, 2, ... What a row costs is
measured alone; the other runs share the device.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from zolab.bench.judge import JOBS
from zolab.bench.record import machine
from zolab.bench.rows import ALL, ROWS, Job, Row, plan_of
from zolab.bench.shapes import Setting
from zolab.errors import ZolabError

TUNING = 100  # the seed of the runs that choose a value
SAFE = 0.8  # of the minutes: the last runs begin before they are over
SETTING = ("model", "steps", "train", "dev", "held_out", "device")
Runner = Callable[[str, Job], dict[str, Any]]


class RunError(ZolabError):
    """A child process failed; the message is the last thing that it said."""


def child(what: str, job: Job) -> dict[str, Any]:
    """Run or measure in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "zolab.bench.judge", what, json.dumps(asdict(job))],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise RunError(f"{name_of(job)}: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def here(what: str, job: Job) -> dict[str, Any]:
    """Run or measure in this process: one at a time, without another start."""
    try:
        return JOBS[what](job)
    except ImportError as error:
        raise RunError(f"{name_of(job)}: {error}") from error


class Table:
    """The record under way: runs that are not in it yet are made and written."""

    def __init__(
        self,
        path: Path,
        base: Job,
        seeds: int,
        *,
        workers: int = 1,
        run: Runner | None = None,
        item: str = "table",
        rows: Mapping[str, Row] = ROWS,
        timer: str = "mezo",
    ) -> None:
        self.path, self.seeds, self.workers = path, seeds, workers
        self.run = run or (child if workers > 1 else here)
        self.item, self.timer = item, timer  # the row by which steps are cut
        self.record = _start(path, base, item, rows)
        self.plan = plan_of(base.model)
        self.base = replace(base, steps=self.record["setting"]["steps"])

    def fill(
        self, rows: Sequence[str], minutes: float | None = None, *, fit: bool = True
    ) -> dict[str, Any]:
        """Measure, tune and judge the rows, or without `fit` measure; the record.

        A run that fails is named in record["failed"] and its row is left out; called
        again, it is tried again.
        """
        began, had = time.monotonic(), self._size()
        self.record["failed"] = {}
        fitted = rows if fit else ()
        total = len(rows) + sum(map(self._runs, fitted))
        with tqdm(total=total, unit="run", disable=None) as bar:
            self._go("measure", {row: self._middle(row) for row in rows}, bar, 1)
            rows = fitted
            if minutes is not None:
                self._cut(rows, 60 * SAFE * minutes - (time.monotonic() - began))
            self._go("run", self._tuning(rows), bar)
            for row in rows:
                if set(self._tuning([row])) <= self.record["runs"].keys():
                    self.record["chosen"][row] = self._best(row)
            self._go("run", self._judging(rows), bar)
        if self._size() > had:
            self.record |= _where(self.base, self.item)
        self._write()
        return self.record

    def _size(self) -> int:
        return len(self.record["runs"]) + len(self.record["costs"])

    def _tuning(self, rows: Sequence[str]) -> dict[str, Job]:
        """A run a value on validation, where there is something to choose."""
        jobs = [
            replace(self.base, row=row, value=value, seed=TUNING, tune=True)
            for row in rows
            for value in self._grid(row)
            if len(self._grid(row)) > 1
        ]
        return {name_of(job): job for job in jobs}

    def _judging(self, rows: Sequence[str]) -> dict[str, Job]:
        """A run a seed on the held-out snippets, with the value that was chosen."""
        chosen = self.record["chosen"]
        jobs = [
            replace(self.base, row=row, value=chosen[row], seed=seed)
            for row in rows
            for seed in range(self._many(row))
            if row in chosen
        ]
        return {name_of(job): job for job in jobs}

    def _go(
        self, what: str, jobs: dict[str, Job], bar: Any, workers: int | None = None
    ) -> None:
        """Run those that the record lacks; each is written when it is done."""
        kept = self.record["costs" if what == "measure" else "runs"]
        missing = {name: job for name, job in jobs.items() if name not in kept}
        bar.update(len(jobs) - len(missing))
        call = partial(self.run, what)
        if (workers or self.workers) == 1:
            for name, job in missing.items():
                self._keep(kept, name, partial(call, job), bar)
            return
        with ThreadPoolExecutor(workers or self.workers) as pool:
            started = {pool.submit(call, job): name for name, job in missing.items()}
            try:
                for done in as_completed(started):
                    self._keep(kept, started[done], done.result, bar)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _keep(
        self,
        kept: dict[str, Any],
        name: str,
        result: Callable[[], dict[str, Any]],
        bar: Any,
    ) -> None:
        """Into the record and onto the disk; a failure too."""
        try:
            kept[name] = result()
        except RunError as error:
            self.record["failed"][name] = str(error)
        bar.set_description(name)
        bar.update()
        self._write()

    def _cut(self, rows: Sequence[str], seconds: float) -> None:
        """Fewer steps, when they would not fit: timed with all workers at once."""
        costs = {row: self.record["costs"].get(row, {}) for row in rows}
        if self.record["runs"] or "step_seconds" not in costs.get(self.timer, {}):
            return  # a run that goes on keeps its number of steps
        began = time.monotonic()
        with ThreadPoolExecutor(self.workers) as pool:
            jobs = [self._middle(self.timer)] * self.workers
            loaded = list(pool.map(partial(self.run, "measure"), jobs))
        spent = time.monotonic() - began  # what a run costs beside its steps
        alone = costs[self.timer]["step_seconds"]
        slow = max(x["step_seconds"] for x in loaded) / alone
        steps = self.base.steps
        work = slow * sum(
            self._runs(row) * self.plan.steps_of(row, steps) * cost["step_seconds"]
            for row, cost in costs.items()
            if "step_seconds" in cost
        )
        free = (seconds - spent) * self.workers - spent * sum(map(self._runs, rows))
        steps = int(steps * min(1.0, max(0.01, free / work)))
        self.base = replace(self.base, steps=steps)
        self.record["setting"]["steps"] = steps

    def _best(self, row: str) -> float:
        """The value with the best validation accuracy; of equals the lower loss."""

        def key(job: Job) -> tuple[float, float]:
            found = self.record["runs"][name_of(job)]["score"]
            return found["accuracy"], -found["loss"]

        jobs = self._tuning([row]).values()
        return max(jobs, key=key).value if jobs else self._grid(row)[0]

    def _grid(self, row: str) -> tuple[float, ...]:
        return self.plan.grid(row)

    def _many(self, row: str) -> int:
        """Seeds: without training sentences there is nothing that one could change."""
        return 1 if ALL[row].how in ("majority", "zero") else self.seeds

    def _runs(self, row: str) -> int:
        return len(self._tuning([row])) + self._many(row)

    def _middle(self, row: str) -> Job:
        grid = self._grid(row)
        return replace(self.base, row=row, value=grid[len(grid) // 2])

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(self.record, indent=1) + "\n", "utf-8")
        new.replace(self.path)


def name_of(job: Job) -> str:
    """What a run is called in the record."""
    return f"{job.row} {'tune ' if job.tune else ''}{job.value:g} seed {job.seed}"


def _start(path: Path, base: Job, item: str, rows: Mapping[str, Row]) -> dict[str, Any]:
    """The file's record, when it has this setting, else a new one."""
    setting = {k: v for k, v in asdict(base).items() if k in SETTING}
    plan = plan_of(base.model)
    grids = {row: plan.grid(row) for row in rows}
    if path.exists():
        record = json.loads(path.read_text("utf-8"))
        if record["asked"] == setting:
            return record | {"grids": grids}  # what an older grid ran stays among runs
    return {
        "item": item,
        "asked": setting,
        "setting": setting | {"words": plan.words, "batch": plan.batch},
        **_where(base, item),
        "grids": grids,
        "costs": {},
        "runs": {},
        "chosen": {},
        "failed": {},
    }


def _where(base: Job, item: str) -> dict[str, Any]:
    """Machine, versions, commit and command of the last runs."""
    where = machine(item, Setting(base.device, base.model, (1,), 1))
    command = f"python -m zolab.bench {item} --model {base.model}"
    return where | {"command": f"{command} --device {base.device}"}
