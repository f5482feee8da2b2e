"""lr, from what a step gains and what curvature and batches cost it.

A step -lr g z gains lr |G|^2 and costs lr^2 / 2 E[g^2 z'Hz], where G is the gradient of
the mean loss and g the slope that one batch shows. So the best first step is

    lr = |G|^2 / E[g^2 z'Hz]                                                        (2)
    z'Hz = (L+ - 2 L0 + L-) / eps^2,    E[z'Hz] = tr H                              (3)
    |G|^2 = E[g_a g_b],   a and b two batches along the same z                       (4)

(4) tells what the weights say from what the draw of a batch says: along one z only the
former is common to two batches. Without batch noise (2) lies between 1 / (3 tr H), a
gradient along the one sharp axis, and 1 / tr H, many axes: chapter 11's 0.3 / tr H is
its safe end. Where no curvature shows, a step may go as far as slopes still agree:

    lr = radius / |g|                                                                (5)

S. Malladi et al., arXiv:2305.17333 (the effective rank).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from zolab.suggestion.ask import Ask, two_digits
from zolab.suggestion.curve import Curve


@dataclass(frozen=True)
class Rate:
    """lr and what it was made of."""

    lr: float
    trace: tuple[float, float]
    share: float
    reason: str


def measure_rate(ask: Ask, curve: Curve, directions: int) -> Rate:
    """Equations (2) to (5), on directions that the curve has not seen."""
    n = len(ask.closures)
    rows = [
        [
            ask.along(1000 + k, curve.eps_curvature, (k + i) % n)
            for i in range(min(n, 2))
        ]
        for k in range(directions)
    ]
    found = torch.tensor(rows, dtype=torch.float64)  # directions, batches, 2
    g, bend = found.unbind(-1)
    size = float(g.square().mean())
    share = float((g[:, 0] * g[:, -1]).mean()) / size if n > 1 else 1.0
    each = bend.mean(1)
    trace = float(each.mean())
    se = float(each.std()) / math.sqrt(directions)
    cost = (g.square() * bend).mean(1)
    cross, cross_se = float(cost.mean()), float(cost.std()) / math.sqrt(directions)
    words = [f"lr: tr H is {trace:.3g} +- {se:.1g} over {directions} directions."]
    if n > 1:
        words.append(
            f"{max(share, 0):.0%} of a slope's square is common to two batches."
        )
    else:
        words.append("Only one batch was given, so the noise of batches is not in it.")
    floor = 1 / math.sqrt(directions)
    if share < floor:
        words.append(
            f"That is lost in the noise of {directions} directions: lr is an upper "
            "bound; larger batches or more directions would say more."
        )
    known = max(share, floor)
    reach = known * curve.radius / math.sqrt(size)  # (5)
    if cross > 2 * cross_se:
        best = known * size / cross  # (2)
        words.append(f"The best first step has lr {best:.1e} (0.3 / tr H: ")
        words[-1] += f"{0.3 / trace:.1e})." if trace > 0 else "no such thing)."
        if reach < best:
            words.append(f"Slopes hold only so far that lr is {reach:.1e} at most.")
        lr = min(best, reach)
    else:
        lr = reach
        words.append(
            "Its sign is not sure, so the curvature sets no lr. Slopes still agree at "
            f"eps {curve.radius:.1e}, and a step of that size has lr {reach:.1e}: take "
            "it as an upper bound."
        )
    return Rate(two_digits(lr), (trace, se), share, " ".join(words))
