"""Published programs whose rule is ours: their code, fed zolab's directions.

Whatever they draw is replaced by zolab's z (`lifted.Ours`), whatever seed they ask for
by the key of zolab's step and query. Both then take the same steps from one start.
They perturb in place and we do not, their losses are rounded elsewhere: the paths may
part by `CLOSE` of their length, and a run from another seed parts by more than 1.
What their programs do that the papers do not say is in `test_published_defects.py`.
"""

import re

import numpy as np
import pytest
import torch
from lifted import Ours, Seeds, Watch, flat, functions, made, methods, needs, stand_in

import zolab
from zolab import SPSA, OneSided, ZOOptimizer

pytestmark = pytest.mark.usefixtures("one_thread")
ZO_LLM = "zo-bench/trainer.py"
STEPS, LR, EPS, SEED = 3, 1e-2, 1e-3, 5
CLOSE = 2e-4  # measured 1e-6 to 3e-5; fp32 weights hold theta + eps z to 6e-5 of eps z
FORWARD = ("zo_perturb_parameters", "zo_forward")


def zo_llm(
    step,
    net,
    loss,
    *,
    lr=LR,
    queries=1,
    momentum=0.0,
    ours=None,
    seeds=None,
    mask=None,
    levels=None,
    **args,
):
    """ZO-LLM's trainer with one of its steps and torch's SGD, as its run.py sets it."""
    sgd = torch.optim.SGD(net.parameters(), lr=lr, momentum=momentum)
    cls = methods(
        "ZO-LLM",
        ZO_LLM,
        "OurTrainer",
        {*FORWARD, "get_grad_sparsity_by_name", "grouped_module_iter", step},
        torch=ours or Ours(net),
        np=seeds or (np if ours is torch else Seeds(seed=SEED, queries=queries)),
        fast_random_mask_like=mask,
        OPT_PERTURBATION_LEVEL_TO_REGEX=levels,
        re=re,
    )
    t = stand_in(cls, loss, eps=EPS, lr=lr, optimizer=sgd, q=queries, **args)
    t.gradient_sparsity, t.sparse_grad_random_seed = None, 0
    t.sparse_grad_rng = torch.Generator()
    return t


def apart(net, opt, loss):
    """How far zolab ends from `net` after STEPS steps, over the path's length.

    Twice: with the same seed, and with another one as the control.
    """
    out = []
    for seed in (SEED, SEED + 1):
        mine, my_loss = made()
        start = flat(mine)
        run = opt(mine, seed)
        for _ in range(STEPS):
            run.step(my_loss)
        out.append(float((flat(net) - flat(mine)).norm() / (flat(net) - start).norm()))
    return out


def ours(estimator, rule=None, lr=LR):
    def make(net, seed):
        return ZOOptimizer(
            net, estimator=estimator(), rule=rule and rule(), lr=lr, seed=seed
        )

    return make


def spsa(kind=SPSA, queries=1):
    return lambda: kind(eps=EPS, num_queries=queries, family="near_normal")


RULES = {
    "two-sided": ("zo_step", {}, ours(spsa())),
    "one-sided": (
        "zo_step",
        {"perturbation_mode": "one_side"},
        ours(spsa(OneSided)),
    ),
    "sign": ("zo_step", {"trainer": "zo_sign_opt"}, ours(spsa(), zolab.SignSGD)),
    "momentum": (
        "zo_step",
        {"momentum": 0.9},
        ours(spsa(), lambda: zolab.Momentum(beta=0.9)),
    ),
    "four queries": ("zo_step_v1", {"queries": 4}, ours(spsa(queries=4))),
    "four, one-sided": (
        "zo_step_v1",
        {"queries": 4, "perturbation_mode": "one_side"},
        ours(spsa(OneSided, 4)),
    ),
}


@needs("ZO-LLM")
@pytest.mark.parametrize("name", RULES)
def test_zo_llm_takes_our_steps(name):
    step, setting, opt = RULES[name]
    net, loss = made()
    t = zo_llm(step, net, loss, **setting)
    for _ in range(STEPS):
        getattr(t, step)(net, {})
    same, other = apart(net, opt, loss)
    assert same < CLOSE
    assert other > 1


@needs("FZOO")
def test_fzoo_takes_our_steps_times_a_constant():
    """Theirs divides by the spread over N, ours over N - 1: sqrt(N / (N - 1))."""
    n, eps = 8, 1e-2
    net, loss = made()
    cls = methods(
        "FZOO",
        "trainer.py",
        "OurTrainer",
        {*FORWARD, "zo_step", "zo_update", "_get_learning_rate"},
        torch=Ours(net),
        np=Seeds("rademacher", SEED, n),
    )
    t = stand_in(cls, loss, eps=eps, lr=LR, N=n)
    t.N, t.losses = n, None
    for _ in range(STEPS):
        t.zo_step(net, {})
        t.zo_update(net)
    fzoo = lambda: zolab.FZOO(eps=eps, num_queries=n)  # noqa: E731
    longer = (n / (n - 1)) ** 0.5
    same, other = apart(net, ours(fzoo, lr=LR * longer), loss)
    assert same < CLOSE
    assert other > 1
    plain, _ = apart(net, ours(fzoo), loss)
    assert plain == pytest.approx(1 - 1 / longer, abs=2e-3)


@needs("ZO-LLM")
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_the_forward_gradient_is_the_slope_times_v(weight_decay):
    """w <- w - lr ((grad . v) v + weight_decay w), biases spared; grad by backprop."""

    class Returns(torch.nn.Module):
        device = torch.device("cpu")

        def __init__(self):
            super().__init__()
            self.net, self.loss = made()

        def forward(self):
            x = torch.linspace(-1, 1, 64 * 16).reshape(16, 64)
            return (self.net(x).square().mean(),)

    model = Returns()
    cls = methods(
        "ZO-LLM",
        ZO_LLM,
        "OurTrainer",
        {"forward_grad_step", "functional_call_loss"},
    )
    t = stand_in(cls, None, lr=LR, weight_decay=weight_decay)
    params = dict(model.named_parameters())
    grads = dict(
        zip(params, torch.autograd.grad(model()[0], [*params.values()]), strict=True)
    )
    before = {n: p.detach().clone() for n, p in params.items()}
    t.forward_grad_step(model, {})
    torch.manual_seed(t.zo_random_seed)
    v = {n: torch.randn_like(p) for n, p in params.items()}
    slope = sum((grads[n] * v[n]).sum() for n in params)
    for n, p in params.items():
        decay = 0.0 if "bias" in n else weight_decay
        want = before[n] - LR * (slope * v[n] + decay * before[n])
        torch.testing.assert_close(p.detach(), want, rtol=1e-5, atol=1e-6)


@needs("ZO-LLM")
@pytest.mark.parametrize(
    ("clean", "down", "up", "where"),
    [
        (1.0, 0.9, 1.1, -1),
        (1.0, 1.1, 0.9, 1),
        (1.0, 1.1, 1.2, 0),
        (1.0, 0.8, 0.9, -1),
        (1.0, 1.0, 1.1, -1),
    ],
)
def test_the_conservative_step_takes_the_best_of_three(clean, down, up, where):
    """Losses are scripted: clean, two probes, then at theta - s and theta + s."""
    net, loss = made()
    watch = Watch(net, loss, [clean, 1.2, 0.8, down, up])
    t = zo_llm("zo_conserv_step", net, watch)
    t.zo_conserv_step(net, {})
    start, step = watch.points[0], watch.points[0] - watch.points[3]
    assert len(watch.points) == 5
    torch.testing.assert_close(watch.points[4], start + step, atol=1e-5, rtol=0)
    torch.testing.assert_close(flat(net), start + where * step, atol=1e-5, rtol=0)
    # s = lr g z with g from the two probes and z what they stood along
    s = LR * 0.4 / (2 * EPS) * (watch.points[1] - watch.points[2]) / (2 * EPS)
    assert float((s - step).norm() / s.norm()) < CLOSE


@needs("DeepZero")
def test_coordinate_differences_are_exact_on_a_bowl():
    """(L(w + mu e_i) - L(w)) / mu = grad_i + mu h_i / 2; a masked one is not asked."""
    (cge,) = functions("DeepZero", "algorithm/zoo/gradient_estimate.py", "cge")
    mu, h = 1e-2, torch.linspace(0.1, 2, 30, dtype=torch.float64)
    w = torch.randn(30, generator=torch.Generator().manual_seed(0)).double()
    mask = (torch.arange(30) % 3 > 0).double()
    calls = []

    def bowl(params):
        calls.append(1)
        return (0.5 * h * params["w_orig"] ** 2).sum()

    g = cge(bowl, {"w_orig": w}, {"w_mask": mask}, mu)["w_orig"]
    torch.testing.assert_close(g, mask * (h * w + mu * h / 2), rtol=1e-9, atol=1e-12)
    assert len(calls) == 1 + int(mask.sum())
