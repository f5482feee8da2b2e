"""lr, from what a step gains and what curvature and batches cost it.

A step -lr g z gains lr |G|^2 and costs lr^2 / 2 E[g^2 z'Hz], where G is the gradient of
the mean loss and g the slope that one batch shows. For a bowl the cost is at most
E[g^2] (tr H + 2 |H|), |H| the root of H's squared entries: tr H alone where many axes
share it, three times that for one sharp axis. So the best first step is at least

    lr = share / (tr H + 2 |H|),      share = |G|^2 / E[g^2]                         (2)
    z'Hz = (L+ - 2 L0 + L-) / eps^2,  E[z'Hz] = tr H,  Var[z'Hz] = 2 |H|^2          (3)
    |G|^2 = E[g_a g_b],   a and b two batches along the same z                       (4)

(for signs z the variance leaves the diagonal of H out, and so does the cost). (4) tells
what the weights say from what the draw of a batch says: along one z only the former is
common to two batches. Half of (2) is suggested: its tail is heavy and few directions
see it; the page "Choose eps and lr" has a sweep. No step should go farther than slopes
still agree, which is the bound where no curvature shows:

    lr <= radius / |g|                                                               (5)

S. Malladi et al., arXiv:2305.17333 (the effective rank); chapter 11, equations 3 and 4.
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
    each = bend.mean(1)  # z'Hz of the mean of two batches
    trace, spread = float(each.mean()), float(each.std())
    se = spread / math.sqrt(directions)
    words = [f"lr: tr H is {trace:.3g} +- {se:.1g} over {directions} directions"]
    words[0] += f", and z'Hz varies by {spread:.2g}."
    if n > 1:
        words.append(
            f"{max(share, 0):.0%} of a slope's square is common to two batches."
        )
    else:
        words.append("Only one batch was given: the noise of batches is not in it.")
    floor = 1 / math.sqrt(directions)
    if share < floor:
        words.append(
            f"That is lost in the noise of {directions} directions, so lr is an upper "
            "bound: larger batches or more directions would say more."
        )
    bends = max(trace, 0.0) + math.sqrt(2) * spread  # tr H + 2 |H|
    best = max(share, floor) / max(bends, 1e-30)  # (2)
    reach = curve.radius / math.sqrt(size)  # (5)
    if best / 2 <= reach:
        words.append(f"The best first step has lr {best:.1e}; half of it is safer.")
    else:
        words.append(
            f"Curvature would allow {best / 2:.1e}, but slopes agree only up to eps "
            f"{curve.radius:.1e}, which a step reaches at lr {reach:.1e}: take it as "
            "an upper bound."
        )
    if trace < 2 * se:
        words.append("The sign of tr H is not sure: this is no bowl, start lower.")
    return Rate(two_digits(min(best / 2, reach)), (trace, se), share, " ".join(words))
