"""SPSA: exact where it is exact, and right on average, with the promised spread."""

import math

import pytest
import torch
from torch import nn

from zolab import SPSA, MeZO, OneSided, ZOOptimizer
from zolab.engines import Resident
from zolab.families import Keys
from zolab.gradient import round16
from zolab.noise import direction
from zolab.space import Space

D, SIGMA = 100, 5  # dimension; standard errors that a mean may be off


class Bowl(nn.Module):
    """L(w) = 1/2 w'Hw - b'w, with a diagonal H from 0.1 to 2."""

    def __init__(self, d: int = D) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.w = nn.Parameter(torch.randn(d, generator=g))
        self.register_buffer("h", torch.linspace(0.1, 2.0, d))
        self.register_buffer("b", torch.randn(d, generator=g))

    def forward(self):
        w = self.w.double()
        return (0.5 * self.h * w * w - self.b * w).sum()

    def grad(self):
        return (self.h * self.w.detach() - self.b).double()


def estimates(estimator, model, n, seed=0):
    """n gradients at the stored point, dense, as (n, d)."""
    engine, space = Resident(), Space.of(model)
    engine.bind(model, space, seed=seed, rounding="nearest")
    out = []
    for step in range(n):
        proposal = estimator.propose(Keys(seed, step))
        answers = engine.evaluate(next(proposal), {"loss": model})
        try:
            proposal.send(answers)
        except StopIteration as done:
            out.append(done.value.to_dense(space)["w"])
    return torch.stack(out).double()


def is_unbiased(samples, truth):
    """Whether the mean is the truth: its length along it, and all d z-scores."""
    n, d = samples.shape
    along = samples @ truth / truth.square().sum()
    length = abs(float((along.mean() - 1) / (along.std() / math.sqrt(n))))
    z = (samples.mean(0) - truth) / (samples.std(0) / math.sqrt(n))
    return length < SIGMA and float(z.square().sum()) < d + SIGMA * math.sqrt(2 * d)


@pytest.mark.parametrize("family", ["rademacher", "near_normal"])
@pytest.mark.parametrize("q", [1, 4])
def test_the_mean_is_the_gradient(family, q):
    model = Bowl()
    s = estimates(SPSA(eps=0.01, num_queries=q, family=family), model, 3000 // q)
    assert is_unbiased(s, model.grad())


def test_controls_are_not_unbiased():
    """The z-test must see a factor of 1.2 and a one-sided bias at large eps."""
    model = Bowl()
    s = estimates(SPSA(eps=0.01), model, 3000)
    assert not is_unbiased(1.2 * s, model.grad())
    s = estimates(OneSided(eps=3.0, family="near_normal"), model, 3000)
    skewed = s.square().sum(1).mean() > 2 * D * model.grad().square().sum()
    assert skewed, "z'Hz / 2 eps should dominate a one-sided estimate with normal z"


def test_variance_falls_as_one_over_q():
    model = Bowl()
    total = [
        float(estimates(SPSA(eps=0.01, num_queries=q), model, 400).var(0).sum())
        for q in (1, 4)
    ]
    assert 3.4 < total[0] / total[1] < 4.6


@pytest.mark.parametrize(("d", "q"), [(100, 1), (1000, 10), (10000, 1)])
def test_cosine_is_sqrt_q_over_d(d, q):
    model = Bowl(d)
    s = estimates(SPSA(eps=0.01, num_queries=q), model, 150)
    cosine = (
        nn.functional.cosine_similarity(s, model.grad()[None]).square().mean().sqrt()
    )
    law = math.sqrt(q / (d + q - 1))
    assert abs(cosine / law - 1) < 0.25


@pytest.mark.parametrize("family", ["rademacher", "near_normal"])
def test_second_moment_of_the_families(family):
    """E |(z'g) z|^2 / |g|^2 = d - 1 + E z^4: d for signs, d + 1.97 for near normal z.

    On a linear loss the estimate is (z'g) z. At d = 10 a standard error of 200,000
    draws is 0.03 to 0.05, so the two laws are forty of them apart.
    """
    d, n = 10, 200_000
    g = Bowl(d).grad()
    z = direction(3, "w", (n, d), family=family).double()
    found = (z @ g).square() * z.square().sum(1) / g.square().sum()
    error = float(found.std()) / math.sqrt(n)
    law = {"rademacher": d, "near_normal": d - 1 + 3 - 2 / 64}
    off = {name: abs(float(found.mean()) - x) / error for name, x in law.items()}
    assert off.pop(family) < SIGMA
    assert min(off.values()) > 4 * SIGMA


def test_an_estimate_on_a_slope_is_the_slope_along_z_times_z():
    """What the law of the second moment takes for granted, of `estimates`."""
    model = Bowl(30)
    model.h.zero_()
    s, g = estimates(SPSA(eps=0.5), model, 20), model.grad()
    z = s.sign() * (s[:, :1].sign())
    assert torch.allclose(s, (z @ g)[:, None] * z, rtol=1e-4)


def test_two_forward_passes_each_and_one_shared():
    for estimator, q, forwards in [(SPSA, 3, 6), (OneSided, 3, 4)]:
        probes = next(estimator(eps=0.1, num_queries=q).propose(lambda i: i))
        assert len(probes) == forwards


def test_slope_is_the_finite_difference():
    """One step by hand from the losses that the optimizer reports."""
    model = Bowl()
    opt = MeZO(model, lr=1e-3, eps=0.01)
    opt.step(model)
    up, down = opt.last.losses
    slope = (up - down) / (2 * round16(0.01))
    assert opt.last.gradient.terms[0][1] == slope
    assert abs(slope) < 10 * model.grad().norm()


@pytest.mark.parametrize("sides", [SPSA, OneSided])
def test_it_descends(sides):
    model = Bowl()
    floor = float(-0.5 * (model.b.double() ** 2 / model.h).sum())
    first = float(model().detach()) - floor
    opt = ZOOptimizer(model, estimator=sides(eps=1e-3), lr=5e-3)
    for _ in range(800):
        opt.step(model)
    assert float(model().detach()) - floor < 0.5 * first


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"eps": 0.0}, "eps is 0.0"),
        ({"eps": float("nan")}, "eps is nan"),
        ({"num_queries": 0}, "num_queries is 0"),
        ({"family": "gauss"}, "unknown family 'gauss'"),
    ],
)
def test_bad_settings(kwargs, message):
    with pytest.raises(ValueError, match=message):
        SPSA(**kwargs)
