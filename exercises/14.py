"""The exercises of chapter 14; their answers are in solutions/14.py."""

import torch

from zolab.lab.exercises import Exercise


def answers(rng):
    g = torch.Generator().manual_seed(rng.randrange(1000))

    def side(n, shift):
        label = torch.arange(n) % 2
        margin = torch.randn(n, generator=g) + 0.8 * label + shift
        return margin, label.float()

    def case(shift):
        return (*side(60, shift), *side(40, shift + 0.7))

    return {"cases": [case(1.5), case(-2.0), case(0.9)]}


def scores(rng):
    def case(n, held):
        return [round(rng.uniform(0.55, 0.75), 3) for _ in range(n)], held

    return {"cases": [case(5, 1000), case(5, 200), case(3, 1808)]}


def shares(rng):
    def case(n, batch):
        low = [0.0, 0.0, round(rng.uniform(0.001, 0.01), 3)]
        return low + [round(rng.uniform(0.05, 0.6), 2) for _ in range(n)], batch

    return {"cases": [case(5, 16), case(3, 64), case(4, 3)]}


EXERCISES = {
    "bias": Exercise(
        kind="write",
        minutes=12,
        stars=1,
        question="Four tensors: margins and labels (1: praise) of training sentences, "
        "then of test sentences. Return the test accuracy of the bias-only row: one "
        "number added to every margin. Candidates: one halfway between each pair of "
        "neighbouring margins; the best accuracy wins, of equals the lower loss "
        "(zolab.tasks.fit_bias does this).",
        variant=answers,
        hints=(
            "A row may learn from training sentences only. The bias is learned, too.",
            "b = fit_bias(train_margin, train_label), then score test_margin + b.",
        ),
    ),
    "interval": Exercise(
        kind="derive",
        minutes=10,
        stars=2,
        question="A list of accuracies, one a seed, each on the same `held` held-out "
        "sentences. Return three standard errors of their mean, seeds and sentences "
        "together: the variance over seeds (n - 1 below) and p (1 - p) of the mean p "
        "over sentences.",
        variant=scores,
        hints=(
            "Two independent reasons to be off: add their variances, then the root.",
            "A mean of n seeds has the variance of one over n; a share of `held` "
            "sentences p (1 - p) / held, however many seeds read them.",
        ),
    ),
    "flat": Exercise(
        kind="break",
        minutes=10,
        stars=2,
        question="The objective counts right answers. Along direction i the two probes "
        "differ on a share shares[i] of all sentences. Return the share of steps in "
        "which no answer of a random batch (drawn with replacement) turns over; each "
        "direction is equally likely.",
        variant=shares,
        hints=(
            "Fix a direction. Each of the sentences turns with probability p.",
            "(1 - p)^B along one direction; average over directions afterwards.",
        ),
    ),
}
