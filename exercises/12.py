"""The exercises of chapter 12; their answers are in solutions/12.py."""

import torch

from zolab.lab.exercises import Exercise

BF16 = torch.bfloat16


def walks(rng):
    n, k = rng.choice([300, 1000, 3000, 20_000]), rng.choice([8, 9, 11])
    return {"n": n, "cases": [(n, 2.0**-k), (4 * n, 2.0**-k), (n, 2.0**-20)]}


def gains(rng):
    # gains of three powers of two, none where eps is exactly half a step; what a gain
    # loses when it is stored is chosen so that forgetting to store it is seen
    def some():
        low = [rng.uniform(0.26, 0.49) for _ in range(rng.choice([2, 3]))]
        mid = [(rng.randrange(134, 250) + rng.uniform(0, 0.2)) / 256 for _ in range(3)]
        high = [
            (rng.randrange(140, 240) + rng.uniform(0.4, 0.48)) / 128 for _ in "abcd"
        ]
        return low + mid + high

    return {"cases": [(some(), 1e-3), (some(), 2.5e-3), (some(), 1.5e-3)]}


def weights(rng):
    seed = rng.randrange(1000)

    def case(i):
        g = torch.Generator().manual_seed(seed + i)
        w = 0.1 * torch.randn(256, generator=g)
        w[::8] = 1e-5 * torch.randn(32, generator=g)  # much smaller than the probe
        return w.to(BF16), (1e-3 * torch.randn(256, generator=g)).to(BF16)

    return {"cases": [case(0), case(1), case(2)]}


EXERCISES = {
    "drift": Exercise(
        kind="derive",
        minutes=8,
        stars=1,
        question="A probe is much larger than the weight's ulp. How far from its start "
        "is the weight after n steps of learning rate 0 (n = {n}, say)? Root mean "
        "square, in the same units as the argument ulp.",
        variant=walks,
        hints=(
            "What is left after one step? Equation (2): 0 or one ulp. How often?",
            "Independent steps of mean 0: the squares add, not the lengths.",
        ),
    ),
    "gains": Exercise(
        kind="break",
        minutes=12,
        stars=2,
        question="gains is a list of floats; a bf16 model stores each rounded. Which "
        "share of the stored ones does a probe of +eps (z = 1 everywhere) move at all?",
        variant=gains,
        hints=(
            "Between 1 and 2 the bf16 numbers are 2**-7 apart, between 0.5 and 1 half "
            "of that.",
            "A sum is stored as the nearest number: what lies within half an ulp of "
            "the gain is the gain.",
        ),
    ),
    "repair": Exercise(
        kind="write",
        minutes=15,
        stars=2,
        question="w and e are bf16 vectors. Return torch.stack([up, down, after]): "
        "the weights that the loss sees at w + e and at w - e, in bf16, and those left "
        "after the step, learning rate 0.",
        variant=weights,
        hints=(
            "Whatever you add to a stored weight is rounded. Which numbers need no "
            "addition?",
            "up and down are two new tensors, each rounded once, from w. Nobody has "
            "to write to w.",
        ),
        tol=0.0,
    ),
}
