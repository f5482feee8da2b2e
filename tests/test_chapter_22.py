"""Chapter 22: its claims' controls fail."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from zolab.coordinates import Coordinates
from zolab.engines import Resident, Reuse
from zolab.estimators import CGE
from zolab.lab import claims
from zolab.lab.compare import sharpest
from zolab.optimizers.front import ZOOptimizer
from zolab.space import Space

D = 910


def judge(name: str, measured: float, se: float | None = None) -> str:
    return claims.ledger()[name].judge(measured, se)


def test_half_of_the_coordinates_are_no_gradient():
    gen = torch.Generator().manual_seed(0)
    g = torch.randn(D, generator=gen)
    gaps = {}
    for name, asked in (("all", D), ("half", D // 2)):
        some = torch.zeros(D).index_copy(0, torch.arange(asked), g[:asked])
        z = torch.randint(0, 2, (D, D), generator=gen) * 2.0 - 1
        pair = F.cosine_similarity(torch.stack([some, z @ g @ z]), g[None])
        gaps[name] = float(pair[0] - pair[1])
    assert judge("cge-cosine-at-equal-passes", gaps["all"], 0.005) == claims.HOLDS
    assert judge("cge-cosine-at-equal-passes", gaps["half"], 0.0) == claims.NOT_SEEN


def gap(a: torch.Tensor, b: torch.Tensor) -> tuple[float, float]:
    x = a - b
    se = x.mean(1).var() / len(x) + x.mean(0).var() / x.shape[1]
    return float(x.mean()), math.sqrt(float(se))


def test_two_equal_ways_differ_by_nothing():
    """Right or wrong on 500 pictures, 5 seeds: drawn with equal and other chances."""
    gen = torch.Generator().manual_seed(1)
    hard = torch.rand(500, generator=gen)

    def scores(ability: float) -> torch.Tensor:
        noise = 0.1 * torch.randn(5, 500, generator=gen)
        return (hard + noise < ability).double()

    for name in ("fewer-questions-more-steps", "cge-beats-rge-at-d"):
        assert judge(name, *gap(scores(0.9), scores(0.75))) == claims.SAME
        assert judge(name, *gap(scores(0.75), scores(0.9))) == claims.OPPOSITE
    for name in ("fewer-questions-more-steps", "cge-beats-rge-at-best"):
        seen = [judge(name, *gap(scores(0.8), scores(0.8))) for _ in range(20)]
        assert set(seen) == {claims.NOT_SEEN}


def work(engine: Reuse | Resident) -> float:
    """Multiplications of one step on two layers, over those of the formula."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4)), torch.randn(9, 6)
    sizes, prices = (35, 24), (30, 20)
    ran = {"0": 0, "1": 0}
    hooks = [
        m.register_forward_hook(lambda *a, n=n: ran.__setitem__(n, ran[n] + 1))
        for n, m in model.named_children()
    ]
    e = CGE(Coordinates.of(Space.of(model)), eps=0.1)
    ZOOptimizer(model, estimator=e, engine=engine, lr=0.0).step(
        lambda: model(x).square().mean()
    )
    for h in hooks:
        h.remove()
    counts = engine.ran if isinstance(engine, Reuse) else ran
    found = sum(counts[n] * c for n, c in zip(ran, prices, strict=True))
    return found / (50 + sizes[0] * 50 + sizes[1] * 20)


def test_full_passes_do_more_work():
    assert judge("reuse-work", work(Reuse())) == claims.HOLDS
    assert judge("reuse-work", work(Resident())) == claims.NOT_SEEN


def test_unit_directions_without_d_are_short():
    gen = torch.Generator().manual_seed(2)
    g = torch.randn(40, generator=gen)
    u = F.normalize(torch.randn(50_000, 40, generator=gen), dim=1)
    along = (u @ g) ** 2 / (g @ g)
    se = float(along.std()) / math.sqrt(len(along))
    name = "unit-sphere-needs-d"
    assert judge(name, float(along.mean()) * 40, se * 40) == claims.HOLDS
    assert judge(name, float(along.mean()), se) == claims.NOT_SEEN
    root = math.sqrt(40)
    assert judge(name, float(along.mean()) * root, se * root) == claims.NOT_SEEN


class Bowl(nn.Module):
    """sum_i h_i w_i^2 / 2, whose Hessian is diag(h)."""

    def __init__(self, h: torch.Tensor) -> None:
        super().__init__()
        self.h, self.w = h, nn.Parameter(torch.ones(len(h)))

    def forward(self) -> torch.Tensor:
        return (self.h * self.w**2).sum() / 2


def test_a_round_bowl_has_no_few_axes():
    round_one, steep = torch.ones(D), torch.ones(D) / 100
    steep[:3] = 10.0
    verdicts = []
    for h in (steep, round_one):
        bowl = Bowl(h)
        rank = float(h.sum()) / sharpest(bowl, bowl, rounds=12)
        verdicts.append(judge("few-axes-at-random-weights", rank, 0.5))
    assert verdicts == [claims.SAME, claims.OPPOSITE]
