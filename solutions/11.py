"""Right and wrong answers to the exercises of chapter 11."""

import torch

from zolab import direction, make_key
from zolab.lab.exercises import Exercise, Wrong


def spsa(loss, x, seed, eps):
    z = direction(make_key(seed, 0, 0), "x", x.shape)
    slope = (loss(x + eps * z) - loss(x - eps * z)) / (2 * eps)
    return slope * z


def spsa_over_eps(loss, x, seed, eps):
    return 2 * spsa(loss, x, seed, eps)


def spsa_new_z(loss, x, seed, eps):
    asked = direction(make_key(seed, 0, 0), "x", x.shape)
    slope = (loss(x + eps * asked) - loss(x - eps * asked)) / (2 * eps)
    return slope * direction(make_key(seed, 0, 1), "x", x.shape)


def spsa_one_sided(loss, x, seed, eps):
    z = direction(make_key(seed, 0, 0), "x", x.shape)
    return (loss(x + eps * z) - loss(x)) / eps * z


def bowl(x):
    return (torch.arange(1, len(x) + 1) * x**2).sum() / 2


def error(q, d):
    return (d - 1) / q


def new_lr(lr, d, new_d):
    return lr * d / new_d


AT = torch.tensor([1.0, -2.0, 0.5, 3.0, 1.0])
EXERCISES = {
    "spsa": Exercise(
        right=spsa,
        cases=((bowl, AT, 1, 0.5), (bowl, AT, 2, 0.25), (bowl, 2 * AT, 3, 0.5)),
        hints=(
            "Two points, x + eps z and x - eps z. How far apart are they along z?",
            "slope = (up - down) / (2 * eps); the estimate is slope * z, the same z.",
        ),
        wrong={
            "over eps": Wrong(
                spsa_over_eps,
                "twice too long: the two points are 2 eps apart, not eps",
            ),
            "new z": Wrong(
                spsa_new_z,
                "you asked along one direction and moved along another: the answer "
                "tells nothing about it. Draw z once, or draw it again from its key",
            ),
            "one-sided": Wrong(
                spsa_one_sided,
                "that is the one-sided difference: it also measures eps z'Hz / 2",
            ),
        },
        # in fp32 the difference of two losses keeps five digits
        tol=1e-4,
    ),
    "error": Exercise(
        right=error,
        cases=((1, 100), (10, 100), (7, 1000)),
        hints=(
            "One direction: |g z|^2 is d |gradient|^2 on average. Take off the mean.",
            "The mean of q independent estimates has the variance of one over q.",
        ),
        wrong={
            "q squared": Wrong(
                lambda q, d: (d - 1) / q**2,
                "1/q^2 is what dividing ONE sum by q does to its square; but the sum "
                "of q independent errors has q times the variance: q / q^2 = 1 / q",
            ),
            "root": Wrong(
                lambda q, d: ((d - 1) / q) ** 0.5,
                "that is the size of the error; the question asks for its square",
            ),
            "second moment": Wrong(
                lambda q, d: (q + d - 1) / q,
                "that is |estimate|^2; the error has the gradient itself taken off",
            ),
        },
    ),
    "lr": Exercise(
        right=new_lr,
        cases=((0.01, 100, 1000), (0.01, 100, 400), (3.0, 10, 5)),
        hints=(
            "The second-order cost of a step grows with |g z|^2, which is about d.",
            "Every axis is alive, so the trace of the curvature is proportional to d.",
        ),
        wrong={
            "none": Wrong(
                lambda lr, d, new_d: lr,
                "with the old lr the step's length, and with it the damage, grows "
                "with d: the loss would rise. The gradient's lr needs no change, "
                "the estimate's does",
            ),
            "root": Wrong(
                lambda lr, d, new_d: lr * (d / new_d) ** 0.5,
                "that keeps the step's length; but the useful part of the step is "
                "only 1/sqrt(d) of it, so lr must shrink once more",
            ),
        },
    ),
}
