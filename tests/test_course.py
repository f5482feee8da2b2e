"""A new chapter's skeleton is a whole chapter; a course holds no solutions."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from zolab import chapters, cli, runner
from zolab.lab import claims, course, exercises, skeleton

ROOT = Path(__file__).parent.parent


@pytest.fixture
def new(tmp_path, monkeypatch):
    paths = skeleton.new("41", "Which numbers survive?", tmp_path)
    ledger = claims.ledger(tmp_path / "zolab" / "data" / "claims")
    monkeypatch.setattr(claims, "ledger", lambda: ledger)
    return tmp_path, paths


def test_a_skeleton_runs_is_judged_and_keeps_the_budget(new, capsys):
    root, paths = new
    chapter = chapters.find(root / "notebooks")["41"]
    assert chapter.path.name == "41_which_numbers_survive.ipynb"
    assert chapter.title == "Which numbers survive?"
    assert f"*{chapter.about.question}*" in chapter.texts()[0]
    assert max(len(x) for c in chapter.cells() for x in c.source.splitlines()) <= 72
    runner.run(chapter, scale="tiny", show=True)
    said = capsys.readouterr().out
    assert "41-first | " in said and "| holds" in said
    assert said.count("your function returns nothing yet") == 3
    linted = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", "--isolated", "--select",
         "E,F", "--ignore", "E501,E701,E731",
         *(str(p) for p in paths if p.suffix != ".toml")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert linted.returncode == 0, linted.stdout


def test_a_skeleton_passes_what_the_book_asks_of_a_chapter(new, monkeypatch):
    root, _ = new
    chapter = chapters.find(root / "notebooks")["41"]
    text = "\n".join(chapter.texts())
    assert "direction" in text, "a term of the glossary"
    assert re.search(r"[^$]\$[^$\n]+\$[^$]", text), "a formula in a sentence"
    code = "\n".join(c.source for c in chapter.cells())
    monkeypatch.chdir(root / "notebooks")
    for name in exercises.names("41"):
        assert f"def {exercises.answers(name).right.__name__}(" not in code


def test_a_skeletons_exercises_know_right_from_wrong(new, monkeypatch):
    root, _ = new
    monkeypatch.chdir(root / "notebooks")
    for name in exercises.names("41"):
        solution = exercises.answers(name)
        assert exercises.judge(name, solution.right) == ("right", "right")
        for wrong, w in solution.wrong.items():
            assert exercises.judge(name, w.answer) == (wrong, w.message)


def test_a_skeletons_test_passes(new):
    module: dict = {}
    exec(new[1][-1].read_text("utf-8"), module)
    module["test_one_sign_for_all_has_no_root"]()


@pytest.mark.parametrize(
    ("number", "name", "said"),
    [("4", "x", "two digits"), ("41", "x", "is there"), ("42", "?!", "no file name")],
)
def test_new_refuses_what_it_cannot_do(new, number, name, said):
    with pytest.raises(chapters.ChapterError, match=said):
        skeleton.new(number, name, new[0])


ANSWER = """
import sys
from zolab.lab import exercises
import torch
names = [n for c in ("11",) for n in exercises.names(c)]
assert names
exercises.exercise("11.error")
exercises.check("11.error", lambda q, d: (d - 1) / q**2)
exercises.check("11.error", lambda q, d: (d - 1) / q)
try:
    exercises.solution("11.error")
except exercises.ExerciseError as error:
    print("no solution:", error)
"""


def test_a_course_has_numbers_of_its_own_and_no_solutions(tmp_path):
    out = tmp_path / "course"
    folders = course.build(out, ["ada", "emmy noether"], ROOT)
    for folder in folders:
        assert not list(folder.rglob("solutions"))
        text = "\n".join(
            p.read_text("utf-8")
            for p in folder.rglob("*")
            if p.suffix in (".py", ".json")
        )
        for name in exercises.names("11"):
            right = exercises.answers(name).right
            assert f"def {right.__name__}(" not in text
        run = subprocess.run(
            [sys.executable, "-c", ANSWER], cwd=folder / "notebooks",
            capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        assert "no solution: solutions/11.py is not here" in run.stdout
        assert "1/q^2 is what" in run.stdout, "the misconception is told"
    keys = [json.loads((f / "exercises/11.json").read_text()) for f in folders]
    assert keys[0]["error"] != keys[1]["error"]

    rows = course.scores(out)
    assert rows == [
        ["ada", "11.error", 2, True, "q squared"],
        ["emmy noether", "11.error", 2, True, "q squared"],
    ]
    with pytest.raises(course.CourseError, match="kept as they are"):
        course.build(out, ["ada"], ROOT)


@pytest.mark.parametrize("students", [[], ["a", "a"], ["a/b"], [".."]])
def test_a_course_needs_names_that_are_folders(tmp_path, students):
    with pytest.raises(course.CourseError):
        course.build(tmp_path / "course", students, ROOT)


def test_scores_say_what_is_wrong_with_a_file(tmp_path):
    with pytest.raises(course.CourseError, match="no scores.csv"):
        course.scores(tmp_path)
    (tmp_path / "scores.csv").write_text("now,ada,11.error\n")
    with pytest.raises(course.CourseError, match="line 1: 4 fields, not 3"):
        course.scores(tmp_path)


def test_the_command_line(tmp_path, capsys, monkeypatch):
    names = tmp_path / "names.txt"
    names.write_text("ada\n\nemmy\n")
    out = tmp_path / "course"
    with pytest.raises(SystemExit) as left:
        cli.main(["course", "--students", str(names), "--out", str(out)])
    assert left.value.code == 0
    assert sorted(p.name for p in out.iterdir()) == ["ada", "emmy"]
    with pytest.raises(SystemExit, match="no file"):
        cli.main(["course", "--students", "nobody.txt"])
    (out / "ada" / "scores.csv").write_text("now,ada,11.lr,right\n")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        cli.main(["scores", str(out)])
    found = capsys.readouterr().out
    assert re.match(r"student,exercise,tries,right,mistakes\s+ada,11.lr,1,True,", found)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="two digits"):
        cli.main(["new", "x", "y"])
