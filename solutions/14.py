"""Right and wrong answers to the exercises of chapter 14."""

import math
import statistics

from zolab.lab.exercises import Solution, Wrong
from zolab.tasks import fit_bias


def share_right(margin, label):
    return float(((margin > 0) == (label > 0.5)).double().mean())


def bias_only(train_margin, train_label, test_margin, test_label):
    b = fit_bias(train_margin, train_label)
    return share_right(test_margin + b, test_label)


def bias_on_test(train_margin, train_label, test_margin, test_label):
    return bias_only(test_margin, test_label, test_margin, test_label)


def bias_by_median(train_margin, train_label, test_margin, test_label):
    return share_right(test_margin - test_margin.median(), test_label)


def variance(accuracies, held):
    p = statistics.mean(accuracies)
    seeds = statistics.variance(accuracies) / len(accuracies)
    return seeds, p * (1 - p) / held


def three_errors(accuracies, held):
    return 3 * math.sqrt(sum(variance(accuracies, held)))


def spread_of_one(accuracies, held):
    seeds, sentences = variance(accuracies, held)
    return 3 * math.sqrt(seeds * len(accuracies) + sentences)


def sentences_over_seeds(accuracies, held):
    seeds, sentences = variance(accuracies, held)
    return 3 * math.sqrt(seeds + sentences / len(accuracies))


def flat(shares, batch):
    return statistics.mean((1 - p) ** batch for p in shares)


SOLUTIONS = {
    "bias": Solution(
        right=bias_only,
        wrong={
            "fitted on test": Wrong(
                bias_on_test,
                "that bias was fitted on the test labels: no row may see them. It is "
                "the best that one number could do, which nobody can do blindly",
            ),
            "median of test": Wrong(
                bias_by_median,
                "no label was used, but the test sentences were, and that half of them "
                "praise: a row answers each sentence as if it were the only one",
            ),
            "no bias": Wrong(
                lambda a, b, c, d: share_right(c, d),
                "that is the model as it is: zero-shot",
            ),
            "on training": Wrong(
                lambda a, b, c, d: bias_only(a, b, a, b),
                "that is the accuracy on the sentences that chose the bias",
            ),
        },
    ),
    "interval": Solution(
        right=three_errors,
        wrong={
            "spread of one": Wrong(
                spread_of_one,
                "that is the standard deviation of one seed; the mean of n seeds is "
                "known better, its variance is one over n of it",
            ),
            "seeds only": Wrong(
                lambda a, held: 3 * math.sqrt(variance(a, held)[0]),
                "seeds are not all: other sentences would have given another accuracy, "
                "and every seed read the same ones",
            ),
            "sentences only": Wrong(
                lambda a, held: 3 * math.sqrt(variance(a, held)[1]),
                "sentences are not all: another seed would have given another model",
            ),
            "sentences over seeds": Wrong(
                sentences_over_seeds,
                "five models that read the same sentences do not make five times as "
                "many sentences: p (1 - p) / held stays",
            ),
            "one": Wrong(
                lambda a, held: three_errors(a, held) / 3,
                "that is one standard error; the ledger's bar is three",
            ),
        },
    ),
    "flat": Solution(
        right=flat,
        wrong={
            "a batch of one": Wrong(
                lambda shares, batch: flat(shares, 1),
                "that is a batch of one sentence: a step function of one answer, which "
                "is almost always flat. Each sentence has its own chance to turn",
            ),
            "average first": Wrong(
                lambda shares, batch: (1 - statistics.mean(shares)) ** batch,
                "you averaged the directions first: one that turns nobody stays flat "
                "with any batch, and the mean hides it. Average last",
            ),
            "it sees something": Wrong(
                lambda shares, batch: 1 - flat(shares, batch),
                "that is the share of steps that see something",
            ),
            "linear": Wrong(
                lambda shares, batch: statistics.mean(
                    max(0.0, 1 - batch * p) for p in shares
                ),
                "chances to stay multiply, they do not add: (1 - p)^B",
            ),
        },
    ),
}
