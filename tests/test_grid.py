"""QZO, QuZO and ZOQO: what moves, by which law; logs; refusals."""

import copy
import functools
import math

import pytest
import torch
from helpers import closure, mlp
from test_estimators import Bowl, is_unbiased
from torch import nn

import zolab
from zolab.errors import JournalError, SpaceError
from zolab.families import Keys, Rounded
from zolab.gradient import Answer, Direction, Update
from zolab.noise import make_key
from zolab.quantized import TwoRoundings
from zolab.storage.packed import unpack_bits

pytestmark = pytest.mark.usefixtures("one_thread")


def grid(codec="int4", group=8, **kwargs):
    return zolab.pack(mlp(**kwargs), codec, group=group)


def codes(model):
    return {n: p.codes.clone() for n, p in zolab.packed_weights(model).items()}


def scales(model):
    found = zolab.packed_weights(model).items()
    return {n: p.scales().clone() for n, p in found}


def others(model):
    """What is neither a code nor a scale."""
    found = model.named_parameters()
    return {
        n: p.detach().clone()
        for n, p in found
        if not (hasattr(p, "packed") or n.endswith("_scale"))
    }


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def alike(a, b):
    return all(equal(f(a), f(b)) for f in (codes, scales, others))


METHODS = {
    "QZO": lambda m, **k: zolab.QZO(m, lr=1e-3, eps=1e-2, **k),
    "QZO, relative": lambda m, **k: zolab.QZO(
        m, lr=1e-2, eps=1e-2, relative=True, unquantized=True, **k
    ),
    "QZO, fp16": lambda m, **k: zolab.QZO(
        m, lr=1e-3, eps=1e-2, dtype=torch.float16, num_queries=2, **k
    ),
    "QuZO": lambda m, **k: zolab.QuZO(m, lr=1e-2, eps=1e-2, **k),
    "QuZO, shared": lambda m, **k: zolab.QuZO(
        m, lr=1e-2, eps=1e-2, shared=True, num_queries=3, bits=2, **k
    ),
    "ZOQO": lambda m, **k: zolab.ZOQO(m, lr=1e-2, eps=1e-2, **k),
}
each = pytest.mark.parametrize("name", METHODS)


def run(name, model, steps, **kwargs):
    opt = METHODS[name](model, **kwargs)
    for _ in range(steps):
        opt.step(closure(model))
    return opt


@each
def test_only_what_the_method_moves_moves(name):
    """QZO leaves every integer alone, QuZO and ZOQO every scale."""
    model = grid()
    before = [f(model) for f in (codes, scales, others)]
    run(name, model, 5)
    moved = [
        not equal(f(model), x)
        for f, x in zip((codes, scales, others), before, strict=True)
    ]
    assert moved == [
        not name.startswith("QZO"),
        name.startswith("QZO"),
        "ative" in name,
    ]


@each
@pytest.mark.parametrize("codec", ("int8", "uint2"))
def test_the_log_determines_the_weights(name, codec, tmp_path):
    """Live = replayed = resumed half way, to the bit."""
    base, path = grid(codec), tmp_path / "log"
    live, again, half = (copy.deepcopy(base) for _ in range(3))
    run(name, live, 6, journal=path).journal.close()
    assert not alike(live, base)
    if "fp16" in name:
        for p in zolab.packed_weights(again).values():
            p.scale.data = p.scale.data.half()
    assert zolab.replay(again, path) == 6
    assert alike(live, again)
    run(name, half, 2, journal=tmp_path / "half").journal.close()
    on = copy.deepcopy(base)
    run(name, on, 4, journal=tmp_path / "half").journal.close()
    assert alike(live, on)


@each
def test_a_log_starts_from_its_own_codes(name, tmp_path):
    base, path = grid(), tmp_path / "log"
    run(name, copy.deepcopy(base), 2, journal=path).journal.close()
    next(iter(zolab.packed_weights(base).values())).codes[0] ^= 1
    if "fp16" in name:
        for p in zolab.packed_weights(base).values():
            p.scale.data = p.scale.data.half()
    with pytest.raises(JournalError, match="other base weights"):
        zolab.replay(base, path)


@each
def test_lr_0_moves_nothing(name):
    model = grid()
    opt = METHODS[name](model)
    before = copy.deepcopy(model)
    for g in opt.param_groups:
        g["lr"] = 0.0
    opt.step(closure(model))
    assert alike(model, before)


@each
def test_groups_have_their_own_lr(name):
    model = grid()
    ends = "_scale" if name.startswith("QZO") else "weight"
    named = [(n, p) for n, p in model.named_parameters() if n.endswith(ends)]
    first, third = ([p for n, p in named if n[0] == i] for i in "03")
    groups = [{"params": first, "lr": 0.0}, {"params": third}]
    opt = METHODS[name](model, param_groups=groups)
    before = codes(model), scales(model)
    for _ in range(3):
        opt.step(closure(model))
    after = codes(model), scales(model)
    pairs = list(zip(before, after, strict=True))
    moved = {n for n in before[0] if not all(torch.equal(b[n], a[n]) for b, a in pairs)}
    assert moved == {"3.weight"}


@each
def test_refusals(name):
    with pytest.raises(SpaceError, match="no weight of the model is packed"):
        METHODS[name](mlp())
    if not name.startswith("QZO"):
        model = grid()
        with pytest.raises(SpaceError, match="mask over the packed weight"):
            METHODS[name](model, masks={"3.weight": zolab.masks.Random(0.5, 1)})


def test_whole_levels_need_even_ones():
    for codec in ("nf4", "e4m3"):
        with pytest.raises(SpaceError, match="not evenly spaced"):
            zolab.ZOQO(grid(codec))
        run("QuZO", grid(codec), 1)
    with pytest.raises(ValueError, match="less than a level"):
        zolab.ZOQO(grid(), weight_decay=0.1)


def test_a_factor_is_not_taken_for_a_scale():
    model = grid()
    zolab.QZO(model, relative=True)
    with pytest.raises(SpaceError, match="are factors"):
        zolab.QZO(model)
    model.register_parameter("logit_scale", nn.Parameter(torch.tensor(1.0)))
    with pytest.raises(SpaceError, match="logit_scale is named like a scale"):
        zolab.QZO(model, relative=True, unquantized=True)


# QZO by hand.


def layer(codec="int4", group=4, **kwargs):
    torch.manual_seed(0)
    return zolab.pack(nn.Linear(8, 4, bias=False), codec, group=group, **kwargs)


X, Y = torch.linspace(-1, 1, 24).view(3, 8), torch.linspace(0, 1, 12).view(3, 4)


def square(model):
    return lambda: (model(X) - Y).square().mean()


def test_a_step_of_qzo_is_ten_lines():
    """The scales' slope, its clip and the floor, from the codes by hand."""
    for clip, floor in ((100.0, 0.0), (0.05, 0.0), (None, 0.05)):
        model, lr, eps = layer(), 2.0**-10, 2.0**-7
        p = model.weight.packed
        s = p.scale.detach().clone()
        level = unpack_bits(p.codes, 4, 32).float().view(4, 2, 4) - 7.0
        z = zolab.direction(make_key(0, 0), "weight_scale", (4, 2))

        def loss(s, level=level):
            w = (s[..., None] * level).view(4, 8)
            return float((X @ w.T - Y).square().mean())

        g = (loss(s + eps * z) - loss(s - eps * z)) / (2 * eps)
        if clip is not None:
            assert (abs(g) > clip) == (clip < 1), g
            g = min(max(g, -clip), clip)
        mine = (s - lr * g * z).clamp(min=floor)
        zolab.QZO(model, lr=lr, eps=eps, clip=clip, floor=floor).step(square(model))
        torch.testing.assert_close(p.scale.detach(), mine, rtol=1e-4, atol=1e-7)
        assert (int((mine == floor).sum()) > 0) == (floor > 0)


def test_every_step_ends_at_the_floor():
    """Down past it and up again by one step each: pending together, they say so too."""
    model = layer()
    opt = zolab.QZO(model, lr=1.0, eps=1e-3)
    d = Direction(make_key(1, 0))
    down = Update(((d, 1.0),), (1.0,), (1.0,), low=("*_scale", 0.0))
    up = Update(((d, -0.25),), (1.0,), (1.0,), low=("*_scale", 0.0))
    z = opt.space["weight_scale"].direction(d)
    s = model.weight.packed.scale.detach().clone()
    opt.engine.apply([(down, 0), (up, 1)])
    want = ((s - z).clamp(min=0) + 0.25 * z).clamp(min=0)
    assert torch.equal(model.weight.packed.scale.detach(), want)
    assert bool((want != (s - 0.75 * z).clamp(min=0)).any())


def test_a_dense_rule_keeps_the_floor_too():
    model = layer()
    slot = zolab.Space.of(model.requires_grad_(False), frozen=True)["weight_scale"]
    u = Update((), (1.0,), (1.0,), dense=lambda s: torch.ones(s.shape), low=("*", 0.01))
    zolab.storage.update(slot, [(u, 0)], seed=0, stochastic=True)
    assert bool((slot.base == 0.01).all())


def test_clip_bounds_each_slope_and_not_their_mean():
    """Slopes 8 and -2 with clip 1: the coefficients are 1/2 and -1/2, mean 0."""
    estimator = zolab.SPSA(eps=0.5, num_queries=2, clip=1.0)
    proposal = estimator.propose(Keys(0, 0))
    next(proposal)
    with pytest.raises(StopIteration) as stop:
        proposal.send([Answer(x) for x in (4.0, -4.0, -1.0, 1.0)])
    assert [c for _, c in stop.value.value.terms] == [0.5, -0.5]
    assert estimator.settings["clip"] == 1.0 and "clip" not in zolab.SPSA().settings
    with pytest.raises(ValueError, match="clip is 0"):
        zolab.MeZO(mlp(), clip=0)


# QuZO: two roundings of one direction.


def variance(bits):
    """Var of a rounding's error, over the 65 values of near_normal, exactly."""
    step, total = 2.0 ** (4 - bits), 0.0
    for k in range(65):
        f = (k - 32) / 4 / step
        f -= math.floor(f)
        total += math.comb(64, k) / 2**64 * f * (1 - f) * step**2
    return total


COUNTS = {2: 700, 3: 700, 8: 20}


@functools.cache
def sampled(bits, shared):
    """Dense estimates of the bowl's gradient, a row each."""
    model = Bowl()
    (slot,), w = zolab.Space.of(model), model.w.detach().clone()
    drawn = functools.cache(slot.direction)
    estimator, rows = TwoRoundings(eps=0.01, bits=bits, shared=shared), []
    for step in range(COUNTS[bits]):
        proposal, answers = estimator.propose(Keys(0, step)), []
        for ((d, s),) in (p.terms for p in next(proposal)):
            model.w.data = w + s * drawn(d)
            answers.append(Answer(model().item()))
        with pytest.raises(StopIteration) as stop:
            proposal.send(answers)
        ((d, c),) = stop.value.value.terms
        rows.append(c * drawn(d).double())
    return torch.stack(rows)


@pytest.mark.parametrize("bits", COUNTS)
def test_two_roundings_are_unbiased_and_one_is_not(bits):
    """E[g u1] is (1 + Var e) times the gradient: seen, and of that size."""
    two, one = sampled(bits, False), sampled(bits, True)
    truth, factor = Bowl().grad(), 1 + variance(bits)
    assert is_unbiased(one / factor, truth)
    if bits < 6:
        assert is_unbiased(two, truth)
        assert factor > 1.6 and not is_unbiased(one, truth)
    else:
        assert factor == 1 and torch.equal(one, two)


@pytest.mark.parametrize(("bits", "factor"), [(2, 3.18), (3, 1.66), (4, 1.156)])
def test_the_factor_by_its_elements(bits, factor):
    """E[u1 u2] = 1 and E[u1 u1] = 1 + Var e, over 2^18 elements, 4 standard errors."""
    assert 1 + variance(bits) == pytest.approx(factor, abs=0.01)
    slot = zolab.Space.of(nn.Linear(512, 512, bias=False)).slots[0]
    u1, u2 = (
        slot.direction(Rounded(bits, which).direction(Keys(0, 0), 0)).double()
        for which in (1, 2)
    )
    for product, want in ((u1 * u2, 1.0), (u1 * u1, 1 + variance(bits))):
        off = float(product.mean()) - want
        assert abs(off) < 4 * float(product.std()) / 512


@pytest.mark.parametrize("bits", (2, 3))
def test_what_two_roundings_cost(bits):
    """Both second moments are (1 + v)^2 d |grad|^2, and the shared one's mean longer.

    So a direction of the shared rounding is worth (1 + v)^2 directions of two: the
    squared mean over the second moment is what a best lr turns into progress. And one
    rounding never goes uphill on a quadratic, two do.
    """
    truth, v, d = Bowl().grad(), variance(bits), 100
    worth, up = [], []
    for shared in (False, True):
        s = sampled(bits, shared)
        along = s @ truth / truth.square().sum()
        length = s.square().sum(1).mean() / truth.square().sum() / d
        assert float(length) == pytest.approx((1 + v) ** 2, rel=0.3)
        worth.append(float(along.mean() ** 2 / length))
        up.append(float((along < 0).double().mean()))
    assert worth[1] == pytest.approx(1, rel=0.3)
    assert worth[0] == pytest.approx((1 + v) ** -2, rel=0.8)
    assert up[1] == 0 and up[0] > 0.1


def test_a_step_smaller_than_the_grid_arrives_on_average():
    """2,000 steps of a hundredth of a level each go ten levels, half a level each."""
    model = layer("int8", group=0)
    p = model.weight.packed
    slot = zolab.Space.of(model.requires_grad_(False), frozen=True)["weight"]
    before = unpack_bits(p.codes, 8, 32).float()
    s = p.scale.detach().expand(4, 8).reshape(-1)
    d, steps, share = Direction(make_key(3, 0)), 1000, 0.01
    lr = zolab.gradient.round16(share * float(s[0]))
    u = Update(((d, -1.0),), (lr,), (1.0,))
    zolab.storage.update(slot, [(u, t) for t in range(steps)], seed=1, stochastic=True)
    went = (unpack_bits(p.codes, 8, 32).float() - before) * s / (steps * lr)
    went = went * slot.direction(d).reshape(-1)
    free = (before - 127).abs() < 100  # the ends of the table stop the others
    spread = (1 / (share * steps * int(free.sum()))) ** 0.5
    assert float(went[free].mean()) == pytest.approx(1, abs=4 * spread)


# ZOQO by hand.


@pytest.mark.parametrize("eps", (1e-4, 0.2))
@pytest.mark.parametrize("lr", (1e-4, 0.3))
def test_zoqo_is_ten_lines(eps, lr):
    model = layer("int4", group=4)
    p = model.weight.packed
    s = p.scale.detach().repeat_interleave(4, 1)
    code = unpack_bits(p.codes, 4, 32).long().view(4, 8)
    z = zolab.direction(make_key(0, 0), "weight", (4, 8)).long()
    probe, step = ((x / s).floor().clamp(min=1).long() for x in (eps, lr))

    def loss(code):
        return float((X @ (s * (code - 7.0)).T - Y).square().mean())

    up, down = ((code + k * probe * z).clamp(0, 14) for k in (1, -1))
    sign = 1 if loss(up) > loss(down) else -1
    mine = (code - sign * step * z).clamp(0, 14)
    zolab.ZOQO(model, lr=lr, eps=eps).step(square(model))
    assert torch.equal(unpack_bits(p.codes, 4, 32).long().view(4, 8), mine)


def test_a_tie_moves_nothing():
    model = layer()
    opt = zolab.ZOQO(model)
    before = codes(model)
    opt.step(lambda: model(X).sum() * 0.0)
    assert equal(codes(model), before)
