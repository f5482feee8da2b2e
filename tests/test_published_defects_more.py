"""Defects of published code, second half; the table is in test_published_defects."""

import random

import pytest
import torch
import torch.nn.functional as F
from lifted import Watch, cosine, flat, functions, made, methods, needs, stand_in
from test_published_codes import FORWARD
from test_published_defects import moved
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")
EPS = 1e-3


def adamu(net, loss, *, mended):
    (sign,) = functions("ZO-AdaMU", "trainer.py", "get_sign")
    wanted = {"_ema_weight", "zo_step", "zo_update", *FORWARD}
    cls = methods("ZO-AdaMU", "trainer.py", "OurTrainer", wanted, get_sign=sign)
    if mended:
        anneal = cls._ema_weight
        cls._ema_weight = lambda self, varphi=1.0: anneal(self, varphi)
    t = stand_in(cls, loss, max_steps=2000)
    t.hist_perturbation, t.limit_steps = {}, 2000
    t.warmup_1st_steps, t.warmup_2nd_steps = 1024, 1600
    return t


@needs("ZO-AdaMU")
def test_adamu_as_shipped_stops_in_its_first_step():
    net, loss = made()
    with pytest.raises(TypeError, match="varphi"):
        adamu(net, loss, mended=False).zo_step(net, {})


@needs("ZO-AdaMU")
def test_adamu_measures_last_steps_slope():
    """Mended: probe 0.9 h + 0.1 z, move along sign z, where h is +-last step's z."""
    net, loss = made()
    watch = Watch(net, loss)
    t = adamu(net, watch, mended=True)
    own, last, move = [], [], None
    for _ in range(4):
        watch.points.clear()
        t.zo_step(net, {})
        probe, before = watch.direction(EPS), move
        move = moved(net, lambda: t.zo_update(net))
        own.append(abs(cosine(probe, move)))
        if before is not None:
            last.append(abs(cosine(probe, before)))
    assert own[0] == pytest.approx((2 / torch.pi) ** 0.5, abs=0.03)  # no history yet
    assert max(own[1:]) < 0.15
    assert min(last) > 0.75


@needs("ZO-AdaMU")
def test_adamu_schedule_falls_once_a_call():
    """4 tensors, 3 passes of 1 and an update of 1 + 0.1 + 1.5: by 22.4, not by 1."""
    net, loss = made()
    t = adamu(net, loss, mended=True)
    t.state.global_step = 1100
    t.zo_step(net, {})
    t.zo_update(net)
    assert 2000 - t.limit_steps == pytest.approx(22.4 * (2000 - 1600) / (1600 - 1024))


@needs("DeepZero")
def test_deepzero_rge_is_mu_over_d_times_the_gradient():
    """A linear loss, two tensors: the small one weighs 8 times the large one."""
    (rge,) = functions("DeepZero", "algorithm/zoo/gradient_estimate.py", "rge")
    torch.manual_seed(0)
    grad = {"a": torch.randn(8), "b": torch.randn(64)}
    zero = {k: torch.zeros_like(g) for k, g in grad.items()}
    mu = 1e-2
    got = rge(lambda p: sum((grad[k] * p[k]).sum() for k in p), zero, 4000, mu)
    for k, g in grad.items():
        along = float((got[k] * g).sum() / g.square().sum())
        assert along == pytest.approx(mu / len(g), rel=0.25)


@needs("DeepZero")
def test_deepzero_leaves_the_net_where_it_probed():
    f, rge = functions("DeepZero", "algorithm/zoo/gradient_estimate.py", "f", "rge")
    layer = nn.Linear(4, 3)
    before, mu, n = layer.weight.detach().clone(), 5e-3, 50
    x, y = torch.randn(5, 4), torch.randint(0, 3, (5,))
    f({"weight": before + 1}, layer, x, y, F.cross_entropy)
    torch.testing.assert_close(layer.weight.detach(), before + 1)
    # ZO-GraSP hands it the layer's own weight: the point walks by mu a sample
    layer.weight.data.copy_(before)
    rge(lambda p: f(p, layer, x, y, F.cross_entropy), {"weight": layer.weight}, n, mu)
    walked = float((layer.weight.detach() - before).norm())
    assert 0.4 * mu * n**0.5 < walked < 2.5 * mu * n**0.5


@needs("es-at-scale")
def test_es_at_scale_repeats_its_noise_in_every_tensor():
    cls = methods(
        "es-at-scale",
        "es_at_scale/utils/worker_extension.py",
        "WorkerExtension",
        {"_set_seed", "perturb_self_weights"},
        random=random,
    )
    net, _ = made()
    for p in net.parameters():
        p.data.zero_()
    worker = cls()
    worker.model_runner = type("Runner", (), {"model": net})
    worker.perturb_self_weights(3, 1.0)
    first = net[0].weight.detach().flatten()
    for p in net.parameters():
        n = p.numel() // 16 * 16  # torch draws a last odd block in another way
        assert n == 0 or torch.equal(p.detach().flatten()[:n], first[:n])


@needs("mezo")
@pytest.mark.parametrize(("width", "alike"), [(48, True), (50, False)])
def test_the_package_mezo_draws_rows_anew(width, alike):
    """Tensors above 100,000 entries: torch fills 16 at a time, a row of 50 ends odd."""
    names = ("learnable_parameters", "perturb_parameters", "update_param")
    *_, update = functions(
        "mezo",
        "mezo.py",
        *names,
        "update_params",
        "update",
        ModuleType=nn.Module,
        InputType=object,
    )
    net, loss = made(sizes=(width, 3000, 10))
    watch = Watch(net, loss)
    before = flat(net)
    update(net, None, lambda m, _: watch(), EPS, 1e-2, 0)
    along = abs(
        cosine(
            (flat(net) - before)[: width * 3000], watch.direction(EPS)[: width * 3000]
        )
    )
    assert along > 0.999 if alike else along < 0.05
