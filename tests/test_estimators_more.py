"""FZOO, evolution strategies, ranking, SVRG: one thing computed in several ways."""

import copy
import math
import statistics

import pytest
import torch
from helpers import closure, mlp, same_bits
from test_estimators import Bowl, estimates, is_unbiased
from torch import nn

import zolab
from zolab import FZOO, SPSA, SVRG, EvolutionStrategy, OneSided, RankSGD, ZOOptimizer
from zolab.errors import NonFiniteLossError
from zolab.estimators.rank import edge_weights
from zolab.estimators.shaping import centred_ranks, zscore
from zolab.families import Keys
from zolab.gradient import Answer, ZOGradient

LR = 1e-2
EVERY = {
    "fzoo": (lambda: FZOO(eps=1e-2, num_queries=4), 5),
    "fzoo reuse": (lambda: FZOO(eps=1e-2, num_queries=4, reuse=True), 5),
    "es": (lambda: EvolutionStrategy(eps=1e-2, num_queries=3), 6),
    "es ranks": (
        lambda: EvolutionStrategy(
            eps=1e-2, num_queries=4, antithetic=False, shaping="ranks"
        ),
        4,
    ),
    "rank": (lambda: RankSGD(eps=1e-2, num_queries=5, best=2), 5),
    "rank search": (lambda: RankSGD(eps=1e-2, num_queries=5, search=3), 9),
    "svrg": (lambda: SVRG(eps=1e-2), 6),
    "svrg 3": (
        lambda: SVRG(anchor=2.0, eps=1e-2, inner=3, family="near_normal"),
        14,
    ),
}
each = pytest.mark.parametrize("name", EVERY)


class Numbers(Keys):
    """Direction i has the key i."""

    def __call__(self, query):
        return query


def coefficients(estimator, *rounds, step=0):
    """What the estimator makes of these losses, a list of losses an ask."""
    proposal = estimator.propose(Numbers(0, step, (0.1,)))
    probes = next(proposal)
    for losses in rounds:
        assert len(probes) == len(losses)
        try:
            probes = proposal.send([Answer(x) for x in losses])
        except StopIteration as done:
            terms = done.value.terms
            assert [d.key for d, _ in terms] == list(range(estimator.num_queries))
            return [c for _, c in terms]
    return probes


def batches(model):
    """The closures by name that any of these estimators may ask for."""
    names = ("full", "batch2", "batch3")
    return {n: closure(model, seed=2 + i) for i, n in enumerate(names)}


def train(model, name, steps, start=0, **kwargs):
    opt = ZOOptimizer(model, estimator=EVERY[name][0](), lr=LR, **kwargs)
    assert opt.steps == start
    for _ in range(steps):
        opt.step(closure(model), **batches(model))
    if opt.journal is not None:
        opt.journal.close()
    return opt


@each
def test_the_log_determines_the_weights(tmp_path, name):
    """live = replayed = stopped and resumed; a resumed run needs no memory."""
    base, live = mlp(), mlp()
    train(live, name, 6, journal=tmp_path / "log")
    assert not same_bits(live, base)

    replayed = copy.deepcopy(base)
    assert zolab.replay(replayed, tmp_path / "log") == 6
    assert same_bits(replayed, live)

    half, resumed = copy.deepcopy(base), copy.deepcopy(base)
    train(half, name, 2, journal=tmp_path / "parts")
    train(resumed, name, 4, start=2, journal=tmp_path / "parts")
    assert same_bits(resumed, live)


@each
def test_forward_passes_are_counted(name):
    model, calls = mlp(), []

    def counted(loss):
        return lambda: calls.append(0) or loss()

    opt = ZOOptimizer(model, estimator=EVERY[name][0](), lr=LR)
    named = {n: counted(f) for n, f in batches(model).items()}
    opt.step(counted(closure(model)), **named)
    assert len(calls) == EVERY[name][1] == len(opt.last.losses)


@each
@pytest.mark.parametrize("at", [0, -1])
def test_a_nan_is_refused_and_nothing_moves(tmp_path, name, at):
    """Law 7, at the first probe and at the last one of the last ask."""
    model, path = mlp(), tmp_path / "log"
    estimator, forwards = EVERY[name][0](), EVERY[name][1]
    before, calls = copy.deepcopy(model), []

    def poisoned(loss):
        def f():
            calls.append(0)
            return loss() * (math.nan if len(calls) == at % forwards + 1 else 1)

        return f

    opt = ZOOptimizer(model, estimator=estimator, lr=LR, journal=path)
    named = {n: poisoned(f) for n, f in batches(model).items()}
    with pytest.raises(NonFiniteLossError):
        opt.step(poisoned(closure(model)), **named)
    assert same_bits(model, before)
    opt.step(closure(model), **batches(model))
    opt.journal.close()
    assert zolab.replay(before, path) == 2
    assert same_bits(before, model)


@each
def test_a_loss_that_never_changes_moves_nothing(name):
    """All ties: zeros, not NaN and not a step by position."""
    model = mlp()
    before, loss = copy.deepcopy(model), closure(model)
    named = {n: lambda: 0 * loss() + 0.1 for n in ("full", "batch2", "batch3")}
    opt = ZOOptimizer(model, estimator=EVERY[name][0](), lr=LR)
    opt.step(named["full"], **named)
    assert {c for _, c in opt.last.gradient.terms} == {0.0}
    assert same_bits(model, before)


# Evolution strategies


@pytest.mark.parametrize("family", ["rademacher", "near_normal"])
@pytest.mark.parametrize("q", [1, 3])
def test_antithetic_and_unshaped_is_spsa(family, q):
    kwargs = {"eps": 1e-2, "num_queries": q, "family": family}
    models, terms = (mlp(), mlp()), []
    es = EvolutionStrategy(shaping="none", **kwargs)
    for model, estimator in zip(models, (SPSA(**kwargs), es), strict=True):
        opt = ZOOptimizer(model, estimator=estimator, lr=LR)
        for _ in range(3):
            opt.step(closure(model))
        terms.append(opt.last.gradient.terms)
    assert terms[0] == terms[1]
    assert same_bits(*models)


@pytest.mark.parametrize("antithetic", [True, False])
def test_unshaped_mean_is_the_gradient(antithetic):
    model = Bowl()
    es = EvolutionStrategy(
        eps=1.0, num_queries=1, antithetic=antithetic, shaping="none"
    )
    s = estimates(es, model, 3000)
    assert is_unbiased(s, model.grad())
    assert not is_unbiased(-s, model.grad()), "we lower a loss"
    assert not is_unbiased(1.2 * s, model.grad()) or not antithetic  # one-sided: noise


def test_scores_and_ranks_by_hand():
    losses = [3.0, 1.0, 1.0, 7.0]
    std = statistics.pstdev(losses)
    assert zscore(losses) == pytest.approx([(x - 3) / std for x in losses])
    assert centred_ranks(losses) == [1 / 6, -1 / 3, -1 / 3, 1 / 2]
    for f in (zscore, centred_ranks):
        assert f([0.1] * 3) == [0, 0, 0], "sum / 3 rounds, so the mean is not 0.1"
    assert zscore([0.0, 1e-200])[1] == pytest.approx(1), "its square is 0"
    es = EvolutionStrategy(num_queries=2, shaping="ranks")
    assert coefficients(es, losses) == pytest.approx([0.125, -5 / 24])


@pytest.mark.parametrize("shaping", ["zscore", "ranks"])
def test_members_may_stand_in_any_order(shaping):
    es = EvolutionStrategy(num_queries=4, antithetic=False, shaping=shaping)
    losses, order = [2.0, 5.0, 2.0, 1.0], [2, 0, 3, 1]
    moved = coefficients(es, [losses[i] for i in order])
    straight = coefficients(es, losses)
    assert moved == pytest.approx([straight[i] for i in order], abs=1e-15)


class Layers(nn.Module):
    """Two slots of one shape, and a loss that is linear in both."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.zeros(64)), nn.Parameter(torch.zeros(64))

    def forward(self):
        return (self.a.double() - 2 * self.b.double()).sum()


def test_layers_of_one_shape_have_their_own_noise():
    model = Layers()
    es = EvolutionStrategy(num_queries=64, antithetic=False)
    ZOOptimizer(model, estimator=es, lr=1.0).step(model)
    steps = torch.stack([model.a.detach(), model.b.detach()])
    assert abs(float(torch.corrcoef(steps)[0, 1])) < 0.6
    assert model.a.sum() < 0 < model.b.sum()


# FZOO


def test_fzoo_by_hand():
    clean, ups = 2.0, [2.5, 1.5, 4.0]
    std = statistics.stdev(ups)
    wanted = [(x - clean) / (3 * std) for x in ups]
    assert coefficients(FZOO(num_queries=3), [clean, *ups]) == pytest.approx(wanted)
    # equal probes beside a different clean loss are a tie as well
    assert coefficients(FZOO(num_queries=3), [9.0, 0.1, 0.1, 0.1]) == [0, 0, 0]


def test_fzoo_is_one_sided_over_std():
    """And, but for the clean loss in the mean's place, the z-scored population."""
    losses = [2.0, 2.5, 1.5, 4.0]
    c = coefficients(FZOO(eps=0.5, num_queries=3), losses)
    plain = coefficients(OneSided(eps=0.5, num_queries=3), losses)
    ratio = 0.5 / statistics.stdev(losses[1:])
    assert c == pytest.approx([ratio * x for x in plain])
    es = EvolutionStrategy(num_queries=3, antithetic=False)
    z = coefficients(es, losses[1:])
    shift = [a - math.sqrt(2 / 3) * b for a, b in zip(c, z, strict=True)]
    assert shift == pytest.approx([shift[0]] * 3)


def test_fzoo_reuses_the_last_spread_by_hand():
    first, second = [1.0, 1.3, 0.7, 1.1], [5.0, 5.2, 5.1, 4.4]
    est = FZOO(num_queries=3, reuse=True)
    alone = coefficients(FZOO(num_queries=3), first)
    assert coefficients(est, first) == alone  # nothing to use again yet
    spread = math.sqrt(2) * statistics.stdev(first[1:])
    est.observe(Keys(0, 0), ZOGradient((), (spread,)))
    both = [statistics.variance(x[1:]) for x in (first, second)]
    std = math.sqrt(sum(both) / 2)  # the levels, 1 and 5, do not enter
    wanted = [(x - second[0]) / (3 * std) for x in second[1:]]
    found = coefficients(est, second, step=1)
    assert found == pytest.approx(wanted)
    assert found != pytest.approx(coefficients(FZOO(num_queries=3), second))
    tied = coefficients(est, [9.0, 9.1, 9.1, 9.1], step=1)
    assert all(map(math.isfinite, tied))
    with pytest.raises(ValueError, match="belongs to one run"):
        coefficients(est, second, step=0)


def test_fzoo_with_reuse_is_steadier():
    """The std of the std: over eight losses about 0.25 of it, over four 0.4."""

    def stds(**kwargs):
        est, out = FZOO(num_queries=4, **kwargs), []
        for step in range(400):
            g = torch.Generator().manual_seed(step)
            losses = [0.0, *(1 + torch.randn(4, generator=g, dtype=float)).tolist()]
            out.append(losses[1] / (4 * coefficients(est, losses, step=step)[0]))
            spread = math.sqrt(3) * statistics.stdev(losses[1:])
            est.observe(Keys(0, step), ZOGradient((), (spread,)))
        return torch.tensor(out)

    alone, both = stds(), stds(reuse=True)
    assert both.std() / both.mean() == pytest.approx(0.29, abs=0.03)
    assert alone.std() / alone.mean() == pytest.approx(0.42, abs=0.04)


def test_fzoo_has_no_unit():
    losses = [2.0, 2.5, 1.5, 4.0]
    c = coefficients(FZOO(num_queries=3), losses)
    scaled = coefficients(FZOO(num_queries=3), [1e-3 * x + 7 for x in losses])
    assert scaled == pytest.approx(c)


def test_fzoo_is_close_to_the_unit_gradient():
    """Mean along the gradient 1 for large N; SPSA, not normalised, has its length."""
    model = Bowl()
    unit = model.grad() / model.grad().norm()
    along = estimates(FZOO(eps=1e-3, num_queries=32), model, 200) @ unit
    error = float(along.std() / math.sqrt(len(along)))
    assert abs(float(along.mean()) - 1) < 5 * error + 2 / 32
    control = estimates(SPSA(eps=1e-3, num_queries=32), model, 200) @ unit
    assert abs(float(control.mean()) - 1) > 1


# Ranking


def edges_by_hand(losses, best):
    """The paper's sum over edges, one by one; without ties."""
    order = sorted(range(len(losses)), key=losses.__getitem__)
    pairs = [(i, j) for a, i in enumerate(order[:best]) for j in order[a + 1 :]]
    out = [0.0] * len(losses)
    for i, j in pairs:
        out[i] -= 1 / len(pairs)
        out[j] += 1 / len(pairs)
    return out


@pytest.mark.parametrize("best", [1, 2, 5, 6])
def test_rank_sums_the_edges(best):
    losses = [0.3, 2.0, -1.0, 5.0, 0.4, 0.1]
    weights = edge_weights(losses, best)
    assert weights == pytest.approx(edges_by_hand(losses, best))
    assert sum(weights) == pytest.approx(0)


@pytest.mark.parametrize("losses", [[4.0, 1.0, 3.0, 2.0], [1.0, 0.0, 0.0, 1.0, 1.0]])
def test_the_full_ranking_is_centred_ranks(losses):
    """Four times the evolution strategy, with ties and without."""
    m = len(losses)
    es = EvolutionStrategy(num_queries=m, antithetic=False, shaping="ranks")
    ours = coefficients(RankSGD(num_queries=m), losses)
    assert ours == pytest.approx([4 * c for c in coefficients(es, losses)])


def test_a_tie_is_no_edge():
    assert edge_weights([1.0, 1.0, 1.0], 1) == [0, 0, 0]
    assert edge_weights([0.0, 0.0, 1.0, 2.0], 1) == [-2 / 3, -2 / 3, 2 / 3, 2 / 3]


@pytest.mark.parametrize("kwargs", [{}, {"best": 2}, {"search": 3}])
def test_an_increasing_map_changes_no_bit(kwargs):
    """exp of the loss and its cube give the same weights, minus the loss does not."""
    maps = [lambda x: x, torch.exp, lambda x: x**3, lambda x: -x]
    models = []
    for f in maps:
        model = mlp()
        loss = closure(model)
        rank = RankSGD(eps=1e-2, num_queries=6, **kwargs)
        opt = ZOOptimizer(model, estimator=rank, lr=0.05)
        for _ in range(3):
            opt.step(lambda f=f, loss=loss: f(loss().double()))
        models.append(model)
    assert same_bits(models[0], models[1])
    assert same_bits(models[0], models[2])
    assert not same_bits(models[0], models[3])


def test_the_search_takes_the_best_of_what_it_asked():
    """The step lands, to the bit, on the point whose loss was the lowest."""
    model, taken = mlp(), set()
    rank = RankSGD(eps=1e-2, num_queries=6, search=4)
    opt = ZOOptimizer(model, estimator=rank, lr=1.0)
    for _ in range(8):
        opt.step(closure(model))
        asked = opt.last.losses[6:]
        assert float(closure(model)().detach()) == min(asked)
        taken.add(asked.index(min(asked)))
    assert len(taken) > 1


def test_the_search_prefers_the_shorter_of_equals():
    rank = RankSGD(num_queries=2, search=2)
    first = [1.0, 2.0]
    assert coefficients(rank, first, [3.0, 3.0, 4.0]) == [0, 0]
    assert coefficients(rank, first, [3.0, 2.0, 2.0]) == [-0.5, 0.5]
    assert coefficients(rank, first, [3.0, 2.0, 1.0]) == [-1, 1]


# SVRG


class Data(nn.Module):
    """Least squares over twelve rows; `rows(a, b)` is the loss over a slice."""

    def __init__(self):
        super().__init__()
        g = torch.Generator().manual_seed(3)
        self.w = nn.Parameter(torch.randn(6, generator=g))
        self.register_buffer("x", torch.randn(12, 6, generator=g).double())
        self.register_buffer("y", torch.randn(12, generator=g).double())

    def rows(self, a=0, b=12):
        return lambda: ((self.x[a:b] @ self.w.double() - self.y[a:b]) ** 2).mean()

    def grad(self, w, a=0, b=12):
        return 2 * self.x[a:b].T @ (self.x[a:b] @ w - self.y[a:b]) / (b - a)


def test_svrg_is_the_papers_loop():
    """Dense: the anchor and the full-batch estimate as tensors, one step at a time."""
    lr, anchor_lr, inner = 0.01, 0.03, 3
    model = Data()
    cuts = [(0, 3), (3, 6), (6, 9)]
    anchor = model.w.detach().double().clone()
    svrg = SVRG(anchor=anchor_lr / lr, inner=inner, eps=1e-3)
    opt = ZOOptimizer(model, estimator=svrg, lr=lr)
    named = {f"batch{j + 1}": model.rows(*cuts[j]) for j in (1, 2)}
    opt.step(model.rows(*cuts[0]), full=model.rows(), **named)

    zs = [zolab.direction(d.key, "w", 6).double() for d, _ in opt.last.gradient.terms]
    full = (model.grad(anchor) @ zs[0]) * zs[0]
    w = anchor - anchor_lr * full
    for z, cut in zip(zs[1:], cuts, strict=True):
        moved = (model.grad(w, *cut) - model.grad(anchor, *cut)) @ z
        w = w - lr * (moved * z + full)
    assert torch.allclose(model.w.detach().double(), w, atol=3e-6)
    assert not torch.allclose(anchor, w, atol=1e-2)


def test_svrg_asks_the_same_direction_and_batch_at_both_points():
    proposal = SVRG(inner=2).propose(Numbers(0, 0, (0.1,)))
    assert {p.objective for p in next(proposal)} == {"full"}
    for j, name in ((1, "loss"), (2, "batch2")):
        previous = [Answer(x) for x in ((2.0, 1.0) if j == 1 else (5.0, 3.0, 2.0, 1.0))]
        probes = proposal.send(previous)
        assert {p.objective for p in probes} == {name}
        assert [p.terms[-1:] for p in probes[:2]] == [p.terms for p in probes[2:]]
        assert [[d.key for d, _ in p.terms] for p in probes] == [
            [*range(j), j],
            [*range(j), j],
            [j],
            [j],
        ]


def test_svrg_cancels_the_batchs_noise():
    """Spread over batches of the correction against that of a mini-batch slope."""
    corrected, plain = [], []
    for a in range(0, 12, 2):
        model = Data()
        opt = ZOOptimizer(model, estimator=SVRG(), lr=1e-3)
        opt.step(model.rows(a, a + 2), full=model.rows())
        d, c = opt.last.gradient.terms[1]
        corrected.append(c)
        start = Data()
        z = zolab.direction(d.key, "w", 6).double()
        plain.append(float(start.grad(start.w.detach().double(), a, a + 2) @ z))
    assert statistics.stdev(corrected) < 0.1 * statistics.stdev(plain)


def test_svrg_names_the_closure_that_is_missing():
    model = mlp()
    opt = ZOOptimizer(model, estimator=SVRG(), lr=LR)
    with pytest.raises(ValueError, match="no objective 'full'"):
        opt.step(closure(model))


@pytest.mark.parametrize("name", ["fzoo", "es", "rank search", "svrg"])
def test_they_descend(name):
    make = {
        "fzoo": lambda: FZOO(eps=1e-3),
        "es": lambda: EvolutionStrategy(eps=1e-3),
        "rank search": lambda: RankSGD(num_queries=8, search=3),
        "svrg": lambda: SVRG(),
    }
    model = mlp()
    loss = closure(model)
    first = float(loss().detach())
    lr = {"rank search": 0.05, "svrg": 2e-3}.get(name, 0.01)
    opt = ZOOptimizer(model, estimator=make[name](), lr=lr)
    named = {"full": loss} if name == "svrg" else {}
    for _ in range(60):
        opt.step(loss, **named)
    assert float(loss()) < 0.9 * first


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FZOO(num_queries=1), "num_queries is 1, expected at least 2"),
        (lambda: FZOO(eps=-1.0), "eps is -1.0"),
        (lambda: EvolutionStrategy(shaping="rank"), "shaping is 'rank', expected one"),
        (
            lambda: EvolutionStrategy(num_queries=1, antithetic=False, shaping="ranks"),
            "num_queries is 1, expected at least 2: one loss has no ranks",
        ),
        (lambda: EvolutionStrategy(family="gauss"), "unknown family 'gauss'"),
        (lambda: RankSGD(num_queries=1), "num_queries is 1"),
        (lambda: RankSGD(num_queries=4, best=5), "best is 5, expected 1 to 4"),
        (lambda: RankSGD(best=0), "best is 0"),
        (lambda: RankSGD(search=-1), "search is -1"),
        (lambda: SVRG(anchor=math.inf), "anchor is inf"),
        (lambda: SVRG(inner=0), "inner is 0"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()
