"""Chapter 24: its claims' controls fail."""

import math

import pytest
import torch

import zolab
from zolab import Space, direction, lab, make_key, masks, scores
from zolab.lab import claims
from zolab.tasks import Sentiment, splits

pytestmark = pytest.mark.usefixtures("one_thread")


def judge(name: str, measured: float | None, se: float | None = None) -> str:
    return claims.ledger()[name].judge(measured, se)


def test_the_old_d_is_not_the_law():
    d, q, g = 1000, 4, torch.linspace(1, 2, 1000)
    new, old = [], []
    for moved in (250, 50, 10):
        m = (torch.arange(d) % (d // moved) == 0).float()
        squares = []
        for k in range(300):
            z = m * direction(make_key(k, 7, moved), "x", (q, d))
            mean = (z @ g) @ z / q
            cosine = mean @ (m * g) / mean.norm() / (m * g).norm()
            squares.append(float(cosine**2))
        mean_square = sum(squares) / len(squares)
        new.append(mean_square * (q + moved - 1) / q)
        old.append(mean_square * (q + d - 1) / q)
    assert judge("mask-cosine", sum(new) / 3) == claims.HOLDS
    assert judge("mask-cosine", sum(old) / 3) == claims.NOT_SEEN


def power(curved: bool) -> float:
    """Steps to a tenth against the weights that move, 5 and 40 of 40."""
    live, means = (torch.arange(40) < 5).float(), []
    h = torch.ones(40) if curved else live
    for moved in (5, 40):
        m, counts = (torch.arange(40) < moved).float(), []
        lr = 1 / float((h * m).sum())
        for seed in range(20):
            x, k = live.clone(), 0
            while float((h * x**2).sum()) > 0.5 and k < 2000:
                z = m * direction(make_key(seed, k, 5), "x", 40)
                x, k = x - lr * (z @ (h * x)) * z, k + 1
            counts.append(k)
        means.append(sum(counts) / len(counts))
    return math.log(means[1] / means[0]) / math.log(8)


def test_where_all_axes_are_curved_the_share_matters():
    assert judge("live-axes", power(curved=False)) == claims.SAME
    assert judge("live-axes", power(curved=True)) == claims.NOT_SEEN


def test_with_five_live_axes_the_share_does_not_matter():
    assert judge("curved-axes", power(curved=True)) == claims.SAME
    assert judge("curved-axes", power(curved=False)) == claims.NOT_SEEN


def left_behind(again: bool) -> float:
    w = direction(make_key(0, 0, 0), "w", 10_000, family="near_normal").double()
    w = w + torch.linspace(0, 0.2, 10_000).double()  # near normal lies on a grid
    z, h, eps = direction(make_key(0, 0, 1), "w", 10_000).double(), 0.3, 1e-2
    at, inside = w.clone(), w.abs() <= h
    for scale in (1, -2, 1):
        inside = at.abs() <= h if again else inside
        at += scale * eps * z * inside
    return float(((at - w).abs() > eps / 2).sum() / (w.abs() <= h).sum())


def test_a_mask_that_is_asked_once_gives_them_back():
    assert judge("mask-at-the-probe", left_behind(again=True)) == claims.SAME
    assert judge("mask-at-the-probe", left_behind(again=False)) != claims.SAME


def test_uniform_numbers_move_what_was_meant():
    g = torch.Generator().manual_seed(3)
    normal = torch.randn(100_000, generator=g) > 0.9
    uniform = torch.rand(100_000, generator=g) > 0.9
    assert judge("phi-of-the-sparsity", float(normal.float().mean())) == claims.HOLDS
    kept = float(uniform.float().mean())
    assert judge("phi-of-the-sparsity", kept) == claims.NOT_SEEN


def cosine(seed: int, new_v: bool) -> float:
    g, old = (torch.Generator().manual_seed(s) for s in (seed, 99))
    v = torch.randn(48, 2, generator=g if new_v else old)
    asked = torch.randn(64, 2, generator=g) @ v.T
    g.manual_seed(seed)
    moves = torch.randn(64, 2, generator=g) @ v.T
    return float((asked * moves).sum() / asked.norm() / moves.norm())


def test_on_other_steps_the_draws_agree():
    fresh, kept = ([cosine(s, new) for s in range(20)] for new in (True, False))
    assert judge("lozo-draw-order", *lab.mean_se(fresh)) == claims.SAME
    assert judge("lozo-draw-order", *lab.mean_se(kept)) == claims.NOT_SEEN


@pytest.fixture(scope="module")
def net():
    """The last MLP, a batch's loss as a closure, and its gradient squared."""
    model, tokenizer = zolab.load_model("tiny")
    task = Sentiment(tokenizer, words=("down", "up"))
    data = splits(train=100, dev=10, test=10)
    at = model.model.layers[-1].post_attention_layernorm
    x, y = lab.states(model, task, data.train, before=at)
    found = lab.LastMLP(model, task)
    loss = torch.nn.functional.binary_cross_entropy_with_logits
    return found, lambda: loss(found(x), y)


def test_the_last_mlp_gives_the_models_margins():
    from zolab.tasks import margins

    model, tokenizer = zolab.load_model("tiny")
    task = Sentiment(tokenizer, words=("down", "up"))
    rows = sorted(splits(train=20, dev=2, test=2).train, key=lambda s: len(s.text))
    at = model.model.layers[-1].post_attention_layernorm
    x, y = lab.states(model, task, rows, before=at)
    with torch.no_grad():
        batch = task.batch(rows)
        lab.same(lab.LastMLP(model, task)(x), margins(model, batch), tol=1e-4)
    assert torch.equal(y, batch.label.float())
    names = [s.name for s in Space.of(lab.LastMLP(model, task))]
    assert names == [f"mlp.{n}_proj.weight" for n in ("gate", "up", "down")]


def flat(space, mask):
    return torch.cat(
        [
            mask[s.name].chosen(s.base.view(-1), s.id, torch.arange(s.numel))
            for s in space
        ]
    )


def test_a_random_quarter_holds_a_quarter(net):
    module, ask = net
    space = Space.of(module)
    square = torch.cat([f.view(-1) for f in scores.fisher(space, [ask]).values()])
    smallest = masks.top({n: -s for n, s in scores.magnitude(space).items()}, 0.25)
    held = float(square[flat(space, smallest)].sum() / square.sum())
    assert judge("small-weights-hold-gradient", held) == claims.SAME
    random = flat(space, masks.random(space, 0.25, seed=1))
    held = float(square[random].sum() / square.sum())
    assert judge("small-weights-hold-gradient", held) != claims.SAME


def test_random_scores_overlap_by_chance(net):
    """And scores that know a little of the truth do not: the claim can be met."""
    module, ask = net
    space = Space.of(module)
    truth = scores.fisher(space, [ask])
    best, g = flat(space, masks.top(truth, 0.25)), torch.Generator().manual_seed(0)
    over: dict[str, float] = {}
    for name, weight in (("noise", 0.0), ("hint", 0.1)):
        mixed = {
            n: torch.rand(f.shape, generator=g)
            + weight * f.view(-1).argsort().argsort().view(f.shape) / f.numel()
            for n, f in truth.items()
        }
        chosen = flat(space, masks.top(mixed, 0.25))
        over[name] = float(chosen[best].double().mean()) - 0.25
    assert judge("fisher-from-forward-passes", over["hint"]) == claims.SAME
    assert judge("fisher-from-forward-passes", over["noise"]) == claims.NOT_SEEN


SIDES = ("small-weights-loss", "fisher-loss", "low-rank-loss", "one-lr-for-both")


@pytest.mark.parametrize("name", SIDES)
def test_the_same_runs_on_both_sides_are_not_better(name):
    g = torch.Generator().manual_seed(0)
    a, b = (0.6 + 0.04 * torch.randn(8, generator=g) for _ in range(2))
    assert judge(name, *lab.mean_se((a - a).tolist())) != claims.OPPOSITE
    assert judge(name, *lab.mean_se((a - b).tolist())) == claims.NOT_SEEN
    assert judge(name, *lab.mean_se((a - b + 0.1).tolist())) == claims.SAME
    assert judge(name, *lab.mean_se((a - b - 0.1).tolist())) == claims.OPPOSITE


def test_equation_one_sees_a_mask_that_gains():
    """Half of the gradient with a tenth of the curvature gains; equal shares do not."""
    points = torch.tensor([0.9, 1.1, 1.0, 0.95, 1.05]).double()
    for kept, verdict in ((0.1, claims.SAME), (0.5, claims.NOT_SEEN)):
        gains = torch.log2(0.5 / (kept * points)).tolist()
        assert judge("gradient-for-curvature", *lab.mean_se(gains)) == verdict
