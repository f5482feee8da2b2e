"""The exercises of chapter 42."""

import random

from zolab.lab.exercises import Exercise


def roundings(rng: random.Random):
    cases = []
    for n, step in ((3, 1.0), (5, 2.0), (4, 0.5)):
        grad = [rng.choice([-2.0, -1.0, 0.5, 3.0]) for _ in range(n)]
        u = [rng.choice([-1.75, -0.25, 0.25, 0.75, 1.25]) for _ in range(n)]
        first, second = ([rng.random() for _ in range(n)] for _ in range(2))
        cases.append((grad, u, step, first, second))
    down, up = [0.1, 0.9], [0.9, 0.1]
    for first, second in ((down, up), (up, down)):
        cases.append(([3.0, 1.0], [0.75, 1.25], 1.0, first, second))
    return {"cases": cases}


def slopes(rng: random.Random):
    big = rng.choice([150.0, 240.0, 400.0])
    signs = [[1.0, -1.0, 1.0], [1.0, 1.0, -1.0]]
    normal = [[2.25, -0.5, 0.25], [0.75, -1.5, 1.0]]
    cases = [([big, -20.0], signs, 100.0, 0.5), ([big, -big / 2], normal, 100.0, 0.1)]
    return {"big": f"{big:g}", "cases": [*cases, ([3.0], [[2.5, 0.5]], 2.0, 1.0)]}


def halves(rng: random.Random):
    count = rng.choice([8, 9, 12])
    ulp = 2.0**-18
    cases = [(0.005, x * ulp, n) for x, n in ((0.3, count), (0.7, count), (2.2, 4))]
    return {"count": count, "cases": cases}


EXERCISES = {
    "roundings": Exercise(
        kind="write",
        minutes=15,
        stars=2,
        question="QuZO on a linear loss with gradient `grad`. Round each u_i down to a "
        "multiple of `step`, or up where the number in `first` is below what is left "
        "over (as a share of step): u1. The same with `second`: u2. Return the "
        "estimate of the gradient, a number a weight.",
        variant=roundings,
        hints=(
            "Of u = 1.25 and step 1 what is left over is 0.25: up if chance < 0.25.",
            "The slope along u1 is sum grad_i u1_i. It moves the weights along u2.",
        ),
    ),
    "clip": Exercise(
        kind="derive",
        minutes=8,
        stars=1,
        question="One step of SPSA with slopes[i] along z[i] (a list a query) and a "
        "bound `clip`, as in QZO. The first case has slopes {big} and -20. Return what "
        "is added to each weight, at this `lr`.",
        variant=slopes,
        hints=(
            "What may explode is a difference over 2 eps: one number a query.",
            "-lr / q times the sum of clip(slope_i) z_i.",
        ),
    ),
    "half": Exercise(
        kind="break",
        minutes=12,
        stars=2,
        question="A scale s is stored in fp16 and takes `count` steps of x ({count} in "
        "the first case), each rounded to nearest, as in QZO's released trainer. "
        "Return how far it has gone, stored after less stored before, in ulps (units of"
        " 2^-18).",
        variant=halves,
        hints=(
            "0.005 is stored in whole ulps. What is 0.3 ulp, rounded?",
            "torch.tensor(s).half() stores; go on from what was stored, in fp32.",
        ),
    ),
}
