"""The exercises of chapter 51; their answers are in solutions/51.py."""

from zolab.lab.exercises import Exercise


def rows(rng):
    pad = eos = 0
    tail = [rng.choice([3, 5, 7]) for _ in range(2)]
    return {"cases": [([[4, 2, eos, pad, pad], [1, *tail, 6, 9]], eos), ([[0, 0]], 0)]}


def rewards(rng):
    r = [float(rng.choice([0, 1, 2])) for _ in range(4)]
    return {"cases": [([*r, 1.0],), ([1.0, 0.0],)]}


def policies(rng):
    p = rng.choice([0.2, 0.3])
    third = round(0.5 - p, 1)
    return {
        "cases": [
            ([0.5, p, third], [0, 0, 1, 2], [1.0, 1.0, 0.0, 0.0]),
            ([0.6, 0.4], [0, 1], [0.0, 3.0]),
        ]
    }


EXERCISES = {
    "mask": Exercise(
        kind="write",
        minutes=12,
        stars=2,
        question="`ids` are rows of drawn tokens, padded on the right with the token "
        "`eos`, as is usual. Return a list of 0 and 1 a row: 1 for each token that the "
        "model chose. A row may have no end token at all.",
        variant=rows,
        hints=(
            "The model chose to stop: that choice is a token too.",
            "A token counts while no end token stands before it.",
        ),
    ),
    "baseline": Exercise(
        kind="derive",
        minutes=8,
        stars=1,
        question="The rewards of a group's answers. Return the advantage of each "
        "against the mean of the others.",
        variant=rewards,
        hints=(
            "The others' sum is the total minus one's own; they are G - 1.",
            "It is G / (G - 1) times the distance from the mean of all.",
        ),
    ),
    "zero": Exercise(
        kind="break",
        minutes=12,
        stars=3,
        question="A policy over n answers (softmax of n logits) has these "
        "probabilities. `drawn` are a batch's answers, `rewards` theirs, b their "
        "mean. The loss -mean(A ratio) is 0. Return its gradient in the logits.",
        variant=policies,
        hints=(
            "At ratio 1 the gradient of the ratio is that of log p.",
            "d log p(y) / d logit j = [y = j] - p_j, and the advantages add up to 0.",
        ),
    ),
}
