"""lab: scale, claims, same, figures, exercises; and that none of it needs Jupyter."""

import copy
import json
import re
import subprocess
import sys
from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from zolab.lab import claims, exercises, figures, records, scales
from zolab.lab.claims import Claim
from zolab.lab.exercises import Exercise, Solution, Wrong
from zolab.lab.same import NotTheSame, same
from zolab.lab.widgets import Frames, frames, predict


def a_claim(**changes) -> Claim:
    row = dict.fromkeys((f.name for f in fields(Claim)), "?")
    row |= {"id": "x", "kind": "mechanism", "expect": "above", "than": 0.0}
    row |= {"margin": 0.1, "checked": True, "recorded": {}, "unit": ""}
    return Claim(**row | changes)


def test_pick_takes_the_next_smaller_scale(monkeypatch):
    monkeypatch.setenv("ZOLAB_SCALE", "gpu")
    assert scales.pick(tiny=1, laptop=2) == 2
    monkeypatch.setenv("ZOLAB_SCALE", "tiny")
    assert scales.pick(tiny=1, laptop=2) == 1
    monkeypatch.delenv("ZOLAB_SCALE")
    assert scales.scale() == "laptop"
    monkeypatch.setenv("ZOLAB_SCALE", "huge")
    with pytest.raises(scales.ScaleError, match="tiny, laptop, overnight, gpu"):
        scales.scale()
    with pytest.raises(scales.ScaleError, match="lap"):
        scales.pick(tiny=1, lap=2)


@pytest.mark.parametrize(
    ("measured", "se", "verdict"),
    [
        (0.5, 0.1, "same direction"),
        (0.5, 0.2, "not seen"),
        (-0.5, 0.1, "opposite"),
        (0.11, None, "same direction"),
        (0.09, None, "not seen"),
        (-0.2, None, "opposite"),
        (None, None, "could not test"),
        (float("nan"), None, "could not test"),
    ],
)
def test_an_effect_counts_from_three_standard_errors(measured, se, verdict):
    assert a_claim().judge(measured, se) == verdict
    if measured is not None:
        mirrored = a_claim(expect="below").judge(-measured, se)
        assert mirrored == verdict


def test_a_card_says_what_was_expected():
    near = a_claim(expect="near", than=1.0, margin=0.25)
    assert near.expected == "near 1 within 0.25"
    assert a_claim(expect="above", than=0.0, margin=0.1).expected == "above 0 by 0.1"
    assert a_claim(expect="below", than=1.2, margin=0.0).expected == "below 1.2"


def test_only_the_papers_number_in_the_papers_setting_is_reproduced():
    near = {"expect": "near", "than": 2.0}
    assert a_claim(**near).judge(2.05) == "same direction"
    assert a_claim(**near).judge(2.2) == "not seen"
    assert a_claim(**near).judge(2.2, 0.05) == "same direction"
    assert a_claim(**near, kind="identity").judge(2.05) == "holds"
    own = near | {"kind": "result", "distance": "none"}
    assert a_claim(**own).judge(2.05) == "reproduced"
    assert a_claim(**own, checked=False).judge(2.05) == "same direction"


def test_another_verdict_than_the_recorded_one_raises(monkeypatch, capsys):
    row = a_claim(recorded={"tiny": "same direction"}, checked=False)
    monkeypatch.setattr(claims, "ledger", lambda: {"x": row})
    monkeypatch.setattr(claims, "_rows", {})
    claims.claim("x", 1.0)
    assert "unverified" in capsys.readouterr().out
    assert claims.report().startswith("1 same direction")
    with pytest.raises(claims.ClaimError, match="not seen"):
        claims.claim("x", 0.0)
    assert claims.report().startswith("1 not seen"), "told, though it raised"
    with pytest.raises(claims.ClaimError, match="no claim 'y'"):
        claims.claim("y", 1.0)


def test_every_row_of_the_ledger_is_complete():
    for c in claims.ledger().values():
        assert c.kind in claims.KINDS
        assert c.expect in ("above", "below", "near")
        assert {c.verdict, *c.recorded.values()} <= set(claims.VERDICTS)
        assert c.why and c.control and c.distance and c.command


def test_same_says_where():
    a = {"w": torch.zeros(2, 3), "b": [torch.ones(2)]}
    same(a, {"w": torch.zeros(2, 3), "b": [torch.ones(2)]})
    b = {"w": torch.zeros(2, 3), "b": [torch.tensor([1.0, 1.5])]}
    with pytest.raises(NotTheSame, match=r"b\[0\]\[1\]: mine 1, theirs 1.5"):
        same(a, b)
    same(a, b, tol=0.4)
    with pytest.raises(NotTheSame, match="allowed 0.3"):
        same(a, b, tol=0.3)
    with pytest.raises(NotTheSame, match="only one side has w"):
        same({}, {"w": torch.ones(1)})
    with pytest.raises(NotTheSame, match=r"\(2,\)"):
        same(torch.ones(2), torch.ones(3))
    with pytest.raises(NotTheSame):
        same(torch.tensor(float("nan")), torch.tensor(0.0), tol=1.0)
    same(nn.BatchNorm1d(2), nn.BatchNorm1d(2))


def test_same_counts_tied_tensors_once_and_compares_them_all(capsys):
    tied = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    apart = copy.deepcopy(tied)
    tied[1].weight = tied[0].weight
    same(tied, copy.deepcopy(tied))
    assert "same: 9 numbers, equal bits" in capsys.readouterr().out
    with pytest.raises(NotTheSame, match=r"1\.weight"):
        same(apart, tied)
    apart[1].load_state_dict(apart[0].state_dict())
    same(tied, apart)  # as many as theirs has
    assert "same: 18 numbers, equal bits" in capsys.readouterr().out


def test_a_figure_needs_words_and_has_them(capsys):
    with pytest.raises(ValueError, match="say in a sentence"):
        figures.figure(alt="a plot").__enter__()
    alt = "One line goes up & ends at three."
    with figures.canvas(alt, "title", 440, 200) as (ax, image):
        figures.line(ax, [1, 2], [1, 3], "up", band=([0, 2], [2, 4]))
        figures.mark(ax, 2, "bound")
    assert 'alt="One line goes up &amp; ends at three."' in image[0]
    assert "image/png;base64" in image[0]


def test_frames_draws_each_combination_once_for_both_faces(capsys):
    drawn = []

    def draw(ax, step, rounding):
        drawn.append((step, rounding))
        ax.plot([0, step])

    def alt(step, rounding):
        return f"a line that rises to {step}, {rounding}"

    controls = {"step": [1, 2, 3], "rounding": ["bf16", "fp32"]}
    widget = Frames(draw, alt, (300, 200), controls)
    page = widget.html()
    assert drawn == [(s, r) for s in (1, 2, 3) for r in ("bf16", "fp32")]
    pictures = re.search(r'<script type="application/json">(.*?)</script>', page)[1]
    alts = [p["alt"] for p in json.loads(pictures)]
    assert alts == [alt(*at) for at in drawn]
    assert page.count("<img ") == 1 and page.count("<input type=range") == 2

    live = widget.live()
    picture, top, second = live.children
    top.children[0].value = 2
    assert "rises to 3, bf16" in picture.value
    second.value = 1
    assert "rises to 3, fp32" in picture.value
    top.children[1].value = 1  # play
    assert "rises to 2, fp32" in picture.value
    assert len(drawn) == 6, "a picture is drawn once"

    frames(draw, alt=alt, **controls)
    assert "step 3, rounding fp32: a line that rises to 3" in capsys.readouterr().out
    with pytest.raises(ValueError, match="one or two controls"):
        frames(draw, alt=alt, step=[1])


def test_a_guess_is_optional(capsys):
    guess = predict("Up or down?", ["up", "down"])
    assert guess.value is None
    guess.reveal("up")
    assert "Measured: up" in capsys.readouterr().out
    assert "<li>down</li>" in guess._repr_mimebundle_()["text/html"]


QUESTION = Exercise(
    kind="write",
    minutes=5,
    stars=1,
    question="Double {n}.",
    variant=lambda rng: {"n": (n := rng.randrange(3, 9)), "cases": [(n,), (3.0,)]},
    hints=("add it to itself",),
)
ANSWER = Solution(
    right=lambda x: 2 * x,
    wrong={"square": Wrong(lambda x: x * x, "that is the square")},
)


@pytest.fixture
def doubling(monkeypatch):
    tables = {"exercises": {"EXERCISES": {"double": QUESTION}}}
    tables["solutions"] = {"SOLUTIONS": {"double": ANSWER}}
    monkeypatch.setattr(
        exercises, "_load", lambda folder, _: SimpleNamespace(**tables[folder])
    )
    monkeypatch.setattr(exercises, "_tried", set())


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda x: x + x, "right"),
        (lambda x: x**2, "the square"),
        (lambda x: x, "no way we foresaw"),
        (lambda x: ..., "nothing yet"),
        (lambda x: 1 / 0, "ZeroDivisionError"),
        (lambda x: torch.ones(3), "no way we foresaw"),
        (lambda x: "2", "no way we foresaw"),
        (lambda x: float("nan"), "no way we foresaw"),
    ],
)
def test_check_names_the_misconception(answer, said, doubling, capsys):
    exercises.check("99.double", answer)
    assert (exercises.judge("99.double", answer)[0] == "right") == (said == "right")
    assert said in capsys.readouterr().out


def test_a_plain_value_answers_the_question(doubling, capsys):
    exercises.exercise("99.double")
    n = int(re.search(r"Double (\d)", capsys.readouterr().out)[1])
    assert exercises.judge("99.double", 2 * n)[0] == "right"
    assert exercises.judge("99.double", 2 * n + 1)[0] == "unknown"


def test_students_get_numbers_of_their_own(doubling):
    drawn = {exercises._variant("99.double", s)["n"] for s in map(str, range(20))}
    assert len(drawn) > 3
    once, twice = (exercises._variant("99.double", "ada")["n"] for _ in range(2))
    assert once == twice


def test_the_solution_comes_after_a_try(doubling, capsys):
    exercises.check("99.double", lambda x: None)
    with pytest.raises(exercises.ExerciseError, match="try once"):
        exercises.solution("99.double")
    exercises.check("99.double", lambda x: x)
    exercises.solution("99.double")
    assert "2 * x" in capsys.readouterr().out
    exercises.hint("99.double", 1)
    with pytest.raises(exercises.ExerciseError, match="hints 1 to 1"):
        exercises.hint("99.double", 2)
    with pytest.raises(exercises.ExerciseError, match=r"99\.double"):
        exercises.asked("99.triple")


def test_a_question_and_a_solution_are_whole_on_a_page(monkeypatch):
    """The format string '<IIff' of chapter 13 is no tag."""
    shown = []
    monkeypatch.setattr(exercises, "show", lambda x: shown.append(x.html))
    monkeypatch.setattr(exercises, "_tried", {"13.reader"})
    exercises.exercise("13.reader")
    exercises.exercise("13.lr")
    exercises.solution("13.reader")
    assert "&lt;IIff" in shown[0] and "died after" in shown[0]
    assert "<code>now</code>" in shown[1]
    assert "&lt;IIff" in shown[2] and "return found" in shown[2]


def test_a_record_carries_where_it_comes_from(tmp_path):
    path = records.record(
        "r", {"loss": [1, 2]}, command="zolab run 11", folder=tmp_path
    )
    found = records.recorded("r", folder=tmp_path)
    assert found["data"] == {"loss": [1, 2]}
    assert found["from"]["command"] == "zolab run 11"
    assert found["from"].keys() >= {"device", "versions", "commit", "date", "scale"}
    assert records.recorded("s", folder=tmp_path) is None
    assert path.parent == tmp_path
    card = records.cost_card("11", folder=tmp_path)
    assert "not recorded yet" in repr(card)


def test_a_run_says_its_cost_and_records_it_when_asked(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("ZOLAB_RECORD", raising=False)
    records.cost("11", folder=tmp_path)
    assert "GB at the peak, scale tiny" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("ZOLAB_RECORD", "1")
    records.cost("11", folder=tmp_path)
    card = repr(records.cost_card("11", folder=tmp_path))
    assert re.search(r"tiny +\d+ s +[\d.]+ GB", card)
    assert records.memory_ratio(folder=tmp_path) is None
    lines = '{"lines": [{"name": "peak of a step / of inference", "median": 1.04}]}'
    (tmp_path / "bench-memory-cpu-x.json").write_text(lines)
    assert records.memory_ratio(folder=tmp_path) == 1.04


def test_lab_works_without_matplotlib_ipywidgets_and_ipython():
    code = """
import sys
for name in ("matplotlib", "ipywidgets", "IPython", "numba"):
    sys.modules[name] = None
from zolab import lab
with lab.figure(alt="A line that goes up by two.", panels=2) as (top, bottom):
    lab.line(top, [1, 2], [1, 2], "up")
    bottom.set_xlim(0, 1)
say = "one point is drawn here"
lab.frames(lambda ax, q: ax.plot(q), alt=lambda q: say, q=[1, 2])
lab.predict("up?", ["yes", "no"])
lab.show(lab.cost_card("11"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "[figure] A line that goes up by two." in done.stdout
