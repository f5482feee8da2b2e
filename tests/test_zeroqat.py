"""Fake-quantised linears: the formula, its traps, and that any engine moves them."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import zolab
from zolab.errors import SpaceError
from zolab.quantized.convert import fake_quantize, fakes, finish, lighten, unsigned
from zolab.quantized.fake import FakeLinear
from zolab.quantized.zeroqat import groups
from zolab.storage.codecs import fit
from zolab.storage.packed import pack_tensor, values


def noise(*shape, seed=0, size=1.0):
    return size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def linear(out=6, into=40, *, bias=True):
    m = nn.Linear(into, out, bias=bias)
    m.weight.data = noise(out, into, size=0.1)
    if bias:
        m.bias.data = noise(out, seed=1)
    return m


def net(**how):
    model = nn.Sequential(linear(16, 40), nn.Tanh(), linear(3, 16, bias=False))
    return fake_quantize(model, **how)


X = noise(5, 40, seed=2)


def by_hand(w, bits, group, high, low):
    """The formula of the docstring, a group at a time."""
    out = torch.empty_like(w)
    for i in range(w.shape[0]):
        for j, a in enumerate(range(0, w.shape[1], group)):
            g = w[i, a : a + group]
            most = torch.sigmoid(high[i, j]) * g.max().clamp(min=0)
            least = torch.sigmoid(low[i, j]) * g.min().clamp(max=0)
            s = (most - least) / (2**bits - 1)
            z = -(least / s).round()
            code = ((g / s).round() + z).clamp(0, 2**bits - 1)
            out[i, a : a + group] = s * (code - z)
    return out


@pytest.mark.parametrize("bits", (2, 3, 4, 8))
@pytest.mark.parametrize("unit", (1.0, 8.0))
def test_it_is_the_formula(bits, unit):
    """Odd groups (40 = 16 + 16 + 8), moved t, delta and gamma."""
    f = FakeLinear(linear(), unsigned(bits, 16), unit=unit)
    for i, p in enumerate(f.learned):
        p.data += noise(*p.shape, seed=3 + i, size=0.3 / unit)
    t, delta = torch.exp(unit * f.log_t), unit * f.delta
    q = by_hand(f.weight * t, bits, 16, unit * f.gamma_high, unit * f.gamma_low)
    want = F.linear((X - delta) / t, q, f.bias + f.weight @ delta)
    torch.testing.assert_close(f(X), want, atol=1e-5, rtol=1e-5)


def test_activations_are_rounded_per_token():
    """At most 16 levels a token, half a step away, however large its neighbour is."""
    f = FakeLinear(nn.Linear(40, 40, bias=False), None, activation_bits=4)
    f.weight.data = torch.eye(40)
    x = X * torch.tensor([1.0, 10, 100, 1000, 0])[:, None]
    for a, b in zip(x, f(x), strict=True):
        step = float(a.clamp(min=0).max() - a.clamp(max=0).min()) / 15
        assert len(b.unique()) <= 16
        assert bool(((a - b).abs() <= 0.501 * step).all())


@pytest.mark.parametrize("bias", (True, False))
def test_nothing_changes_where_nothing_is_rounded(bias):
    """At the start to the bit; after t and delta moved within rounding."""
    plain = linear(bias=bias)
    f = FakeLinear(copy.deepcopy(plain), None)
    assert torch.equal(f(X), plain(X))
    f.log_t.data, f.delta.data = noise(40, seed=4, size=0.5), noise(40, seed=5)
    torch.testing.assert_close(f(X), plain(X), atol=1e-5, rtol=1e-5)
    rounded = FakeLinear(copy.deepcopy(plain), unsigned(2, 16))
    before = rounded(X)
    rounded.log_t.data, rounded.delta.data = f.log_t.data, f.delta.data
    assert not torch.allclose(rounded(X), before, atol=0.1)


def test_a_group_of_zeros():
    """Values 0, a finite gradient, and clipping to nothing is finite too."""
    plain = linear()
    plain.weight.data[2, :16] = 0
    f = FakeLinear(plain, unsigned(2, 16))
    f(X).square().sum().backward()
    assert torch.equal(f.rounded(f.weight)[2, :16], torch.zeros(16))
    for p in f.parameters():
        assert bool(torch.isfinite(p.grad).all())
    f.gamma_high.data[:], f.gamma_low.data[:] = -200, -200
    assert bool(torch.isfinite(f(X)).all())


def test_unclipped_it_is_what_pack_makes():
    """gamma = infinity is round to nearest, to the bit."""
    f = FakeLinear(linear(), unsigned(4, 16))
    f.gamma_high.data[:], f.gamma_low.data[:] = torch.inf, torch.inf
    codec = unsigned(4, 16)
    scale, zero = fit(f.weight, codec)
    packed = pack_tensor(f.weight, codec, scale=scale, zero=zero)
    assert torch.equal(f.rounded(f.weight), values(packed))


def slope(model, eps, seed=0):
    loss = lambda: (model(X) - 1).square().mean()  # noqa: E731
    opt = zolab.MeZO(model, lr=0.0, eps=eps, seed=seed)
    opt.step(loss)
    ((_, g),) = opt.last.gradient.terms
    return g


def weights_only(model):
    for name, p in model.named_parameters():
        p.requires_grad_(name.endswith("weight"))
    return model


def test_a_probe_below_the_grid_step_finds_no_slope():
    """Slope 0 at the start, where the loss is far from its least; eps makes it one.

    The same weights unrounded have a slope at any eps.
    """
    start = lambda: weights_only(net(bits=2, group=16, transform=False))  # noqa: E731
    steps = [f.scales(f.weight)[0].mean() for f in fakes(start()).values()]
    step = float(sum(steps).detach() / len(steps))
    # Max and min are weights too: a probe moves the grid itself by eps / 3. On codes
    # that are kept the model is a smooth function of it; so pin the grid's ends.
    tiny = pinned(start())
    assert slope(tiny, 1e-7 * step) == 0.0
    assert slope(pinned(start()), 0.5 * step) != 0.0
    assert abs(slope(weights_only(net(bits=None)), 1e-3 * step)) > 1e-3


def pinned(model):
    """The grid stays where it is, whatever the weights do."""
    for f in fakes(model).values():
        fixed = [s.detach().clone() for s in f.scales(f.weight)]
        f.scales = lambda w, fixed=fixed: fixed
    return model


@pytest.mark.parametrize("share", (0.05, 0.3, 2.0))
def test_how_much_of_a_probe_the_model_feels(share):
    """A share min(1, 2 eps / s) of the weights crosses; the cosine is its root."""
    n = 200_000
    w = (torch.arange(n) * 0.618034 % 1.0)[None] * 7 + 4  # even in a grid of step 1
    f = FakeLinear(nn.Linear(1, 1), unsigned(4, 0), transform=False)
    f.codec, eps = unsigned(4, 0), share / 2
    f.scales = lambda x: (torch.ones(1, 1), torch.zeros(1, 1))
    z = zolab.direction(7, "w", (1, n))
    felt = f.rounded(w + eps * z) - f.rounded(w - eps * z)
    crossed = float((felt != 0).double().mean())
    assert crossed == pytest.approx(min(1, share), rel=0.05)
    cosine = float((felt * z).mean() / felt.square().mean().sqrt())
    assert cosine == pytest.approx(min(1, share) ** 0.5, rel=0.05)


def test_forward_passes_need_no_straight_through(monkeypatch):
    """It learns with the true derivative, which only a group's max and min have."""
    from zolab.quantized import fake
    from zolab.storage import codecs

    for place in (fake, codecs):
        monkeypatch.setattr(place, "straight", lambda x: x.round())
    model = net(bits=2, group=16, transform=False)
    target = noise(5, 3, seed=9)
    loss = lambda: (model(X) - target).square().mean()  # noqa: E731
    loss().backward()
    for f in fakes(model).values():
        assert int((f.weight.grad != 0).sum()) <= 2 * f.gamma_high.numel()
    before = float(loss())
    opt = zolab.ZeroQAT(model, lr=3e-3, eps=2e-2, num_queries=4)
    for _ in range(50):
        opt.step(loss)
    assert float(loss()) < 0.75 * before


def test_back_propagation_moves_the_same_parameters():
    model = net(bits=2, group=16, activation_bits=8)
    opt = torch.optim.AdamW(groups(model, 3e-3, 1e-2))
    target = noise(5, 3, seed=9)
    first = last = None
    for _ in range(60):
        opt.zero_grad()
        last = (model(X) - target).square().mean()
        first = first or float(last)
        last.backward()
        opt.step()
    assert float(last) < 0.2 * first
    assert all(p.grad is not None for p in model.parameters())


def tiny():
    return zolab.load_model("tiny")[0]


IDS = torch.arange(24).view(2, 12) * 7 % 4096


def test_on_a_language_model_the_head_and_the_embeddings_stay():
    model = fake_quantize(tiny(), 4)
    assert len(fakes(model)) == 28
    assert type(model.lm_head) is nn.Linear
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("how", ({}, {"activation_bits": 8}, {"transform": False}))
def test_finish_answers_the_same_from_packed_weights(how):
    model = fake_quantize(tiny(), 2, group=48, unit=8.0, **how)
    for i, f in enumerate(fakes(model).values()):
        for p in f.learned:
            p.data += noise(*p.shape, seed=i, size=0.02)
    with torch.no_grad():
        before = model(IDS).logits
        finish(model)
        after = model(IDS).logits
    torch.testing.assert_close(after, before, atol=2e-4, rtol=1e-4)
    packed = zolab.packed_weights(model)
    assert len(packed) == 28 and all(p.codec.bits == 2 for p in packed.values())
    assert not any(p.requires_grad for p in model.parameters())
    assert len(fakes(model)) == (0 if "transform" in how else 28)


def test_the_light_variant_moves_what_is_learned_and_no_code():
    model = tiny()
    opt = zolab.ZeroQAT(model, bits=2, light=True, unit=4.0, lr=1e-2, eps=1e-2)
    names = {s.name.rpartition(".")[2] for s in opt.space}
    assert names == {"weight_scale", "log_t", "delta"}
    before = [p.codes.clone() for p in zolab.packed_weights(model).values()]
    others = [p.clone() for n, p in model.named_parameters() if "norm" in n]
    with torch.no_grad():
        first = model(IDS).logits
    fake = fake_quantize(tiny(), 2, unit=4.0)
    with torch.no_grad():  # packing changed nothing
        torch.testing.assert_close(first, fake(IDS).logits, atol=2e-4, rtol=1e-4)
    opt.step(lambda: model(IDS, labels=IDS).loss)
    after = [p.codes for p in zolab.packed_weights(model).values()]
    assert all(map(torch.equal, before, after))
    norms = [p for n, p in model.named_parameters() if "norm" in n]
    assert all(map(torch.equal, others, norms))
    with torch.no_grad():
        assert not torch.equal(first, model(IDS).logits)
        moved = model(IDS).logits
        opt.finish()
        assert torch.equal(moved, model(IDS).logits)
    held = sum(p.nbytes for p in zolab.packed_weights(model).values())
    weights = sum(p.shape.numel() for p in zolab.packed_weights(model).values())
    assert held / weights < 0.5  # 2 bits, and scale, zero, unit a group of 64


def test_the_light_variant_starts_from_any_packed_model():
    """The answers of whatever packed it, and its codes; then scale, t, delta move."""
    model = zolab.pack(tiny(), "int4", group=48, skip=["*embed*", "lm_head*"])
    with torch.no_grad():
        before = model(IDS).logits
    codes = [p.codes.clone() for p in zolab.packed_weights(model).values()]
    opt = zolab.ZeroQAT(model, light=True, unit=3.0, lr=1e-3, eps=1e-2)
    assert len(opt.space) == 3 * 28
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, before, atol=1e-4, rtol=1e-4)
    opt.step(lambda: model(IDS, labels=IDS).loss)
    with torch.no_grad():
        assert not torch.allclose(model(IDS).logits, before, atol=1e-4)
    after = [p.codes for p in zolab.packed_weights(model).values()]
    assert all(map(torch.equal, codes, after))
    with pytest.raises(SpaceError, match="no linear"):
        zolab.ZeroQAT(zolab.pack(tiny(), "int4"))


def test_what_is_kept_stays_latent():
    model = lighten(fake_quantize(tiny(), 2), keep=("*.0.*",))
    moving = {n for n, p in model.named_parameters() if p.requires_grad}
    assert sum(n.endswith("proj.weight") for n in moving) == 7
    assert all(".0." in n for n in moving if n.endswith("proj.weight"))


@pytest.mark.parametrize("light", (False, True))
def test_a_run_replays_and_resumes(tmp_path, light):
    log = tmp_path / "log"
    how = {"bits": 2, "light": light, "eps": 1e-2, "unit": 4.0, "journal": log}

    def go(model, steps):
        opt = zolab.ZeroQAT(model, lr=1e-3, clip_lr=1e-2, **how)
        for _ in range(steps):
            opt.step(lambda: model(IDS, labels=IDS).loss)
        opt.journal.close()
        return model

    a = go(tiny(), 2)
    b = go(tiny(), 0)  # an existing journal is replayed
    again = fake_quantize(tiny(), 2, unit=4.0)
    zolab.replay(lighten(again) if light else again, log)
    for p, q, r in zip(a.parameters(), b.parameters(), again.parameters(), strict=True):
        if not hasattr(p, "packed"):
            assert torch.equal(p, q) and torch.equal(p, r)


def test_weights_and_thresholds_have_their_own_lr():
    model = net(bits=2, group=16)
    opt = zolab.ZeroQAT(model, lr=0.0, clip_lr=1e-2, eps=1e-2)
    before = {n: p.clone() for n, p in model.named_parameters()}
    opt.step(lambda: model(X).square().mean())
    for n, p in model.named_parameters():
        is_weight = n.endswith(("weight", "bias"))
        assert torch.equal(p, before[n]) == is_weight, n


def test_resident_and_streamed_agree():
    a, b = tiny(), tiny()
    runs = []
    for model, engine in ((a, None), (b, zolab.Streamed())):
        opt = zolab.ZeroQAT(model, bits=2, eps=1e-2, lr=1e-3, engine=engine)
        runs.append([opt.step(lambda m=model: m(IDS, labels=IDS).loss) for _ in "ab"])
        opt.engine.flush()
    assert runs[0] == runs[1]


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="bits is 9"):
        net(bits=9)
    with pytest.raises(ValueError, match="clip is 2"):
        net(clip=2)
    with pytest.raises(ValueError, match="activation_bits is 1"):
        net(activation_bits=1)
    with pytest.raises(SpaceError, match="no linear"):
        fake_quantize(nn.Sequential(nn.Conv1d(2, 2, 1)))
    with pytest.raises(ValueError, match="nothing to pack"):
        finish(net(bits=None))
