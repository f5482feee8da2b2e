"""A policy so small that every expectation is a sum: two steps, three tokens.

Token 2 is EOS, so there are seven answers, of one or two tokens: lengths differ, and a
wrong mean over them shows.
"""

import itertools

import torch
from torch import nn

from zolab.rl import Rollout, Scores, Totals, aggregate, token_logps
from zolab.rl.advantages import advantage
from zolab.rl.losses import Tokens, policy_gradient

EOS, V, T = 2, 3, 2
ANSWERS = [(2,), *((a, b) for a in (0, 1) for b in range(3))]


class Policy(nn.Module):
    """Logits of the first token, and of the second one given the first."""

    def __init__(self, seed=0, dtype=torch.float32):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.first = nn.Parameter(torch.randn(V, generator=g, dtype=dtype))
        self.second = nn.Parameter(torch.randn(V, V, generator=g, dtype=dtype))

    def forward(self, input_ids, attention_mask, position_ids, use_cache=False):
        n = len(input_ids)
        rows = [self.first.expand(n, V), self.second[input_ids[:, -2]]]
        logits = torch.stack([*rows, torch.zeros(n, V)], 1)
        return type("Out", (), {"logits": logits})


def rollout_of(answers, group=None, *, temperature=1.0, logps=None):
    """A rollout of given answers to a prompt of one token."""
    n = len(answers)
    mask = torch.tensor([[1] * len(a) + [0] * (T - len(a)) for a in answers]).bool()
    ids = torch.tensor([[*a, *[EOS] * (T - len(a))] for a in answers])
    return Rollout(
        prompt_ids=torch.zeros(n, 1, dtype=torch.long),
        prompt_mask=torch.ones(n, 1, dtype=torch.bool),
        completion_ids=ids,
        mask=mask,
        logps=torch.zeros(n, T) if logps is None else logps,
        entropy=torch.zeros(n, T),
        stop=tuple("eos" if a[-1] == EOS else "length" for a in answers),
        group=torch.zeros(n, dtype=torch.long) if group is None else group,
        texts=tuple(map(str, answers)),
        prompts=("",) * n,
        temperature=temperature,
    )


EVERY = rollout_of(ANSWERS)


def every_logp(policy):
    """(7, 2) log-probabilities of all answers' tokens, with a graph."""
    return token_logps(policy, EVERY).logps


def gradient(value, policy):
    """d value / d theta, flat."""
    leaves = list(policy.parameters())
    grads = torch.autograd.grad(value, leaves, allow_unused=True, retain_graph=True)
    return torch.cat(
        [
            torch.zeros(p.numel()) if g is None else g.flatten()
            for g, p in zip(grads, policy.parameters(), strict=True)
        ]
    )


def exact(policy, rewards):
    """grad of J = sum over answers of p R: what every estimator is after."""
    p = every_logp(policy).sum(1).exp()
    return gradient((p * torch.tensor(rewards)).sum(), policy)


def expected(
    policy,
    rewards,
    name,
    *,
    size=2,
    how="seq-mean-token-sum",
    loss=policy_gradient,
    **kw,
):
    """E of an estimator's ascent direction, over all groups of `size` answers."""
    logps = every_logp(policy)
    p = logps.detach().sum(1).exp()
    total = torch.zeros(())
    for rows in itertools.product(range(len(ANSWERS)), repeat=size):
        at = list(rows)
        part = rollout_of([ANSWERS[i] for i in at])
        scores = Scores.of(part, [rewards[i] for i in at], **kw)
        a = advantage(name, scores)
        tokens = Tokens(logps[at], logps[at].detach(), a, part.mask)
        totals = Totals.of(part.mask, length=T)
        total = total - p[at].prod() * aggregate(loss(tokens), part.mask, how, totals)
    return gradient(total, policy)


def cosine(a, b):
    return float(torch.cosine_similarity(a, b, dim=0))
