"""reasoning-gym: no question on both sides, whole answers only, scorers that raise."""

import sys
from types import SimpleNamespace

import pytest

from zolab.errors import ZolabError
from zolab.rl.rewards import judge
from zolab.tasks.gym import load_gym


class Toy:
    """What its datasets do: item i is drawn with seed + i, and scores are partial."""

    def __init__(self, seed, size, kinds=1000):
        self.seed, self.kinds = seed, kinds

    def __getitem__(self, i):
        n = (self.seed + i) % self.kinds
        return {"question": f"{n} + 1 =", "answer": str(n + 1), "metadata": {"n": n}}

    def score_answer(self, answer, entry):
        if answer == "crash":
            raise TypeError("the scorer's own mistake")
        wanted = entry["answer"]
        if answer == wanted:
            return 1.0
        return len(wanted) / len(answer) if answer and wanted in answer else 0.01


@pytest.fixture
def toy(monkeypatch):
    def create_dataset(name, *, seed, size, **config):
        return Toy(seed, size, **config)

    fake = SimpleNamespace(create_dataset=create_dataset)
    monkeypatch.setitem(sys.modules, "reasoning_gym", fake)
    return fake


def questions(items):
    return {i.question for i in items}


def test_seeds_that_differ_by_one_would_share_nearly_all(toy):
    """The trap itself, so that it is known to be there."""
    a, b = (toy.create_dataset("toy", seed=s, size=100) for s in (0, 1))
    shared = {a[i]["question"] for i in range(100)} & {
        b[i]["question"] for i in range(100)
    }
    assert len(shared) == 99


def test_no_question_is_on_both_sides_and_none_comes_twice(toy):
    gym = load_gym("toy", train=60, held_out=30, kinds=100, seed=5)
    assert len(questions(gym.train)) == 60 and len(questions(gym.held_out)) == 30
    assert not questions(gym.train) & questions(gym.held_out)
    assert gym.dropped == 0
    with pytest.raises(ZolabError, match="only 50 different questions"):
        load_gym("toy", train=60, held_out=30, kinds=50)


def test_partial_credit_is_no_credit(toy):
    gym = load_gym("toy", train=2, held_out=1)
    (entry,) = [i.entry for i in gym.train if i.answer == "1"]
    texts = ["1", "1 or perhaps 2", "", "7"]
    assert gym.scorer("1 or 2", entry) > 0  # the trap
    assert gym.right([""] * 4, texts, entry=[entry] * 4) == [1.0, 0.0, 0.0, 0.0]


def test_a_scorer_that_raises_costs_its_row_alone(toy):
    gym = load_gym("toy", train=2, held_out=1)
    entries = [i.entry for i in gym.train]
    columns = {"prompts": ["", ""], "completions": ["1", "crash"], "entry": entries}
    values, errors = judge("gym", gym.right, columns)
    assert values == [1.0, None] and "own mistake" in errors[0]


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ZolabError, match="zolab\\[gym\\]"):
        load_gym("toy", train=1, held_out=1)


def test_counts_are_positive(toy):
    with pytest.raises(ZolabError, match="at least 1"):
        load_gym("toy", train=0, held_out=1)


def test_the_real_package():
    """Its answers are right by its own scorer, a longer text that holds one is not."""
    pytest.importorskip("reasoning_gym")
    gym = load_gym("chain_sum", train=40, held_out=20, min_terms=2, max_terms=2)
    assert not questions(gym.train) & questions(gym.held_out)
    entries = [i.entry for i in gym.train]
    answers = [i.answer for i in gym.train]
    assert gym.right([""] * 40, answers, entry=entries) == [1.0] * 40
    longer = [f"it is {a}, I think" for a in answers]
    assert gym.right([""] * 40, longer, entry=entries) == [0.0] * 40
