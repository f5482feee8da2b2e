"""The rollout that the pieces hand to each other."""

import pytest
import torch

from zolab.rl import Rollout, RolloutError


def rollout(**changes):
    """Two prompts, two samples each; rows of 3, 2, 1 and 3 tokens."""
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]]).bool()
    parts = {
        "prompt_ids": torch.tensor([[0, 5], [0, 5], [6, 7], [6, 7]]),
        "prompt_mask": torch.tensor([[0, 1], [0, 1], [1, 1], [1, 1]]).bool(),
        "completion_ids": torch.arange(12).reshape(4, 3),
        "mask": mask,
        "logps": -torch.ones(4, 3) * mask,
        "entropy": torch.ones(4, 3) * mask,
        "stop": ("length", "eos", "eos", "eos"),
        "group": torch.tensor([0, 0, 1, 1]),
        "texts": ("a", "b", "c", "d"),
        "prompts": ("x", "x", "y", "y"),
        "temperature": 1.0,
    }
    return Rollout(**parts | changes)


def test_lengths_count_the_eos_and_stop_says_who_ran_out_of_room():
    r = rollout()
    assert r.lengths.tolist() == [3, 2, 1, 3]
    assert r.truncated.tolist() == [True, False, False, False]
    assert r.input_ids.shape == r.attention_mask.shape == (4, 5)
    assert r.attention_mask.sum(1).tolist() == [4, 3, 3, 5]


@pytest.mark.parametrize("index", [slice(1, 3), torch.tensor([1, 2])])
def test_rows_keep_their_group_text_and_reason(index):
    part = rollout().rows(index)
    assert (part.texts, part.prompts) == (("b", "c"), ("x", "y"))
    assert part.stop == ("eos", "eos") and part.group.tolist() == [0, 1]
    assert torch.equal(part.completion_ids, torch.arange(3, 9).reshape(2, 3))


def test_rows_by_a_mask():
    part = rollout().rows(torch.tensor([True, False, False, True]))
    assert part.texts == ("a", "d") and len(part) == 2


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"logps": torch.zeros(4, 2)}, r"logps is \(4, 2\), expected \(N, T\)"),
        ({"group": torch.zeros(3)}, "group is"),
        ({"texts": ("a",)}, "1 texts, expected 4"),
        ({"stop": ("eos", "eos", "eos", "tired")}, "tired"),
        ({"temperature": 0.0}, "positive"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes, says):
    with pytest.raises(RolloutError, match=says):
        rollout(**changes)
