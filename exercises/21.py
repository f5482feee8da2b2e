"""The exercises of chapter 21; their answers are in solutions/21.py."""

from zolab.lab.exercises import Exercise


def layers(rng):
    sizes = [rng.choice([12, 30, 48, 100]) for _ in range(3)]
    return {"cases": [(sizes, False), (sizes, True), ([10, 7], False)]}


def curves(rng):
    noise, third = rng.choice([1e-7, 2e-7, 4e-7]), rng.choice([0.5, 2.0, 6.0])
    return {"cases": [(noise, third), (1e-7, 3.0), (3e-3, 9.0)]}


def moments(rng):
    q, d = rng.choice([2, 4, 5, 8]), rng.choice([5, 20, 50])
    names = "rademacher", "near_normal"
    return {"cases": [(f, a, b) for f in names for a, b in ((q, d), (1, 10))]}


EXERCISES = {
    "passes": Exercise(
        kind="derive",
        minutes=8,
        stars=1,
        question="Forward passes of one CGE step over all coordinates of layers that "
        "hold `sizes` weights; `central` is True or False.",
        variant=layers,
        hints=(
            "A pass is one loss of the whole model, with one coordinate moved.",
            "One-sided, all coordinates share one clean loss; central has none.",
        ),
    ),
    "eps": Exercise(
        kind="write",
        minutes=15,
        stars=2,
        question="A two-sided slope is off by noise / eps (rounding of the losses) "
        "plus third * eps^2 / 6 (the third derivative). Return the best eps.",
        variant=curves,
        hints=(
            "The derivative by eps is 0 at the bottom of the U.",
            "noise / eps^2 = third * eps / 3.",
        ),
    ),
    "variance": Exercise(
        kind="derive",
        minutes=12,
        stars=2,
        question='E|estimate - gradient|^2 over |gradient|^2 for family "rademacher" '
        'or "near_normal" (take exact normal numbers), q directions, d weights.',
        variant=moments,
        hints=(
            "One direction: E|z (z'g)|^2 is d |g|^2 for signs. For normal z turn the "
            "axes so that g lies on one; you need E z^4 = 3.",
            "Take off |g|^2; the mean of q independent ones has the variance over q.",
        ),
    ),
}
