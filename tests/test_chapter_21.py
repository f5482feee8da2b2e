"""Chapter 21: its claims' controls fail."""

import math

import torch
from torch import nn

from zolab import CGE, ZOOptimizer, direction, lab, make_key
from zolab.coordinates import Coordinates
from zolab.lab import claims
from zolab.space import Space

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


class Bowl(nn.Module):
    """The chapter's: weights of +-1, curvatures from 1 to 3."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(direction(make_key(0, 0, 0), "w", D))
        self.h = torch.linspace(1, 3, D).double()

    def forward(self) -> torch.Tensor:
        return (self.h * self.w.double() ** 2).sum() / 2


def bias(eps: float, share: float = 1.0) -> float:
    """The error of one-sided coordinates over eps |h| / 2."""
    model = Bowl()
    coordinates = Coordinates.of(Space.of(model), share)
    opt = ZOOptimizer(model, estimator=CGE(coordinates, eps=eps), lr=0.0)
    opt.step(model)
    g = opt.last.gradient.to_dense(opt.space)["w"].double()
    truth = model.h * model.w.detach().double()
    return float((g - truth).norm() / model.h.norm()) / (eps / 2)


def test_one_coordinate_left_out_or_a_rounded_eps_is_seen():
    assert judge("cge-bias", bias(2.0**-10)) == claims.HOLDS
    assert judge("cge-bias", bias(2.0**-10, 0.99)) == claims.NOT_SEEN
    assert judge("cge-bias", bias(1e-3)) == claims.NOT_SEEN


def scores(family: str, n: int = 2000) -> dict[str, tuple[float, float]]:
    """How many standard errors the mean of SPSA lies from three functions."""
    x, eps = torch.linspace(0.5, 1.5, 25).double(), 1.0
    bend = {"gradient": 0.0, "signs": 1.0, "smoothed": 3.0}
    out: dict[str, list[float]] = {k: [] for k in bend}
    for seed in range(10):
        z = draws(n, 30 + seed, family)[:, :25]
        up, down = (((x + s * eps * z) ** 4).sum(1) / 4 for s in (1, -1))
        g = ((up - down) / (2 * eps))[:, None] * z
        se = g.std(0) / math.sqrt(n)
        for k, b in bend.items():
            off = (g.mean(0) - (x**3 + b * eps**2 * x)) / se
            out[k].append(float(off.square().mean().sqrt()))
    return {k: lab.mean_se(v) for k, v in out.items()}


def test_each_family_has_its_own_mean():
    for family, right in (("rademacher", "signs"), ("near_normal", "smoothed")):
        for target, score in scores(family).items():
            wanted = claims.HOLDS if target == right else claims.NOT_SEEN
            for name in ("mean-of-signs", "mean-of-normal"):
                assert judge(name, *score) == wanted, (family, target)


def test_normal_numbers_scatter_on_two_axes():
    seen = {}
    for family in ("rademacher", "near_normal"):
        squares = [draws(2000, s, family)[:, :2].sum(1) ** 2 / 2 for s in range(10)]
        seen[family] = lab.mean_se([float(x.var()) for x in squares])
    assert judge("signs-on-two-axes", *seen["rademacher"]) == claims.SAME
    assert judge("signs-on-two-axes", *seen["near_normal"]) == claims.NOT_SEEN


def extra(other: str, d: int = 10) -> tuple[float, float]:
    gaps = []
    for seed in range(10):
        zs = [draws(4000, 60 + seed, other)[:, :d], draws(4000, 80 + seed)[:, :d]]
        a, b = ((z.sum(1) ** 2 / d * z.square().sum(1)).mean() for z in zs)
        gaps.append(float(a - b))
    return lab.mean_se(gaps)


def test_signs_add_nothing_to_signs():
    assert judge("second-moment-small", *extra("near_normal")) == claims.HOLDS
    assert judge("second-moment-small", *extra("rademacher")) == claims.NOT_SEEN
    assert judge("second-moment-large", *extra("near_normal")) == claims.SAME
    assert judge("second-moment-large", *extra("near_normal", D)) == claims.NOT_SEEN
    assert judge("second-moment-large", *extra("rademacher")) == claims.NOT_SEEN


def test_signs_see_no_curvature():
    h = torch.linspace(1, 3, D).double()
    for family, wanted in (
        ("rademacher", claims.NOT_SEEN),
        ("near_normal", claims.HOLDS),
    ):
        reads = []
        for seed in range(10):
            z = draws(2000, 100 + seed, family)
            bend = ((z**2) @ h)[:, None] * (z**2 - 1) / 2
            reads.append(float(bend.mean()))
        assert judge("normal-sees-curvature", *lab.mean_se(reads)) == wanted


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
