"""Countdown: the parser is exact, executes nothing, and pays for right answers only."""

import random
from fractions import Fraction

import pytest

from zolab.errors import ZolabError
from zolab.tasks.characters import tokenizer
from zolab.tasks.countdown import (
    ALPHABET,
    LONGEST,
    OPERATIONS,
    SHAPES,
    Countdown,
    answers,
    is_held_out,
    puzzle,
    solved,
    solves,
    value,
)


def test_precedence_and_brackets_are_those_of_school():
    worth = {
        "1+2*3": 7,
        "(1+2)*3": 9,
        "9-2-3": 4,
        "9-(2-3)": 10,
        "((7))": 7,
        "2*3*4": 24,
    }
    assert {text: value(text) for text in worth} == worth


def test_the_parser_agrees_with_an_evaluation_from_outside_in():
    """Random trees: the text goes to the parser, the tree to exact fractions."""
    rng = random.Random(0)

    def tree(depth):
        if depth == 0 or rng.random() < 0.2:
            n = rng.randrange(1, 30)
            return str(n), Fraction(n)
        (a, x), (b, y) = tree(depth - 1), tree(depth - 1)
        op = rng.choice(OPERATIONS)
        return f"({a}{op}{b})", {"+": x + y, "-": x - y, "*": x * y}[op]

    pairs = [tree(3) for _ in range(300)]
    short = [(t, x) for t, x in pairs if len(t) <= LONGEST]
    assert len(short) > 250 and all(value(t) == x for t, x in short)


NONSENSE = [
    "", "1+", "+1", "-1", "1--2", "1+-2", "()", "(1", "1)", ")(", "1(2)", "1 + 2",
    "03+4", "1/2", "2**3", "1e3", "0x10", "1.5", "1_0", "__import__('os')", "1\n",
    "٣+4", "²", "１+2", "12345678901234567890*9", "(" * 60, "(" * 5000, "1=1",
]  # fmt: skip


@pytest.mark.parametrize("text", NONSENSE)
def test_what_is_no_expression_has_no_value(text):
    assert value(text) is None


def test_each_number_is_used_once_and_no_other():
    assert solves("3*7+5", [3, 5, 7], 26)
    assert not solves("3*7+5", [3, 5, 7], 27)
    assert not solves("21+5", [3, 5, 7], 26)  # 21 is not given
    assert not solves("3*7+5", [3, 7, 5, 5], 26)  # one is left over
    assert not solves("5*5+1", [5, 1, 1], 26)  # 5 twice
    assert not solves("57-3", [3, 5, 7], 54)  # glued together
    assert not solves("26", [3, 5, 7], 26)


def test_many_answers_are_right_and_all_of_them_are_paid():
    found = answers((3, 5, 7), 26)
    assert {"3*7+5", "5+3*7", "7*3+5", "(7*3)+5"} <= set(found)
    assert solved(["357:26="] * len(found), found) == [1.0] * len(found)


def test_an_answer_that_did_not_stop_is_not_paid():
    assert solved(["357:26="] * 2, ["3*7+5"] * 2, stop=["eos", "length"]) == [1.0, 0.0]


def test_demonstrations_are_true_and_in_the_tokenizers_alphabet():
    task, tok = Countdown(), tokenizer(ALPHABET)
    pairs = task.demonstrations(300, seed=1)
    prompts, texts = zip(*pairs, strict=True)
    assert solved(prompts, texts) == [1.0] * 300
    longest = max(len(tok(t, add_special_tokens=False)["input_ids"]) for t in texts)
    assert longest + 1 <= task.max_new_tokens
    assert tok.batch_decode(
        tok(list(texts))["input_ids"], skip_special_tokens=True
    ) == [*texts]


def test_no_puzzle_is_on_both_sides_of_the_split_whatever_the_seeds():
    """The same numbers in another order are the same puzzle."""
    task = Countdown()

    def puzzles(prompts):
        return {(tuple(sorted(n)), t) for n, t in map(puzzle, prompts)}

    trained = {p for p, _ in task.demonstrations(1500, seed=0)}
    trained |= set(task.prompts(1500, seed=0))
    judged = task.prompts(500, seed=0, held_out=True)
    assert not puzzles(trained) & puzzles(judged)
    assert all(is_held_out(*puzzle(p)) for p in judged)
    assert is_held_out([3, 5, 7], 26) == is_held_out([7, 3, 5], 26)


def test_prompts_follow_from_the_seed_alone():
    task = Countdown()
    assert task.prompts(20, seed=3) == task.prompts(20, seed=3)
    assert task.prompts(20, seed=3) != task.prompts(20, seed=4)
    assert task.prompts(5, seed=3) == task.prompts(20, seed=3)[:5]


@pytest.mark.parametrize("prompt", ["357=", "357:=", "3a7:26=", ":26=", "٣57:26="])
def test_a_prompt_that_is_no_puzzle_says_so(prompt):
    with pytest.raises(ZolabError, match="expected one like"):
        puzzle(prompt)


def test_every_shape_is_drawn():
    texts = [t for _, t in Countdown().demonstrations(200, seed=0)]
    forms = {"".join("d" if c.isdecimal() else c for c in t) for t in texts}
    blank = {s.format("d", "d", "d", "+", "+") for s in SHAPES}
    assert blank <= {f.replace("-", "+").replace("*", "+") for f in forms}
