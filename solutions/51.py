"""Right and wrong answers to the exercises of chapter 51."""

from zolab.lab.exercises import Solution, Wrong


def mask(ids, eos):
    return [[int(eos not in row[:t]) for t in range(len(row))] for row in ids]


def by_value(ids, eos):
    return [[int(x != eos) for x in row] for row in ids]


def others(rewards):
    g, total = len(rewards), sum(rewards)
    return [r - (total - r) / (g - 1) for r in rewards]


def all_of_them(rewards):
    mean = sum(rewards) / len(rewards)
    return [r - mean for r in rewards]


def gradient(probabilities, drawn, rewards):
    n, b = len(drawn), sum(rewards) / len(rewards)
    pairs = list(zip(drawn, rewards, strict=True))
    return [
        -sum((r - b) * ((y == j) - p) for y, r in pairs) / n
        for j, p in enumerate(probabilities)
    ]


def without_baseline(probabilities, drawn, rewards):
    pairs = list(zip(drawn, rewards, strict=True))
    return [
        -sum(r * ((y == j) - p) for y, r in pairs) / len(drawn)
        for j, p in enumerate(probabilities)
    ]


SOLUTIONS = {
    "mask": Solution(
        right=mask,
        wrong={
            "by value": Wrong(
                by_value,
                "that leaves the end token out: the model never learns to stop",
            ),
            "everything": Wrong(
                lambda ids, eos: [[1] * len(row) for row in ids],
                "the padding was not chosen by the model: nobody drew it",
            ),
        },
    ),
    "baseline": Solution(
        right=others,
        wrong={
            "own sample inside": Wrong(
                all_of_them,
                "that mean has one's own reward in it: too small by (G - 1) / G",
            ),
            "other way round": Wrong(
                lambda r: [-x for x in others(r)],
                "better than the others is a positive advantage",
            ),
        },
    ),
    "zero": Solution(
        right=gradient,
        wrong={
            "zero": Wrong(
                lambda p, y, r: [0.0] * len(p),
                "the loss is 0 because its terms cancel; their gradients do not",
            ),
            "uphill": Wrong(
                lambda p, y, r: [-x for x in gradient(p, y, r)],
                "that is the gradient of the reward; the loss has the other sign",
            ),
            "no baseline": Wrong(
                without_baseline,
                "subtract b first: here it changes the estimate, if not its mean",
            ),
        },
    ),
}
