"""One step on the grid under several names: each way listed, the first is the package.

On a linear layer of 4-bit codes, three steps; values are compared, or bits where the
arithmetic is the same.
"""

from itertools import pairwise

import pytest
import torch
from torch import nn

import zolab
from zolab import SPSA, Floored, MeZO, SignSGD, ZOOptimizer
from zolab.noise import make_key
from zolab.storage.packed import unpack_bits

pytestmark = pytest.mark.usefixtures("one_thread")
X, Y = torch.linspace(-1, 1, 24).view(3, 8), torch.linspace(0, 1, 12).view(3, 4)
EPS, LR, STEPS = 2.0**-7, 2.0**-10, 3
DEEP = -1e9  # a floor that nothing reaches


def layer(group=4, scale=None):
    """Eight inputs, four outputs; with `scale` all scales are that number."""
    torch.manual_seed(0)
    model = zolab.pack(nn.Linear(8, 4, bias=False), "int4", group=group)
    if scale is not None:
        model.weight.packed.scale.data.fill_(scale)
    return model


def trained(opt, steps=STEPS):
    for _ in range(steps):
        opt.step(lambda: (opt.model(X) - Y).square().mean())
    return opt.model


def values(model):
    return zolab.unpack(model).weight.detach()


def codes(model):
    return unpack_bits(model.weight.packed.codes, 4, 32).view(4, 8).float()


def moving(model, kind):
    """Only the codes, or only the scales."""
    for n, p in model.named_parameters():
        p.requires_grad_(n.endswith("_scale") == (kind == "scales"))
    return model


class Factors(nn.Module):
    """The layer whose groups are multiplied by numbers that start at 1."""

    def __init__(self, packed):
        super().__init__()
        self.weight_scale = nn.Parameter(torch.ones_like(packed.scale))
        self.unit = packed.scale.detach().clone()
        self.level = unpack_bits(packed.codes, 4, 32).view(4, 2, 4) - 7.0

    @property
    def weight(self):
        s = self.weight_scale * self.unit
        return (s[..., None] * self.level).view(4, 8)

    def forward(self, x):
        return nn.functional.linear(x, self.weight)


class Codes(nn.Module):
    """The layer whose weight is a float that counts levels."""

    def __init__(self, packed):
        super().__init__()
        self.weight = nn.Parameter(unpack_bits(packed.codes, 4, 32).view(4, 8).float())
        self.s = packed.scale.detach().repeat_interleave(4, 1)

    def forward(self, x):
        return nn.functional.linear(x, self.s * (self.weight - 7.0))


def by_hand(directions):
    """MeZO's loop on a plain tensor along `directions(step)`."""
    w = values(layer(group=1)).clone()

    def loss(w):
        return float(nn.functional.linear(X, w).sub(Y).square().mean())

    for t in range(STEPS):
        v = directions(t)
        g = (loss(w + EPS * v) - loss(w - EPS * v)) / (2 * EPS)
        w = w - LR * g * v
    return w


def level_times_sign(t):
    """A group of one weight has level 7 or -7, so this is 7 times random signs."""
    model = layer(group=1)
    level = codes(model) - 7.0
    assert bool((level.abs() == 7).all())
    return level * zolab.direction(make_key(0, t), "weight_scale", (4, 8))


def factors_by_mezo():
    model = Factors(layer().weight.packed)
    return trained(MeZO(model, lr=LR, eps=EPS)).weight.detach()


S = 2.0**-4  # all scales, so that a share of one is a share of all

NAMES = {
    "scales": [
        lambda: values(trained(zolab.QZO(layer(), lr=LR, eps=EPS, clip=None))),
        lambda: values(trained(MeZO(moving(layer(), "scales"), lr=LR, eps=EPS))),
        lambda: values(
            trained(
                ZOOptimizer(
                    moving(layer(), "scales"),
                    estimator=SPSA(eps=EPS, clip=1e9),
                    rule=Floored(floor=DEEP),
                    lr=LR,
                )
            )
        ),
    ],
    "factors": [
        lambda: values(trained(zolab.QZO(layer(), lr=LR, eps=EPS, relative=True))),
        factors_by_mezo,
    ],
    "equal scales: a share of each is a length for all": [
        lambda: values(
            trained(zolab.QZO(layer(scale=S), lr=LR, eps=EPS, relative=True))
        ),
        lambda: values(trained(zolab.QZO(layer(scale=S), lr=LR * S * S, eps=EPS * S))),
    ],
    "a group of one weight": [
        lambda: values(
            trained(zolab.QZO(layer(group=1), lr=LR, eps=EPS, clip=None, floor=DEEP))
        ),
        lambda: by_hand(level_times_sign),
    ],
    "rounded to eight bits": [
        lambda: codes(trained(zolab.QuZO(layer(), lr=0.1, eps=EPS, bits=8))),
        lambda: codes(
            trained(zolab.QuZO(layer(), lr=0.1, eps=EPS, bits=6, shared=True))
        ),
        lambda: codes(
            trained(
                MeZO(moving(layer(), "codes"), lr=0.1, eps=EPS, family="near_normal")
            )
        ),
    ],
    "one level": [
        lambda: codes(trained(zolab.ZOQO(layer(), lr=LR, eps=EPS), 1)),
        lambda: (
            trained(
                ZOOptimizer(
                    Codes(layer().weight.packed),
                    estimator=SPSA(eps=1.0),
                    rule=SignSGD(),
                    lr=1.0,
                ),
                1,
            )
            .weight.detach()
            .clamp(0, 14)
        ),
    ],
}


@pytest.mark.parametrize("name", NAMES)
def test_every_way_is_the_first(name):
    ways = [way() for way in NAMES[name]]
    for a, b in pairwise(ways):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_names_are_six():
    firsts = [ways[0]() for ways in NAMES.values()]
    for i, a in enumerate(firsts):
        assert not any(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for b in firsts[:i])


def test_a_group_has_one_direction():
    """d / group numbers move: 32 weights have 32, 8 or 4 scales."""
    for group, d in ((1, 32), (4, 8), (0, 4)):
        assert zolab.QZO(layer(group=group)).space.numel == d
