"""The bench of sums: what is right, and that a run is done once and written down."""

import json

import pytest
import torch

from zolab.bench import gym as bench
from zolab.tasks.bases import load_base
from zolab.tasks.gym import Gym, Item
from zolab.tasks.sorting import Sorting

pytestmark = pytest.mark.usefixtures("one_thread")


def score(answer, entry):
    """As reasoning-gym's: the answer's share of a longer text."""
    right = entry["answer"]
    return len(right) / len(answer) if right in answer else 0.0


def items(prompts):
    answers = ["".join(sorted(p.rstrip("="))) for p in prompts]
    return tuple(
        Item(p, a, {"answer": a}) for p, a in zip(prompts, answers, strict=True)
    )


@pytest.fixture
def toy(monkeypatch):
    task = Sorting()
    train = items(task.prompts(6, seed=1))
    held_out = items(task.prompts(4, seed=0, held_out=True))
    sums = bench.Sums(Gym("toy", train, held_out, 0, score))
    monkeypatch.setattr(bench, "sums", lambda digits, held_out: sums)
    monkeypatch.setattr(bench, "LONGEST", task.max_new_tokens)
    monkeypatch.setattr(bench, "load_model", lambda name: load_base("sorting"))
    return sums


def test_right_is_the_whole_number_and_then_the_end(toy):
    entry = [{"answer": "12"}] * 5
    texts = [" 12", "12", "12.", "12", ""]
    stop = ["eos", "eos", "eos", "length", "eos"]
    found = toy.reward(["?"] * 5, texts, entry=entry, stop=stop)
    assert found == [1.0, 1.0, 0.0, 0.0, 0.0]


def test_updates_take_the_questions_in_turn(toy):
    asked = [i.question for cursor in range(3) for i in toy.asked(cursor, 4)]
    assert asked == [i.question for i in toy.gym.train] * 2


def test_a_run_is_done_once_and_goes_on_where_it_broke_off(
    toy, tmp_path, capsys, monkeypatch
):
    words = ["--updates", "1", "--prompts", "6", "--threads", "1"]
    words += ["--out", str(tmp_path), "--folder", str(tmp_path / "runs")]
    assert bench.main(words) == 0
    path = tmp_path / "bench-gym-cpu-smollm2-135m.json"
    record = json.loads(path.read_text("utf-8"))
    assert record["rows"].keys() == bench.METHODS.keys()
    for row in record["rows"].values():
        (run,) = row.values()
        assert [p[0] for p in run["points"]] == [0, 1] and len(run["rewards"]) == 1
    assert record["rows"]["es"]["0"]["costs"]["backward_tokens"] == 0
    assert record["rows"]["grpo"]["0"]["costs"]["backward_tokens"] > 0

    capsys.readouterr()
    assert bench.main(words) == 0  # all is there
    assert "seed 0" not in capsys.readouterr().out
    path.unlink()
    for name in ("rollout", "greedy", "evaluate"):
        monkeypatch.delattr(bench, name)
    assert bench.main(words) == 0  # from the checkpoints: nothing is drawn again
    again = json.loads(path.read_text("utf-8"))["rows"]
    for name, row in record["rows"].items():
        assert again[name]["0"]["points"] == row["0"]["points"]
        assert again[name]["0"]["rewards"] == row["0"]["rewards"]


def test_the_real_task_holds_out_what_it_says():
    pytest.importorskip("reasoning_gym")
    task = bench.sums(1, 90)
    train, held_out = (
        {i.question for i in x} for x in (task.gym.train, task.gym.held_out)
    )
    assert len(train) == 100 and len(held_out) == 90 and not train & held_out
    texts = [f" {i.answer}" for i in task.gym.held_out]
    entries = [i.entry for i in task.gym.held_out]
    ended = task.reward([""] * 90, texts, entry=entries, stop=["eos"] * 90)
    assert ended == [1.0] * 90


def test_an_update_has_its_coins_whatever_came_before(toy):
    model, tokenizer = load_base("sorting")
    tossed = []
    for cursors in ((0, 1), (1,)):
        draw, judge = bench.asking("luck", 0, model, tokenizer, toy, 6)
        for cursor in cursors:
            coins = judge(draw(cursor, torch.Generator().manual_seed(cursor)))
        tossed.append(coins)
    assert tossed[0] == tossed[1] and set(coins) == {0.0, 1.0}
