"""The published way: equal to the authors' program, and what it does to the weights."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lifted import methods, needs, stand_in
from torch import nn

import zolab
from zolab.engines.inplace import PublishedMeZO

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


pytestmark = pytest.mark.usefixtures("one_thread")


class Net(nn.Module):
    """Names that decay and names that do not; sizes that draw z on every path."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 33)
        self.layer_norm = nn.LayerNorm(33)
        self.fc = nn.Linear(33, 70)
        self.final_norm = nn.LayerNorm(70)
        self.head = nn.Linear(70, 5, bias=False)
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, x):
        x = self.fc(self.layer_norm(self.embed(x)))
        return self.head(self.final_norm(F.gelu(x)))


def made(dtype, seed=0):
    torch.manual_seed(seed)
    net = Net().to(dtype)
    x, y = torch.randint(0, 50, (16,)), torch.randint(0, 5, (16,))
    return net, lambda: F.cross_entropy(net(x).float(), y)


def weights(net):
    return torch.cat([p.detach().flatten().double() for p in net.parameters()])


def drift(net, closure, steps, opt):
    """Relative distance from the start after `steps` steps of learning rate 0."""
    before = weights(net)
    for _ in range(steps):
        opt.step(closure)
    return ((weights(net) - before).norm() / before.norm()).item()


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [
        (torch.float32, 1e-9, 2e-7),
        (torch.float16, 5e-5, 1e-3),
        (torch.bfloat16, 4e-4, 6e-3),
    ],
)
def test_restoring_in_place_leaves_a_random_walk(dtype, low, high):
    """One step, then 10 times as far after 100: measured 4e-8, 4e-4, 2e-3."""
    net, closure = made(dtype)
    one = drift(net, closure, 1, PublishedMeZO(net, lr=0.0))
    assert low < one < high
    net, closure = made(dtype)
    hundred = drift(net, closure, 100, PublishedMeZO(net, lr=0.0))
    assert 4 < hundred / one < 25


@pytest.mark.parametrize("dtype", DTYPES)
def test_ours_restores_to_the_bit(dtype):
    net, closure = made(dtype)
    assert drift(net, closure, 20, zolab.MeZO(net, lr=0.0)) == 0.0


def test_both_ways_descend():
    for make in (PublishedMeZO, zolab.MeZO):
        net, closure = made(torch.float32)
        first = closure().item()
        opt = make(net, lr=3e-3, eps=1e-3, seed=1)
        for _ in range(200):
            opt.step(closure)
        assert closure().item() < first - 0.1


def test_decay_is_decided_by_name_and_frozen_weights_stay():
    """g = 0 leaves the decay alone: the substring list misses `final_norm`."""
    net, _ = made(torch.float32)
    before = copy.deepcopy(net)
    opt = PublishedMeZO(net, lr=0.1, eps=1e-3, weight_decay=0.5)
    opt.update()
    decayed = {
        name: not torch.equal(p, q)
        for (name, p), q in zip(
            net.named_parameters(), before.parameters(), strict=True
        )
    }
    assert decayed == {
        "frozen": False,
        "embed.weight": True,
        "layer_norm.weight": False,
        "layer_norm.bias": False,
        "fc.weight": True,
        "fc.bias": False,
        "final_norm.weight": True,
        "final_norm.bias": False,
        "head.weight": True,
    }


def published():
    """The authors' four methods, taken from their file at test time."""
    wanted = {"zo_perturb_parameters", "zo_forward", "zo_step", "zo_update"}
    return methods("MeZO", "large_models/trainer.py", "OurTrainer", wanted)


@needs("MeZO")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_twenty_steps_equal_the_authors_program(dtype, weight_decay):
    setting = {"lr": 1e-3, "eps": 1e-3, "weight_decay": weight_decay}
    net, closure = made(dtype)
    mine, my_closure = made(dtype)
    np.random.seed(7)
    peer = stand_in(published(), closure, **setting)
    opt = PublishedMeZO(mine, seed=7, **setting)
    for _ in range(20):
        loss = peer.zo_step(net, {})
        peer.zo_update(net)
        assert opt.step(my_closure) == loss.item()
        assert opt.projected_grad == peer.projected_grad
        assert opt.step_seed == peer.zo_random_seed
        for p, q in zip(mine.parameters(), net.parameters(), strict=True):
            assert torch.equal(p, q)
