"""Losses and scores of a run, kept as lines beside its journal."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path


class Curve:
    """`losses` by step; `scores` by the number of steps done; `refused` steps.

    With a path every value is a line of a CSV, written at once. Lines of steps that
    the journal does not have (`done` is its next step) are forgotten.
    """

    def __init__(self, path: Path | None = None, *, done: int = 0) -> None:
        self.path = path
        self.losses: dict[int, float] = {}
        self.scores: dict[int, float] = {}
        self.refused: list[int] = []
        rows = list(_rows(path, done)) if path and done else []
        if path:
            path.write_text("step,loss,score\n", "utf-8")
        for step, loss, score in rows:
            self.add(step, loss=loss, score=score)

    def add(
        self, step: int, *, loss: float | None = None, score: float | None = None
    ) -> None:
        """The loss of a step, or the score after so many steps; neither: refused."""
        if loss is not None:
            self.losses[step] = loss
        elif score is not None:
            self.scores[step] = score
        else:
            self.refused.append(step)
        if self.path:
            cells = ("" if x is None else repr(x) for x in (step, loss, score))
            with self.path.open("a", encoding="utf-8") as file:
                file.write(",".join(cells) + "\n")

    def smooth(self, window: int) -> tuple[list[int], list[float]]:
        """Steps, and the mean of the last `window` losses at each."""
        steps = sorted(self.losses)
        sums = [0.0, *accumulate(self.losses[s] for s in steps)]
        ends = [(max(0, i - window), i) for i in range(1, len(sums))]
        means = [(sums[b] - sums[a]) / (b - a) for a, b in ends]
        return steps, means


def _rows(path: Path, done: int) -> Iterator[tuple[int, float | None, float | None]]:
    """The readable lines; a killed process may leave half of one."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.reader(file):
            try:
                step = int(row[0])
                loss, score = (float(x) if x else None for x in row[1:3])
            except (ValueError, IndexError):
                continue
            if step < done or (score is not None and step == done):
                yield step, loss, score
