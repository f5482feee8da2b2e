"""What every chapter must be: of its size, readable by ear, fresh, self-checking."""

import ast
import random
import re
from collections import Counter
from pathlib import Path

import pytest

from zolab import chapters, fresh
from zolab.lab import claims, exercises

ROOT = Path(__file__).parent.parent
CHAPTERS = chapters.find(ROOT / "notebooks")
TAUGHT = [n for n in CHAPTERS if n < "90"]  # the playground teaches nothing
EXERCISES = [name for n in CHAPTERS for name in exercises.names(n)]
SMALL = {"00": (900, 12)}  # words of text, code cells
BUDGET = (1800, 20)


@pytest.fixture(params=CHAPTERS)
def chapter(request):
    return CHAPTERS[request.param]


@pytest.fixture(params=TAUGHT)
def taught(request):
    return CHAPTERS[request.param]


def source(chapter) -> str:
    return "\n".join(cell.source for cell in chapter.cells())


def calls(chapter, name: str) -> list[ast.Call]:
    """Calls of lab.name in the chapter's cells."""
    nodes = ast.walk(ast.parse(source(chapter)))
    return [
        node
        for node in nodes
        if isinstance(node, ast.Call) and ast.unparse(node.func) == f"lab.{name}"
    ]


def test_it_keeps_its_budget(taught):
    words, most = SMALL.get(taught.number, BUDGET)
    code = [c for c in taught.cells() if "lab.check(" not in c.source]
    assert len(code) <= most
    assert max(len(c.source.splitlines()) for c in code) <= 15
    assert max(len(x) for x in source(taught).splitlines()) <= 72
    assert sum(len(t.split()) for t in taught.texts()) <= words
    assert 1 <= len(calls(taught, "figure")) + len(calls(taught, "frames")) <= 4
    assert len(calls(taught, "frames")) == 1
    assert len(calls(taught, "check")) == 3
    assert len(calls(taught, "predict")) >= 1
    assert len(calls(taught, "same")) >= 1


def test_it_says_what_it_is(chapter):
    about = chapter.about
    assert about.chapter == chapter.number
    assert about.part == int(chapter.number[0])
    assert set(about.needs) <= set(CHAPTERS)
    assert chapter.title and about.minutes >= 10
    assert f"*{about.question}*" in chapter.texts()[0], "asked below the title"


def test_its_outputs_are_whole_and_readable_by_ear(chapter):
    outputs = chapter.outputs()
    assert outputs, "run and saved"
    assert not [o for o in outputs if o["output_type"] == "error"]
    for o in outputs:
        assert "application/vnd.jupyter.widget-view+json" not in o.get("data", {})
        html = "".join(o.get("data", {}).get("text/html", ""))
        for image in re.findall(r"<img [^>]*?src", html):
            assert re.search(r'alt="[^"]{20,}"', image)
    assert chapter.path.stat().st_size < 1_000_000


def test_its_outputs_belong_to_this_code(chapter):
    ran = chapter.about.ran
    again = f"zolab run {chapter.number} --scale laptop --save"
    assert ran, f"never saved: {again}"
    code = [c.source for c in chapter.cells()]
    assert fresh.stale(ran, code) == [], f"stale: {again}"


def test_chapters_stand_on_earlier_ones():
    for number, chapter in CHAPTERS.items():
        assert all(n < number for n in chapter.about.needs)


def test_each_claim_is_used_once_and_each_used_one_exists():
    used = Counter()
    for chapter in CHAPTERS.values():
        for call in calls(chapter, "claim"):
            name = ast.literal_eval(call.args[0])
            assert claims.ledger()[name].chapter == chapter.number
            used[name] += 1
    assert used == Counter(claims.ledger().keys())


def test_each_control_exists():
    for c in claims.ledger().values():
        if c.control.startswith("none: "):
            continue
        file, _, name = c.control.partition("::")
        text = (ROOT / file).read_text("utf-8")
        assert re.search(rf"^def {name}\(", text, re.M), c.control


def test_each_exercise_is_asked(taught):
    asked = [ast.literal_eval(c.args[0]) for c in calls(taught, "exercise")]
    assert sorted(asked) == sorted(exercises.names(taught.number))


@pytest.mark.parametrize("student", ["", "ada", "emmy", "grace", "sofya"])
@pytest.mark.parametrize("name", EXERCISES)
def test_the_right_answer_is_right_and_each_wrong_one_is_told(name, student):
    solution = exercises.answers(name)
    assert exercises.judge(name, solution.right, student) == ("right", "right")
    assert solution.wrong
    for wrong, w in solution.wrong.items():
        assert exercises.judge(name, w.answer, student) == (wrong, w.message)


@pytest.mark.parametrize("name", EXERCISES)
def test_an_exercise_is_whole(name):
    e = exercises.asked(name)
    assert len(e.hints) == 2
    assert 1 <= e.stars <= 3 and 5 <= e.minutes <= 20
    for seed in range(20):
        assert e.question.format(**e.variant(random.Random(seed)))


def test_solutions_are_in_no_notebook():
    for name in EXERCISES:
        right = exercises.answers(name).right.__name__
        assert f"def {right}(" not in source(CHAPTERS[name[:2]]) or right == "<lambda>"


def test_a_fingerprint_sees_code_and_nothing_else():
    code = 'def f(x):\n    """Twice."""\n    return 2 * x\n'
    same = "def f(x):  # doubles\n    return (2 * x)\n"
    other = "def f(x):\n    return 3 * x\n"
    stamp = fresh.stamp([code], ["zolab.noise"])
    assert fresh.stale(stamp, [same]) == []
    assert fresh.stale(stamp, [other]) == ["the cells"]
    stamp["modules"]["zolab.noise"] = "another"
    stamp["modules"]["zolab.no_such_module"] = "another"
    assert fresh.stale(stamp) == ["zolab.noise", "zolab.no_such_module"]
