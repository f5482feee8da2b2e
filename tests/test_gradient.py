"""A gradient is a list; scaling and adding lists is scaling and adding tensors."""

import pytest
import torch
from helpers import mlp

from zolab.gradient import Direction, ZOGradient, round16, round32
from zolab.noise import make_key
from zolab.space import Space


def gradient(*coefficients):
    return ZOGradient(
        tuple((Direction(make_key(0, i)), c) for i, c in enumerate(coefficients))
    )


def test_list_arithmetic_is_tensor_arithmetic():
    space = Space.of(mlp())
    g, h = gradient(1.5, -2.0), gradient(0.25)
    sums = [(2 * g + h), g + h + g, h + g * 2.0]
    dense = [s.to_dense(space) for s in sums]
    want = {
        s.name: 2 * g.to_dense(space)[s.name] + h.to_dense(space)[s.name] for s in space
    }
    for d in dense:
        for name, t in want.items():
            torch.testing.assert_close(d[name], t)


def test_bytes():
    assert gradient(1.0).nbytes == 4
    assert (gradient(1.0, 2.0) + gradient(3.0)).nbytes == 12


@pytest.mark.parametrize("x", [0.0, 1.0, -1e-3, 1 / 3, 6.02e23, -1.6e-19])
def test_round16_keeps_16_bits(x):
    r = round16(x)
    assert r == round32(r), "a rounded scale must be an fp32 number"
    assert round16(r) == r
    assert abs(r - x) <= abs(x) * 2**-16


def test_round32_overflows_to_infinity():
    assert round32(1e40) == float("inf")
