"""Right and wrong answers to the exercises of chapter 42."""

import math

import torch

from zolab.lab.exercises import Solution, Wrong


def rounded(u, step, chance):
    low = [math.floor(x / step) for x in u]
    return [
        step * (k + (c < x / step - k)) for x, k, c in zip(u, low, chance, strict=True)
    ]


def along(grad, u):
    return sum(g * x for g, x in zip(grad, u, strict=True))


def estimate(grad, u, step, first, second):
    u1, u2 = rounded(u, step, first), rounded(u, step, second)
    return [along(grad, u1) * x for x in u2]


def shared(grad, u, step, first, second):
    u1 = rounded(u, step, first)
    return [along(grad, u1) * x for x in u1]


def off_the_grid(grad, u, step, first, second):
    return [along(grad, rounded(u, step, first)) * x for x in u]


def nearest(grad, u, step, first, second):
    u1 = [step * round(x / step) for x in u]
    return [along(grad, u1) * x for x in u1]


def bound(x, clip):
    return max(-clip, min(clip, x))


def clipped(slopes, z, clip, lr):
    q = len(slopes)
    return [
        -lr / q * sum(bound(g, clip) * x for g, x in zip(slopes, column, strict=True))
        for column in zip(*z, strict=True)
    ]


def clip_z(slopes, z, clip, lr):
    q = len(slopes)
    return [
        -lr / q * sum(g * bound(x, 1.0) for g, x in zip(slopes, column, strict=True))
        for column in zip(*z, strict=True)
    ]


def clip_products(slopes, z, clip, lr):
    q = len(slopes)
    return [
        -lr / q * sum(bound(g * x, clip) for g, x in zip(slopes, column, strict=True))
        for column in zip(*z, strict=True)
    ]


def clip_steps(slopes, z, clip, lr):
    return [bound(x, clip * lr) for x in clipped(slopes, z, math.inf, lr)]


ULPS = 2.0**18


def stored(x):
    return float(torch.tensor(x).half())


def gone(s, x, count):
    s = begin = stored(s)
    for _ in range(count):
        s = stored(s + x)
    return (s - begin) * ULPS


SOLUTIONS = {
    "roundings": Solution(
        right=estimate,
        wrong={
            "shared": Wrong(
                shared,
                "you moved along the rounding that you asked along. What it added is "
                "then squared: the estimate is E u1^2 times the gradient, and that "
                "factor is another for another step",
            ),
            "off the grid": Wrong(
                off_the_grid,
                "you moved along u itself: right on average, but u has more bits than "
                "the method stores. Its second rounding is as good on average",
            ),
            "nearest": Wrong(
                nearest,
                "you rounded to nearest. Then u1 is not u on average: small entries "
                "are always 0, and their weights never move",
            ),
        },
    ),
    "clip": Solution(
        right=clipped,
        wrong={
            "clip z": Wrong(
                clip_z,
                "you bounded z. Its entries are of size 1 by construction; what "
                "explodes is the slope, and a bent z is no longer what was asked along",
            ),
            "clip products": Wrong(
                clip_products,
                "you bounded slope times z entry by entry: the step then leaves the "
                "direction whose slope it knows",
            ),
            "clip the step": Wrong(
                clip_steps,
                "you bounded the summed step: two huge slopes may cancel in it, or one "
                "hide the other. Each slope is bounded before it meets its z",
            ),
        },
    ),
    "half": Solution(
        right=gone,
        wrong={
            "no effect": Wrong(
                lambda s, x, count: count * x * ULPS,
                "you added as if storing cost nothing. fp16 near 0.005 has steps of "
                "2^-18: a smaller move is rounded, and rounded at every step",
            ),
            "rounded once": Wrong(
                lambda s, x, count: (stored(stored(s) + count * x) - stored(s)) * ULPS,
                "you rounded at the end only. The scale is stored after every step, "
                "and what was lost then does not add up",
            ),
            "always lost": Wrong(
                lambda s, x, count: 0.0,
                "above half a step nothing is lost: 0.7 of a step is stored as a whole "
                "one, every time, and the scale goes too far",
            ),
        },
    ),
}
