"""Exercises that know the usual wrong answers.

exercises/NN.py asks: a dict EXERCISES of `Exercise`, with numbers that differ from
student to student. solutions/NN.py answers: a dict SOLUTIONS of `Solution`, the right
function and the wrong ones that people write. A student's function is run on the
exercise's cases; when it differs from the right one, the wrong answer that it agrees
with tells what was misunderstood.

A course folder (`zolab course`) has no solutions/: there exercises/NN.json holds what
the right and the wrong answers return, and course.toml says who the student is.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import random
import re
import tomllib
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from html import escape
from inspect import getsource
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from zolab.errors import ZolabError
from zolab.lab.show import Shown, say, show

NOTHING = "your function returns nothing yet"
KINDS = {"derive": "derive or predict", "write": "write", "break": "break and diagnose"}


class ExerciseError(ZolabError):
    """There is no such exercise, or its solution was asked for before a try."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows: where in zolab it was raised helps no student."""
        return [str(self)]


@dataclass(frozen=True)
class Exercise:
    """A question. `variant(rng)` draws a student's numbers.

    It returns {"cases": [argument tuples], ...}; other entries fill {names} in the
    question. An answer agrees within `tol`, relative to the largest expected entry.
    """

    kind: str
    minutes: int
    stars: int
    question: str
    variant: Callable[[random.Random], Mapping[str, Any]]
    hints: Sequence[str]
    tol: float = 1e-4

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}; it can be {', '.join(KINDS)}")


@dataclass(frozen=True)
class Wrong:
    """A wrong answer, and what to tell somebody who gives it."""

    answer: Callable[..., Any]
    message: str


@dataclass(frozen=True)
class Solution:
    """The right answer, and by name the wrong ones that are expected."""

    right: Callable[..., Any]
    wrong: Mapping[str, Wrong] = field(default_factory=dict)


@dataclass(frozen=True)
class Key:
    """What the answers return, a value a case: all that is needed to judge."""

    right: Sequence[Any]
    wrong: Mapping[str, tuple[str, Sequence[Any]]]  # name: (message, values)


def exercise(name: str) -> None:
    """Show the question "NN.name" with this student's numbers."""
    e, variant = asked(name), _variant(name)
    head = f"{name} ({KINDS[e.kind]}, {e.minutes} min, {'*' * e.stars})"
    question = e.question.format(**variant)
    told = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(question))
    style = "border-left:4px solid #009E73;padding:.2em .8em;margin:.5em 0"
    html = f'<div style="{style};max-width:42em"><b>{head}</b><br>{told}</div>'
    show(Shown(f"{head}\n{question}", html))


def check(name: str, answer: Any) -> None:
    """Say whether a function (or a plain value) is right, or what was misunderstood."""
    verdict, said = judge(name, answer)
    if verdict != "empty":
        _tried.add(name)
        _score(name, verdict)
    say(f"{name}: {said}")


def hint(name: str, number: int = 1) -> None:
    """Hint 1, 2, ..."""
    hints = asked(name).hints
    if not 1 <= number <= len(hints):
        raise ExerciseError(f"{name} has hints 1 to {len(hints)}")
    say(hints[number - 1])


def solution(name: str) -> None:
    """The right answer's source, after one try."""
    asked(name)
    if name not in _tried:
        raise ExerciseError(f"try once first: check({name!r}, your_function)")
    source = getsource(answers(name).right)
    show(Shown(source, f"<pre>{escape(source)}</pre>"))


def judge(name: str, answer: Any, student: str | None = None) -> tuple[str, str]:
    """(right, empty, error, unknown or a wrong answer's name; what to say)."""
    cases = _variant(name, student)["cases"]
    if not callable(answer):  # a plain value answers the first case
        value, cases = answer, cases[:1]
        answer = lambda *case: value  # noqa: E731
    given = []
    for case in cases:
        try:
            given.append(answer(*case))
        except Exception as error:
            return "error", f"your function raised {type(error).__name__}: {error}"
        if given[-1] is None or given[-1] is ...:
            return "empty", NOTHING
    expected, tol = key(name, student), asked(name).tol

    def agrees(values: Sequence[Any]) -> bool:
        pairs = zip(given, values, strict=False)
        return all(_agree(a, b, tol) for a, b in pairs)

    if agrees(expected.right):
        return "right", "right"
    for wrong, (message, values) in expected.wrong.items():
        if agrees(values):
            return wrong, message
    return "unknown", "not yet: it differs from the right answer, in no way we foresaw"


def key(name: str, student: str | None = None) -> Key:
    """The answers' values, from solutions/NN.py or else from exercises/NN.json."""
    chapter, _, short = name.partition(".")
    try:
        found = answers(name)
    except ExerciseError:
        path = _place("exercises", f"{chapter}.json")
        if path is None:
            raise
        row = json.loads(path.read_text("utf-8"))[short]
        return Key(row["right"], {k: (m, v) for k, (m, v) in row["wrong"].items()})
    cases = _variant(name, student)["cases"]
    values = {k: [w.answer(*c) for c in cases] for k, w in found.wrong.items()}
    right = [found.right(*c) for c in cases]
    return Key(right, {k: (w.message, values[k]) for k, w in found.wrong.items()})


def asked(name: str) -> Exercise:
    """The exercise "NN.name"; raises ExerciseError with the names that there are."""
    return _entry("exercises", "EXERCISES", name)


def answers(name: str) -> Solution:
    """Its solution; raises ExerciseError where solutions/NN.py is not at hand."""
    return _entry("solutions", "SOLUTIONS", name)


def names(chapter: str) -> list[str]:
    """The exercises of a chapter; none where it has no file."""
    if _place("exercises", f"{chapter}.py") is None:
        return []
    return [f"{chapter}.{name}" for name in _load("exercises", chapter).EXERCISES]


def course() -> Mapping[str, Any]:
    """course.toml beside the notebooks' folder; empty outside a course."""
    path = Path("../course.toml")
    return tomllib.loads(path.read_text("utf-8")) if path.exists() else {}


_tried: set[str] = set()


def _variant(name: str, student: str | None = None) -> Mapping[str, Any]:
    student = course().get("student", "") if student is None else student
    seed = zlib.crc32(f"{student}/{name}".encode())
    return asked(name).variant(random.Random(seed))


def _score(name: str, verdict: str) -> None:
    """In a course, one line a try in scores.csv: when, who, what, how."""
    if not (who := course().get("student")):
        return
    with Path("../scores.csv").open("a", encoding="utf-8", newline="") as f:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        csv.writer(f).writerow([now, who, name, verdict])


def _agree(a: Any, b: Any, tol: float) -> bool:
    if isinstance(b, str | bytes):
        return a == b
    try:
        x, y = (torch.as_tensor(v, dtype=torch.float64) for v in (a, b))
    except (TypeError, ValueError, RuntimeError):
        return False
    # The scale is the expected value's: small answers are judged as strictly.
    room = tol * float(y.abs().max()) if y.numel() else 0.0
    room = room if math.isfinite(room) else 0.0  # "never" is infinity, and equals it
    close = ((x - y).abs() <= room) | (x == y) if x.shape == y.shape else None
    return close is not None and bool(close.all()) and not math.isnan(float(x.sum()))


def _entry(folder: str, table: str, name: str) -> Any:
    chapter, _, short = name.partition(".")
    there = getattr(_load(folder, chapter), table)
    if short not in there:
        known = ", ".join(f"{chapter}.{n}" for n in there)
        raise ExerciseError(f"no exercise {name!r}; there are {known}")
    return there[short]


def _load(folder: str, chapter: str) -> ModuleType:
    path = _place(folder, f"{chapter}.py")
    if path is None:
        raise ExerciseError(f"{folder}/{chapter}.py is not here; ask your teacher")
    return _import(path.resolve())


@cache
def _import(path: Path) -> ModuleType:
    name = f"{path.parent.name}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _place(folder: str, file: str) -> Path | None:
    """Beside the notebooks, here, or (but not in a course) in the checkout."""
    places = [Path("..") / folder, Path(folder)]
    if not course():
        places.append(Path(__file__).parent.parent.parent / folder)
    return next((p / file for p in places if (p / file).exists()), None)
