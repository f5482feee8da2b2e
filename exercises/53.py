"""The exercises of chapter 53; their answers are in solutions/53.py."""

from zolab.lab.exercises import Exercise


def groups(rng):
    size = rng.choice([8, 16])
    return {"cases": [(2, size), (size - 1, size), (0, size)]}


def bounds(rng):
    chance = rng.choice([0.01, 0.02])
    return {"cases": [(chance, 0.5, 0.2, 0.28), (0.001, 0.4, 0.1, 0.3)]}


def answers(rng):
    c = rng.choice([2, 3])
    return {"cases": [([0] * 9 + [1] * c + [0] * (7 - c),), ([1] + [0] * 9,)]}


EXERCISES = {
    "std": Exercise(
        kind="derive",
        minutes=8,
        stars=1,
        question="Of a group of `size` answers `right` have reward 1, the others 0. "
        "Return what GRPO tells a right answer, without delta: its distance from the "
        "mean over the sample's std; 0 where all rewards are equal.",
        variant=groups,
        hints=(
            "The sample's variance divides by size - 1.",
            "The squares add up to right (size - right) / size.",
        ),
    ),
    "rise": Exercise(
        kind="break",
        minutes=10,
        stars=2,
        question="A right token of probability `chance` is pushed to its bound on "
        "every rollout. A run takes strangely long: somebody has passed clip_low as "
        "clip_high and the other way round. How many rollouts more does it need to "
        "reach `target`? Count whole rollouts.",
        variant=bounds,
        hints=(
            "Each rollout multiplies; after n of them it is (1 + bound) to the n.",
            "The difference of two logarithms over logarithms, each rounded up.",
        ),
    ),
    "pass8": Exercise(
        kind="write",
        minutes=8,
        stars=2,
        question="`right` has a 0 or a 1 for each of the answers drawn to one prompt, "
        "eight or more. Return the unbiased estimate of pass@8 that uses them all.",
        variant=answers,
        hints=(
            "Of all ways to choose eight of them, how many hold no right one?",
            "1 - C(n - c, 8) / C(n, 8), with math.comb.",
        ),
    ),
}
