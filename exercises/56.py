"""The exercises of chapter 56; their answers are in solutions/56.py."""

from zolab.lab.exercises import Exercise


def population(rng):
    eps = rng.choice([0.01, 0.02, 0.005])
    rewards = [[rng.choice([0.25, 0.5]), 0.5], [0.75, 0.25], [0.5, 0.625]]
    return {"cases": [(rewards, eps, 0.5), ([[1.0, 0.0]], 0.1, 0.2)]}


def tied(rng):
    r = [rng.choice([0.25, 0.5]), 0.75, 0.5, 0.75, 0.0]
    return {"cases": [(r,), ([1.0, 3.0, 2.0],), ([2.0, 2.0],)]}


def pairs(rng):
    up = [1, 1, 0, 1, 0, rng.choice([0, 1]), 1, 0]
    down = [1, 1, 0, 0, 0, 1, 1, 0]
    return {"cases": [(up, down), ([1, 0, 1, 0], [1, 0, 1, 0])]}


EXERCISES = {
    "lr": Exercise(
        kind="derive",
        minutes=8,
        stars=2,
        question="`rewards` has a row [R at + eps z, R at - eps z] a direction. A "
        "paper's ES takes z-scores of all of them (std over n), divides by no sigma, "
        "and steps with `lr`. Return the lr with which SPSA on the raw rewards, with "
        "the same eps, makes the same step.",
        variant=population,
        hints=(
            "Both are a sum over directions; compare what stands before R+ - R-.",
            "ES has lr / (2 q std) there, SPSA its lr / (2 q eps).",
        ),
    ),
    "ranks": Exercise(
        kind="write",
        minutes=15,
        stars=2,
        question="Return the centred ranks of `rewards`: -1/2 for the lowest, 1/2 for "
        "the highest, evenly spaced between. Rewards that tie share the mean of their "
        "ranks.",
        variant=tied,
        hints=(
            "A member's rank: how many are below it, and half of those level with it.",
            "Not counting itself, (below - above) / (2 (n - 1)).",
        ),
    ),
    "prompts": Exercise(
        kind="break",
        minutes=12,
        stars=3,
        question="A run's slopes are far noisier than planned: each member drew its "
        "own questions. `up` and `down` are 0 or 1 a question, of two members on the "
        "same n questions. Return (the variance of the difference of their means with "
        "common questions, the same with fresh ones), with variances over n.",
        variant=pairs,
        hints=(
            "With common questions the difference is one number a question.",
            "Independent means add their variances; a mean of n has 1 / n of one's.",
        ),
    ),
}
