"""Rewards: None, weights, raw values, and scorers that raise or say nonsense."""

import math

import pytest
import torch

from zolab.rl import Rollout
from zolab.rl.rewards import RewardError, Rewards


def rollout(texts=("12", "21", "1", "12")):
    """Two prompts, two answers each; the third ran out of room."""
    n = len(texts)
    mask = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 0, 0], [1, 1, 1]]).bool()
    return Rollout(
        prompt_ids=torch.zeros(n, 1, dtype=torch.long),
        prompt_mask=torch.ones(n, 1).bool(),
        completion_ids=torch.tensor([[4, 5, 2], [5, 4, 2], [4, 2, 2], [4, 5, 2]]),
        mask=mask,
        logps=torch.zeros(n, 3),
        entropy=torch.zeros(n, 3),
        stop=("eos", "eos", "length", "eos"),
        group=torch.tensor([0, 0, 1, 1]),
        texts=texts,
        prompts=("21=", "21=", "1=", "1="),
        temperature=1.0,
    )


def length(prompts, completions, **columns):
    return [float(len(c)) for c in completions]


def exact(prompts, completions, *, answer, **columns):
    return [float(c == a) for c, a in zip(completions, answer, strict=True)]


def only_short(prompts, completions, **columns):
    return [1.0 if len(c) == 1 else None for c in completions]


def test_the_total_is_the_weighted_sum_and_raw_values_stay_raw():
    judged = Rewards({"exact": exact, "length": length}, {"length": 0.1})(
        rollout(), answer=["12", "1"]
    )
    assert judged.raw["length"] == [2.0, 2.0, 1.0, 2.0]
    assert judged.raw["exact"] == [1.0, 0.0, 1.0, 0.0]
    assert judged.totals == pytest.approx([1.2, 0.2, 1.1, 0.2])
    assert judged.metrics()["reward/length"] == 1.75


def test_a_column_a_group_reaches_every_row_of_the_group_and_one_a_row_stays():
    seen = {}

    def spy(prompts, completions, **columns):
        seen.update(columns)
        return [0.0] * len(completions)

    Rewards({"spy": spy})(rollout(), a=["x", "y"], b=[1, 2, 3, 4])
    assert seen["a"] == ["x", "x", "y", "y"] and seen["b"] == [1, 2, 3, 4]
    assert seen["stop"] == ["eos", "eos", "length", "eos"]
    # ids end with the first EOS, though pad is EOS here
    assert seen["completion_ids"] == [[4, 5, 2], [5, 4, 2], [4], [4, 5, 2]]
    with pytest.raises(RewardError, match=r"3 values, expected 4 .* or 2"):
        Rewards({"spy": spy})(rollout(), a=[1, 2, 3])


def test_none_is_not_zero():
    """Counted as 0 it would teach that what nobody judged is bad."""
    alone = Rewards({"short": only_short})(rollout())
    assert alone.totals == [None, None, 1.0, None]
    assert alone.metrics()["reward"] == 1.0 and alone.metrics()["unscored"] == 3
    both = Rewards({"short": only_short, "length": length})(rollout())
    assert both.totals == [2.0, 2.0, 2.0, 2.0]


def test_nobody_judged_has_no_mean():
    judged = Rewards({"none": lambda prompts, completions, **c: [None] * 4})(rollout())
    assert math.isnan(judged.metrics()["reward"])


def test_a_scorer_that_raises_costs_only_the_rows_on_which_it_raises():
    def fragile(prompts, completions, **columns):
        return [float(1 / (len(c) - 1)) for c in completions]

    judged = Rewards({"fragile": fragile, "length": length})(rollout())
    assert judged.raw["fragile"] == [1.0, 1.0, None, 1.0]
    assert judged.failed == {"fragile": 1, "length": 0}
    assert "ZeroDivisionError" in judged.said["fragile"]
    assert judged.totals == [3.0, 3.0, 1.0, 3.0]
    assert judged.metrics()["failed/fragile"] == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, "good", [1.0]])
def test_a_reward_that_is_no_number_is_refused_not_filtered(bad):
    def scorer(prompts, completions, **columns):
        return [0.0, 1.0, bad, 0.0]

    with pytest.raises(RewardError, match="row 2"):
        Rewards({"bad": scorer})(rollout())


@pytest.mark.parametrize("values", [[1.0], 1.0, None])
def test_one_value_a_row(values):
    with pytest.raises(RewardError, match="expected 4 values"):
        Rewards({"bad": lambda prompts, completions, **c: values})(rollout())


def test_names_that_fit_nothing_are_refused():
    with pytest.raises(RewardError, match="lenght"):
        Rewards({"length": length}, {"lenght": 0.1})
    with pytest.raises(RewardError, match="at least one"):
        Rewards({})


def test_truth_values_and_tensors_are_numbers():
    def scorer(prompts, completions, **columns):
        return [True, torch.tensor(0.5), 1, False]

    assert Rewards({"mixed": scorer})(rollout()).totals == [1.0, 0.5, 1.0, 0.0]
