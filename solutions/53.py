"""Right and wrong answers to the exercises of chapter 53."""

import math

from zolab.lab.exercises import Solution, Wrong


def std(right, size):
    mean = right / size
    var = right * (size - right) / size / (size - 1)
    return (1 - mean) / math.sqrt(var) if var else 0.0


def population(right, size):
    mean = right / size
    return (1 - mean) / math.sqrt(mean * (1 - mean)) if right else 0.0


def compound(chance, target, bound):
    return math.ceil(math.log(target / chance) / math.log(1 + bound))


def rise(chance, target, clip_low, clip_high):
    return compound(chance, target, clip_low) - compound(chance, target, clip_high)


def linear(chance, target, clip_low, clip_high):
    steps = [(target - chance) / (chance * b) for b in (clip_low, clip_high)]
    return math.ceil(steps[0]) - math.ceil(steps[1])


def pass8(right):
    n, c = len(right), sum(right)
    return 1 - math.comb(n - c, 8) / math.comb(n, 8)


def plug_in(right):
    return 1 - (1 - sum(right) / len(right)) ** 8


SOLUTIONS = {
    "std": Solution(
        right=std,
        wrong={
            "no std": Wrong(
                lambda right, size: 1 - right / size if right else 0.0,
                "that is Dr. GRPO: GRPO divides by the group's std",
            ),
            "population": Wrong(
                population,
                "that is the population's std; the sample's divides by size - 1",
            ),
        },
    ),
    "rise": Solution(
        right=rise,
        wrong={
            "linear": Wrong(
                linear,
                "the bound is relative to the last rollout: it compounds",
            ),
            "no difference": Wrong(
                lambda chance, target, clip_low, clip_high: 0,
                "clip_high is the bound of what rises: the swap makes it lower",
            ),
            "in all": Wrong(
                lambda chance, target, clip_low, clip_high: compound(
                    chance, target, clip_low
                ),
                "that is what the swapped run needs in all; how many more is asked",
            ),
        },
    ),
    "pass8": Solution(
        right=pass8,
        wrong={
            "plug-in": Wrong(
                plug_in,
                "that puts answers back into the urn: too low on average",
            ),
            "first eight": Wrong(
                lambda right: float(any(right[:8])),
                "right on average, but it throws the other answers away",
            ),
            "any": Wrong(
                lambda right: float(any(right)),
                "that is pass@n of all n answers",
            ),
        },
    ),
}
