"""Traps that the first ratio cannot see: what is drawn, and where an answer ends.

The others stand beside what they break: tests/test_rl_logps.py (temperature, off by
one, attention mask, positions, dropout, bf16), test_rl_losses.py (ratio replaced by 1,
loss 0), test_rl_aggregation.py (denominators), test_rl_advantages.py (groups of one,
ddof, 1 / T), test_rl_kl.py (k3 in the loss).
"""

from dataclasses import replace

import pytest
import torch
from policy import ANSWERS, EVERY, Policy, cosine, every_logp, exact, gradient

from zolab.rl import Totals, aggregate, prepare, recipe, token_logps
from zolab.rl.surrogate import surrogate

REWARDS = [1.0, 0.0, 0.1, 0.0, 2.0, 0.0, 0.1]


def mean_gradient(policy, p, *, mask=None):
    """The expected ascent direction when answers come with the probabilities `p`."""
    mask = EVERY.mask if mask is None else mask
    logps = every_logp(policy)
    each = p.unsqueeze(1) * torch.tensor(REWARDS).unsqueeze(1) * logps
    total = aggregate(each, mask, "seq-mean-token-sum", Totals(1, 1))
    return gradient(total, policy)


def test_the_honest_way_has_the_true_gradient():
    policy = Policy()
    p = every_logp(policy).detach().sum(1).exp()
    assert torch.allclose(mean_gradient(policy, p), exact(policy, REWARDS), atol=1e-6)


def test_trap_a_nucleus_that_scores_the_full_vocabulary_is_biased_at_ratio_1():
    """Rare tokens are never drawn, and the log-probabilities do not say so."""
    policy = Policy()
    with torch.no_grad():
        first, second = policy.first.softmax(0), policy.second.softmax(1)
        first, second = (torch.where(x > 0.2, x, 0.0) for x in (first, second))
        first, second = first / first.sum(), second / second.sum(1, keepdim=True)
        p = torch.tensor(
            [first[a[0]] * (second[a] if len(a) == 2 else 1.0) for a in ANSWERS]
        )
    assert p.sum().item() == pytest.approx(1, abs=1e-6)
    assert 0 < int((p == 0).sum()) < 7
    drawn = replace(EVERY, logps=every_logp(policy).detach())
    ratio = (token_logps(policy, drawn).logps - drawn.logps).exp()
    assert (ratio - 1).abs().max() < 1e-6
    assert cosine(mean_gradient(policy, p), exact(policy, REWARDS)) < 0.9


def test_trap_a_mask_without_the_eos_never_teaches_to_stop():
    policy = Policy()
    p = every_logp(policy).detach().sum(1).exp()
    last = EVERY.mask.sum(1, keepdim=True) - 1 == torch.arange(2)
    ended = torch.tensor([a[-1] == 2 for a in ANSWERS]).unsqueeze(1)
    short = EVERY.mask & ~(last & ended)
    found, true = mean_gradient(policy, p, mask=short), exact(policy, REWARDS)
    assert true[2] > 0.01  # stopping at once pays
    assert found[2] < 0  # and is only ever pushed down, by what others gain


def test_trap_what_stands_after_the_eos_changes_no_loss():
    """Pad may be EOS, or any id at all: masks are made of positions."""
    policy = Policy()
    found = []
    for pad in (0, 1, 2):
        ids = torch.where(EVERY.mask, EVERY.completion_ids, pad)
        part = replace(EVERY, completion_ids=ids, logps=every_logp(policy).detach())
        batch = prepare(part, REWARDS, recipe("grpo", entropy=0.1))
        found.append(surrogate(policy, batch, recipe("grpo", entropy=0.1)).item())
    assert found[0] == found[1] == found[2] != 0
