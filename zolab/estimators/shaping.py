"""Losses as pure numbers: what a population's losses say when their unit is dropped.

Ties are ordinary here: rewards are often discrete, and a probe below the resolution of
the loss gives equal ones. Equal losses get equal values, and nothing is divided by 0.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence


def deviations(losses: Sequence[float]) -> tuple[list[float], float]:
    """(L_i - mean, sqrt of their sum of squares); the root is 0 only if all are equal.

    Taken from the first loss, so that equal losses give 0 and no rounded mean, and
    with hypot, so that tiny differences do not vanish when squared.
    """
    shifted = [x - losses[0] for x in losses]
    mean = math.fsum(shifted) / len(shifted)
    away = [x - mean for x in shifted]
    return away, math.hypot(*away)


def unshaped(losses: Sequence[float]) -> list[float]:
    """The losses as they are."""
    return list(losses)


def zscore(losses: Sequence[float]) -> list[float]:
    """(L_i - mean) / std, the std over n and not n - 1; zeros when all are equal."""
    away, root = deviations(losses)
    if root == 0:
        return [0.0] * len(losses)
    return [math.sqrt(len(losses)) * x / root for x in away]


def centred_ranks(losses: Sequence[float]) -> list[float]:
    """rank / (n - 1) - 1/2: -1/2 is the lowest loss; ties share their mean rank."""
    order, last = sorted(losses), len(losses) - 1
    twice = [bisect_left(order, x) + bisect_right(order, x) - 1 for x in losses]
    return [(r - last) / (2 * last) for r in twice]


SHAPINGS: dict[str, Callable[[Sequence[float]], list[float]]] = {
    "none": unshaped,
    "zscore": zscore,
    "ranks": centred_ranks,
}
