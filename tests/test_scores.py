"""Scores: each against brute force on a small net, each with a control that fails."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import closure, mlp, same_bits
from torch import nn

import zolab
from zolab import SVRG, MeZO, Space, ZOOptimizer, direction, make_key, masks, scores
from zolab.errors import ScoreError

pytestmark = pytest.mark.usefixtures("one_thread")


class Net(nn.Module):
    """Two linear layers of 5 x 4 and 3 x 5, and a tanh: 35 weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 5, bias=False), nn.Linear(5, 3, bias=False)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


X = torch.randn(20, 4, generator=torch.Generator().manual_seed(1))
Y = torch.randn(20, 3, generator=torch.Generator().manual_seed(2))


def asks(net, size=5):
    """A closure a batch: the mean squared error of `size` rows."""
    parts = zip(X.split(size), Y.split(size), strict=True)
    return [lambda x=x, y=y: F.mse_loss(net(x), y) for x, y in parts]


def order(a, b):
    """Rank correlation of two dicts of scores."""
    x, y = (torch.cat([t.reshape(-1) for t in d.values()]) for d in (a, b))
    ranks = [t.argsort().argsort().double() for t in (x, y)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


def flat(d):
    return torch.cat([d[n].reshape(-1) for n in sorted(d)]).double()


# Wanda


def removed(net, name):
    """The squared change of the layer's outputs when each weight is set to 0."""
    layer, kept = net.get_submodule(name), []
    hook = layer.register_forward_pre_hook(lambda m, a: kept.append(a[0].detach()))
    net(X)
    hook.remove()
    base, out = layer.weight.detach().clone(), torch.zeros_like(layer.weight)
    with torch.no_grad():
        before = layer(kept[0])
        for i, j in torch.cartesian_prod(*map(torch.arange, base.shape)).tolist():
            layer.weight[i, j] = 0
            out[i, j] = (layer(kept[0]) - before).square().sum()
            layer.weight.copy_(base)
    return out.detach()


def test_wanda_is_the_root_of_what_removing_a_weight_changes():
    net = Net()
    found = scores.wanda(Space.of(net), asks(net))
    for name in ("a", "b"):
        want = removed(net, name).sqrt()
        assert torch.allclose(found[f"{name}.weight"], want, rtol=1e-5)
    magnitude = scores.magnitude(Space.of(net))  # the control: inputs do matter
    assert not torch.allclose(magnitude["b.weight"], removed(net, "b").sqrt(), 1e-2)


def test_wanda_counts_tokens_of_a_tied_table():
    torch.manual_seed(0)
    table = nn.Embedding(7, 4)
    tokens = torch.tensor([1, 1, 1, 5])

    def ask():
        return F.linear(table(tokens), table.weight).sum()

    with torch.no_grad():
        states = table(tokens)
    want = torch.zeros(7, 4)
    for t, i in torch.cartesian_prod(torch.arange(7), torch.arange(4)).tolist():
        looked_up = (tokens == t).sum() * table.weight[t, i] ** 2
        want[t, i] = looked_up + (states[:, i] * table.weight[t, i]).square().sum()
    found = scores.wanda(Space.of(table), [ask])["weight"]
    assert torch.allclose(found, want.detach().sqrt(), rtol=1e-5)


def test_addmm_has_its_inputs_in_its_rows():
    w = nn.Parameter(torch.randn(4, 3))
    module = nn.Module()
    module.w = w
    ask = lambda: torch.addmm(torch.zeros(3), X, module.w)  # noqa: E731
    found = scores.wanda(Space.of(module), [ask])["w"]
    assert torch.allclose(found, w.detach().abs() * X.norm(dim=0)[:, None])


def test_a_llama_has_norms_for_every_matrix():
    model, _ = zolab.load_model("random:tiny")
    ids = torch.randint(0, 4096, (2, 9))
    space = Space.of(model)
    found = scores.wanda(space, [lambda: model(input_ids=ids)])
    assert found.keys() == {s.name for s in space if len(s.shape) == 2}
    opt = MeZO(model, masks=masks.top(found, 0.25, per="row", space=space))
    opt.step(lambda: model(input_ids=ids).logits.float().square().mean())


# Wanda++


def test_regional_gradients_are_those_of_the_block_alone():
    net, alpha = Net(), 3.0
    space, samples = Space.of(net), asks(net, 1)
    found = scores.wanda_pp(space, samples, [net.a, net.b], alpha=alpha)
    norms = scores.input_norms(space, samples)
    for name, inputs in (("a", X), ("b", torch.tanh(net.a(X)).detach())):
        w, squares = net.get_submodule(name).weight, 0
        for x in inputs:
            (g,) = torch.autograd.grad((w @ x).norm(), w)
            squares = squares + g.square()
        g = (squares / len(X)).sqrt()
        want = w.detach().abs() * (alpha * g + norms[f"{name}.weight"])
        assert torch.allclose(found[f"{name}.weight"], want, rtol=1e-4)
    # the control: a region that holds both layers has another gradient for the first
    whole = scores.wanda_pp(space, samples, [net], alpha=alpha)
    assert not torch.allclose(whole["a.weight"], found["a.weight"], rtol=1e-2)
    assert torch.allclose(whole["b.weight"], found["b.weight"], rtol=1e-4)


def test_regions_leave_no_hook_no_graph_and_no_grad_mode():
    net = Net()
    seen = []
    watched = [lambda: seen.append(net(X).requires_grad)]
    scores.wanda_pp(Space.of(net), watched, [net.a, net.b])
    assert seen == [False], "no graph leads from a region to the next"
    assert torch.is_grad_enabled() and all(p.grad is None for p in net.parameters())
    assert not net.a._forward_hooks and not net.a._forward_pre_hooks
    with pytest.raises(ZeroDivisionError):
        scores.wanda_pp(Space.of(net), [lambda: net(X) / (1 // 0)], [net.a, net.b])
    assert torch.is_grad_enabled() and not net.a._forward_hooks


def test_wanda_pp_on_a_llama_block_by_block():
    model, _ = zolab.load_model("random:tiny")
    ids = torch.randint(0, 4096, (1, 9))
    space = Space.of(model).select("*proj*")
    ask = lambda: model(input_ids=ids)  # noqa: E731
    found = scores.wanda_pp(space, [ask], list(model.model.layers))
    assert len(found) == len(space) and all(s.isfinite().all() for s in found.values())


# Fisher


def test_fisher_is_the_mean_of_squared_gradients():
    net = Net()
    found = scores.fisher(Space.of(net), asks(net, 1))
    want = {n: torch.zeros_like(p) for n, p in net.named_parameters()}
    for ask in asks(net, 1):
        net.zero_grad()
        ask().backward()
        for n, p in net.named_parameters():
            want[n] += p.grad.square() / len(X)
    for n, w in want.items():
        assert torch.allclose(found[n], w, rtol=1e-5)
    batch = scores.fisher(Space.of(net), asks(net, 20))  # the control
    assert not torch.allclose(flat(batch), flat(found), rtol=0.1)


def test_fisher_from_forward_passes_is_right_on_average_and_noisy():
    net = Net()
    want = flat(scores.fisher(Space.of(net), asks(net, 20)))
    draws = torch.stack(
        [
            flat(scores.fisher_forward(net, asks(net, 20), num_queries=8, seed=s))
            for s in range(250)
        ]
    )
    se = draws.std(0) / math.sqrt(len(draws))
    z = (draws.mean(0) - want) / se
    assert float(z.square().mean().sqrt()) == pytest.approx(1, abs=0.4)
    # the noise of one reading is about sqrt(2) |grad|^2 / q on every element, whatever
    # the element's own size is
    noise = float(draws.std(0).median() / want.sum())
    assert noise == pytest.approx(math.sqrt(2) / 8, rel=0.5)


def test_one_slope_squared_knows_no_element():
    """The control: with signs (c z_i)^2 is c^2 for every i."""
    net, key = Net(), make_key(0, 0, 0)
    z = torch.cat([direction(key, n, p.shape).reshape(-1)
                   for n, p in net.named_parameters()])  # fmt: skip
    assert (2.5 * z).square().unique().numel() == 1


# curvature and MaZO


class Bowl(nn.Module):
    """sum h w^2 / 2 + b w: gradient and curvature of every weight are known."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4))
        self.h = torch.linspace(1, 4, 12).view(3, 4)
        self.b = torch.linspace(2, -1, 12).view(3, 4)

    def forward(self):
        w = self.w.double()
        return (self.h * w**2 / 2 + self.b * w).sum()


def truth(bowl):
    g = (bowl.h * bowl.w + bowl.b).detach()
    return scores.Estimate({"w": g}, {"w": bowl.h.clone()})


def test_gradient_and_curvature_are_right_on_average():
    bowl = Bowl()
    parts = [
        scores.curvature(bowl, [bowl], num_queries=20, eps=0.1, seed=s)
        for s in range(200)
    ]
    for name in ("gradient", "curvature"):
        x = torch.stack([getattr(p, name)["w"] for p in parts]).double()
        want = getattr(truth(bowl), name)["w"]
        z = (x.mean(0) - want) / (x.std(0) / math.sqrt(len(x)))
        assert float(z.square().mean().sqrt()) == pytest.approx(1, abs=0.4), name
        flipped = (x.mean(0) + want) / (x.std(0) / math.sqrt(len(x)))
        assert float(flipped.square().mean().sqrt()) > 3  # the control


def test_mazo_scores_are_what_freezing_costs():
    """Global: the minimum with and without the weight. Greedy: one step's."""
    bowl, lr, alpha = Bowl(), 0.05, 0.7
    found = truth(bowl)
    g, h = found.gradient["w"], found.curvature["w"]
    best = bowl.w.detach() - g / h
    step = bowl.w.detach() - lr * g

    def at(point):
        copied = copy.deepcopy(bowl)
        copied.w.data = point
        return float(copied().detach())

    for k in range(12):
        i, j = divmod(k, 4)
        cost = []
        for target in (best, step):
            frozen = target.clone()
            frozen[i, j] = bowl.w[i, j].detach()
            cost.append(at(frozen) - at(target))
        want = cost[0] + alpha * cost[1]
        mine = scores.mazo_score(g, h, lr, alpha)[i, j]
        assert float(mine) == pytest.approx(want, rel=1e-4, abs=1e-6)
        if abs(g[i, j]) > 0.5:  # the control: without the curvature it is another
            assert float(g[i, j] ** 2) != pytest.approx(want, rel=0.05)


def test_mazo_adds_tasks_by_row():
    bowl = Bowl()
    space, one = Space.of(bowl), truth(bowl)
    big = scores.Estimate({"w": 100 * one.gradient["w"]}, one.curvature)
    alone = scores.mazo(space, {"a": one}, lr=0.1, beta=0.0)["w"]
    assert torch.allclose(alone.sum(1), torch.ones(3))
    both = scores.mazo(space, {"a": one, "b": big}, lr=0.1, beta=0.0)["w"]
    assert torch.allclose(both, 2 * alone, rtol=1e-4)  # no task drowns the other
    weights = scores.mazo(space, {"a": one}, lr=0.1, beta=1e9)["w"]
    size = bowl.w.detach().abs()
    assert torch.allclose(weights, size / size.sum(1, keepdim=True), rtol=1e-3)


# GraSP


def test_grasp_is_what_its_equation_says():
    """The same z at both points: -w (Z Z'/q) H (Z Z'/q) g, computed densely."""
    bowl, q = Bowl(), 6
    found = scores.grasp(bowl, bowl, num_queries=q, eps=0.25, mu=0.25, seed=3)["w"]
    keys = [make_key(3, 0, k) for k in range(q)]
    z = torch.stack([direction(k, "w", (3, 4)).reshape(-1) for k in keys]).double()
    g = (bowl.h * bowl.w + bowl.b).detach().reshape(-1).double()
    estimate = z.T @ (z @ g) / q
    hg = z.T @ (z @ (bowl.h.reshape(-1).double() * estimate)) / q
    want = -(bowl.w.detach().reshape(-1).double() * hg).view(3, 4)
    assert torch.allclose(found.double(), want, rtol=1e-3, atol=1e-3)


def test_grasp_finds_the_first_order_score_and_new_directions_do_not():
    bowl = Bowl()
    g = (bowl.h * bowl.w + bowl.b).detach()
    want = flat({"w": -bowl.w.detach() * bowl.h * g})

    def cosine(x):
        return float(x @ want / x.norm() / want.norm())

    q, mu, eps = 400, 1e-2, 1e-2
    found = flat(scores.grasp(bowl, bowl, num_queries=q, eps=eps, mu=mu))
    assert cosine(found) > 0.9

    def slopes(seed, at):
        keys = [make_key(seed, 0, k) for k in range(q)]
        z = torch.stack([direction(k, "w", (3, 4)).reshape(-1) for k in keys])
        slope = (bowl.h.reshape(-1) * at + bowl.b.reshape(-1)) @ z.T
        return (slope @ z / q).double()

    start = bowl.w.detach().reshape(-1)
    here = slopes(1, start)
    there = slopes(2, start + mu * here.float())  # the control: other directions
    fresh = -start.double() * (there - here) / mu
    assert cosine(fresh) < 0.7


def test_ratios_count_the_best_of_all_layers():
    found = {"a": torch.arange(10.0), "b": -100 - torch.arange(30.0)}
    assert scores.ratios(found, 0.25) == {"a": 0.0, "b": pytest.approx(1 / 3)}
    whole = scores.ratios(found, 1.0)
    assert whole == {"a": 1.0, "b": 1.0}
    net = Net()
    space = Space.of(net)
    chosen = scores.layered({"a.weight": 0.0, "b.weight": 0.5}, seed=1)
    before = copy.deepcopy(net)
    opt = MeZO(net, lr=0.1, masks=chosen)
    opt.step(asks(net)[0])
    assert torch.equal(net.a.weight, before.a.weight)
    assert 0 < int((net.b.weight != before.b.weight).sum()) < 15
    assert all(not hasattr(m, "packed") for m in chosen.values()) and len(space) == 2


# what every score keeps


EVERY = {
    "magnitude": lambda net: scores.magnitude(Space.of(net)),
    "wanda": lambda net: scores.wanda(Space.of(net), asks(net)),
    "wanda_pp": lambda net: scores.wanda_pp(Space.of(net), asks(net), [net.a, net.b]),
    "fisher": lambda net: scores.fisher(Space.of(net), asks(net)),
    "fisher_forward": lambda net: scores.fisher_forward(net, asks(net)),
    "mazo": lambda net: scores.mazo(
        Space.of(net), {"a": scores.curvature(net, asks(net))}, lr=0.1
    ),
    "grasp": lambda net: scores.grasp(net, asks(net)[0], num_queries=8),
}
each = pytest.mark.parametrize("name", EVERY)


@each
def test_a_score_moves_nothing_and_comes_again(name):
    net = Net()
    before = copy.deepcopy(net)
    first, again = EVERY[name](net), EVERY[name](net)
    assert same_bits(net, before)
    assert first.keys() == {"a.weight", "b.weight"}
    for n, x in first.items():
        assert torch.equal(x, again[n]) and x.dtype == torch.float32
        assert x.shape == dict(net.named_parameters())[n].shape and not x.requires_grad


@each
@pytest.mark.parametrize("estimator", ["spsa", "svrg"])
def test_its_mask_is_one_bit_an_element_and_fixed(tmp_path, name, estimator):
    """Also under MeZO-SVRG, whose inner points lie away from the stored weights."""
    net = Net()
    base = copy.deepcopy(net)
    found = masks.top(EVERY[name](net), 0.4, space=Space.of(net))
    for s in Space.of(net):
        assert len(found[s.name].packed) == -(-s.numel // 8)
    make = zolab.SPSA() if estimator == "spsa" else SVRG(inner=2)
    opt = ZOOptimizer(
        net, estimator=make, lr=0.05, masks=found, journal=tmp_path / "log"
    )
    first, second, *_ = asks(net)
    full = lambda: F.mse_loss(net(X), Y)  # noqa: E731
    named = {"full": full, "batch2": second} if estimator == "svrg" else {}
    for _ in range(4):
        opt.step(first, **named)
    opt.journal.close()
    moved = 0
    for s in opt.space:
        where = s.mask.chosen(s.base.view(-1), s.id, torch.arange(s.numel))
        old = dict(base.named_parameters())[s.name].detach().view(-1)
        assert torch.equal(s.base.view(-1)[~where], old[~where])
        moved += int((s.base.view(-1) != old).sum())
    assert moved == sum(round(0.4 * s.numel) for s in opt.space)
    replayed = copy.deepcopy(base)
    assert zolab.replay(replayed, tmp_path / "log") == 4
    assert same_bits(replayed, net)


def test_a_score_looks_behind_a_mask_that_is_there():
    net = Net()
    space = Space.of(net).masked(masks.random(Space.of(net), 0.2))
    free = scores.fisher_forward(net, asks(net))
    assert torch.equal(flat(scores.fisher_forward(net, asks(net), space=space)),
                       flat(free))  # fmt: skip


# faults


def nan():
    return torch.tensor(float("nan"))


def broken(net):
    net.a.weight.data[0, 0] = nan()
    return net


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda n: scores.wanda(Space.of(n), []), "no forward pass read it"),
        (lambda n: scores.wanda(Space.of(n), [lambda: n.a(X)]), "1 of 2 .* b.weight"),
        (lambda n: scores.wanda(Space.of(n), [lambda: X @ n.a.weight.T]), "only"),
        (lambda n: scores.wanda(Space.of(n), [lambda: n(X * nan())]), "not finite"),
        (lambda n: scores.wanda_pp(Space.of(n), [], [n]), "no forward pass read"),
        (lambda n: scores.wanda_pp(Space.of(n), asks(n), [n.a]), "none of the 1 reg"),
        (
            lambda n: scores.wanda_pp(Space.of(n), asks(broken(n)), [n.a, n.b]),
            "regional gradient of a.weight is not finite",
        ),
        (lambda n: scores.fisher(Space.of(n), []), "no forward pass"),
        (
            lambda n: scores.fisher(Space.of(n), [lambda: n.a(X).sum()]),
            "not depend on b.weight",
        ),
        (
            lambda n: scores.fisher(Space.of(n), [lambda: (n(X) * nan()).sum()]),
            "gradient of a.weight is not finite",
        ),
        (lambda n: scores.fisher_forward(n, []), "0 closures"),
        (lambda n: scores.fisher_forward(n, asks(n), num_queries=1), "1 directions"),
        (lambda n: scores.fisher_forward(n, [nan]), "losses are"),
        (lambda n: scores.curvature(n, []), "no closure"),
        (lambda n: scores.curvature(n, [nan]), "losses are"),
        (lambda n: scores.grasp(n, nan), "losses are"),
        (lambda n: scores.grasp(n, asks(n)[0], num_queries=0), "num_queries is 0"),
        (lambda n: scores.ratios({"w": torch.ones(3)}, 0.0), "share is 0.0"),
        (lambda n: scores.ratios({"w": nan().view(1)}, 0.5), "not finite"),
        (lambda n: scores.layered({"w": 1.5}), "ratio 1.5"),
        (lambda n: scores.mazo(Space.of(n), {}, lr=0.1), "no task"),
    ],
)
def test_faults_say_what_was_found(make, message):
    with pytest.raises(ScoreError, match=message):
        make(Net())


def test_mazo_refuses_other_slots_shapes_and_numbers():
    bowl = Bowl()
    space, good = Space.of(bowl), truth(bowl)
    for part, message in (
        ({}, "says nothing of w"),
        ({"w": good.gradient["w"].T}, r"shape \(4, 3\)"),
        ({"w": good.gradient["w"] * nan()}, "not finite in w"),
    ):
        with pytest.raises(ScoreError, match=message):
            scores.mazo(space, {"a": scores.Estimate(part, good.curvature)}, lr=0.1)


def test_top_refuses_scores_without_a_rank_and_of_other_shapes():
    net = Net()
    space = Space.of(net)
    good = scores.magnitude(space)
    with pytest.raises(ValueError, match="a.weight are not finite"):
        masks.top(good | {"a.weight": good["a.weight"] * nan()}, 0.5)
    with pytest.raises(ValueError, match=r"shape \(4, 5\), expected \(5, 4\)"):
        masks.top(good | {"a.weight": good["a.weight"].T}, 0.5, space=space)
    with pytest.raises(ValueError, match="no such slot"):
        masks.top(good | {"c": torch.ones(3)}, 0.5, space=space)
    assert masks.top(good, 0.5, space=space).keys() == good.keys()


def test_scores_of_half_precision_and_vectors():
    model = mlp(0, torch.bfloat16)
    ask = closure(model)
    found = scores.fisher(Space.of(model), [ask])
    assert {x.dtype for x in found.values()} == {torch.float32}
    found = scores.wanda(Space.of(model), [ask])
    assert all(x.dim() == 2 for x in found.values()) and len(found) == 3
    assert order(scores.magnitude(Space.of(model)), scores.magnitude(Space.of(model)))
