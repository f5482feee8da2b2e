"""`zolab course`, `zolab scores`: a folder a student, without solutions, and marks."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch

from zolab import chapters
from zolab.errors import ZolabError
from zolab.lab import exercises

README = """# zolab, {student}

With zolab installed (your teacher says from where):

    jupyter lab notebooks

The exercises in these notebooks have your own numbers and check themselves; each try is
a line in scores.csv. Hand in the folder.
"""


class CourseError(ZolabError):
    """A course cannot be built or scored: no students, a name that is no folder."""


def build(out: Path, students: Sequence[str], root: Path) -> list[Path]:
    """A folder a student under `out`: notebooks, questions, expected values, no code.

    Raises CourseError when a folder is there already: it may hold somebody's work.
    """
    if not students:
        raise CourseError("no students: give a file with a name a line")
    twice = {s for s in students if students.count(s) > 1}
    odd = {s for s in students if not s or s in (".", "..") or set(s) & set('/\\"')}
    if twice or odd:
        raise CourseError(f"names twice {sorted(twice)}, or not a folder {sorted(odd)}")
    folders = [out / s for s in students]
    if there := [str(f) for f in folders if f.exists()]:
        raise CourseError(f"there already, and kept as they are: {', '.join(there)}")
    for student, folder in zip(students, folders, strict=True):
        _one(student, folder, root)
    return folders


def _one(student: str, folder: Path, root: Path) -> None:
    (folder / "notebooks").mkdir(parents=True)
    (folder / "exercises").mkdir()
    (folder / "course.toml").write_text(f'student = "{student}"\n', "utf-8")
    (folder / "README.md").write_text(README.format(student=student), "utf-8")
    for number, chapter in chapters.find(root / "notebooks").items():
        shutil.copy(chapter.path, folder / "notebooks")
        if names := exercises.names(number):
            shutil.copy(root / "exercises" / f"{number}.py", folder / "exercises")
            rows = {n.partition(".")[2]: _row(n, student) for n in names}
            path = folder / "exercises" / f"{number}.json"
            path.write_text(json.dumps(rows, indent=1), "utf-8")


def _row(name: str, student: str) -> dict[str, Any]:
    key = exercises.key(name, student)
    wrong = {k: [said, _plain(v)] for k, (said, v) in key.wrong.items()}
    return {"right": _plain(key.right), "wrong": wrong}


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.tolist()
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def scores(folder: Path) -> list[list[Any]]:
    """A row a student and exercise: student, exercise, tries, right, mistakes in order.

    Raises CourseError where no scores.csv lies below `folder`.
    """
    found: dict[tuple[str, str], list[str]] = {}
    paths = sorted(folder.rglob("scores.csv"))
    if not paths:
        raise CourseError(f"no scores.csv below {folder}")
    for path in paths:
        with path.open(encoding="utf-8", newline="") as f:
            for line, row in enumerate(csv.reader(f), 1):
                if len(row) != 4:
                    raise CourseError(f"{path}, line {line}: 4 fields, not {len(row)}")
                found.setdefault((row[1], row[2]), []).append(row[3])
    return [
        [*who, len(tries), "right" in tries, " ".join(t for t in tries if t != "right")]
        for who, tries in sorted(found.items())
    ]


def write(rows: Iterable[Sequence[Any]], file: TextIO) -> None:
    """The scores as CSV."""
    out = csv.writer(file)
    out.writerow(["student", "exercise", "tries", "right", "mistakes"])
    out.writerows(rows)
