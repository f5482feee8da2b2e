"""Advantages: identities, and expectations by enumeration: biased or not, and how."""

from functools import partial

import pytest
import torch
from policy import ANSWERS, Policy, cosine, every_logp, exact, expected, rollout_of

from zolab.rl import ADVANTAGES, RolloutError, Scores, group_ids
from zolab.rl.advantages import advantage, grpo, reinforce_pp

REWARDS = [1.0, 0.0, 0.1, 0.0, 2.0, 0.0, 0.1]  # of the 7 answers
GREEDY = 0.7


def scores(rewards, groups=None, answers=None, **kw):
    group = torch.tensor(groups or [0] * len(rewards))
    part = rollout_of(answers or [(0, 1)] * len(rewards), group)
    return Scores.of(part, rewards, **kw)


def of(name, rewards, groups=None, **kw):
    return advantage(name, scores(rewards, groups, **kw)).squeeze(1)


@pytest.fixture(scope="module")
def truth():
    return exact(Policy(), REWARDS)


UNBIASED = {
    "plain": {},
    "reinforce_ema": {"running": 0.4},
    "rloo": {},
    "remax": {"greedy": [GREEDY] * 2},
}


@pytest.mark.parametrize("name", UNBIASED)
def test_oracle_the_estimator_is_unbiased(name, truth):
    found = expected(Policy(), REWARDS, name, **UNBIASED[name])
    assert torch.allclose(found, truth, atol=2e-6)


@pytest.mark.parametrize("name", ["reinforce", "dr_grpo"])
@pytest.mark.parametrize("size", [2, 3])
def test_oracle_the_own_sample_in_the_baseline_costs_a_factor(name, size, truth):
    found = expected(Policy(), REWARDS, name, size=size)
    assert torch.allclose(found, (size - 1) / size * truth, atol=2e-6)


def test_oracle_the_groups_std_bends_the_direction(truth):
    found = expected(Policy(), REWARDS, "grpo")
    assert cosine(found, truth) < 0.7


def test_oracle_whitening_over_the_batch_bends_the_direction(truth):
    found = expected(Policy(), REWARDS, "reinforce_pp")
    assert cosine(found, truth) < 0.7


def test_oracle_a_mean_over_the_answers_own_length_bends_the_direction(truth):
    """The trap: 1 / T_i, with an advantage that is itself unbiased.

    These sums are exact: an unbiased one has a cosine of 1 to six digits.
    """
    found = expected(Policy(), REWARDS, "rloo", how="seq-mean-token-mean")
    assert cosine(found, truth) < 0.993
    assert cosine(expected(Policy(), REWARDS, "rloo"), truth) > 1 - 1e-6


def test_oracle_a_constant_length_does_not(truth):
    found = expected(Policy(), REWARDS, "rloo", how="constant")
    assert torch.allclose(2 * found, truth, atol=2e-6)


def test_oracle_a_baseline_of_the_action_itself_is_seen(truth):
    """The trap: a "baseline" that looks at the answer is no baseline."""

    def peeking(s):
        return s.totals - 0.5 * s.totals

    found = expected(Policy(), REWARDS, peeking)
    assert not torch.allclose(found, truth, atol=1e-3)


def test_two_prompts_grpo_weighs_them_by_one_over_std():
    """Equal gaps of reward at scales 1 and 100: GRPO cannot tell, the others can."""
    r, groups = [1.0, 0.0, 100.0, 0.0], [0, 0, 1, 1]
    assert torch.allclose(of("dr_grpo", r, groups)[2:], torch.tensor([50.0, -50]))
    a = of("grpo", r, groups)
    assert torch.allclose(a[:2], a[2:], atol=2e-4)


@pytest.mark.parametrize("name", ["rloo", "grpo", "dr_grpo"])
def test_group_advantages_add_up_to_0(name):
    a = of(name, [1.0, 0.0, 0.3, 5.0, 5.5, 2.0], [0, 0, 0, 1, 1, 1])
    assert a[:3].sum().abs() < 1e-6 and a[3:].sum().abs() < 1e-5 and a.abs().min() > 0


def test_rloo_is_dr_grpo_times_g_over_g_minus_1():
    r, groups = [1.0, 0.0, 0.3, 5.0, 5.5, 2.0], [0, 0, 0, 1, 1, 1]
    assert torch.allclose(of("rloo", r, groups), 1.5 * of("dr_grpo", r, groups))


def test_grpo_without_std_is_dr_grpo():
    r, groups = [1.0, 0.0, 0.3, 5.0, 5.5, 2.0], [0, 0, 0, 1, 1, 1]
    without = of(partial(grpo, std_eps=1e9), r, groups) * 1e9
    assert torch.allclose(without, of("dr_grpo", r, groups), atol=1e-6)


def test_grpo_uses_the_sample_std():
    """The trap: ddof. Population and sample differ by sqrt(G / (G - 1))."""
    r = [1.0, 0.0, 0.0, 2.0]
    x = torch.tensor(r)
    assert torch.allclose(of("grpo", r), (x - x.mean()) / (x.std() + 1e-4))
    ratio = of(partial(grpo, ddof=0, std_eps=0.0), r) / of(
        partial(grpo, std_eps=0.0), r
    )
    assert torch.allclose(ratio, torch.tensor((4 / 3) ** 0.5))


@pytest.mark.parametrize("name", ["rloo", "grpo", "dr_grpo", "reinforce"])
def test_equal_rewards_are_no_signal_not_even_a_rounding(name):
    assert of(name, [0.1] * 7).abs().max() == 0


def test_remax_with_a_greedy_sample_is_0_and_needs_it():
    a = of("remax", [0.7, 1.0], greedy=[0.7, 0.7])
    assert a[0] == 0 and abs(a[1] - 0.3) < 1e-6
    with pytest.raises(RolloutError, match="greedy is None"):
        of("remax", [0.7, 1.0])


@pytest.mark.parametrize("name", ["reinforce", "rloo", "grpo", "dr_grpo"])
def test_an_unscorable_row_has_advantage_0_and_is_in_nobodys_baseline(name):
    with_none = of(name, [1.0, None, 0.0, 0.5])
    assert with_none[1] == 0
    assert torch.allclose(with_none[[0, 2, 3]], of(name, [1.0, 0.0, 0.5]))
    assert of(name, [1.0, None, 0.0, 1.0], [0, 0, 1, 1])[0] == (
        0 if name != "reinforce" else pytest.approx(1 / 3)
    )


def test_reinforce_pp_skips_unscorable_rows_too():
    a = advantage("reinforce_pp", scores([1.0, None, 0.0]))
    b = advantage("reinforce_pp", scores([1.0, 0.0]))
    assert torch.allclose(a[[0, 2]], b) and a[1].abs().max() == 0


def test_a_group_a_row_is_refused():
    """The trap: ids inferred a row, and every advantage is 0 for ever."""
    for name in ("rloo", "grpo", "dr_grpo"):
        with pytest.raises(RolloutError, match="groups of one"):
            of(name, [1.0, 0.0, 0.5], [0, 1, 2])


def test_group_ids_may_be_any_numbers_in_any_order():
    r = [1.0, 5.0, 0.0, 5.5]
    there = of("rloo", r, [70, 3, 70, 3])
    assert torch.allclose(there, torch.tensor([1.0, -0.5, -1.0, 0.5]))


def test_rows_in_another_order_have_the_same_advantages():
    r, groups = [1.0, 0.0, 0.3, 5.0, 5.5, 2.0], [0, 0, 0, 1, 1, 1]
    order = [4, 0, 5, 2, 3, 1]
    for name in ADVANTAGES.keys() - {"remax", "reinforce_pp"}:
        there = of(name, [r[i] for i in order], [groups[i] for i in order])
        assert torch.allclose(there, of(name, r, groups)[order], atol=1e-6), name


def test_reinforce_pp_whitens_token_returns_over_the_batch():
    answers = [(2,), (0, 1), (1, 2)]
    penalty = torch.tensor([[-0.1, 9.0], [-0.2, -0.4], [0.0, 0.3]])
    s = scores([1.0, 0.5, -1.0], [0, 0, 1], answers, penalty=penalty)
    to_come = torch.tensor([[0.9, 0.0], [-0.1, 0.1], [-0.7, -0.7]])
    kept = to_come[s.mask]
    wanted = torch.where(s.mask, (to_come - kept.mean()) / kept.std(), 0.0)
    assert torch.allclose(advantage("reinforce_pp", s), wanted, atol=1e-6)
    halved = advantage(partial(reinforce_pp, gamma=0.5), s)
    ratio = halved[2, 1] - halved[2, 0], halved[2, 1]
    assert ratio[0] < 0 and ratio[1] < 0  # half as bad a step before the end


def test_a_penalty_in_the_reward_is_summed_over_the_answer():
    penalty = torch.tensor([[-0.25, -0.25], [0.0, 7.0]])
    s = scores([1.0, 0.0], [0, 0], [(0, 1), (2,)], penalty=penalty)
    assert s.totals.tolist() == [0.5, 0.0]
    assert advantage("rloo", s).squeeze(1).tolist() == [0.5, -0.5]


def test_a_group_key_of_ones_own():
    """Baselines a (task, role), as in TRR++: the prompts' groups are not asked."""
    part = rollout_of([(0, 1)] * 4, torch.tensor([0, 0, 1, 1]))
    roles = ["solve", "propose", "solve", "propose"]
    assert group_ids(part).tolist() == [0, 0, 1, 1]
    assert group_ids(part, "batch").tolist() == [0] * 4
    by_role = group_ids(part, lambda rollout: roles)
    assert by_role.tolist() == [0, 1, 0, 1]
    s = Scores.of(part, [1.0, 4.0, 0.0, 2.0], group=by_role)
    assert advantage("dr_grpo", s).squeeze(1).tolist() == [0.5, 1.0, -0.5, -1.0]
    with pytest.raises(ValueError, match="no group key is called 'hops'"):
        group_ids(part, "hops")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_reward_that_is_no_number_is_refused(bad):
    with pytest.raises(RolloutError, match="row 1"):
        scores([0.0, bad])


def test_names_are_asked_for_when_one_is_wrong():
    with pytest.raises(ValueError, match="no advantage is called 'gae'; there are"):
        of("gae", [0.0, 1.0])
    with pytest.raises(RolloutError, match="1 rewards, expected 2"):
        Scores.of(rollout_of([(2,), (2,)]), [1.0])


def test_every_answer_is_there():
    policy = Policy()
    assert len(ANSWERS) == 7
    assert every_logp(policy).sum(1).exp().sum().item() == pytest.approx(1, abs=1e-6)
