"""The playground: short, set in one cell, and its words keep what they promise."""

import ast
from pathlib import Path

import torch

import zolab
from zolab import chapters, tasks

ROOT = Path(__file__).parent.parent
CHAPTER = chapters.find(ROOT / "notebooks")["90"]
CELLS = CHAPTER.cells()
SETTINGS = {
    *("name", "source", "columns", "words", "prompt", "objective", "moves"),
    *("lr", "eps", "batch_size", "seed", "steps", "every", "journal"),
}


def assigned(source: str) -> set[str]:
    targets = [
        t
        for n in ast.parse(source).body
        if isinstance(n, ast.Assign)
        for t in n.targets
    ]
    return {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}


def test_it_is_short():
    lines = [line for c in CELLS for line in c.source.splitlines()]
    assert len(CELLS) <= 10
    assert max(map(len, lines)) <= 72
    assert sum(len(t.split()) for t in CHAPTER.texts()) <= 900


def test_every_setting_is_in_one_cell_and_nowhere_else():
    where = {s: [c.number for c in CELLS if s in assigned(c.source)] for s in SETTINGS}
    (number,) = {n for numbers in where.values() for n in numbers}
    assert where == dict.fromkeys(SETTINGS, [number])


def test_what_changes_the_run_is_in_its_notes():
    """Whatever the header of a journal lacks by itself."""
    (call,) = [
        n
        for c in CELLS
        for n in ast.walk(ast.parse(c.source))
        if isinstance(n, ast.Call) and ast.unparse(n.func) == "lab.notes"
    ]
    noted = {k.arg for k in call.keywords}
    own = {"eps", "seed"}  # the optimizer's header has them
    free = {"steps", "every", "journal"}
    seen_in_data = {"source", "columns"}
    noted_by_another_name = {"model": "name", "data": "source"}
    noted = {noted_by_another_name.get(k, k) for k in noted}
    assert noted | own | free | seen_in_data == SETTINGS


def test_the_objective_in_the_text_runs(one_thread):
    text = next(t for t in CHAPTER.texts() if "```python" in t)
    code = text.partition("```python\n")[2].partition("```")[0]
    space = {"tasks": tasks}
    exec(code, space)
    model, tokenizer = zolab.load_model("tiny")
    task = tasks.Sentiment(tokenizer, words=("down", "up"))
    rows = tasks.read_table("embedded").sentences[:40]
    batch = task.batch(rows)
    with torch.no_grad():
        found = space["objective"](model, batch)
    wrong = tasks.mistakes(model, task, rows)
    cost = sum(1 if s.label else 3 for _, s in wrong)
    assert abs(float(found) - cost / 40) < 1e-6
