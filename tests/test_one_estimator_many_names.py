"""One estimator under several names, and what its mean is: each way listed."""

import math
from itertools import pairwise

import pytest
import torch
from test_estimators import Bowl, estimates
from torch import nn

from zolab import CGE, SPSA, EvolutionStrategy, ForwardGradient, OneSided, RankSGD
from zolab.coordinates import Coordinates
from zolab.space import Space

D, EPS = 24, 2.0**-6  # a power of two: w + eps and w - eps are exact
SMALL = {"eps": EPS, "num_queries": 6}


def signs() -> Bowl:
    """The bowl at +-1, where fp32 weights take steps of EPS without rounding."""
    model = Bowl(D)
    with torch.no_grad():
        model.w.copy_(model.w.sign())
    return model


def every(model: nn.Module, **kwargs) -> CGE:
    return CGE(Coordinates.of(Space.of(model)), eps=EPS, **kwargs)


def differences(model: Bowl, central: bool) -> torch.Tensor:
    """Finite differences, one coordinate after another."""
    out, w = [], model.w
    for i in range(D):
        losses = []
        for step in (EPS, -EPS if central else 0.0):
            kept = w.data[i].item()
            w.data[i] += step
            losses.append(model().item())
            w.data[i] = kept
        out.append((losses[0] - losses[1]) / (2 * EPS if central else EPS))
    return torch.tensor(out, dtype=torch.float64)


def one(estimator, model=None) -> torch.Tensor:
    return estimates(estimator, model or signs(), 1)[0]


def es(**kwargs) -> EvolutionStrategy:
    return EvolutionStrategy(**SMALL, **kwargs)


# Each row: ways to compute one thing. On a quadratic a two-sided slope is exact, so
# SPSA is the forward gradient and central coordinates are the gradient.
NAMES = {
    "two-sided": [
        lambda: one(SPSA(**SMALL)),
        lambda: one(es(shaping="none")),
        lambda: one(ForwardGradient(num_queries=6)),
    ],
    "ranks": [
        lambda: one(RankSGD(**SMALL)),
        lambda: one(RankSGD(**SMALL, best=6)),
        lambda: 4 * one(es(antithetic=False, shaping="ranks")),
    ],
    "coordinates, central": [
        lambda: one(every(signs(), central=True)),
        lambda: differences(signs(), central=True),
        lambda: signs().grad(),
    ],
    "coordinates, one-sided": [
        lambda: one(every(signs())),
        lambda: differences(signs(), central=False),
        lambda: signs().grad() + EPS * signs().h.double() / 2,
    ],
}


@pytest.mark.parametrize("name", NAMES)
def test_every_way_is_the_first(name):
    ways = [way() for way in NAMES[name]]
    for a, b in pairwise(ways):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6), name


def test_the_names_are_four():
    firsts = [ways[0]() for ways in NAMES.values()]
    for i, a in enumerate(firsts):
        assert not any(torch.allclose(a, b, rtol=1e-3) for b in firsts[:i])


FAMILIES = ["rademacher", "near_normal"]
ESTIMATORS = {
    "SPSA": lambda q, f: SPSA(eps=EPS, num_queries=q, family=f),
    "forward gradient": lambda q, f: ForwardGradient(num_queries=q, family=f),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_cosine_over_three_decades(name, family):
    """sqrt(q / d) from q / d = 0.001; where q is not small, of q / (q + d)."""
    for d, q, n in ((1000, 1, 100), (1000, 10, 20), (100, 100, 8)):
        model = Bowl(d)
        s = estimates(ESTIMATORS[name](q, family), model, n)
        cos = nn.functional.cosine_similarity(s, model.grad()[None]).square().mean()
        assert abs(math.sqrt(float(cos) * (q + d) / q) - 1) < 0.2, (d, q)


class Twisted(nn.Module):
    """L = x^3 y at (1, 2): a loss whose two smoothings differ, and one has no loss."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, 2.0]))

    def forward(self):
        x, y = self.w.double()
        return x**3 * y


WIDE = 1.0
# x moved uniformly has E x^2 = 1 + eps^2 / 3, by +-eps or normally 1 + eps^2 (and
# E x^3 = 1 + 3 eps^2): these are the components by hand.
GRADIENT = (6.0, 1.0)
SIGNS = (3 * (1 + WIDE**2 / 3) * 2, 1 + 3 * WIDE**2)
SMOOTHED = (3 * (1 + WIDE**2) * 2, 1 + 3 * WIDE**2)
TARGETS = {"gradient": GRADIENT, "signs": SIGNS, "smoothed": SMOOTHED}


def agrees(samples: torch.Tensor, target: tuple[float, float]) -> bool:
    off = samples.mean(0) - torch.tensor(target, dtype=torch.float64)
    return bool((off.abs() < 4 * samples.std(0) / math.sqrt(len(samples))).all())


@pytest.mark.parametrize(
    ("make", "family", "right"),
    [
        (lambda f: SPSA(eps=WIDE, family=f), "rademacher", "signs"),
        (lambda f: SPSA(eps=WIDE, family=f), "near_normal", "smoothed"),
        (lambda f: OneSided(eps=WIDE, family=f), "rademacher", "signs"),
        (lambda f: ForwardGradient(family=f), "rademacher", "gradient"),
        (lambda f: ForwardGradient(family=f), "near_normal", "gradient"),
    ],
)
def test_the_mean_is_the_smoothing_of_its_family(make, family, right):
    n = 6000 if right == "smoothed" else 1500  # normal z cubed has long tails
    samples = estimates(make(family), Twisted(), n)
    assert [n for n, t in TARGETS.items() if agrees(samples, t)] == [right]


def test_signs_smooth_to_the_gradient_of_no_loss():
    """d/dy of component x is 3 x^2 + eps^2, d/dx of component y 3 x^2 + 3 eps^2."""

    def mean(x: float, y: float) -> tuple[float, float]:
        loss = lambda a, b: a**3 * b  # noqa: E731
        total = [0.0, 0.0]
        for s in (1, -1):
            for t in (1, -1):
                up, down = (loss(x + k * s, y + k * t) for k in (WIDE, -WIDE))
                slope = (up - down) / (2 * WIDE) / 4
                total[0] += slope * s
                total[1] += slope * t
        return total[0], total[1]

    assert mean(1.0, 2.0) == pytest.approx(SIGNS)
    h = 1e-4
    across = (mean(1, 2 + h)[0] - mean(1, 2 - h)[0]) / (2 * h)
    back = (mean(1 + h, 2)[1] - mean(1 - h, 2)[1]) / (2 * h)
    assert across == pytest.approx(3 + WIDE**2, rel=1e-6)
    assert back == pytest.approx(3 + 3 * WIDE**2, rel=1e-6)
