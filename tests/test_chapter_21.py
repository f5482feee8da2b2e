"""Chapter 21: its claims' controls fail."""

import math

import torch

from zolab import direction, make_key
from zolab.lab import claims

D = 100


def judge(name: str, measured: float, se: float | None = None) -> str:
    return claims.ledger()[name].judge(measured, se)


def draws(n: int, step: int, family: str = "rademacher") -> torch.Tensor:
    return direction(make_key(0, step, 0), "x", (n, D), family=family).double()


def power(fresh: bool) -> float:
    """How the error falls from 8 to 128 directions: new ones, or one repeated."""
    g, errors = torch.linspace(1, 3, D).double(), []
    for q in (8, 128):
        z = draws(60 * q, q).view(60, q, D)
        z = z if fresh else z[:, :1].expand(-1, q, -1)
        mean = torch.einsum("nqd,nq->nd", z, z @ g) / q
        errors.append(float((mean - g).norm(dim=1).mean()))
    return math.log(errors[1] / errors[0]) / math.log(128 / 8)


def test_one_direction_again_and_again_buys_nothing():
    assert judge("zoo-power", power(fresh=True)) == claims.SAME
    assert judge("zoo-power", power(fresh=False)) == claims.NOT_SEEN


def test_some_coordinates_are_not_the_gradient():
    g = torch.linspace(1, 3, D)
    some = g * (torch.arange(D) < D - 1)
    assert judge("cge-is-exact", -7.0) == claims.HOLDS
    error = float((some - g).norm() / g.norm())
    assert judge("cge-is-exact", math.log10(error)) != claims.HOLDS


def test_the_gradient_itself_is_not_the_mean():
    n, eps, x = 4000, 0.5, torch.linspace(0.5, 1.5, D).double()
    z = draws(n, 2)
    up, down = (((x + s * eps * z) ** 4).sum(1) / 4 for s in (1, -1))
    estimates = ((up - down) / (2 * eps))[:, None] * z
    se = estimates.std(0) / math.sqrt(n)

    def score(target: torch.Tensor) -> float:
        return float(((estimates.mean(0) - target) / se).square().mean().sqrt())

    assert judge("smoothed-gradient", score(x**3 + eps**2 * x)) == claims.HOLDS
    assert judge("smoothed-gradient", score(x**3)) == claims.NOT_SEEN


def test_normal_numbers_scatter_and_see_curvature():
    h = torch.linspace(1, 3, D).double()
    seen = {}
    for family in ("rademacher", "near_normal"):
        z = draws(4000, 3, family)
        bend = ((z**2) @ h)[:, None] * (z**2 - 1) / 2
        seen[family] = float((z[:, 0] ** 2).std()), float(bend.mean())
    for i, name in enumerate(("signs-on-one-axis", "signs-see-no-curvature")):
        assert judge(name, seen["rademacher"][i]) == claims.HOLDS
        assert judge(name, seen["near_normal"][i]) == claims.NOT_SEEN


def test_random_coefficients_have_no_cosine():
    g, q = torch.linspace(1, 2, D).double(), 100
    ratios: dict[str, list[float]] = {"slopes": [], "random": []}
    for draw in range(60):
        z = draws(q, 100 + draw)
        noise = direction(make_key(draw, 9, 0), "c", q, family="near_normal")
        for name, c in (("slopes", z @ g), ("random", noise.double())):
            mean = c @ z
            cosine = float(mean @ g / mean.norm() / g.norm())
            ratios[name].append(cosine**2 * (q + D) / q)
    mean = {k: sum(v) / len(v) for k, v in ratios.items()}
    assert judge("cosine-three-decades", mean["slopes"]) == claims.HOLDS
    assert judge("cosine-three-decades", mean["random"]) == claims.NOT_SEEN
