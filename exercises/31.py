"""The exercises of chapter 31; their answers are in solutions/31.py."""

import random

from zolab.lab.exercises import Exercise


def machines(rng: random.Random):
    slack = rng.choice([1.1, 1.2, 1.25])
    chips = [(500e12, 52e9), (120e12, 25e9), (40e12, 12e9)]
    rng.shuffle(chips)
    sizes = [rng.choice([1, 2, 4]) for _ in chips]
    n = [2, rng.choice([4, 6, 8]), 2]
    cases = [
        (b, flops, rate, probes, slack)
        for b, (flops, rate), probes in zip(sizes, chips, n, strict=True)
    ]
    return {"slack": f"{slack:.2f}", "cases": cases}


def tied(rng: random.Random):
    def case(order, home):
        names = sorted(set(order))
        w = {s: round(rng.uniform(0.5, 1.5), 2) for s in sorted(set(home.values()))}
        z = {name: rng.choice([-1.0, 1.0]) for name in names}
        for name, slot in home.items():  # the head's own draw differs from the slot's
            z[name] = z[name] if name == slot else -z[slot]
        return (rng.uniform(1, 2), order, home, w, z, rng.choice([0.01, 0.02, 0.05]))

    blocks = [str(i) for i in range(rng.choice([2, 3, 4]))]
    plain = {b: b for b in blocks}
    whole = plain | {"embed": "embed", "head": "embed"}
    again = plain | {"embed": "embed", "last": "0", "head": "embed"}
    cases = [
        case(["embed", *blocks, "head"], whole),
        case(["embed", *blocks, "last", "head"], again),
        case(blocks, plain),
    ]
    return {"n": len(blocks), "cases": cases}


def visits(rng: random.Random):
    high = rng.choice([0.01, 0.02, 0.04])

    def case(n):
        records = [
            (rng.choice([-1.0, 1.0]), high / 2**i, round(rng.uniform(1, 9), 2))
            for i in range(n)
        ]
        return (rng.uniform(1, 2), records, high / 2**n)

    return {"high": high, "cases": [case(n) for n in (1, 3, 5)]}


EXERCISES = {
    "threshold": Exercise(
        kind="derive",
        minutes=8,
        stars=2,
        question="A weight takes b bytes on a link of `rate` bytes a second; the chip "
        "does `flops` operations a second, two for each weight and token; a visit "
        "serves n probes. Two slots, steady state. You accept a step of `slack` times "
        "its computing (yours: {slack}). Return the least number of tokens a probe, "
        "not rounded.",
        variant=machines,
        hints=(
            "Write load and computing seconds of one weight. How do two slots join "
            "them?",
            "max(load, compute) <= slack * compute, with compute = 2 * n * T / flops.",
        ),
    ),
    "tied": Exercise(
        kind="write",
        minutes=12,
        stars=2,
        question="A model is visited in `order`; at each visit h becomes h * v + 1, "
        "with v the visited weight. home[name] names the slot that a visit uses: the "
        "head's is the embedding's, a tied weight (yours has {n} blocks between). w "
        "maps slots to weights, z maps every visited name to a sign. Return h, begun "
        "at x, for the weights moved by eps * z, as a resident model would give it.",
        variant=tied,
        hints=(
            "A resident model has one tensor for both names. How often is it moved?",
            "v = w[slot] + eps * z[slot], at every visit: a slot has one direction.",
        ),
        tol=1e-6,
    ),
    "flush": Exercise(
        kind="break",
        minutes=12,
        stars=2,
        question="This streamer of one weight evaluates the wrong model:\n"
        "`late = None; for z, lr, g in records: (if late: w -= lr * late); "
        "late = g * z`. A record is (z, lr, g) of a step; lr fell from {high} by "
        "half each step, and the scheduler already stands at `now`, the next "
        "step's. Return the weight that a resident run has after all records.",
        variant=visits,
        hints=(
            "Two things are wrong: one at the end of the loop, one in each visit.",
            "Let late keep lr * g * z, of its own step, and take it once more after "
            "the loop.",
        ),
    ),
}
