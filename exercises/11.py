"""The exercises of chapter 11; their answers are in solutions/11.py."""

import torch

from zolab.lab.exercises import Exercise


def bowl(x):
    return (torch.arange(1, len(x) + 1) * x**2).sum() / 2


def points(rng):
    def case(eps):
        x = torch.tensor([rng.choice([-3, -2, -1, 1, 2, 3]) for _ in range(5)])
        return bowl, x.float(), rng.randrange(1000), eps

    return {"cases": [case(0.5), case(0.25), case(0.5)]}


def shapes(rng):
    q, d = rng.choice([2, 4, 5, 8]), rng.choice([50, 200, 1000])
    return {"cases": [(q, d), (1, 100), (7, 1000)]}


def rates(rng):
    lr, d = rng.choice([0.01, 0.02, 0.05]), rng.choice([100, 200, 500])
    return {"cases": [(lr, d, 10 * d), (lr, d, 4 * d), (3.0, 10, 5)]}


EXERCISES = {
    "spsa": Exercise(
        kind="write",
        minutes=15,
        stars=1,
        question="One direction; its key is make_key(seed, 0, 0) and its name "
        '"x". Return the estimate of the gradient of loss at x.',
        variant=points,
        hints=(
            "Two points, x + eps z and x - eps z. How far apart are they along z?",
            "slope = (up - down) / (2 * eps); the estimate is slope * z, the same z.",
        ),
    ),
    "error": Exercise(
        kind="derive",
        minutes=8,
        stars=1,
        question="The mean of |estimate - gradient|^2 over |gradient|^2, for q "
        "directions of signs in d dimensions.",
        variant=shapes,
        hints=(
            "One direction: |g z|^2 is d |gradient|^2 on average. Take off the mean.",
            "The mean of q independent estimates has the variance of one over q.",
        ),
    ),
    "lr": Exercise(
        kind="break",
        minutes=12,
        stars=2,
        question="lr works for d equal live axes. Return the lr for new_d of them. "
        "Then try: what does steps_needed(torch.ones(100), 1 / 10, 0) return, and why?",
        variant=rates,
        hints=(
            "The second-order cost of a step grows with |g z|^2, which is about d.",
            "Every axis is alive, so the trace of the curvature is proportional to d.",
        ),
    ),
}
