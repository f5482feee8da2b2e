"""QZO's released trainer by its formulas: fp16 scales, moved in place.

The trainer perturbs the fp16 scales of quantized linears by +eps z, -2 eps z, +eps z
and then takes s <- max(s - lr clip(d) z, 1e-7). Here are these formulas on scales of
the size that 4-bit weights have, and what the package does instead.
"""

import pytest
import torch
from torch import nn

import zolab
from zolab.families import Keys
from zolab.gradient import Answer
from zolab.noise import make_key

pytestmark = pytest.mark.usefixtures("one_thread")
EPS = 1e-3


def scales():
    """Of 4-bit groups of 64 of a layer's usual start: about 0.004."""
    torch.manual_seed(0)
    model = zolab.pack(nn.Linear(1024, 128, bias=False), "int4", group=64)
    return model, model.weight.packed.scale.detach().clone()


def cycle(s, z):
    """Out, across and back, each rounded to fp16."""
    for c in (EPS, -2 * EPS, EPS):
        s = (s.float() + c * z).half()
    return s


def test_the_cycle_does_not_come_back():
    """About 0.004 has steps of 2^-18: a third of the scales miss home, to +-1 step."""
    _, s = scales()
    s = s.half()
    z = torch.randn(s.shape, generator=torch.Generator().manual_seed(1))
    off = cycle(s, z).float() - s.float()
    assert 0.1 < float((off != 0).float().mean()) < 0.9
    walked = s
    for t in range(100):
        g = torch.Generator().manual_seed(t)
        walked = cycle(walked, torch.randn(s.shape, generator=g))
    grown = (walked.float() - s.float()).std() / off.std()
    assert 5 < float(grown) < 20  # the root of 100 steps
    assert float((walked.float() / s.float() - 1).std()) > 1e-3


@pytest.mark.parametrize("dtype", (torch.float16, torch.float32))
def test_a_probe_leaves_every_bit(dtype):
    model, _ = scales()
    opt = zolab.QZO(model, lr=0.0, eps=EPS, dtype=dtype)
    before = model.weight.packed.scale.detach().clone()
    for _ in range(3):
        opt.step(lambda: model(torch.ones(2, 1024)).square().mean())
    assert torch.equal(model.weight.packed.scale.detach(), before)


def moved(dtype, rounding, size, steps=64):
    """Mean of (s after - s before) / (steps size), when each step asks for `size`."""
    model, s = scales()
    opt = zolab.QZO(model, lr=1.0, dtype=dtype, rounding=rounding)
    stored = model.weight.packed.scale.detach().float().clone()
    d = zolab.Direction(make_key(0, 0))
    update = opt.rule.update(zolab.ZOGradient(((d, size),)), 0, (1.0,), (0.0,))
    opt.engine.apply([(update, t) for t in range(steps)])
    went = (stored - model.weight.packed.scale.detach().float()) / (steps * size)
    return float((went * opt.space["weight_scale"].direction(d)).mean())


def test_fp16_loses_what_is_below_half_a_step():
    """2^-18 is a step of fp16 near 0.004. A quarter of it is lost, unless by chance."""
    tiny = 2.0**-20
    assert moved(torch.float32, "nearest", tiny) == pytest.approx(1, abs=1e-3)
    assert moved(torch.float16, "nearest", tiny) == 0.0
    assert moved(torch.float16, "stochastic", tiny) == pytest.approx(1, abs=0.05)
    assert moved(torch.float16, "nearest", 2.0**-17) == pytest.approx(1, abs=1e-3)


def test_the_floor_of_the_trainer_is_no_number_of_fp16():
    assert float(torch.tensor(1e-7).half()) == 2 * 2.0**-24  # 1.19e-7


def test_clipping_the_mean_is_not_clipping_the_slopes():
    """Slopes 300 and -100: clipped to +-100 each they cancel; their mean passes."""
    estimator = zolab.SPSA(eps=0.5, num_queries=2, clip=100.0)
    proposal = estimator.propose(Keys(0, 0))
    next(proposal)
    with pytest.raises(StopIteration) as stop:
        proposal.send([Answer(x) for x in (300.0, 0.0, 0.0, 100.0)])
    logged = [c for _, c in stop.value.value.terms]
    at_update = max(-100.0, min(100.0, (300.0 - 100.0) / 2))
    assert logged == [50.0, -50.0] and at_update == 100.0


def test_the_log_holds_the_slope_that_moved(tmp_path):
    model, _ = scales()
    opt = zolab.QZO(model, eps=EPS, clip=1e-6, journal=tmp_path / "log")
    opt.step(lambda: model(torch.ones(2, 1024)).square().mean())
    assert abs(opt.journal.records[0].coefficients[0]) == pytest.approx(1e-6)
