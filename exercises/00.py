"""The exercises of chapter 00; their answers are in solutions/00.py."""

from zolab.lab.exercises import Exercise


def heights(rng):
    eps, lr = rng.choice([0.1, 0.2, 0.5]), rng.choice([0.01, 0.05])
    return {"cases": [(2.5, 2.1, eps, lr), (0.7, 1.9, eps, lr), (1.2, 1.1, 0.05, lr)]}


def roundings(rng):
    c, u = rng.choice([0.5, 2.0, 5.0]), rng.choice([1e-7, 4e-7, 1e-6])
    return {"c": c, "u": u, "cases": [(c, u), (1.0, 1e-6), (3.0, 1e-9)]}


def crews(rng):
    d, steps = rng.choice([1_000, 1_180_800, 125_000_000]), rng.choice([30, 500])
    workers = rng.choice([2, 3, 5])
    cases = [(d, steps, workers), (10, 7, 3), (100, 9, 2)]
    return {"d": d, "steps": steps, "workers": workers, "cases": cases}


EXERCISES = {
    "sign": Exercise(
        kind="write",
        minutes=5,
        stars=1,
        question="The height is ahead at theta + eps z and behind at theta - eps z. "
        "The step of equation (1) is theta + c z. Return c.",
        variant=heights,
        hints=(
            "If it is higher ahead than behind, which way should you walk?",
            "The slope is (ahead - behind) / (2 eps). A step goes against it.",
        ),
    ),
    "eps": Exercise(
        kind="derive",
        minutes=8,
        stars=2,
        question="On a loss that is no bowl the slope is off by c eps^2 (the third "
        "derivative) plus u / eps (rounding), say c = {c} and u = {u}. Return the eps "
        "with the smallest sum, to four digits.",
        variant=roundings,
        hints=(
            "One error grows with eps, the other as eps shrinks. What does the sum "
            "look like, drawn over eps?",
            "At the lowest point the derivative is zero: 2 c eps = u / eps^2.",
        ),
    ),
    "count": Exercise(
        kind="derive",
        minutes=5,
        stars=1,
        question="{workers} machines hold the same {d:,} weights and know seed, lr and "
        "eps. One of them computes both losses of every step. How many numbers must it "
        "send to each of the others, so that all have the same weights after {steps} "
        "steps?",
        variant=crews,
        hints=(
            "What does equation (1) need, and which of it can a machine draw again?",
            "z follows from the seed and the step. One thing is left.",
        ),
    ),
}
