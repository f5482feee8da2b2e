"""Chapter 00: each control fails where its claim holds."""

import pytest
import torch
import torch.nn.functional as F

import zolab
from zolab import direction, lab, make_key
from zolab.lab import claims
from zolab.tasks import Sentiment, loss, splits

BEND = torch.tensor([1.0, 3.0], dtype=torch.float64)
START = torch.tensor([-2.0, 1.0], dtype=torch.float64)


def bowl(theta):
    return (BEND * theta**2).sum(-1) / 2


def judge(name: str, measured: float, se: float | None = None) -> str:
    return claims.ledger()[name].judge(measured, se)


def test_a_third_derivative_and_one_side_both_err():
    z = direction(make_key(1, 0), "x", 2, family="near_normal").double()

    def error(f, gradient, eps, sides=2):
        behind = START - eps * z if sides == 2 else START
        g = (f(START + eps * z) - f(behind)) / (sides * eps)
        return abs(float(g / (z @ gradient)) - 1)

    slope = BEND * START
    assert judge("bowl-slope", error(bowl, slope, 1e-2)) == claims.HOLDS
    assert judge("bowl-slope", error(bowl, slope, 1e-2, sides=1)) == claims.NOT_SEEN
    steep = slope + 3 * START**2
    cubic = lambda theta: bowl(theta) + (theta**3).sum(-1)  # noqa: E731
    assert judge("bowl-slope", error(cubic, steep, 1e-2)) == claims.NOT_SEEN


def test_another_arrow_or_a_flipped_sign_does_not_fall():
    gradient, small = BEND * START, 1e-3
    z = direction(make_key(5, 0), "x", (20_000, 2), family="near_normal").double()
    other = direction(make_key(5, 1), "x", (20_000, 2), family="near_normal").double()
    g = ((bowl(START + z / 8) - bowl(START - z / 8)) * 4)[:, None]

    def fall(move):
        falls = (bowl(START) - bowl(START + small * move)) / small
        return lab.mean_se(falls / (gradient @ gradient))

    assert judge("bowl-average", *fall(-g * z)) == claims.HOLDS
    for wrong in (g * z, -g * other, -2 * g * z):
        assert judge("bowl-average", *fall(wrong)) == claims.NOT_SEEN


@pytest.fixture(scope="module")
def sentences():
    tokenizer = zolab.load_model("tiny")[1]
    data = splits(train=1000, dev=0, test=400)
    return Sentiment(tokenizer, words=("terrible", "great")), data


@torch.no_grad()
def test_moving_along_another_arrow_teaches_the_model_nothing(sentences):
    task, data = sentences
    held, feed = task.batch(data.test[:200]), task.batches(data.train, 32, seed=0)
    eps, lr, fall = 1e-3, 5e-4, {}
    batches = [next(feed) for _ in range(12)]
    for moved in (0, 1):  # the query whose arrow is walked along; 0 was asked about
        model = zolab.load_model("tiny")[0]
        before = float(loss(model, held))
        for step, batch in enumerate(batches):
            asked, walked = make_key(0, step, 0), make_key(0, step, moved)
            start = {n: w.clone() for n, w in model.named_parameters()}

            def put(scale, key, model=model, start=start):
                for n, w in model.named_parameters():
                    w.copy_(start[n] + scale * direction(key, n, w.shape))

            ends = []
            for sign in (1, -1):
                put(sign * eps, asked)
                ends.append(float(loss(model, batch)))
            put(-lr * (ends[0] - ends[1]) / (2 * eps), walked)
        fall[moved] = before - float(loss(model, held))
    assert judge("first-run-falls", fall[0]) == claims.SAME
    assert judge("first-run-falls", fall[1]) != claims.SAME


@torch.no_grad()
def test_the_fitted_scalar_itself_is_no_learning(sentences):
    task, data = sentences
    model, seen = zolab.load_model("tiny")[0], task.batch(data.train)
    from zolab.tasks.sentiment import margins

    margin, label = margins(model, seen), seen.label.float()
    grid = torch.linspace(-3, 3, 601)
    losses = [F.binary_cross_entropy_with_logits(margin + b, label) for b in grid]
    floor = float(min(losses))
    assert judge("first-run-falls", float(loss(model, seen)) - floor) == claims.SAME
    assert judge("first-run-learns", floor - floor) == claims.NOT_SEEN
