"""Published programs with structured directions, fed ours: LOZO, SubZero, HiZOO, CGE.

As in `test_published_codes.py`: the same directions, the same start, and the two paths
must be one but for rounding.
"""

import pytest
import torch
from lifted import Ours, Seeds, flat, functions, made, methods, needs, stand_in
from test_published_codes import CLOSE, EPS, LR, SEED, STEPS, apart, ours, zo_llm
from test_published_formulas import hizoo, lozo, part, subzero
from torch import nn

import zolab
from zolab import SPSA, Conservative, ForwardGradient, LowRank, Subspace
from zolab.families import RIGHT, Keys
from zolab.noise import direction
from zolab.subspace import factors

pytestmark = pytest.mark.usefixtures("one_thread")


@needs("LOZO")
@pytest.mark.parametrize("rank", [1, 4])
def test_lozo_takes_our_steps(rank):
    """Its U V' has variance r and ours 1: at eps / sqrt(r) and lr / r they are one.

    Its product is handed over whole (V is the identity), so that what it moves along
    is what it probed also where V is new: the steps of the paper.
    """
    net, loss = made()
    family, given = LowRank(rank=rank, every=2), Ours(net)
    given.randn = lambda n, r, **_: torch.eye(n)
    setting = {"eps": EPS / rank**0.5, "lr": LR / rank, "rank": rank}
    t = lozo(loss, step_interval=2, torch=given, np=Seeds(family, SEED), **setting)
    unit = given.normal
    given.normal = t.random_gaussian_matrix = lambda **_: rank**0.5 * unit()
    for _ in range(STEPS):
        t.lowrank_zo_step(net, {})
        t.lowrank_zo_update()
    same, other = apart(net, ours(lambda: SPSA(eps=EPS, family=family)), loss)
    assert same < CLOSE
    assert other > 1


@needs("SubZero")
def test_subzero_takes_our_steps():
    """U and V from zolab's factors, Z from its key: theirs is the formula of both."""
    net, loss = made()
    rank, every = 4, 2
    family, given = Subspace(rank=rank, every=every), Ours(net)
    seeds = Seeds(family, SEED)

    def bases(w_shape, **_):
        right = Keys(SEED, seeds.count).kept(every)(RIGHT)
        slot = next(s for s in given.space if s.shape == w_shape)
        u, v = factors(right, slot.id, *w_shape, rank)
        return u.float(), v.T.float()

    def normal(size, **_):
        slot = next(given.slots)
        if len(slot.shape) == 1:
            return slot.direction(given.direction)
        return direction(given.direction.key, slot.id, size, family="near_normal")

    given.normal = normal
    names = {"torch": given, "np": seeds, "bases": bases}
    t = subzero(net, loss, gauss_rank=rank, **names)
    for step in range(STEPS):
        t.state.global_step = step
        t.zo_subspace_step(net, {})
        t.zo_subspace_update(net)
    same, other = apart(net, ours(lambda: SPSA(eps=EPS, family=family)), loss)
    assert same < CLOSE
    assert other > 1


@needs("HiZOO")
@pytest.mark.parametrize("smooth", [0.0, 0.1])
def test_hizoo_takes_our_steps(smooth):
    net, loss = made()
    t = hizoo(net, loss, torch=Ours(net), np=Seeds(seed=SEED))
    for _ in range(STEPS):
        t.zo_Hessian_step_update(net, {}, LR, smooth)
    same, other = apart(net, ours(lambda: zolab.HiZOO(eps=EPS, smooth=smooth)), loss)
    assert same < 10 * CLOSE  # L+ + L- - 2 L0 cancels, and its size enters H
    assert other > 1


@needs("ZO-LLM")
@pytest.mark.parametrize("lr", [1e-2, 0.3])
def test_zo_llm_conservative_takes_our_steps(lr):
    net, loss = made()
    t = zo_llm("zo_conserv_step", net, loss, lr=lr)
    for _ in range(STEPS):
        t.zo_conserv_step(net, {})
    opt = ours(lambda: Conservative(eps=EPS, family="near_normal"), lr=lr)
    same, _ = apart(net, opt, loss)
    assert same < CLOSE


@needs("ZO-LLM")
def test_zo_llm_forward_gradient_takes_our_steps():
    net, loss = made()

    class Whole(nn.Module):
        device = torch.device("cpu")

        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self):
            return (loss(),)

    model, file = Whole(), "zo-bench/trainer.py"
    wanted = {"forward_grad_step", "functional_call_loss"}
    given = Ours(net)
    cls = methods(
        "ZO-LLM", file, "OurTrainer", wanted, torch=given, np=Seeds(seed=SEED)
    )
    t = stand_in(cls, None, lr=LR)
    for _ in range(STEPS):
        t.forward_grad_step(model, {})
    same, other = apart(net, ours(lambda: ForwardGradient(family="near_normal")), loss)
    assert same < CLOSE
    assert other > 1


@needs("ZO-LLM")
@pytest.mark.parametrize("at_once", [True, False])
def test_zo_llm_module_wise_takes_our_steps(at_once):
    """A direction a block for its one seed a step; `at_once` is its "coordinate"."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.model = nn.Module()
            self.model.decoder = nn.Module()
            layers = (nn.Linear(32, 32) for _ in range(3))
            self.model.decoder.layers = nn.ModuleList(layers)
            self.x = torch.randn(8, 32)

        def forward(self):
            out = self.x
            for layer in self.model.decoder.layers:
                out = layer(out).tanh()
            return out.double().square().mean()

    def mine(net, seed):
        est = zolab.ModuleWise(patterns, eps=EPS, at_once=at_once, family="near_normal")
        return zolab.ZOOptimizer(net, estimator=est, lr=LR, seed=seed)

    patterns = [f"*.layers.{i}.*" for i in range(3)]
    family, net = zolab.Blocks(patterns, "near_normal"), Net()
    (levels,) = functions(
        "ZO-LLM", "zo-bench/utils.py", "OPT_PERTURBATION_LEVEL_TO_REGEX"
    )
    step = "zo_step_with_module_wise_perturbation" + "_coordinate" * at_once
    given = Ours(net)
    args = {"perturbed_module_level": "transformer-block", "levels": levels}
    t = zo_llm(step, net, net, ours=given, seeds=Seeds(seed=SEED), **args)

    def manual_seed(_):
        names = [n for n, _ in t.named_parameters_to_optim]
        given.slots = iter([given.space[n] for n in names])
        block = int(names[0].split(".")[3])
        given.direction = family.direction(Keys(SEED, t.state.global_step), block)

    given.manual_seed = manual_seed
    for i in range(STEPS):
        t.state.global_step = i
        getattr(t, step)(net, {})
    for seed, close in ((SEED, True), (SEED + 1, False)):
        other = Net()
        start, run = flat(other), mine(other, seed)
        for _ in range(STEPS):
            run.step(other)
        off = part(flat(net) - start, flat(other) - start)
        assert off < CLOSE if close else off > 1


@needs("DeepZero")
def test_deepzero_cge_is_ours():
    net, loss = made(sizes=(6, 5, 3))
    (cge,) = functions("DeepZero", "algorithm/zoo/gradient_estimate.py", "cge")
    params = {n: p.detach() for n, p in net.named_parameters()}

    def at(moved):
        before = {n: p.detach().clone() for n, p in net.named_parameters()}
        net.load_state_dict(moved)
        value = float(loss())
        net.load_state_dict(before)
        return value

    theirs = cge(at, {n: p.clone() for n, p in params.items()}, {}, EPS)
    space = zolab.Space.of(net)
    estimator = zolab.CGE(zolab.Coordinates.of(space), eps=EPS)
    opt = zolab.ZOOptimizer(net, estimator=estimator, lr=0.0)
    opt.step(loss)
    mine = opt.last.gradient.to_dense(space)
    for name, g in theirs.items():
        torch.testing.assert_close(mine[name], g, rtol=1e-3, atol=1e-4)
    assert flat(net).numel() == estimator.num_queries
