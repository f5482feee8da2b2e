"""Chapter 56: its claims' controls fail; the bench's six ways count what they draw."""

import json
import math

import pytest
import torch

from zolab import (
    SPSA,
    EvolutionStrategy,
    LowRank,
    Population,
    RankSGD,
    Resident,
    ZOOptimizer,
    direction,
    lab,
    make_key,
)
from zolab.bench import forward_rl
from zolab.estimators.shaping import centred_ranks, zscore
from zolab.lab import claims
from zolab.plan import Work, find, peak
from zolab.rl import train

pytestmark = pytest.mark.usefixtures("one_thread")


def judge(name: str, measured: float, se: float | None = None) -> str:
    return claims.ledger()[name].judge(measured, se)


def coefficients(estimator) -> torch.Tensor:
    """Of the directions of one step on a small noisy bowl."""
    layer = torch.nn.Linear(8, 4, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(-1, 1, 32).view(4, 8))
    opt = ZOOptimizer(layer, estimator=estimator, lr=0.0)
    opt.step(lambda: layer.weight.square().sum().sin())
    losses = torch.tensor(opt.last.losses).double()
    c = torch.tensor([c for _, c in opt.last.gradient.terms]).double()
    return c, losses


def test_other_shapes_are_another_step():
    es = {
        how: coefficients(EvolutionStrategy(eps=0.1, num_queries=6, shaping=how))
        for how in ("none", "zscore", "ranks")
    }
    spsa, losses = coefficients(SPSA(eps=0.1, num_queries=6))
    for how, verdict in (("none", claims.HOLDS), ("ranks", claims.NOT_SEEN)):
        gap = float((es[how][0] - spsa).abs().max())
        assert judge("56-es-is-spsa", gap) == verdict
    for how, verdict in (("zscore", claims.HOLDS), ("ranks", claims.NOT_SEEN)):
        factor = float(es[how][0].norm() / spsa.norm())
        factor *= float(losses.std(correction=0)) / 0.1
        assert judge("56-factor", factor) == verdict


def test_z_scores_see_an_increasing_map():
    r = [0.1, 0.5, 0.4, 0.4, 0.9]
    for shape, verdict in ((centred_ranks, claims.HOLDS), (zscore, claims.NOT_SEEN)):
        told = shape([math.exp(20 * x) for x in r])
        moved = max(abs(a - b) for a, b in zip(shape(r), told, strict=True))
        assert judge("56-ranks", moved) == verdict


def test_strangers_share_no_luck():
    """Two members that find other questions hard gain nothing from common ones."""
    cut = {"alike": [], "strangers": []}
    for seed in range(5):
        g = torch.Generator().manual_seed(seed)
        easy = torch.rand(200, 64, generator=g) < 0.6
        turned = torch.rand(200, 64, generator=g) < 0.1
        other = torch.rand(200, 64, generator=g) < 0.6
        for name, down in (("alike", easy ^ turned), ("strangers", other)):
            a, b = easy.float().mean(1), down.float().mean(1)
            cut[name].append(float((a - b).var() / (a - b.roll(1)).var()))
    alike, strangers = (lab.mean_se(cut[n]) for n in ("alike", "strangers"))
    assert judge("56-common", *alike) == claims.SAME
    assert judge("56-common", *strangers) == claims.NOT_SEEN


def law(d: int, q: int, family: str = "rademacher", bias: float = 0.0) -> float:
    """Root mean square of the cosine, of estimates that `bias` tells the truth."""
    g = torch.linspace(1, 2, d)
    squares = []
    for k in range(40):
        z = direction(make_key(k, 5, d), "x", (q, d), family=family)
        e = (z @ g) @ z / q + bias * g * d
        squares.append(float((e @ g / e.norm() / g.norm()) ** 2))
    return (sum(squares) / len(squares)) ** 0.5


@pytest.mark.parametrize(
    ("bias", "verdict"), [(0.0, claims.SAME), (0.5, claims.NOT_SEEN)]
)
def test_a_cosine_that_does_not_count_is_seen(bias, verdict):
    """An estimate that had the gradient from elsewhere would not go as the root."""
    at = [(d, q) for d in (300, 1000, 30000) for q in (1, 4, 32)]
    x = torch.tensor([(q / (q + d - 1)) ** 0.5 for d, q in at]).log()
    y = torch.tensor([law(d, q, bias=bias) for d, q in at]).log()
    power = float(torch.cov(torch.stack([x, y]))[0, 1] / x.var())
    assert judge("56-cosine", power) == verdict


def test_a_space_of_fewer_weights_is_seen():
    """Along rank 1 a matrix's mean squared cosine is 1 / d; of a half of it, 2 / d."""
    g = torch.linspace(-1, 2, 40 * 30).view(40, 30)
    whole, half = [], []
    for k in range(3000):
        gen = torch.Generator().manual_seed(k)
        u, v = (torch.randn(n, generator=gen).sign() for n in (40, 30))
        whole.append(float(u @ g @ v) ** 2 / float(g.square().sum()))
        half.append(2 * float(u[:20] @ g[:20] @ v) ** 2 / float(g[:20].square().sum()))
    assert judge("56-rank-one", *lab.mean_se(whole)) == claims.SAME
    assert judge("56-rank-one", *lab.mean_se(half)) == claims.NOT_SEEN


def test_fewer_rollouts_are_seen():
    assert judge("56-rollouts", *lab.mean_se([14.0, 15, 16])) == claims.SAME
    assert judge("56-rollouts", *lab.mean_se([1.0, 1.1, 0.9])) == claims.OPPOSITE
    assert judge("56-population", *lab.mean_se([1.0, 1.1, 0.9])) == claims.NOT_SEEN


def test_a_way_back_is_seen_in_the_plan():
    shape, work = find("meta-llama/Llama-3.2-1B"), Work(16, 512)
    gb = {m: peak(shape, m, work).total for m in ("inference", "mezo", "adamw")}
    assert judge("56-memory", gb["mezo"] / gb["inference"]) == claims.SAME
    assert judge("56-memory", gb["adamw"] / gb["inference"]) == claims.NOT_SEEN
    assert judge("56-memory-back", gb["mezo"] / gb["inference"]) == claims.OPPOSITE


def test_an_order_at_random_teaches_nothing():
    """Three orders by a coin, five seeds; and a gain of 20 points would be seen."""
    from zolab.rl.rollout import encode
    from zolab.rl.together import together
    from zolab.tasks.bases import load_base

    def fall(a):
        return float((a.ids[:, :5] >= a.ids[:, 1:6]).float().mean())

    gains = []
    for seed in range(5):
        model, tokenizer = load_base("sorting")

        def ask(cursor, tokenizer=tokenizer):
            asked = forward_rl.TASK.prompts(8, seed=cursor)
            return encode(tokenizer, asked, pad=tokenizer.pad_token_id)

        draw = together(model, ask, max_new_tokens=7, eos=(2,), temperature=0)
        none = torch.Generator().manual_seed(0)
        with torch.no_grad():
            before = fall(draw(99, none))
        g = torch.Generator().manual_seed(seed)
        coins = torch.rand(64, generator=g).tolist()
        opt = ZOOptimizer(
            model,
            estimator=RankSGD(eps=5e-3, num_queries=4),
            engine=Resident(unseen="ignore"),
            lr=5e-3,
            seed=seed,
        )
        for _ in range(3):
            opt.step(lambda coins=coins: coins.pop())
        with torch.no_grad():
            gains.append(fall(draw(99, none)) - before)
    assert judge("56-clicks", *lab.mean_se(gains)) != claims.SAME
    assert judge("56-clicks", *lab.mean_se([x + 0.2 for x in gains])) == claims.SAME


@pytest.mark.parametrize("name", ["grpo", "rank-1", "int4"])
def test_a_run_of_the_bench_counts_its_rollouts(name):
    row = forward_rl.run(name, 0, 1)
    each = 256 if name == "grpo" else forward_rl.MEMBERS * forward_rl.PROMPTS
    assert [p[0] for p in row["points"]] == [0, each]
    assert 0.4 < row["points"][0][3] < 0.7 and row["points"][1][2] > 0
    assert (row["costs"]["backward_tokens"] > 0) == (name == "grpo")
    assert row["weights"] == (7088 if name == "int4" else 108608)


def test_the_bench_goes_on_where_it_broke_off(tmp_path, monkeypatch):
    asked = []

    def quick(name, seed, steps):
        asked.append((name, seed))
        return {"points": [[0, 0, 0.0, 0.6], [8, 9, 1.0, 0.7]], "load": 0.0}

    monkeypatch.setattr(forward_rl, "alone", quick)
    words = ["--only", "grpo", "es", "--out", str(tmp_path)]
    forward_rl.main(["--seeds", "1", *words])
    forward_rl.main(["--seeds", "2", *words])
    assert asked == [("grpo", 0), ("es", 0), ("grpo", 1), ("es", 1)]
    rows = json.loads((tmp_path / forward_rl.NAME).read_text())["rows"]
    assert [*rows["es"]] == ["0", "1"] and rows["int4"] == {}


def test_the_population_of_the_bench_is_the_members_one_after_another():
    """The same step, batched or not."""
    from zolab.tasks.bases import load_base

    losses = []
    for engine in (None, Population(members=4)):
        model, tokenizer = load_base("sorting")
        draw, reward = forward_rl.asking("rank-1", 0, model, tokenizer)
        es = EvolutionStrategy(eps=5e-3, num_queries=2, family=LowRank(1, 1))
        opt = ZOOptimizer(model, estimator=es, lr=5e-3, engine=engine)
        train(model, draw, reward, "es", optimizer=opt, steps=1, bar=False)
        losses.append(opt.last.losses)
    assert losses[0] == losses[1] and len(set(losses[0])) > 1
