"""What a run remembers: history, evaluations, the best weights, the last checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from torch import nn

from zolab.optimizers import ZOOptimizer
from zolab.rl import checkpoint
from zolab.rl.meter import Meter
from zolab.rl.metrics import Metrics
from zolab.space import is_away


class Diary:
    """The memory of one run; with a `folder` it outlives the process.

    A back-propagated run goes on from its last checkpoint, a forward-only one from its
    journal, which the optimizer has replayed by then.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        meter: Meter,
        folder: str | Path | None,
        best_by: str,
    ) -> None:
        self.model, self.optimizer, self.meter = model, optimizer, meter
        self.folder = None if folder is None else Path(folder)
        self.best_by = best_by
        self.history: list[Metrics] = []
        self.best: tuple[int, float] | None = None
        self.running: float | None = None
        self.step = optimizer.steps if isinstance(optimizer, ZOOptimizer) else 0
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._resume(self.folder)

    def add(self, row: Metrics, *, keep: float) -> None:
        """A finished step; `keep` of the running mean of rewards stays."""
        mean = row.get("reward", math.nan)
        if math.isfinite(mean):
            old = mean if self.running is None else self.running
            self.running = keep * old + (1 - keep) * mean
        self.step += 1
        running = math.nan if self.running is None else self.running
        self._note({"step": self.step, **row, "running": running, **self.meter.state()})

    def judge(
        self, evaluate: Callable[[], Mapping[str, float]] | None, *, due: bool
    ) -> None:
        """Evaluate where the run now is; keep the weights if they are the best yet."""
        done = any(r["step"] == self.step and is_evaluation(r) for r in self.history)
        if evaluate is None or not due or done:
            return
        found = {k: float(v) for k, v in evaluate().items()}
        if self.best_by not in found:
            raise ValueError(
                f"evaluate() gave {', '.join(found)}; best_by is {self.best_by!r}"
            )
        score = found[self.best_by]
        if self.best is None or score > self.best[1]:
            self.best = (self.step, score)
            self._keep_best()
        self._note({"step": self.step, **{f"eval/{k}": v for k, v in found.items()}})

    def save(self, *, due: bool) -> None:
        """A checkpoint, if one is due; a forward-only run's journal already is one."""
        if self.folder is None or not due or isinstance(self.optimizer, ZOOptimizer):
            return
        checkpoint.save(self.folder, self.model, self.optimizer, {"step": self.step})

    def headline(self) -> dict[str, str]:
        """Two numbers for a progress bar."""
        row = next((r for r in reversed(self.history) if "reward" in r), {})
        shown = {"reward": f"{row.get('reward', math.nan):.3f}"}
        scores = [r for r in self.history if f"eval/{self.best_by}" in r]
        if scores:
            shown[self.best_by] = f"{scores[-1][f'eval/{self.best_by}']:.3f}"
        return shown

    def _note(self, row: Metrics) -> None:
        self.history.append(row)
        if self.folder is not None:
            with (self.folder / "history.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")

    def _keep_best(self) -> None:
        if self.folder is None or self.best is None:
            return
        if isinstance(self.optimizer, ZOOptimizer):
            self.optimizer.engine.flush()
        parameters = list(self.model.parameters())
        if not any(is_away(p) or hasattr(p, "packed") for p in parameters):
            new = self.folder / "best.new"
            save_model(self.model, str(new))
            new.replace(self.folder / "best.safetensors")
        step, score = self.best  # with a journal, replay(upto=step) gives them too
        checkpoint.write(self.folder / "best.json", {"step": step, self.best_by: score})

    def _resume(self, folder: Path) -> None:
        state: dict[str, Any] | None = None
        if not isinstance(self.optimizer, ZOOptimizer):
            state = checkpoint.load(folder, self.model, self.optimizer)
            self.step = 0 if state is None else state["step"]
        lines = folder / "history.jsonl"
        rows = [json.loads(x) for x in whole_lines(lines)] if lines.exists() else []
        self.history = [r for r in rows if r["step"] <= self.step]
        new = folder / "history.new"
        new.write_text("".join(json.dumps(r) + "\n" for r in self.history))
        new.replace(lines)
        steps = [r for r in self.history if not is_evaluation(r)]
        if steps:
            last = steps[-1]["running"]
            self.running = last if math.isfinite(last) else None
            for name in self.meter.state():
                setattr(self.meter, name, steps[-1][name])
        key = f"eval/{self.best_by}"
        for r in self.history:
            if key in r and (self.best is None or r[key] > self.best[1]):
                self.best = (int(r["step"]), r[key])


def is_evaluation(row: Metrics) -> bool:
    """Whether a line of the history is an evaluation and not a step."""
    return any(k.startswith("eval/") for k in row)


def whole_lines(path: Path) -> list[str]:
    """The lines that were written to their end."""
    text = path.read_text()
    return text[: text.rfind("\n") + 1].splitlines()
