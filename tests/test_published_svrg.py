"""MeZO-SVRG's program, fed ours: its formula is ours, its anchor is not one."""

import time

import pytest
import torch
import torch.nn.functional as F
from lifted import Ours, flat, made, methods, needs
from torch.func import functional_call

from zolab import SVRG, ZOOptimizer
from zolab.families import Keys, directions

pytestmark = pytest.mark.usefixtures("one_thread")
EPS, LR, ANCHOR_LR, SEED = 2.0**-8, 2e-3, 5e-3, 3
INNER = 2


def batches():
    """All 24 rows and two mini-batches of 8 of them."""
    torch.manual_seed(1)
    x, y = torch.randn(24, 64), torch.randint(0, 10, (24,))
    cut = [(0, 24), (0, 8), (8, 16)]
    return [{"input_ids": x[a:b], "labels": y[a:b]} for a, b in cut]


def loss(net, batch, parameters):
    out = functional_call(net, dict(parameters), (batch["input_ids"],))
    return F.cross_entropy(out.double(), batch["labels"])


class Anchored(list):
    """Their list of parameters, but a copy of it is a copy of the weights."""

    def copy(self):
        return [(n, torch.nn.Parameter(p.detach().clone())) for n, p in self]


class Order:
    """numpy, but randint hands out these directions, one after another."""

    def __init__(self, ds):
        self.random, self.ds = self, iter(ds)

    def randint(self, *_, **__):
        return next(self.ds)


STEPS = {
    "training_step_ZO_SVRG": ["SPSA_estimator", "clip_gradients_dict"],
    "training_step_MeZO_SVRG": ["SPSA_estimator", "SPSA_estimator_me"],
}


def theirs(net, step, ds, parameters):
    wanted = [
        step,
        *STEPS[step],
        "efficient_perturb_parameters",
        "central_difference_grad_est",
        "central_difference_grad_est_me",
    ]
    quiet = {"print": lambda *_: None, "time": time}
    names = {"torch": Ours(net), "np": Order(ds), **quiet}
    t = methods(
        "MeZO-SVRG", "models/llm_module.py", "GLUETransformer", wanted, **names
    )()
    t.model, t.params, t.zero_order_eps, t.z_std = net, parameters, EPS, 1
    t.learning_rate, t.learning_rate_aux, t.q = LR, ANCHOR_LR, INNER + 1
    t.max_norm, t.lr_anneal, t.asked = 1e9, 1, []
    for name in ("tr_loss", "tr_loss_minibatch", "lr_list", "grad_norm", "proj_val"):
        setattr(t, name, [])
    t.time, t.query = [], []
    t.log_training_loss = lambda *_, **__: None
    t.measure_memory_usage = lambda: None
    t.zo_forward_memory_eff = lambda model, batch: loss(model, batch, t.at)
    inside = t.central_difference_grad_est

    def estimate(model, at, batch, **kwargs):
        t.at = at  # a slope is asked at the list that it was given
        return inside(model, at, batch, **kwargs)

    t.central_difference_grad_est = estimate
    return t, getattr(t, step)


def drawn(seed=SEED):
    first, *others = directions("near_normal", Keys(seed, 0), INNER + 1)
    return [first, *(d for d in others for _ in (0, 1))]


def mine(seed):
    net, _ = made()
    svrg = SVRG(eps=EPS, inner=INNER, anchor=ANCHOR_LR / LR, family="near_normal")
    opt = ZOOptimizer(net, estimator=svrg, lr=LR, seed=seed)

    def ask(batch):
        return lambda: F.cross_entropy(
            net(batch["input_ids"]).double(), batch["labels"]
        )

    full, one, two = map(ask, batches())
    opt.step(one, full=full, batch2=two)
    return flat(net)


@needs("MeZO-SVRG")
def test_with_an_anchor_and_one_direction_for_both_points_it_takes_our_steps():
    net, _ = made()
    start = flat(net)
    parameters = Anchored(net.named_parameters())
    _, step = theirs(net, "training_step_ZO_SVRG", drawn(), parameters)
    for j, batch in enumerate(batches()):
        step(net, batch, 0, j, 3)
    path = (flat(net) - start).norm()
    assert float((flat(net) - mine(SEED)).norm() / path) < 1e-3
    assert float((flat(net) - mine(SEED + 1)).norm() / path) > 0.5


@needs("MeZO-SVRG")
def test_as_shipped_the_anchor_is_the_present_point_and_z_is_drawn_twice():
    """`copy` copies a list: no weights are kept. Each estimate has its own seed."""
    net, _ = made()
    seeds = directions("near_normal", Keys(SEED, 0), 3)
    parameters = list(net.named_parameters())
    t, step = theirs(net, "training_step_MeZO_SVRG", seeds, parameters)
    points = []

    def ask(model, batch):
        points.append(flat(model))
        return loss(model, batch, model.named_parameters())

    t.zo_forward_memory_eff = ask
    anchor = flat(net)
    full, one, _ = batches()
    step(net, full, 0, 0, 3)
    assert all(a is b for (_, a), (_, b) in zip(t.parameters, t.params, strict=True))
    step(net, one, 0, 1, 3)
    here, there = ((points[i] + points[i + 1]) / 2 for i in (2, 4))
    moved = (here - anchor).norm()
    assert moved > 1e-3
    assert (there - anchor).norm() > moved / 2, (
        "the second is asked far from the anchor"
    )
    z = [points[i] - points[i + 1] for i in (2, 4)]
    assert abs(F.cosine_similarity(*z, dim=0)) < 0.1, "along another direction"
