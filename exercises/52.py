"""The exercises of chapter 52; their answers are in solutions/52.py."""

from zolab.lab.exercises import Exercise


def tokens(rng):
    z = [float(rng.choice([-1, 0, 1])), 2.0, float(rng.choice([-2, 3]))]
    t = rng.choice([0.5, 0.7])
    return {"cases": [(z, 1, t), (z, 2, t), ([1.0, 3.0], 0, 0.5)]}


def losses(rng):
    a, b = (float(rng.choice([1, 2, 3])) for _ in range(2))
    return {
        "cases": [
            ([[[a, 1.0], [2.0]], [[b, 3.0, 1.0, 2.0], [4.0, 1.0]]],),
            ([[[a]], [[b, b, 2.0]], [[1.0, 5.0]]],),
        ]
    }


def ends(rng):
    p = rng.choice([0.1, 0.2, 0.3])
    return {"cases": [(p, 1.0, 0.25), (0.6, 0.5, 2.0)]}


EXERCISES = {
    "temperature": Exercise(
        kind="derive",
        minutes=8,
        stars=1,
        question="A sampler drew token `y` of these `logits` at temperature `t`; the "
        "trainer forgets `t`. Return the ratio of the token before the first step.",
        variant=tokens,
        hints=(
            "Write down both log-probabilities; each has a sum of its own.",
            "softmax(logits)[y] over softmax(logits / t)[y].",
        ),
    ),
    "micro": Exercise(
        kind="write",
        minutes=12,
        stars=2,
        question="`parts` are micro-batches: lists of rows, a row the losses of its "
        "learnt tokens. Return what each must add, so that the sum is the mean over "
        "the tokens of the whole batch.",
        variant=losses,
        hints=(
            "Which denominator is the same for all micro-batches?",
            "Count the tokens of all parts before the first backward pass.",
        ),
    ),
    "eos": Exercise(
        kind="break",
        minutes=15,
        stars=3,
        question="A model stops at once with probability p = sigmoid(s), else says one "
        "word and is cut off. Stopping is worth `stop`, going on `go`; the baseline b "
        "is the mean reward. Return [E[A d log p / ds], the same with the end token "
        "lost from the mask].",
        variant=ends,
        hints=(
            "d log p / ds is 1 - p of the end token, and -p of a word.",
            "Of the answers that stopped nothing is left: (1 - p) (go - b) (-p).",
        ),
    ),
}
