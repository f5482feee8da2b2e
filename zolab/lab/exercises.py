"""Exercises that know the usual wrong answers.

solutions/NN.py holds a dict EXERCISES of `Exercise`. An answer is a function; it is
run on the exercise's cases beside the right one. When it differs, the listed wrong
answers are run too, and the one that it agrees with tells what was misunderstood.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from inspect import getsource
from pathlib import Path
from typing import Any

import torch

from zolab.errors import ZolabError
from zolab.lab.show import say


class ExerciseError(ZolabError):
    """There is no such exercise, or its solution was asked for before a try."""


@dataclass(frozen=True)
class Wrong:
    """A wrong answer, and what to tell somebody who gives it."""

    answer: Callable[..., Any]
    message: str


@dataclass(frozen=True)
class Exercise:
    """`right` on `cases` (argument tuples), within `tol` of it, relative."""

    right: Callable[..., Any]
    cases: Sequence[tuple[Any, ...]]
    hints: Sequence[str]
    wrong: Mapping[str, Wrong] = field(default_factory=dict)
    tol: float = 1e-4

    def judge(self, answer: Callable[..., Any]) -> str | None:
        """None when right, else what to say."""
        for case in self.cases:
            try:
                given = answer(*case)
            except Exception as error:
                return f"your function raised {type(error).__name__}: {error}"
            if given is None or given is ...:
                return "your function returns nothing yet"
            if not self._agree(given, self.right(*case)):
                return self._diagnose(answer)
        return None

    def _diagnose(self, answer: Callable[..., Any]) -> str:
        for w in self.wrong.values():
            if all(self._agree(answer(*c), w.answer(*c)) for c in self.cases):
                return w.message
        return "not yet: it differs from the right answer, in no way we foresaw"

    def _agree(self, a: Any, b: Any) -> bool:
        try:
            x, y = (torch.as_tensor(v, dtype=torch.float64) for v in (a, b))
        except (TypeError, ValueError, RuntimeError):
            return False
        # The scale is the expected value's: small answers are judged as strictly.
        room = self.tol * y.abs().max() if y.numel() else 0.0
        return x.shape == y.shape and bool(((x - y).abs() <= room).all())


_tried: set[str] = set()


def check(exercise: str, answer: Callable[..., Any]) -> bool:
    """Whether `answer` is right; says so, or names the misconception."""
    trouble = find(exercise).judge(answer)
    if trouble != "your function returns nothing yet":
        _tried.add(exercise)
    say(f"{exercise}: {trouble or 'right'}")
    return trouble is None


def hint(exercise: str, number: int = 1) -> None:
    """Hint 1, 2, ..."""
    hints = find(exercise).hints
    if not 1 <= number <= len(hints):
        raise ExerciseError(f"{exercise} has hints 1 to {len(hints)}")
    say(hints[number - 1])


def solution(exercise: str) -> None:
    """The right answer's source, after one try."""
    found = find(exercise)
    if exercise not in _tried:
        raise ExerciseError(f"try once first: check({exercise!r}, your_function)")
    say(getsource(found.right))


def find(exercise: str) -> Exercise:
    """The exercise "NN.name", from solutions/NN.py beside the notebooks."""
    chapter, _, name = exercise.partition(".")
    there = load(chapter)
    if name not in there:
        names = ", ".join(f"{chapter}.{n}" for n in there)
        raise ExerciseError(f"no exercise {exercise!r}; there are {names}")
    return there[name]


@cache
def load(chapter: str) -> dict[str, Exercise]:
    """EXERCISES of a chapter; raises ExerciseError where the file is not at hand."""
    here = Path(__file__).parent.parent.parent
    for folder in (Path("../solutions"), Path("solutions"), here / "solutions"):
        path = folder / f"{chapter}.py"
        if path.exists():
            spec = importlib.util.spec_from_file_location(f"solutions_{chapter}", path)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module.EXERCISES
    raise ExerciseError(f"solutions/{chapter}.py is not here; ask your teacher")
