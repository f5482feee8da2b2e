"""Filters, shaping, dynamic sampling, pass@k."""

import itertools
import math

import pytest
import torch
from policy import ANSWERS, Policy, rollout_of
from test_rl_batch import rollout

from zolab.rl import (
    DATA_FILTERS,
    RolloutError,
    Tokens,
    displacement,
    dynamic_sampling,
    informative,
    mean_pass_at_k,
    overlong_shaping,
    pass_at_k,
    token_logps,
)
from zolab.rl.batch import concatenate
from zolab.rl.filters import capo, not_fallen, predicted


def test_overlong_filtering_drops_whole_rows():
    r = rollout()
    keep = DATA_FILTERS["overlong"](r)
    assert keep.any(1).tolist() == [False, True, True, True]
    assert torch.equal(keep[1:], r.mask[1:])


def test_overlong_shaping_piece_by_piece():
    """DAPO's: longest 20,480, of which the last 4,096 cost more and more."""
    lengths = torch.tensor([1, 16_384, 17_408, 18_432, 20_480, 30_000])
    found = overlong_shaping(lengths, longest=20_480, soft=4_096)
    assert found.tolist() == [0, 0, -0.25, -0.5, -1, -1]
    with pytest.raises(ValueError, match="soft is 0"):
        overlong_shaping(lengths, longest=4, soft=0)


def test_informative_groups_are_neither_all_right_nor_all_wrong():
    group = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    rewards = [1.0, 0.0, 1.0, 1.0, 0.0, 0.0, None, 0.5]
    assert informative(rewards, group).tolist() == [True] * 2 + [False] * 6


def drawn(wanted):
    """Draw i has two groups; `wanted` says which of them are useful."""

    def draw(i):
        part = rollout(texts=tuple(f"{i}{c}" for c in "abcd"))
        rewards = [
            v for useful in wanted[i] for v in ((1.0, 0.0) if useful else (1, 1))
        ]
        return part, rewards

    return draw


def test_dynamic_sampling_goes_on_until_enough_groups_are_useful():
    draw = drawn([(False, True), (False, False), (True, True)])
    part, rewards, count = dynamic_sampling(draw, tries=5)
    assert part.texts == ("0c", "0d", "2a", "2b") and count == 12
    assert rewards == [1.0, 0.0, 1.0, 0.0] and part.group.tolist() == [0, 0, 1, 1]


def test_dynamic_sampling_takes_what_there_is_and_refuses_nothing_at_all():
    part, _, count = dynamic_sampling(drawn([(True, False), (False, False)]), tries=2)
    assert len(part) == 2 and count == 8
    with pytest.raises(RolloutError, match="too easy or too hard"):
        dynamic_sampling(drawn([(False, False)] * 3), tries=3)


def test_concatenation_pads_on_the_right_side_of_each():
    a = rollout()
    narrow = a.rows(slice(1, 3))
    wide = concatenate(
        [
            narrow,
            rollout(
                prompt_ids=torch.ones(4, 4).long(),
                prompt_mask=torch.ones(4, 4).bool(),
            ),
        ]
    )
    assert wide.prompt_mask[0].tolist() == [False, False, False, True]
    assert wide.prompt_ids[1].tolist() == [0, 0, 6, 7]
    assert len(wide) == 6 and wide.mask.dtype == torch.bool
    with pytest.raises(RolloutError, match=r"temperatures \[0.5, 1.0\]"):
        concatenate([a, rollout(temperature=0.5)])


def tokens(advantages, step=0.0):
    """The table policy's tokens, with moments, and the policy."""
    policy = Policy(dtype=torch.float64)
    part = rollout_of(ANSWERS)
    out = token_logps(policy, part, moments=True)
    a = torch.tensor(advantages).unsqueeze(1)
    return Tokens(
        out.logps, out.logps.detach(), a, part.mask, moments=out.moments
    ), policy


def test_the_predicted_shift_and_gain_are_those_of_a_small_step():
    a = [1.0, -2.0, 0.5, 0.3, -1.0, 1.5, 0.2]
    t, policy = tokens(a)
    step = 0.01
    shift, gain = predicted(t, step)
    for i, answer in enumerate(ANSWERS):  # the first token's own logits
        z = policy.first.detach()
        p = z.softmax(0)
        y = torch.nn.functional.one_hot(torch.tensor(answer[0]), 3)
        moved = (z + step * a[i] * (y - p)).log_softmax(0)
        before = z.log_softmax(0)
        kl = (p * (before - moved)).sum()
        assert shift[i, 0].item() == pytest.approx(kl.item(), rel=0.02)
        change = a[i] * (moved - before)[answer[0]]
        assert gain[i, 0].item() == pytest.approx(change.item(), rel=1e-3)


def test_capo_drops_what_a_large_step_would_shift_and_what_overshoots():
    t, _ = tokens([1.0, -2.0, 0.5, 0.3, -1.0, 1.5, 0.0])
    assert capo(t, step=0.01)[t.mask].all()
    dropped = ~capo(t, step=2.0) & t.mask
    shift, _ = predicted(t, 2.0)
    assert 0 < dropped.sum() < t.mask.sum()
    assert shift[dropped].min() > shift[~dropped & t.mask].max()
    overshoots = ~capo(t, step=50.0, max_shift=math.inf) & t.mask
    assert overshoots.any() and (t.advantages.expand_as(t.mask)[overshoots] > 0).all()
    with pytest.raises(ValueError, match="moments is None"):
        capo(Tokens(t.logps, t.old, t.advantages, t.mask))


def fallen():
    """Rows: right and fell, wrong and fell, right and rose, right and mixed."""
    now = torch.tensor([[-2.0, -1.0], [-3.0, -1.0], [-0.5, -1.0], [-2.0, 0.0]])
    old, mask = -torch.ones(4, 2), torch.ones(4, 2).bool()
    a = torch.tensor([[1.0], [-1.0], [1.0], [1.0]])
    return Tokens(now.requires_grad_(), old, a, mask)


def test_the_displacement_penalty_is_on_fallen_tokens_of_fallen_right_rows():
    t = fallen()
    assert displacement(t).tolist() == [[1.0, 0.0], [0, 0], [0, 0], [0, 0]]
    every = displacement(t, right_only=False)
    assert every.tolist() == [[1.0, 0.0], [2.0, 0.0], [0, 0], [0, 0]]
    g = torch.autograd.grad(every.sum(), t.logps)[0]
    assert g[0, 0] == g[1, 0] == -1 and g.sum() == -2  # descent lifts them again


def test_the_guard_as_a_filter_stops_wrong_tokens_that_fell_too_far():
    keep = not_fallen(fallen(), drop=0.5)
    assert keep.tolist() == [[True, True], [False, True], [True, True], [True, True]]


def test_pass_at_k_is_what_brute_force_counts():
    for n, c, k in itertools.product(range(1, 7), range(7), range(1, 7)):
        if c <= n and k <= n:
            draws = list(itertools.combinations(range(n), k))
            right = sum(min(d) < c for d in draws) / len(draws)
            assert pass_at_k(n, c, k) == pytest.approx(right, abs=1e-12)


def test_pass_at_k_is_unbiased_and_the_plug_in_is_not():
    n, k, p = 8, 4, 0.2
    chance = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    truth = 1 - (1 - p) ** k
    ours = sum(q * pass_at_k(n, c, k) for c, q in enumerate(chance))
    plug_in = sum(q * (1 - (1 - c / n) ** k) for c, q in enumerate(chance))
    assert ours == pytest.approx(truth, abs=1e-12) and plug_in < truth - 0.02


def test_pass_at_k_of_prompts_is_their_mean():
    right = torch.tensor([[1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]).bool()
    assert mean_pass_at_k(right, 1) == pytest.approx((0.25 + 1 + 0) / 3)
    assert mean_pass_at_k(right, 2) == pytest.approx((0.5 + 1 + 0) / 3)
    with pytest.raises(ValueError, match="k is 9 of n = 4"):
        mean_pass_at_k(right, 9)
