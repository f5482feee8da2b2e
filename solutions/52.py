"""Right and wrong answers to the exercises of chapter 52."""

from math import exp

from zolab.lab.exercises import Solution, Wrong


def chance(logits, y, t=1.0):
    return exp(logits[y] / t) / sum(exp(z / t) for z in logits)


def ratio(logits, y, t):
    return chance(logits, y) / chance(logits, y, t)


def count(parts):
    return sum(len(row) for part in parts for row in part)


def total(part):
    return sum(sum(row) for row in part)


def shares(parts):
    return [total(part) / count(parts) for part in parts]


def local(parts):
    return [total(part) / count([part]) for part in parts]


def both(p, stop, go):
    b = p * stop + (1 - p) * go
    word = (1 - p) * (go - b) * -p
    return [p * (stop - b) * (1 - p) + word, word]


SOLUTIONS = {
    "temperature": Solution(
        right=ratio,
        wrong={
            "unseen": Wrong(
                lambda logits, y, t: 1.0,
                "the weights are the same, the distributions are not: 1 only at t = 1",
            ),
            "no sums": Wrong(
                lambda logits, y, t: exp(logits[y] - logits[y] / t),
                "the two softmaxes have different sums: they do not cancel",
            ),
            "other way round": Wrong(
                lambda logits, y, t: 1 / ratio(logits, y, t),
                "the trainer's probability stands above, the sampler's below",
            ),
        },
    ),
    "micro": Solution(
        right=shares,
        wrong={
            "local mean": Wrong(
                local,
                "each divides by its own tokens: the sum grows with their number",
            ),
            "mean of means": Wrong(
                lambda parts: [x / len(parts) for x in local(parts)],
                "a token weighs more in a micro-batch of short answers",
            ),
            "rows": Wrong(
                lambda parts: [total(p) / sum(map(len, parts)) for p in parts],
                "that is a mean over rows: long ones would weigh more",
            ),
        },
    ),
    "eos": Solution(
        right=both,
        wrong={
            "the same": Wrong(
                lambda p, stop, go: [both(p, stop, go)[0]] * 2,
                "answers that stopped have no token left: count who still pushes",
            ),
            "nothing": Wrong(
                lambda p, stop, go: [both(p, stop, go)[0], 0.0],
                "a word's log-probability knows s too: each word pushes by -p",
            ),
            "no baseline": Wrong(
                lambda p, stop, go: [both(p, stop, go)[0], (1 - p) * go * -p],
                "subtract b: a word that is worse than the mean pushes s up",
            ),
        },
    ),
}
