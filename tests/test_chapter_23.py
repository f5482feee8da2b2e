"""Chapter 23: its claims' controls fail."""

import torch

import zolab
from zolab import (
    SGD,
    SPSA,
    Adam,
    Direction,
    Momentum,
    ZOGradient,
    ZOOptimizer,
    direction,
    lab,
    make_key,
)
from zolab.lab import claims

D = 100
H = torch.where(torch.arange(D) < 10, 100.0, 1.0).double()


def judge(name: str, measured: float, se: float | None = None) -> str:
    return claims.ledger()[name].judge(measured, se)


def bowl(exact: bool, per_weight: bool, lr: float, seed: int, n: int = 6):
    """log10 of the loss after 400 steps: Adam with a vector v, or with its mean."""
    g = torch.Generator().manual_seed(seed)
    x = torch.ones(n, D).double()
    m, v = 0 * x, 0 * x
    for t in range(1, 401):
        grad = H * (x - 0.02 * torch.randn(n, D, generator=g).double())
        if not exact:
            z = torch.randn(n, D, generator=g).double()
            grad = (grad * z).sum(-1, keepdim=True) * z
        m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
        size = v if per_weight else v.mean(-1, keepdim=True)
        size = (size / (1 - 0.999**t)).sqrt() + 1e-8
        x = x - lr * m / (1 - 0.9**t) / size
    return ((H * x**2).sum(-1) / 2).log10()


def gain(exact: bool) -> tuple[float, float]:
    """Of a second moment per weight, each side at the best of one grid."""
    ends = []
    for per_weight in (False, True):
        grid = [10 ** (k / 2) for k in range(-6, 0)]
        tried = [bowl(exact, per_weight, lr, seed=1).mean() for lr in grid]
        best = grid[int(torch.stack(tried).argmin())]
        ends.append(bowl(exact, per_weight, best, seed=2))
    return lab.mean_se((ends[0] - ends[1]).tolist())


def test_a_second_moment_per_weight_needs_the_gradient():
    with_gradient, along_z = gain(exact=True), gain(exact=False)
    assert judge("adam-needs-a-gradient", *with_gradient) == claims.SAME
    assert judge("adam-needs-a-gradient", *along_z) == claims.NOT_SEEN
    assert judge("adam-on-noise", *along_z) == claims.SAME
    assert judge("adam-on-noise", *with_gradient) == claims.NOT_SEEN


def test_normal_numbers_have_a_second_moment_each():
    spread, ratio = {}, {}
    law = H.square().sum() + 2 * H.square()
    for family in ("rademacher", "near_normal"):
        z = direction(make_key(0, 5, 0), "x", (20_000, D), family=family).double()
        v = ((z @ H)[:, None] * z).square().mean(0)
        spread[family] = float((v.max() / v.min()).log10())
        measured, derived = (a[:10].mean() / a[10:].mean() for a in (v, law))
        ratio[family] = float(measured / derived)
    assert judge("one-second-moment", spread["rademacher"]) == claims.HOLDS
    assert judge("one-second-moment", spread["near_normal"]) == claims.NOT_SEEN
    name = "second-moment-of-normal-z"
    assert judge(name, ratio["near_normal"]) == claims.HOLDS
    assert judge(name, ratio["rademacher"]) == claims.NOT_SEEN


def missing(rule: Momentum) -> float:
    one = ZOGradient(((Direction(1), 1.0),))
    for k in range(400):
        m = sum(c for _, c in rule.update(one, k, [1.0], [0.0]).terms)
    return (1 - 0.1 * m) / 0.9**44


def test_another_window_misses_another_share():
    assert judge("window-is-dense", missing(Momentum())) == claims.HOLDS
    for other in (Momentum(window=43), Momentum(beta=0.905), Momentum(dampening=0.01)):
        assert judge("window-is-dense", missing(other)) == claims.NOT_SEEN


def louder(rule) -> float:
    """The largest difference that a loss times 1,024 makes in 20 steps."""
    ends = []
    for times in (1, 1024):
        layer = torch.nn.Linear(20, 1, bias=False)
        torch.nn.init.ones_(layer.weight)
        opt = ZOOptimizer(layer, estimator=SPSA(), rule=rule(), lr=1e-3)
        for _ in range(20):
            opt.step(lambda t=times, m=layer: t * m.weight.double().square().sum())
        ends.append(layer.weight.detach())
    return float((ends[0] - ends[1]).abs().max())


def test_sgd_knows_the_unit_of_the_loss():
    name = "adam-knows-no-unit"
    assert judge(name, louder(lambda: Adam(adam_eps=1e-30))) == claims.HOLDS
    assert judge(name, louder(zolab.SignSGD)) == claims.HOLDS
    assert judge(name, louder(SGD)) == claims.NOT_SEEN


def test_a_rule_against_itself_is_not_seen():
    """Two accuracies of one rule on 1,000 sentences; ten points would be seen."""
    g = torch.Generator().manual_seed(3)
    ends = [0.75 + 0.01 * torch.randn(5, generator=g) for _ in range(2)]
    same = lab.mean_se((ends[0] - ends[1]).tolist(), 1000)
    better = lab.mean_se((ends[0] + 0.1 - ends[1]).tolist(), 1000)
    for rule in ("adam", "momentum", "adamu", "sign", "hizoo", "conservative"):
        assert judge(f"{rule}-against-sgd", *same) == claims.NOT_SEEN
        assert judge(f"{rule}-against-sgd", *better) == claims.SAME
