"""Right and wrong answers to the exercises of chapter 21."""

from zolab.lab.exercises import Solution, Wrong


def passes(sizes, central):
    return 2 * sum(sizes) if central else sum(sizes) + 1


def best_eps(noise, third):
    return (3 * noise / third) ** (1 / 3)


def variance(family, q, d):
    return (d - 1) / q if family == "rademacher" else (d + 1) / q


SOLUTIONS = {
    "passes": Solution(
        right=passes,
        wrong={
            "d per layer": Wrong(
                lambda sizes, central: len(sizes) * passes(sizes, central),
                "that is d passes for each layer; a coordinate lies in one layer and "
                "is asked once, so all layers together cost d",
            ),
            "a clean loss per layer": Wrong(
                lambda sizes, central: (
                    passes(sizes, central) + (0 if central else len(sizes) - 1)
                ),
                "the clean loss is the same for every layer: ask it once",
            ),
            "layers at once": Wrong(
                lambda sizes, central: passes([max(sizes)], central),
                "two layers moved in one pass give one number: you could not tell "
                "whose slope it is",
            ),
            "no clean loss": Wrong(
                lambda sizes, central: (2 if central else 1) * sum(sizes),
                "one-sided differences need the loss without any move, once",
            ),
            "always one-sided": Wrong(
                lambda sizes, central: sum(sizes) + 1,
                "central asks two points a coordinate, and no clean loss",
            ),
        },
    ),
    "eps": Solution(
        right=best_eps,
        wrong={
            "smallest": Wrong(
                lambda noise, third: 1e-12,
                "the smallest does not win: the losses' rounding is divided by eps, "
                "so below the bottom of the U the slope is noise",
            ),
            "equal parts": Wrong(
                lambda noise, third: (6 * noise / third) ** (1 / 3),
                "there the two errors are equal, which is not where their sum is "
                "least: one falls as 1/eps, the other grows as eps^2",
            ),
            "square root": Wrong(
                lambda noise, third: (noise / third) ** 0.5,
                "a square root belongs to the one-sided slope, whose error grows as "
                "eps and not as eps^2",
            ),
        },
    ),
    "variance": Solution(
        right=variance,
        wrong={
            "equal": Wrong(
                lambda family, q, d: (d - 1) / q,
                "they are not equal: a normal z also varies in length, and a long one "
                "is asked harder and moves further. E z^4 is 3, not 1",
            ),
            "second moment": Wrong(
                lambda family, q, d: (d if family == "rademacher" else d + 2) / q,
                "that is E|estimate|^2 of one direction over q; take off the gradient",
            ),
            "q squared": Wrong(
                lambda family, q, d: variance(family, q, d) / q,
                "the mean of q independent errors has the variance over q, not q^2",
            ),
            "swapped": Wrong(
                lambda family, q, d: (d + 1 if family == "rademacher" else d - 1) / q,
                "the other way round: |z|^2 = d always for signs, so theirs is smaller",
            ),
        },
    ),
}
