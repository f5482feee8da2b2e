"""Denominators: of the whole batch, so that micro-batches add up to it."""

import pytest
import torch

from zolab.rl import AGGREGATIONS, Totals, aggregate

MASK = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]).bool()
X = torch.arange(16.0, dtype=torch.float64).reshape(4, 4)


def weighted(theta, x=X):
    return theta * x + theta.square() * x.cos()


def slope(loss, theta):
    return torch.autograd.grad(loss, theta)[0].item()


@pytest.mark.parametrize("how", AGGREGATIONS)
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_micro_batches_have_the_gradient_of_the_batch(how, cut):
    theta = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    totals = Totals.of(MASK, length=4)
    whole = slope(aggregate(weighted(theta), MASK, how, totals), theta)
    parts = sum(
        slope(aggregate(weighted(theta, x), m, how, totals), theta)
        for x, m in zip(X.split(cut), MASK.split(cut), strict=True)
    )
    assert parts == pytest.approx(whole, rel=1e-12)
    assert abs(whole) > 0.1


@pytest.mark.parametrize("how", ["token-mean", "seq-mean-token-mean"])
def test_a_micro_batchs_own_denominator_is_seen(how):
    """The trap: the mean of means is not the mean."""
    theta = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    whole = slope(aggregate(weighted(theta), MASK, how, Totals.of(MASK)), theta)
    parts = [
        slope(aggregate(weighted(theta, x), m, how, Totals.of(m)), theta) / 4
        for x, m in zip(X.split(1), MASK.split(1), strict=True)
    ]
    same = sum(parts) == pytest.approx(whole, rel=1e-3)
    assert same == (how == "seq-mean-token-mean")  # with equal cuts of rows it is


def test_their_values():
    totals = Totals.of(MASK, length=8)
    rows = [0 + 1 + 2 + 3, 4, 8 + 9, 0]
    wanted = {
        "token-mean": sum(rows) / 7,
        "seq-mean-token-mean": (6 / 4 + 4 + 17 / 2 + 0) / 4,
        "seq-mean-token-sum": sum(rows) / 4,
        "constant": sum(rows) / (4 * 8),
    }
    for how, value in wanted.items():
        assert aggregate(X, MASK, how, totals).item() == pytest.approx(value)


def test_a_constant_needs_a_length():
    with pytest.raises(ValueError, match="length is None"):
        aggregate(X, MASK, "constant", Totals.of(MASK))


def test_a_masked_nan_does_not_come_through():
    x = torch.where(MASK, X, float("nan"))
    for how in AGGREGATIONS:
        assert aggregate(x, MASK, how, Totals.of(MASK, length=4)).isfinite()


def test_a_wrong_name_lists_the_right_ones():
    with pytest.raises(ValueError, match="token-mean, seq-mean-token-mean"):
        aggregate(X, MASK, "mean", Totals.of(MASK))
