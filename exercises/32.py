"""The exercises of chapter 32."""

import random

from zolab.lab.exercises import Exercise


def moved(rng: random.Random):
    m = rng.choice([2, 4, 5])
    cases = [
        (float(rng.randint(10, 400)), q, p, k)
        for q, p, k in ((1, 8, 1), (4, 8, m), (rng.choice([6, 8]), 4, m))
    ]
    return {"m": m, "cases": cases}


def behind(rng: random.Random):
    t = rng.randint(20, 60)
    cases = []
    for _ in range(3):
        at = rng.randint(2, 5)
        marks = [t if b < at else t - rng.randint(2, 4) for b in range(7)]
        cases.append((marks, t))
    return {"t": t, "cases": cases}


def worn(rng: random.Random):
    gb, tb = rng.choice([26.0, 60.0, 132.0]), rng.choice([600.0, 1200.0])
    steps = rng.choice([20_000, 100_000])
    cases = [(gb, steps, m, tb) for m in (1, 10, 50)]
    return {"gb": gb, "tb": tb, "steps": steps, "cases": cases}


EXERCISES = {
    "bytes": Exercise(
        kind="derive",
        minutes=8,
        stars=1,
        question="All blocks together have `blocks` GB. A step asks `queries` "
        "directions at +eps and -eps; at most `probes_per_pass` probes share a pass "
        "over the blocks; a block is written back every m steps, for instance {m}. "
        "Return the GB that a step moves on average, read and written together.",
        variant=moved,
        hints=(
            "How many probes are there, and how many passes do they need?",
            "ceil(2 queries / probes_per_pass) reads and 1 / m writes of all blocks.",
        ),
        tol=1e-9,
    ),
    "late": Exercise(
        kind="write",
        minutes=12,
        stars=2,
        question="A process was killed. The log has {t} steps, numbered from 0; "
        "`marks` says for each block how many steps it had taken. Return a list of "
        "pairs [block, step]: what still has to be applied, block by block, in order.",
        variant=behind,
        hints=(
            "A block with mark s has taken steps 0 to s - 1.",
            "range(marks[b], t) for each block, and nothing where the mark is t.",
        ),
    ),
    "wear": Exercise(
        kind="derive",
        minutes=10,
        stars=1,
        question="A flash disk is guaranteed for {tb} TB of writing (1 TB = 1,000 "
        "GB). A run of {steps} steps has blocks of {gb} GB on it, written back every m "
        "steps. Return the share of the disk's life that the run uses, filling the "
        "file included.",
        variant=worn,
        hints=(
            "Probing writes nothing. Updating does, every m steps; and at first?",
            "(blocks + blocks * steps / m) / (1000 * endurance)",
        ),
        tol=1e-9,
    ),
}
