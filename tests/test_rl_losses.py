"""Losses a token: values, and gradients exactly where they should be."""

import math
from functools import partial

import pytest
import torch
from policy import ANSWERS, Policy, gradient, rollout_of

from zolab.rl import LOSSES, RolloutError, Scores, Tokens, Totals, aggregate, pairs
from zolab.rl import token_logps as score
from zolab.rl.advantages import advantage
from zolab.rl.losses import cispo, dpo, gspo, ppo_clip


def tokens(ratios, advantages, mask=None, ref=None):
    """Rows of the ratios that are wanted, from old log-probabilities of -1."""
    ratios = torch.tensor(ratios)
    old = -torch.ones_like(ratios)
    logps = (old + ratios.log()).requires_grad_()
    mask = torch.ones_like(ratios).bool() if mask is None else torch.tensor(mask).bool()
    return Tokens(logps, old, torch.tensor(advantages).unsqueeze(1), mask, ref=ref)


def slope(loss, t):
    """d (sum of the losses) / d log p."""
    return torch.autograd.grad(loss(t).sum(), t.logps)[0]


RATIOS = [[0.5, 0.79, 0.81, 1.0, 1.19, 1.21, 1.27, 1.29, 9.0]]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_ppo_clips_exactly_where_the_advantage_pushes_beyond(sign):
    t = tokens(RATIOS, [sign])
    found, r = slope(ppo_clip, t)[0], torch.tensor(RATIOS[0])
    clipped = r > 1.2 if sign > 0 else r < 0.8
    assert ((found == 0) == clipped).all()
    assert torch.allclose(found[~clipped], -sign * r[~clipped], atol=1e-6)


def test_clip_higher_lets_ratios_up_to_1_28_pass():
    found = slope(LOSSES["dapo"], tokens(RATIOS, [1.0]))[0]
    assert (found != 0).tolist() == [True] * 7 + [False] * 2
    down = slope(LOSSES["dapo"], tokens(RATIOS, [-1.0]))[0]
    assert (down != 0).tolist() == [False] * 2 + [True] * 7


def test_a_dual_clip_bounds_what_a_bad_token_can_pull():
    t = tokens([[1.0, 2.9, 3.1, 50.0]], [-1.0])
    assert torch.allclose(LOSSES["dual_clip"](t)[0], torch.tensor([1.0, 2.9, 3, 3]))
    assert (slope(LOSSES["dual_clip"], t)[0] != 0).tolist() == [
        True,
        True,
        False,
        False,
    ]
    assert LOSSES["ppo_clip"](t)[0, 3].item() == pytest.approx(50, rel=1e-5)


def test_cispo_keeps_the_gradient_of_every_token():
    t = tokens([[0.1, 1.0, 4.9, 50.0]], [1.0])
    assert torch.allclose(-slope(cispo, t)[0], torch.tensor([0.1, 1.0, 4.9, 5.0]))


def test_gspo_is_of_the_rows_geometric_mean():
    mask = [[1, 1, 0], [1, 1, 1]]
    t = tokens([[2.0, 0.5, 99.0], [1.1, 1.1, 1.1]], [1.0, 1.0], mask)
    wide = partial(gspo, clip_low=0.2, clip_high=0.2)
    assert torch.allclose(wide(t)[:, 0], -torch.tensor([1.0, 1.1]))
    total = aggregate(wide(t), t.mask, "seq-mean-token-mean", Totals(2, 5))
    assert total.item() == pytest.approx(-(1.0 + 1.1) / 2, rel=1e-5)
    (g,) = torch.autograd.grad(total, t.logps)
    assert torch.allclose(g[1], -torch.full((3,), 1.1 / 3 / 2)) and g[0, 2] == 0
    assert slope(gspo, t)[1].abs().max() == 0  # 1.1 is far beyond 1 + 4e-4


@pytest.mark.parametrize("name", LOSSES.keys() - {"dpo"})
def test_on_policy_every_loss_has_the_policy_gradient(name):
    """Ratio 1: the surrogates differ in the second step, not in the first."""
    policy = Policy()
    part = rollout_of(ANSWERS)
    logps = score(policy, part).logps
    a = advantage("reinforce", Scores.of(part, [0.2, 1.0, 0.0, 0.5, -0.3, 0.7, 0.1]))
    t = Tokens(logps, logps.detach(), a, part.mask)
    how = "seq-mean-token-mean"
    found, wanted = (
        gradient(aggregate(LOSSES[n](t), t.mask, how, Totals.of(t.mask)), policy)
        for n in (name, "policy_gradient")
    )
    assert torch.allclose(found, wanted, atol=1e-6) and wanted.abs().max() > 0.01


def test_on_policy_the_loss_is_0_and_its_gradient_is_not():
    """The reading that users file as a bug."""
    policy = Policy()
    part = rollout_of([(0, 1), (1, 0), (0, 0), (1, 1)])
    logps = score(policy, part).logps
    a = advantage("grpo", Scores.of(part, [1.0, 0.0, 0.0, 0.0]))
    t = Tokens(logps, logps.detach(), a, part.mask)
    loss = aggregate(ppo_clip(t), t.mask, "token-mean", Totals.of(t.mask))
    assert abs(loss.item()) < 1e-6
    assert gradient(loss, policy).norm() > 0.1


def test_a_ratio_replaced_by_1_has_no_gradient():
    """The trap: exp(l - l.detach()) is 1 with a slope, a literal 1 has none."""

    def replaced(t):
        one = torch.exp(t.logps.detach() - t.logps.detach())
        return -one * t.advantages

    t = tokens([[1.0, 1.0]], [1.0])
    assert torch.equal(replaced(t), ppo_clip(t).detach())  # the value does not tell
    assert not replaced(t).requires_grad
    assert slope(ppo_clip, t).abs().min() == 1


def test_what_the_mask_hides_moves_nothing():
    mask = [[1, 1, 0], [1, 0, 0]]
    t = tokens([[1.0, 1.1, 0.9], [0.9, 1.0, 1.0]], [1.0, -1.0], mask)
    junk = Tokens(
        torch.where(t.mask, t.logps, float("nan")).detach().requires_grad_(),
        torch.where(t.mask, t.old, -7.0),
        t.advantages,
        t.mask,
    )
    for name, loss in LOSSES.items():
        for how in ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum"):
            both = [
                aggregate(loss(x), x.mask, how, Totals.of(x.mask)) for x in (t, junk)
            ]
            assert torch.equal(*both), (name, how)
        (g,) = torch.autograd.grad(both[1], junk.logps)
        assert g[~t.mask].nan_to_num().abs().max() == 0, name


def test_dpo_is_minus_log_sigmoid_of_the_margin():
    ref = torch.tensor([[-1.0, -2.0], [-1.0, -1.0]])
    t = tokens([[math.e, 1.0], [1.0, 1.0]], [1.0, -1.0], [[1, 1], [1, 0]], ref=ref)
    # right: 0 - 1 over its two tokens, less the reference's -3; wrong: -1 less -1
    margin = (0 - 1) - (-1 - 2) - (-1 - -1)
    wanted = -math.log(1 / (1 + math.exp(-0.1 * margin)))
    assert torch.allclose(dpo(t), torch.full((2, 2), wanted))
    g = slope(dpo, t)
    assert g[0, 0] < 0 < g[1, 0] and g[1, 1] == 0
    with pytest.raises(RolloutError, match="3 rows, expected pairs"):
        dpo(tokens([[1.0]] * 3, [1.0] * 3))


def test_dpo_before_the_first_step_is_log_2():
    t = tokens([[1.0, 1.0], [1.0, 1.0]], [1.0, -1.0])
    assert torch.allclose(dpo(t), torch.tensor(2.0).log())


def test_pairs_are_a_groups_best_and_worst():
    rewards = torch.tensor([0.0, 1.0, 1.0, 0.5, 0.5, 0.5, 2.0, 0.1, 9.0])
    group = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    scored = torch.tensor([1, 1, 1, 1, 1, 1, 1, 1, 0]).bool()
    assert pairs(rewards, scored, group).tolist() == [1, 0, 6, 7]
    assert pairs(rewards, ~scored, group).tolist() == []
