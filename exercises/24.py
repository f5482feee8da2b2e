"""The exercises of chapter 24; their answers are in solutions/24.py."""

from zolab.lab.exercises import Exercise


def masked(rng):
    q, moved = rng.choice([1, 4, 16]), rng.choice([50, 200])
    kept = rng.choice([0.3, 0.6])
    return {"cases": [(q, 1000, moved, kept), (1, 100, 10, 0.9), (1, 100, 100, 1.0)]}


def crossings(rng):
    w = rng.choice([0.95, 0.97])
    cases = [(w, 1, 1.0, 0.1), (w, -1, 1.0, 0.1), (0.5, 1, 1.0, 0.1)]
    return {"cases": [*cases, (1.05, -1, 1.0, 0.1), (-0.99, -1, 1.0, 0.05)]}


def streams(rng):
    every, m, n, r = rng.choice([5, 10]), 6, rng.choice([4, 8]), rng.choice([1, 2])
    return {"cases": [(t, every, m, n, r) for t in (0, 1, every, every + 1)]}


EXERCISES = {
    "cosine": Exercise(
        kind="derive",
        minutes=10,
        stars=2,
        question="Of d weights `moved` move, and they hold the share `kept` of the "
        "squared gradient; q directions of signs. About which squared cosine does the "
        "estimate have with the *whole* gradient? Arguments: q, d, moved, kept.",
        variant=masked,
        hints=(
            "First the squared cosine with the masked gradient; then that of the "
            "masked gradient with the whole one. Frozen weights are 0 in both.",
            "The masked estimate lives among `moved` weights: how many are frozen "
            "beside them cannot be seen in a loss.",
        ),
    ),
    "restore": Exercise(
        kind="break",
        minutes=12,
        stars=2,
        question="A program moves one weight w in place by +eps z, -2 eps z, +eps z, "
        "and before each of the three moves asks whether |w| <= h *now*; if not, it "
        "skips the move. Return the weight at the end. Arguments: w, z, h, eps.",
        variant=crossings,
        hints=(
            "Write the loop: three scales, one question each.",
            "A weight just below h that goes up is above h when it should come back.",
        ),
    ),
    "lazy": Exercise(
        kind="write",
        minutes=12,
        stars=2,
        question="A seeded stream gives the numbers 0, 1, 2, ... A probe at step t "
        "draws V (n x r numbers) first if `every` divides t, then U (m x r). The "
        "update starts the stream again and needs U only. Return the place in the "
        "stream at which it must begin. Arguments: t, every, m, n, r.",
        variant=streams,
        hints=(
            "The update must get the numbers that the probe got.",
            "On a step that draws V, U does not lie at the stream's beginning.",
        ),
    ),
}
