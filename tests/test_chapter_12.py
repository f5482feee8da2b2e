"""Chapter 12: its claims' controls fail, and the laws that it derives."""

import math

import pytest
import torch
import torch.nn.functional as F

import zolab
from zolab import lab
from zolab.engines.inplace import PublishedMeZO
from zolab.lab import claims
from zolab.tasks import Sentiment, splits

FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16
PRECISIONS = {"fp32": FP32, "fp16": FP16, "bf16": BF16}
EPS = 1e-3


def judge(name: str, measured: float, se: float | None = None) -> str:
    return claims.ledger()[name].judge(measured, se)


@pytest.fixture
def g():
    return torch.Generator().manual_seed(0)


def ulp(w, dtype):
    exponent = torch.frexp(w.double()).exponent - 1
    return torch.finfo(dtype).eps * 2.0 ** exponent.double()


def cycle(w, e):
    """The three sums of the published rule."""
    return ((w + e) - 2 * e) + e


def wander(w, eps, steps, g):
    for _ in range(steps):
        w = cycle(w, (eps * torch.randn(len(w), generator=g)).to(w.dtype))
    return w


def law(w, eps, dtype, g):
    """What one step leaves, root mean square: equation (3) with equation (2)'s p."""
    e = eps * torch.randn(len(w), generator=g)
    u = ulp(w.abs() + e.abs(), dtype)
    t = e.to(dtype).double() / u
    return float((((t - t.round()).abs() > 0.25) * u**2).mean().sqrt())


def rms(x):
    return float(x.double().square().mean().sqrt())


# drift


@pytest.mark.parametrize("name", PRECISIONS)
def test_what_is_left_behind_is_zero_or_one_ulp(name, g):
    """Equation (2), and half the steps move."""
    dtype = PRECISIONS[name]
    w = (0.15 + 0.05 * torch.rand(20_000, generator=g)).to(dtype)
    e = (EPS * torch.randn(20_000, generator=g)).to(dtype)
    u = ulp(w, dtype)
    left = (cycle(w, e).double() - w.double()) / u
    t = e.double() / u
    tie = ((4 * t).round() == 4 * t) & ((2 * t).round() != 2 * t)  # a quarter
    tie |= ((2 * t).round() == 2 * t) & (t.round() != t)  # a half: depends on w
    assert torch.equal(left[~tie], (2 * t.round() - (2 * t).round())[~tie])
    assert set(left.tolist()) == {-1.0, 0.0, 1.0}
    assert float(left.abs().mean()) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("name", PRECISIONS)
def test_a_probe_below_a_quarter_ulp_breaks_the_half(name, g):
    """The control: sqrt(n / 2) ulps for every probe is not the law."""
    dtype = PRECISIONS[name]
    w = (0.15 + 0.05 * torch.rand(20_000, generator=g)).to(dtype)
    u = float(ulp(w[:1], dtype))
    for eps, verdict in ((8 * u, claims.HOLDS), (0.1 * u, claims.NOT_SEEN)):
        off = rms(wander(w, eps, 100, g).double() - w.double())
        assert judge(f"drift-law-{name}", off / (u * math.sqrt(50))) == verdict
    off = rms(wander(w, 0.1 * u, 100, g).double() - w.double())
    small = law(w.float(), 0.1 * u, dtype, g)
    assert off == pytest.approx(10 * small, rel=0.2), "equation (3) knows p"
    linear = rms(wander(w, 8 * u, 100, g).double() - w.double()) / (u * 50)
    assert judge(f"drift-law-{name}", linear) == claims.NOT_SEEN


def test_at_a_power_of_two_the_walk_leans_inwards(g):
    """Why bf16 weights shrink: below 0.125 the grid is twice as fine."""
    u = float(ulp(torch.tensor([0.125]), BF16))
    e = (EPS * torch.randn(200_000, generator=g)).to(BF16)

    def lean(w):
        w = torch.full_like(e, w)
        return float((cycle(w, e).double() - w.double()).mean()) / u

    assert lean(0.125) < -0.05
    assert abs(lean(0.1875)) < 0.01


def test_the_published_rule_restores_nothing_exactly():
    for dtype in PRECISIONS.values():
        changed = []
        for method in (PublishedMeZO, zolab.MeZO):
            torch.manual_seed(0)
            m = torch.nn.Linear(40, 30, dtype=dtype)
            before = m.weight.detach().clone()
            x = torch.ones(40, dtype=dtype)
            opt = method(m, lr=0.0, eps=EPS)
            for _ in range(5):
                opt.step(lambda m=m, x=x: m(x).float().square().sum())
            changed.append(int((m.weight != before).sum()))
        assert judge("restored-exactly", changed[0]) == claims.NOT_SEEN
        assert judge("restored-exactly", changed[1]) == claims.HOLDS


def test_bf16_drift_of_that_length_is_not_harmless(g):
    """Noise of the size that equation (3) predicts for 20,000 steps, seen by tiny."""
    model, tokenizer = zolab.load_model("tiny")
    page = Sentiment(tokenizer).batch(splits(train=100, dev=0, test=60).test)
    ids, real = page.ids, page.mask[:, 1:]
    start = [w.detach().clone() for w in model.parameters()]

    @torch.no_grad()
    def nats(dtype):
        for w, w0 in zip(model.parameters(), start, strict=True):
            noise = torch.randn(w.shape, generator=g) * math.sqrt(20_000 / 2)
            w.copy_(w0 + (noise * ulp(w0, dtype) if dtype else 0.0))
        logits = model(input_ids=ids).logits[:, :-1].transpose(1, 2)
        found = F.cross_entropy(logits, ids[:, 1:], reduction="none")
        return (found * real).sum(1) / real.sum(1)

    extra = {d: lab.mean_se((nats(d) - nats(None)).tolist()) for d in (FP16, BF16)}
    assert judge("drift-harmless-fp16", *extra[FP16]) == claims.SAME
    assert judge("drift-harmless-fp16", *extra[BF16]) == claims.OPPOSITE
    assert judge("drift-harmful-bf16", *extra[BF16]) == claims.SAME
    assert judge("drift-harmful-bf16", *extra[FP16]) == claims.OPPOSITE


def test_a_saved_copy_costs_nothing(g):
    w = (0.1 * torch.randn(1000, generator=g)).to(BF16)
    kept, drifted = w.clone(), wander(w, EPS, 10, g)
    assert not torch.equal(drifted, kept)
    drifted.copy_(kept)
    assert torch.equal(drifted, w)
    assert judge("drift-harmful-bf16", 0.0, 0.001) == claims.OPPOSITE


# probes and updates


def test_in_fp32_every_gain_moves(g):
    z = torch.randn(100_000, generator=g)
    stay = {}
    for name, dtype in PRECISIONS.items():
        ones = torch.ones(len(z)).to(dtype)
        still = ones + (EPS * z).to(dtype) == ones
        stay[name] = float(still.float().mean())
    assert judge("gain-of-one", stay["bf16"]) == claims.HOLDS
    assert judge("gain-of-one", stay["fp16"]) == claims.NOT_SEEN
    assert judge("gain-of-one", stay["fp32"]) == claims.NOT_SEEN


def kept(w, new, step, signs):
    part = (new.double() - w.double()) @ signs.double()
    return float(part) / (step * len(w))


def test_in_fp32_nearest_keeps_the_update(g):
    w = (0.15 * torch.randn(100_000, generator=g)).to(BF16).float()
    signs = torch.ones(len(w))
    for dtype, verdict in ((BF16, claims.SAME), (FP32, claims.OPPOSITE)):
        new = (w + 1e-6 * signs).to(dtype)
        assert judge("nearest-loses", kept(w, new, 1e-6, signs)) == verdict


def test_always_up_is_not_stochastic(g):
    """Random bits keep the mean; a constant in their place does not."""
    from zolab.storage.plain import stochastic_round

    w = (0.15 * torch.randn(1_000_000, generator=g)).to(BF16).float()
    x = w + 1e-6
    bits = torch.randint(65536, x.shape, generator=g)
    signs = torch.ones(len(w))
    for b, verdict in ((bits, claims.HOLDS), (bits * 0 + 65535, claims.NOT_SEEN)):
        new = stochastic_round(x, b, BF16)
        assert judge("stochastic-keeps", kept(w, new, 1e-6, signs)) == verdict
