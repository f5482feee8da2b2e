"""Right and wrong answers to the exercises of chapter 32."""

import math

from zolab.lab.exercises import Solution, Wrong


def moved(blocks, queries, probes_per_pass, m):
    return blocks * (math.ceil(2 * queries / probes_per_pass) + 1 / m)


def once_a_probe(blocks, queries, probes_per_pass, m):
    return blocks * (2 * queries + 1 / m)


def always_written(blocks, queries, probes_per_pass, m):
    return blocks * (math.ceil(2 * queries / probes_per_pass) + 1)


def written_a_pass(blocks, queries, probes_per_pass, m):
    return blocks * math.ceil(2 * queries / probes_per_pass) * (1 + 1 / m)


def late(marks, t):
    return [[b, k] for b, s in enumerate(marks) for k in range(s, t)]


def nothing(marks, t):
    return []


def one_too_few(marks, t):
    return late([s + 1 for s in marks], t)


def from_the_start(marks, t):
    return late([0 for _ in marks], t)


def wear(blocks, steps, m, endurance):
    return (blocks + blocks * steps / m) / (1000 * endurance)


def no_wear(blocks, steps, m, endurance):
    return blocks / (1000 * endurance)


def every_step(blocks, steps, m, endurance):
    return wear(blocks, steps, 1, endurance)


def never_filled(blocks, steps, m, endurance):
    return blocks * steps / m / (1000 * endurance)


SOLUTIONS = {
    "bytes": Solution(
        right=moved,
        wrong={
            "once a probe": Wrong(
                once_a_probe,
                "you read the weights once for each probe. All probes of a pass go "
                "through a block side by side while it is on the device",
            ),
            "always written": Wrong(
                always_written,
                "you wrote at every step: with m > 1 most visits write nothing and "
                "replay the log instead",
            ),
            "written a pass": Wrong(
                written_a_pass,
                "you wrote in every pass. A step's first pass brings the update; in "
                "the later ones nothing is due",
            ),
        },
    ),
    "late": Solution(
        right=late,
        wrong={
            "lost the log": Wrong(
                nothing,
                "you took the blocks as they lie. Those that were not visited in the "
                "last step miss what the log knows: the file alone is not the run",
            ),
            "one too few": Wrong(
                one_too_few,
                "a mark counts steps that were taken, so step number s is the first "
                "one that is missing",
            ),
            "from the start": Wrong(
                from_the_start,
                "you gave every block all steps again, on top of those that it has "
                "already taken",
            ),
        },
    ),
    "wear": Solution(
        right=wear,
        wrong={
            "zero": Wrong(
                no_wear,
                "you counted the filling only. Probes write nothing, but every update "
                "changes every weight of a block, and the block is written back",
            ),
            "every step": Wrong(
                every_step,
                "you wrote at every step: with m a block is written once in m steps",
            ),
            "never filled": Wrong(
                never_filled,
                "you forgot that the file is filled once before the first step",
            ),
        },
    ),
}
