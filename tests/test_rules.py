"""Rules against dense tensors on the same directions, and against their own logs."""

import copy
import os
import signal
import subprocess
import sys
from pathlib import Path

import families
import pytest
import torch
from helpers import bits, closure, mlp, same_bits
from torch.optim.lr_scheduler import LinearLR

import zolab
from zolab import (
    SGD,
    SPSA,
    Adam,
    AdaMU,
    Dense,
    Direction,
    Momentum,
    SignSGD,
    ZOGradient,
    ZOOptimizer,
    masks,
    storage,
)
from zolab.engines import Resident
from zolab.errors import JournalError, NonFiniteLossError
from zolab.gradient import round32
from zolab.optimizers.momentum import window_of
from zolab.space import Space

pytestmark = pytest.mark.usefixtures("one_thread")

RULES = {
    "sign": SignSGD,
    "momentum": Momentum,
    "short": lambda: Momentum(beta=0.8, dampening=0.8, window=3),
    "adam": Adam,
    "short adam": lambda: Adam(beta1=0.5, window=3),
    "folded": lambda: Momentum(beta=0.8, window=9, fold=4),
    "folded adam": lambda: Adam(beta1=0.5, fold=3),
    "dense sign": lambda: Dense(SignSGD()),
    "dense momentum": lambda: Dense(Momentum()),
    "dense adam": lambda: Dense(Adam()),
    "adamu": lambda: AdaMU(warm=2, settle=9),
    "signed adamu": lambda: AdaMU(warm=1, settle=5, beta1=0.6, signed=True),
}
REMEMBER = [n for n in RULES if "sign" not in n]
REFUSED = (3, 4, 8)  # steps whose losses are NaN


def asks(rule, **kwargs):
    """SPSA, or the probes that the rule makes for itself."""
    return getattr(rule, "estimator", SPSA)(eps=1e-2, **kwargs)


def start(rule, path=None, *, dtype=torch.bfloat16, ask=None, **kwargs):
    """A model at the base weights, an optimizer (which resumes), a step."""
    model = mlp(0, dtype)
    opt = ZOOptimizer(
        model,
        estimator=asks(rule, **ask or {}),
        rule=rule,
        journal=path,
        **{"lr": 2e-3, "seed": 3, "weight_decay": 0.1} | kwargs,
    )
    loss = closure(model)

    def step():
        if opt.steps not in REFUSED:
            return opt.step(loss)
        with pytest.raises(NonFiniteLossError):
            opt.step(lambda: loss() * float("nan"))

    return model, opt, step


def logged(rule, path, n=12, **kwargs):
    """A finished run: its model, and the bits after each of 0, 1, ... n steps."""
    model, opt, step = start(rule, path, **kwargs)
    found = [bits(model)]
    for _ in range(n):
        step()
        found.append(bits(model))
    opt.journal.close()
    return model, found


def equal(model, want):
    return all(torch.equal(a, b) for a, b in zip(bits(model), want, strict=True))


# ---- the same numbers as dense tensors


def dense_grads(opt, model):
    """What autograd would have left, had it found this gradient; fp32."""
    g = opt.last.gradient
    g = ZOGradient(tuple((d, round32(c)) for d, c in g.terms)).to_dense(opt.space)
    for name, p in model.named_parameters():
        p.grad = g[name]


def follow(rule, dense, steps, *, schedule=False, lr=1e-3, decay=0.0, **ask):
    """Weights under the rule, under a torch optimizer fed the same gradients, before.

    The gradients are those of the rule's run, so that only the updates can differ.
    """
    ours, opt, step = start(rule, dtype=torch.float32, lr=lr, weight_decay=0.0, ask=ask)
    for g in opt.param_groups:
        g["weight_decay"] = decay
    base = copy.deepcopy(ours)
    theirs = copy.deepcopy(ours)
    other = dense(theirs.parameters(), lr)
    both = [LinearLR(o, 1.0, 0.1, total_iters=steps) for o in (opt, other) if schedule]
    for _ in range(steps):
        refused = opt.steps in REFUSED
        step()
        if not refused:
            dense_grads(opt, theirs)
            other.step()
        for s in both:
            s.step()
    return [
        torch.cat([p.detach().double().flatten() for p in m.parameters()])
        for m in (ours, theirs, base)
    ]


def heavy_ball(beta):
    return lambda p, lr: torch.optim.SGD(p, lr, momentum=beta)


def adam(**kwargs):
    return lambda p, lr: torch.optim.AdamW(p, lr, **{"weight_decay": 0.0} | kwargs)


@pytest.mark.parametrize(
    ("rule", "dense", "kwargs"),
    [
        (Momentum, heavy_ball(0.9), {}),
        (Momentum, heavy_ball(0.9), {"schedule": True}),
        (Momentum, heavy_ball(0.9), {"num_queries": 3}),
        (lambda: Momentum(beta=0.5, window=60), heavy_ball(0.5), {}),
        (lambda: Momentum(beta=0.0), lambda p, lr: torch.optim.SGD(p, lr), {}),
        (Adam, adam(), {}),
        (Adam, adam(), {"schedule": True}),
        (Adam, adam(weight_decay=0.2), {"decay": 0.2}),
        (lambda: Adam(beta2=0.9), adam(betas=(0.9, 0.9)), {}),
        (lambda: Adam(adam_eps=10.0), adam(eps=10.0), {}),
    ],
)
def test_inside_the_window_it_is_torch_s(rule, dense, kwargs):
    """Forty steps, three of them refused: fewer than 44, so nothing is cut."""
    ours, theirs, base = follow(rule(), dense, 40, **kwargs)
    moved = (theirs - base).norm()
    assert moved > 1e-2
    assert (
        ours - theirs
    ).norm() < 2e-4 * moved  # 44 fp32 roundings a step, scales of 16 bits


@pytest.mark.parametrize(
    ("rule", "dense", "beta", "window"),
    [
        (Momentum, heavy_ball(0.9), 0.9, 44),
        (lambda: Momentum(beta=0.8, window=8), heavy_ball(0.8), 0.8, 8),
        (Adam, adam(), 0.9, 44),
        (lambda: Adam(beta1=0.8, window=8), adam(betas=(0.8, 0.999)), 0.8, 8),
        (lambda: Momentum(beta=0.8, window=8, fold=5), heavy_ball(0.8), 0.8, 8),
    ],
)
def test_beyond_it_the_cut_is_beta_to_the_w(rule, dense, beta, window):
    ours, theirs, base = follow(rule(), dense, 100)
    share = float((ours - theirs).norm() / (theirs - base).norm())
    assert 5e-4 < share < 2 * beta**window, share


@pytest.mark.parametrize(
    ("rule", "cut", "family"),
    [
        (SGD, 0.0, "near_normal"),
        (SignSGD, 0.0, "rademacher"),
        (Momentum, 0.9**44, "near_normal"),
        (lambda: Momentum(beta=0.8, window=5), 0.8**5, "rademacher"),
        (lambda: Momentum(beta=0.5, window=40, dampening=0.5), 0.0, "near_normal"),
        (lambda: Momentum(fold=8), 0.9**44, "rademacher"),
        (lambda: Momentum(beta=0.6, window=40, fold=30), 0.0, "near_normal"),
        (Adam, 0.9**44, "rademacher"),
        (lambda: Adam(beta1=0.8, window=5), 0.8**5, "rademacher"),
        (lambda: Adam(beta1=0.5, window=40, fold=6), 0.0, "rademacher"),
    ],
)
def test_a_window_is_its_dense_form_to_beta_to_the_w(rule, cut, family):
    """120 equal gradients for both: what is left out weighs beta^W, and no less."""
    ours, theirs, base = mlp(0), mlp(0), mlp(0)
    a, b = rule(), Dense(rule())
    g = torch.Generator().manual_seed(5)
    for step in range(120):
        c = float(torch.randn(1, generator=g)) + 0.3
        both = ((a, ours), (b, theirs))
        for r, model in both:
            u = r.update(ZOGradient(((Direction(step, family), c),)), step, [1e-3], [0])
            for slot in Space.of(model):
                storage.update(slot, [(u, step)], seed=0, stochastic=True)
    ours, theirs, base = (
        torch.cat([p.detach().double().flatten() for p in m.parameters()])
        for m in (ours, theirs, base)
    )
    share = float((ours - theirs).norm() / (theirs - base).norm())
    assert share < 2 * cut + 2e-4, share
    assert cut == 0 or share > cut / 10, "the cut itself is seen"


def test_folding_pays_every_key_what_it_is_due():
    """beta 1/2, window 3, fold 2: by hand, with a refused step between."""
    rule, moved = Momentum(beta=0.5, window=3, fold=2), {}
    for step in (0, 1, 3, 4):
        u = rule.update(ZOGradient(((Direction(step), 1.0),)), step, [1.0], [0.0])
        moved[step] = {d.key: c for d, c in u.terms}
    assert moved[0] == {0: 1.0} and moved[3] == {3: 1.0}
    assert moved[1] == {0: 0.5, 1: 1.0}
    # Key 0 has had 1 and 1/2 and is due 1/4 more, key 1 after its 1: 1/2 + 1/4.
    assert moved[4] == {0: 0.25, 1: 0.75, 3: 0.5, 4: 1.0}


def test_folding_is_cheaper():
    assert [Momentum(fold=k).terms() for k in (1, 8, 44)] == [44, 7.25, 130 / 44]
    counted = []
    rule = Momentum(beta=0.8, window=9, fold=4)
    for step in range(80):
        u = rule.update(ZOGradient(((Direction(step), 1.0),)), step, [1.0], [0.0])
        counted.append(len(u.terms))
    assert sum(counted[-40:]) / 40 == rule.terms() == 3.75


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("family", ["rademacher", "near_normal"])
@pytest.mark.parametrize(
    ("rule", "dense"),
    [
        (lambda: Dense(Adam()), adam()),
        (lambda: Dense(Momentum(beta=0.7)), heavy_ball(0.7)),
        (lambda: Dense(SGD()), lambda p, lr: torch.optim.SGD(p, lr)),
    ],
)
def test_the_dense_form_takes_any_gradient_as_torch_does(rule, dense, family, queries):
    ours, theirs, base = follow(rule(), dense, 25, num_queries=queries, family=family)
    assert (ours - theirs).norm() < 1e-5 * (theirs - base).norm()


def test_the_dense_sign_is_the_sign_of_the_sum():
    model = mlp()
    before = copy.deepcopy(model)
    estimator = SPSA(num_queries=3, family="near_normal")
    opt = ZOOptimizer(model, estimator=estimator, rule=Dense(SignSGD()), lr=2.0**-6)
    opt.step(closure(model))
    dense_grads(opt, before)
    for p, q in zip(model.parameters(), before.parameters(), strict=True):
        assert torch.equal(p, q - 2.0**-6 * q.grad.sign())


def test_what_a_dense_form_costs():
    found = {r: Dense(r()).bytes_a_weight for r in (SGD, SignSGD, Momentum, Adam)}
    assert found == {SGD: 0, SignSGD: 0, Momentum: 4, Adam: 8}
    for make, extra in ((SGD, 0), (Momentum, 4), (Adam, 8)):
        model, opt, step = start(Dense(make()))
        step()
        kept = [x for m in opt.rule._slots.values() for x in m.values()]
        kept = [x.nbytes for x in kept if isinstance(x, torch.Tensor)]
        assert sum(kept) == extra * opt.space.numel
    with pytest.raises(ValueError, match="rule is Dense, expected one of SGD"):
        Dense(Dense(SGD()))


def test_a_dense_memory_under_a_mask_and_beside_a_hessian(tmp_path):
    model = mlp()
    chosen = masks.smallest(Space.of(model), 0.25)
    kwargs = {"estimator": SPSA(eps=1e-2), "rule": Dense(Adam()), "lr": 1e-2}
    opt = ZOOptimizer(model, masks=chosen, journal=tmp_path / "log", **kwargs)
    for _ in range(3):
        before = [p.detach().clone() for p in model.parameters()]
        still = [
            m.chosen(p, 0, None) for p, m in zip(before, chosen.values(), strict=True)
        ]
        opt.step(closure(model))
        for p, q, moves in zip(model.parameters(), before, still, strict=True):
            assert torch.equal(p != q, moves)
    again = mlp()
    zolab.replay(again, tmp_path / "log")
    assert same_bits(again, model)
    bent = mlp()
    kwargs |= {"estimator": zolab.HiZOO(), "rule": Dense(Adam())}
    with pytest.raises(ValueError, match="HiZOO keeps a Hessian"):
        ZOOptimizer(bent, **kwargs)


def test_a_window_is_the_sum_by_hand():
    """Powers, order, refused steps between: m_t written out."""
    rule, g = Momentum(beta=0.5, dampening=0.25, window=3), {}
    for step in (0, 1, 4, 6):
        g[step] = ZOGradient(((Direction(step), 8.0 + step),))
        last = rule.update(g[step], step, [1.0], [0.0])
    assert [d.key for d, _ in last.terms] == [1, 4, 6]
    assert [c for _, c in last.terms] == [0.75 * c for c in (9 / 4, 12 / 2, 14)]


def test_decay_stays_out_of_the_momentum_and_groups_keep_their_own():
    """w <- (1 - lr wd) w - lr m with each group's lr and wd; m is one for all."""
    model = mlp()
    groups = [
        {"params": [model[0].weight], "lr": 1e-2, "weight_decay": 0.5},
        {"params": [model[1].weight, model[1].bias], "lr": 1e-3, "weight_decay": 0.0},
        {"params": [*model[2].parameters(), *model[3].parameters()], "lr": 0.0},
    ]
    want = {n: p.detach().double() for n, p in model.named_parameters()}
    buffer = {n: torch.zeros_like(p) for n, p in want.items()}
    opt = ZOOptimizer(
        model, estimator=SPSA(eps=1e-2), rule=Momentum(beta=0.7), param_groups=groups
    )
    before = bits(model[3])
    for _ in range(10):
        opt.step(closure(model))
        for slot in opt.space:
            n, group = slot.name, groups[slot.group]
            d, c = opt.last.gradient.terms[0]
            buffer[n] = 0.7 * buffer[n] + c * slot.direction(d).double()
            decay = group["lr"] * group.get("weight_decay", 0.0)
            want[n] = (1 - decay) * want[n] - group["lr"] * buffer[n]
    for n, p in model.named_parameters():
        torch.testing.assert_close(p.double(), want[n], rtol=1e-5, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(bits(model[3]), before, strict=True))


def test_the_sign_of_a_coordinate_is_the_sign_of_the_slope_times_z():
    """sign(c z) = sign(c) z for random signs, and only there."""
    space = Space.of(mlp())
    for c in (-3.7, -1e-30, 0.0, 2.5):
        for family, same in (("rademacher", True), ("near_normal", c == 0)):
            g = ZOGradient(((Direction(17, family), c),))
            terms = SignSGD().update(g, 0, [1.0], [0.0]).terms
            ours = ZOGradient(terms).to_dense(space)
            coordinates = {n: t.sign() for n, t in g.to_dense(space).items()}
            assert all(torch.equal(ours[n], t) for n, t in coordinates.items()) == same


def test_a_sign_step_is_lr_in_every_weight():
    model = mlp()
    before = copy.deepcopy(model)
    opt = ZOOptimizer(model, estimator=SPSA(), rule=SignSGD(), lr=2.0**-6)
    opt.step(closure(model))
    dense_grads(opt, before)
    for p, q in zip(model.parameters(), before.parameters(), strict=True):
        assert torch.equal(p, q - 2.0**-6 * q.grad.sign())
    still = bits(model)
    opt.step(lambda: float(model(torch.arange(3)).sum()) * 0.0)  # a tie
    assert all(torch.equal(a, b) for a, b in zip(bits(model), still, strict=True))


@pytest.mark.parametrize("rule", [SignSGD, lambda: Adam(adam_eps=1e-30), SGD])
def test_whose_steps_know_the_scale_of_the_loss(rule):
    """1024 times the loss is the same run, bit for bit, under sign and Adam alone."""
    runs = []
    for scale in (1.0, 1024.0):
        model = mlp()
        loss = closure(model)
        opt = ZOOptimizer(model, estimator=SPSA(), rule=rule(), lr=1e-3)
        for _ in range(20):
            opt.step(lambda scale=scale, loss=loss: loss() * scale)
        runs.append(model)
    assert same_bits(*runs) == (rule is not SGD)


@pytest.mark.parametrize("name", RULES)
def test_it_learns(name):
    model = mlp()
    loss = closure(model)
    first = float(loss().detach())
    rule = RULES[name]()
    inner = getattr(rule, "rule", rule)
    lr = 2e-3 if isinstance(inner, Momentum) and not inner.dampening else 1e-2
    estimator = getattr(rule, "estimator", SPSA)(eps=1e-3)
    opt = ZOOptimizer(model, estimator=estimator, rule=rule, lr=lr)
    for _ in range(300):
        opt.step(loss)
    assert float(loss().detach()) < 0.7 * first


# ---- ZO-AdaMU


def adamu_by_hand(loss, w, steps, mixture, *, eps, lr, seed):
    """The paper's algorithm 1 with m as a tensor, fp64; slopes and weights."""
    m, slopes, d = torch.zeros_like(w), [], len(w)
    for t in range(steps):
        alpha, beta1, beta2 = mixture.at(t)
        key = zolab.make_key(seed, t, 0)
        u, v = (
            zolab.direction(k, "weight", d, family="near_normal").double()
            for k in (key, zolab.make_key(key, t, 1))
        )
        first, second = alpha**0.5 * u, m + (1 - alpha) ** 0.5 * v
        m = beta1 * first + (1 - beta1) * second
        g = (loss(w + eps * m) - loss(w - eps * m)) / (2 * eps)
        square = beta2 * first**2 + (1 - beta2) * second**2
        w = w - lr * g * m / (square + 1e-8).sqrt()
        m = m * (torch.sign(g) if mixture.signed else 1)
        slopes.append(float(g))
    return slopes, w


class Vector(torch.nn.Module):
    def __init__(self, d):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(0.5, 1.5, d))
        self.curve = torch.linspace(1.0, 3.0, d)

    def loss(self, w):
        return (self.curve * w * w).sum() / 2

    def forward(self):
        return self.loss(self.weight.double() * 1.0)


@pytest.mark.parametrize("signed", [False, True])
def test_adamu_is_algorithm_1(signed):
    """Keys and weights against tensors: slopes and weights of 30 steps, all phases."""
    model = Vector(50)
    rule = AdaMU(warm=5, settle=15, beta1=0.6, signed=signed)
    estimator = rule.estimator(eps=2.0**-5)
    opt = ZOOptimizer(model, estimator=estimator, rule=rule, lr=2.0**-9, seed=4)
    base = model.weight.detach().double()
    slopes, want = adamu_by_hand(
        model.loss, base, 30, rule.mixture, eps=2.0**-5, lr=2.0**-9, seed=4
    )
    found = []
    for _ in range(30):
        opt.step(model)
        found.append(opt.last.gradient.terms[0][1])
    torch.testing.assert_close(found, slopes, rtol=1e-3, atol=1e-3)
    far = (want - base).norm()
    assert far > 0.1 and (model.weight.detach().double() - want).norm() < 1e-3 * far


def test_adamu_begins_as_mezo_with_the_sign_of_z():
    """Measured along normal z, moved along its sign: equal to the bit at warm steps."""
    model, by_hand = mlp(), mlp()
    rule = AdaMU(warm=3, settle=3)
    opt = ZOOptimizer(model, estimator=rule.estimator(), rule=rule, lr=1e-3)
    for _ in range(3):
        opt.step(closure(model))
        ((d, c),) = opt.last.gradient.terms
        for slot in Space.of(by_hand):
            z = slot.direction(d)
            slot.base.sub_(1e-3 * (c * (z / (z * z + 1e-8).sqrt())))
    for p, q in zip(model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


def test_adamu_s_three_numbers_and_what_it_keeps():
    rule = AdaMU(warm=10, settle=20)
    assert rule.mixture.at(9) == (1.0, 1.0, 1.0)
    assert rule.mixture.at(20) == (0.5, 0.9, 0.01)
    assert rule.mixture.at(15) == pytest.approx((0.75, 0.95, 0.505))
    model = mlp()
    opt = ZOOptimizer(model, estimator=rule.estimator(), rule=rule)
    for _ in range(60):
        opt.step(closure(model))
    assert len(rule._history.past) == 2
    assert (
        len(rule._history.past[-1][1]) == 11
    )  # weights 0.64 and 0.07 times 0.1^j, above 2^-20


def test_adamu_without_the_sign_remembers_no_gradient():
    """The last m against the gradient: as often uphill as down, unless it is signed."""
    gradient = torch.linspace(1, 2, 50)
    for signed, low, high in ((False, -0.1, 0.1), (True, 0.5, 1.0)):
        rule, downhill = AdaMU(warm=0, settle=0, signed=signed), []
        for step in range(400):
            d = Direction(zolab.make_key(0, step), "near_normal")
            drawn = {}
            terms = rule._history.mixed(step, d).m
            for k, c in terms:
                drawn[k] = c * zolab.direction(k.key, "w", 50, family=k.family)
            slope = float(sum(drawn.values()) @ gradient)
            rule.update(ZOGradient(((d, slope),)), step, [0.0], [0.0])
            last = rule._history.past[-1][1]
            kept = sum(
                c * zolab.direction(k.key, "w", 50, family=k.family) for k, c in last
            )
            downhill.append(float(torch.sign(kept @ gradient)))
        mean = sum(downhill) / len(downhill)
        assert low <= mean <= high


def test_adamu_wants_its_own_probes():
    rule = AdaMU(warm=1, settle=2)
    other = AdaMU(warm=1, settle=3).estimator()
    for estimator in (SPSA(family="near_normal"), other):
        with pytest.raises(ValueError, match=r"expected rule.estimator\(eps"):
            ZOOptimizer(mlp(), estimator=estimator, rule=rule)


# ---- the log determines the weights


@pytest.mark.parametrize("name", RULES)
def test_replay_and_resume_at_every_cut(tmp_path, name):
    """Live = replayed = stopped after k steps and resumed, whether k was refused."""
    path = tmp_path / "log"
    live, want = logged(RULES[name](), path)
    for k in range(13):
        model = mlp(0, torch.bfloat16)
        assert zolab.replay(model, path, upto=k) == k and equal(model, want[k]), k
        parts = tmp_path / f"parts{k}"
        logged(RULES[name](), parts, k)
        again, opt, step = start(RULES[name](), parts)
        assert opt.steps == k and equal(again, want[k]), k
        while opt.steps < 12:
            step()
        opt.journal.close()
        assert same_bits(again, live) and parts.read_bytes() == path.read_bytes(), k


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("queries", [1, 3])
def test_momentum_s_log_on_other_kernels(tmp_path, monkeypatch, dtype, queries):
    live, _ = logged(
        Momentum(), tmp_path / "log", dtype=dtype, ask={"num_queries": queries}
    )
    monkeypatch.setenv("ZOLAB_KERNELS", "plain")
    model = mlp(0, dtype)
    zolab.replay(model, tmp_path / "log")
    assert same_bits(model, live)


@pytest.mark.parametrize("name", RULES)
def test_a_snapshot_starts_with_a_full_window(tmp_path, name):
    path = tmp_path / "log"
    model, opt, step = start(RULES[name](), path)
    for i in range(10):
        if i == 7:
            opt.snapshot()
        step()
    opt.journal.close()
    stranger = mlp(99, torch.bfloat16)
    zolab.replay(stranger, path)
    assert same_bits(stranger, model)


@pytest.mark.parametrize("name", RULES)
def test_a_step_that_could_not_be_logged_is_forgotten(tmp_path, monkeypatch, name):
    """A full disk, at every step, twice: the next try is as if it were the first."""
    _, want = logged(RULES[name](), tmp_path / "want")
    model, opt, step = start(RULES[name](), tmp_path / "log")

    def full(*_):
        raise OSError(28, "No space left on device")

    for k in range(1, 13):
        if opt.steps not in REFUSED:
            for _ in range(2):
                with monkeypatch.context() as m, pytest.raises(JournalError):
                    m.setattr(os, "write", full)
                    step()
        step()
        assert equal(model, want[k]), k


class Deadly(Resident):
    """Dies where it hurts: a step is in the log and the weights have half moved."""

    def apply(self, updates):
        if updates[-1][1] == 10:
            self.space.slots[0].base.zero_()
            os.kill(os.getpid(), signal.SIGKILL)
        super().apply(updates)


def live_until_killed(name, path):
    _, _, step = start(RULES[name](), path, engine=Deadly())
    while True:
        step()


@pytest.mark.parametrize("name", ["adam"])
def test_killed_in_an_update(tmp_path, name):
    here = Path(__file__).parent
    code = "import sys, test_rules as t; t.live_until_killed(*sys.argv[1:])"
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(here.parent), str(here)])}
    path = tmp_path / "log"
    done = subprocess.run([sys.executable, "-c", code, name, str(path)], env=env)
    assert done.returncode == -signal.SIGKILL
    live, _ = logged(RULES[name](), tmp_path / "want", 15)
    model, opt, step = start(RULES[name](), path)
    assert opt.steps == 11
    while opt.steps < 15:
        step()
    assert same_bits(model, live)


def test_a_scheduler_s_lr_scales_the_whole_window(tmp_path):
    live, opt, step = start(Adam(), tmp_path / "log", lr=1e-2)
    schedule = LinearLR(opt, 1.0, 0.0, total_iters=12)
    for _ in range(12):
        step()
        schedule.step()
    lrs = [r.lr[0] for r in opt.journal.records if r.kind == 0]
    assert lrs[0] == round32(1e-2) and len(set(lrs)) == 9
    opt.journal.close()
    model = mlp(0, torch.bfloat16)
    zolab.replay(model, tmp_path / "log")
    assert same_bits(model, live)


@pytest.mark.parametrize("name", RULES)
def test_lora(tmp_path, name):
    """Adapters alone move, under each rule, and come back from the log."""
    family, again = families.make("lora"), families.make("lora").model
    rule = RULES[name]()
    opt = ZOOptimizer(
        family.model,
        estimator=asks(rule),
        rule=rule,
        journal=tmp_path / "log",
        lr=1e-3,
    )
    for _ in range(6):
        opt.step(family.loss)
    assert all("lora" in s.name for s in opt.space)
    assert not same_bits(again, family.model)
    zolab.replay(again, tmp_path / "log")
    assert same_bits(again, family.model)


@pytest.mark.parametrize("name", RULES)
def test_groups_keep_their_own_lr_and_decay(tmp_path, name):
    """lr 0 stays; twice the lr moves twice as far; decay alone shrinks; all logged."""

    def run(lr, decay, log):
        model = mlp()
        rest = [p for m in model[1:] for p in m.parameters()]
        first = {"params": [model[0].weight], "lr": lr, "weight_decay": decay}
        groups = [first, {"params": rest, "lr": 0.0, "weight_decay": 0.5}]
        rule = RULES[name]()
        kwargs = {"rule": rule, "estimator": asks(rule), "journal": tmp_path / log}
        opt = ZOOptimizer(model, param_groups=groups, **kwargs)
        for k in range(12):
            ups = iter([0.03 * (-1) ** k, 0.0])  # two losses that no weight changes
            opt.step(
                lambda ups=ups: float(model(torch.arange(3)).sum()) * 0 + next(ups)
            )
        again = mlp()
        zolab.replay(again, tmp_path / log)
        assert same_bits(again, model)
        assert all(same_bits(a, b) for a, b in zip(model[1:], start[1:], strict=True))
        return model[0].weight.detach() - start[0].weight.detach()

    start = mlp()
    one, two = run(2.0**-8, 0.0, "one"), run(2.0**-7, 0.0, "two")
    torch.testing.assert_close(two, 2 * one, rtol=1e-3, atol=1e-5)
    shrunk = run(2.0**-8, 4.0, "shrunk")
    assert float(shrunk.norm()) > 0 and not torch.equal(shrunk, one)


# ---- what is refused


@pytest.mark.parametrize("rule", [SignSGD, Adam])
def test_several_queries_are_refused_and_nothing_moves(tmp_path, rule):
    model, opt, step = start(rule(), tmp_path / "log", ask={"num_queries": 2})
    before, log = bits(model), (tmp_path / "log").read_bytes()
    with pytest.raises(ValueError, match=f"{rule.__name__} got 2 directions"):
        step()
    assert equal(model, before) and (tmp_path / "log").read_bytes() == log


def test_adam_refuses_z_that_are_not_signs():
    model = mlp()
    estimator = SPSA(family="near_normal")
    opt = ZOOptimizer(model, estimator=estimator, rule=Adam())
    with pytest.raises(ValueError, match="of near_normal, expected 1 of rademacher"):
        opt.step(closure(model))


@pytest.mark.parametrize("name", REMEMBER)
def test_a_rule_belongs_to_one_run(name):
    rule = RULES[name]()
    first, second = (start(rule)[2] for _ in range(2))
    first(), first()
    with pytest.raises(ValueError, match="has seen step 1 and is shown step 0"):
        second()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Momentum(beta=1.0), "beta is 1.0, expected 0 <= beta < 1"),
        (lambda: Momentum(beta=-0.1), "beta is -0.1"),
        (lambda: Momentum(beta=float("nan")), "beta is nan"),
        (lambda: Momentum(dampening=1.0), "dampening is 1.0"),
        (lambda: Momentum(window=0), "window is 0, expected at least 1"),
        (lambda: Adam(beta1=1.0), "beta1 is 1.0"),
        (lambda: Adam(beta2=2.0), "beta2 is 2.0"),
        (lambda: Adam(adam_eps=0.0), "adam_eps is 0.0, expected a positive"),
        (lambda: Adam(window=-1), "window is -1"),
        (lambda: Momentum(fold=0), "fold is 0, expected at least 1"),
        (lambda: AdaMU(warm=3, settle=2), "warm is 3 and settle 2"),
        (lambda: AdaMU(warm=0, settle=0, beta1=0.0), "beta1 is 0.0, expected 0 <"),
        (lambda: AdaMU(warm=0, settle=0, sigma=0.0), "sigma is 0.0, expected a"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_journal_knows_its_rule(tmp_path):
    logged(Momentum(), tmp_path / "log")
    others = Momentum(beta=0.8), Momentum(window=43), Momentum(fold=2), Adam(), SGD()
    for rule in (*others, Dense(Momentum())):
        with pytest.raises(JournalError, match="its rule is"):
            start(rule, tmp_path / "log")


def test_what_a_window_costs():
    sizes = {0.0: 1, 0.5: 7, 0.9: 44, 0.95: 90, 0.99: 459, 0.999: 4603}
    assert {b: window_of(b) for b in sizes} == sizes
    assert Momentum().terms() == Adam().terms() == 44
    assert Momentum(window=5).terms(num_queries=4) == 20


@pytest.mark.parametrize("name", REMEMBER)
def test_state_dict_continues(tmp_path, name):
    """Also through a file that only plain values may be read from."""
    a, opt, step = start(RULES[name]())
    for _ in range(6):
        step()
    b, other, again = start(RULES[name]())
    b.load_state_dict(a.state_dict())
    torch.save(opt.state_dict(), tmp_path / "state")
    other.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    step(), again()
    assert same_bits(a, b)
