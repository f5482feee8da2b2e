"""The exercises of chapter 23; their answers are in solutions/23.py."""

from zolab.lab.exercises import Exercise


def windows(rng):
    slopes = [rng.choice([-3.0, -1.0, 2.0, 5.0]) for _ in range(7)]
    beta = rng.choice([0.5, 0.8, 0.9])
    return {"cases": [(slopes, beta, 4), ([1.0] * 9, 0.7, 3), ([2.0, -1.0], 0.5, 6)]}


def gradients(rng):
    big = rng.choice([3.0, 4.0, 6.0])
    return {"cases": [([big, 1.0, 1.0, -2.0],), ([0.6, -0.8, 0.0],)]}


def grids(rng):
    up = rng.choice([0.01, 0.02, 0.03])
    ours = [0.60, 0.66, 0.70, 0.75 + up, 0.72], [0.61, 0.65, 0.71, 0.73 + up, 0.76]
    theirs = [0.62, 0.74, 0.69, 0.55, 0.51], [0.63, 0.72, 0.75 + up, 0.56, 0.50]
    again = [0.5, 0.6, 0.8], [0.55, 0.62, 0.79], [0.83, 0.7, 0.5], [0.81, 0.72, 0.6]
    return {"cases": [(*ours, *theirs), again]}


EXERCISES = {
    "window": Exercise(
        kind="write",
        minutes=15,
        stars=2,
        question="Step t found slopes[t] along z_t, newest last. The heavy ball m_t = "
        "beta m_(t-1) + g_t is kept as the newest `window` keys. Return what "
        "multiplies each z in m after the last step, oldest first, 0 where it was cut.",
        variant=windows,
        hints=(
            "Written out, m_t = g_t + beta g_(t-1) + beta^2 g_(t-2) + ...",
            "The slope of `age` steps ago weighs beta^age while age < window.",
        ),
    ),
    "sign": Exercise(
        kind="derive",
        minutes=8,
        stars=2,
        question="A linear loss with gradient `grad`; z is exactly normal, the slope "
        "g = z'grad. Return the mean of sign(g) z, a number a weight.",
        variant=gradients,
        hints=(
            "Turn the axes so that grad lies on the first: only z_1 and g agree.",
            "E|z_1| = sqrt(2 / pi), along grad / |grad|.",
        ),
    ),
    "fair": Exercise(
        kind="break",
        minutes=12,
        stars=1,
        question="Accuracies over the same lr grid: our_dev, our_test, their_dev, "
        "their_test (validation and test of two optimizers; their paper takes the "
        "middle lr). Return the difference of test accuracies that you would report.",
        variant=grids,
        hints=(
            "Each side has the same number of tries, and neither looks at test.",
            "The lr of each side is the best on its own dev row.",
        ),
    ),
}
