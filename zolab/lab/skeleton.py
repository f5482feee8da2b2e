"""`zolab new NN "name"`: a chapter that runs and is judged, ready to be written."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from zolab.chapters import ChapterError

QUESTION = "What is asked here?"
CELLS = [
    """# {title}

*{question}*

Two short paragraphs: what one would expect, and what happens instead. You will
**derive** one thing, **measure** another, and **predict** a third. You need: chapters
{needs}, and {minutes} minutes.""",
    """import torch

from zolab import direction, lab, make_key

lab.begin("{number}")""",
    """## A first result

Something happens within two cells.""",
    """z = direction(make_key(0, 0, 0), "w", 1000)
print(f"{{int((z > 0).sum())}} of 1000 signs are +")""",
    """## The smallest example that shows the problem

A sentence on the direction $z$, an equation, and the lines that are it:

$$ E[z_i^2] = 1. \\tag{{1}} $$""",
    """mine = z.square().mean()  # equation (1)
lab.same(mine, torch.tensor(1.0))""",
    """guess = lab.predict("A mean of n signs?", ["like 1/n", "like 1/root n"])
sizes = lab.pick(tiny=[10, 100, 1000], laptop=[10, 100, 1000, 10_000])

def spread(n):
    draws = direction(make_key(1, 0, 0), "w", (200, n))
    return float(draws.mean(1).std())""",
    """spreads = [spread(n) for n in sizes]
alt = "The spread of a mean of n signs falls as one over the root of n."
with lab.figure(alt=alt, title="Spread of a mean of n signs") as ax:
    lab.line(ax, sizes, spreads, "measured")
    ax.set(xscale="log", yscale="log", xlabel="n", ylabel="spread")
guess.reveal("like 1/root n")
lab.claim("{number}-first", spreads[-1] * sizes[-1] ** 0.5)""",
    """## Try it

One thing to move, and a sentence on what to look for.""",
    """def draw(ax, n):
    draws = direction(make_key(1, 0, 0), "w", (200, n)).mean(1)
    ax.hist(draws, bins=20, color="#0072B2")
    ax.set(xlim=(-1, 1), xlabel="mean of n signs", ylabel="draws")

def say(n):
    return f"means of {{n}} signs, 200 of them, lie around zero"

lab.frames(draw, alt=say, n=[2, 8, 32, 128])""",
    """## Exercises

Each checks itself. `lab.hint("{number}.first", 1)` helps; after one try
`lab.solution("{number}.first")` shows an answer.""",
    *[
        """lab.exercise("{number}.%s")
def my_%s(n): ...
lab.check("{number}.%s", my_%s)"""
        % ((name,) * 4)
        for name in ("first", "second")
    ],
    """lab.exercise("{number}.third")
def my_third(n): ...
lab.check("{number}.third", my_third)
lab.cost("{number}")""",
    """## What failed, and why

- What was tried and did not work.

## Five lines

1. One.

**For a group.** A question that has no single answer.

**Read.** The paper, and which section.

**Next.** The next chapter.""",
]
EXERCISES = '''"""The exercises of chapter {number}; answers: solutions/{number}.py."""

from zolab.lab.exercises import Exercise


def sizes(rng):
    n = rng.choice([4, 9, 25])
    return {{"n": n, "cases": [(n,), (100,)]}}


def ask(kind):
    return Exercise(
        kind=kind,
        minutes=8,
        stars=1,
        question="The standard deviation of a mean of n = {{n}} signs.",
        variant=sizes,
        hints=("Variances of independent numbers add.", "Divide by n, squared."),
    )


EXERCISES = {{"first": ask("derive"), "second": ask("write"), "third": ask("break")}}
'''
SOLUTIONS = '''"""Right and wrong answers to the exercises of chapter {number}."""

from zolab.lab.exercises import Solution, Wrong


def deviation(n):
    return n**-0.5


ANSWER = Solution(
    right=deviation,
    wrong={{
        "variance": Wrong(lambda n: 1 / n, "that is the variance; take its root"),
    }},
)
SOLUTIONS = {{"first": ANSWER, "second": ANSWER, "third": ANSWER}}
'''
CLAIM = """# What the papers say beside what was measured here: zolab/lab/claims.py.

[[claim]]
id = "{number}-first"
chapter = "{number}"
kind = "identity"
text = "The spread of a mean of n signs is one over the root of n."
source = "derived in the chapter"
paper = "one over the root of n"
checked = true
setting = "independent signs"
distance = "none"
seeds = 200
expect = "near"
than = 1.0
margin = 0.2
unit = "(spread times the root of n)"
why = "The standard deviation of 200 draws is known to 5 %: four of these."
control = "tests/test_chapter_{number}.py::test_one_sign_for_all_has_no_root"
command = "zolab run {number} --scale tiny"
verdict = "holds"
"""
TEST = '''"""Chapter {number}: its claims' controls fail."""

from zolab.lab import claims


def test_one_sign_for_all_has_no_root():
    n, spread = 100, 1.0  # the same sign a hundred times: its mean is as wide as one
    assert claims.ledger()["{number}-first"].judge(spread * n**0.5) == claims.NOT_SEEN
'''


def new(number: str, name: str, root: Path) -> list[Path]:
    """Write a chapter's five files under `root`; returns their paths.

    Raises ChapterError when the number is no two digits or a file is there already.
    """
    if not re.fullmatch(r"\d\d", number):
        raise ChapterError(f"the chapter's number is {number!r}; it has two digits")
    stem = re.sub(r"\W+", "_", name.strip().lower()).strip("_")
    if not stem:
        raise ChapterError(f"{name!r} gives no file name: use letters")
    taken = sorted((root / "notebooks").glob(f"{number}_*.ipynb"))
    if taken:
        raise ChapterError(f"chapter {number} is there: {taken[0].name}")
    words: dict[str, Any] = {"number": number, "title": name.strip(), "minutes": 60}
    words |= {"question": QUESTION, "needs": "00"}
    files = {
        f"notebooks/{number}_{stem}.ipynb": _notebook(words),
        f"exercises/{number}.py": EXERCISES.format(**words),
        f"solutions/{number}.py": SOLUTIONS.format(**words),
        f"zolab/data/claims/{number}.toml": CLAIM.format(**words),
        f"tests/test_chapter_{number}.py": TEST.format(**words),
    }
    there = [f for f in files if (root / f).exists()]
    if there:
        raise ChapterError(f"these are there already: {', '.join(there)}")
    for file, text in files.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(text, "utf-8")
    return [root / file for file in files]


def _notebook(words: dict[str, Any]) -> str:
    cells: list[dict[str, Any]] = []
    for i, text in enumerate(CELLS):
        source = text.format(**words)
        code = "lab." in source and not source.startswith("#") or "direction(" in source
        kind = "code" if code else "markdown"
        cell: dict[str, Any] = {"cell_type": kind, "id": f"cell-{i}"}
        cell |= {"metadata": {}, "source": source.splitlines(keepends=True)}
        if code:
            cell |= {"execution_count": None, "outputs": []}
        cells.append(cell)
    about: dict[str, Any] = {
        "chapter": words["number"],
        "question": QUESTION,
        "minutes": 60,
    }
    about |= {"part": int(words["number"][0]), "needs": ["00"], "symbols": ["z"]}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "zolab": about | {"papers": []}}
    whole = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"
