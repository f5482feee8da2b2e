"""eps, from where slopes agree.

The slope from two losses errs on both sides. If a loss carries noise of size u,

    error(eps)^2 = u^2 / (2 eps^2) + (eps^2 D3 / 6)^2,    D3 = L'''[z, z, z]        (1)

a U on log axes, with its bottom at eps^3 = 3 u / |D3|. Neither is known, and in bf16 u
is not the rounding of one number but of a whole forward pass. So the curve is measured:
the same directions are asked at eps, 4 eps, 16 eps, ..., and where neighbours agree
best, there is the bottom. Left of it they differ by the noise at the smaller eps, right
of it by 15 times what the third derivative adds there. A quadratic has no D3: its right
arm is the rounding of a loss that grows with eps^2, the bottom eps^2 = 2 L0 / tr H.

J. More and S. Wild, Estimating derivatives of noisy simulations, ACM TOMS 38 (2012):
choosing eps by the measured noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from zolab.errors import SuggestionError
from zolab.gradient import round16
from zolab.space import Space
from zolab.suggestion.ask import Ask, two_digits

FACTOR = 4.0  # between neighbours of the grid
GRID = range(-7, 2)  # powers of FACTOR, in units of the weights' root mean square
NOISY = 0.5  # slopes that differ by this share of their size are noise
LOW = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Curve:
    """The U curve, read: where eps is best, and how far slopes hold."""

    eps: float
    eps_curvature: float
    radius: float  # the largest eps whose slope still agrees with its neighbour's
    middles: list[float]
    apart: list[float]
    reason: str


def measure_curve(ask: Ask, space: Space, directions: int) -> Curve:
    """Equation (1) without u and D3: where do neighbouring slopes agree best?"""
    scale = _scale(space)
    grid = [round16(scale * FACTOR**k) for k in GRID]
    queries = [ask.along(q, e, 0) for q in range(directions) for e in grid]
    found = torch.tensor(queries, dtype=torch.float64).view(directions, len(grid), 2)
    slopes, bends = found.unbind(-1)
    if not slopes[slopes.isfinite()].any():
        raise SuggestionError(
            f"the objective is {ask.middle[0]:.6g} at every probe, eps from "
            f"{grid[0]:.1e} to {grid[-1]:.1e}: either it does not depend on the "
            "weights with requires_grad, or it moves in steps (an accuracy); then ask "
            "it on a larger batch"
        )
    lost = [abs(_realised(space, e) - 1) > 0.25 for e in grid]
    apart = _disagreement(slopes, lost)
    valley = _first_valley(apart)
    if not valley:
        raise SuggestionError(
            f"no eps shows a slope: at {grid[0]:.1e} to {grid[-1]:.1e} neighbouring "
            f"slopes differ by {min(apart):.0%} of their size or more."
            + _steps(slopes, grid)
        )
    middles = [math.sqrt(a * b) for a, b in pairwise(grid)]
    best = min(valley, key=lambda j: (apart[j], -j))  # exact sums tie: the larger
    # z'Hz wants a larger eps (its noise grows as 1 / eps^2), but the slopes must hold.
    usable = [j for j in valley if j >= best and apart[j] < 0.3] or [best]
    bent = _disagreement(bends, lost)
    fine = [j for j in valley if apart[j] <= max(0.1, 2 * apart[best])]
    low = any(s.dtype in LOW for s in space)
    return Curve(
        eps=two_digits(middles[best]),
        eps_curvature=middles[min(usable, key=bent.__getitem__)],
        radius=middles[valley[-1]],
        middles=middles,
        apart=apart,
        reason=f"eps: slopes at {grid[best]:.1e} and {grid[best + 1]:.1e} agree best, "
        f"they differ by {apart[best]:.2g} of their size; anything from "
        f"{grid[fine[0]]:.1e} to {grid[fine[-1] + 1]:.1e} does nearly as well."
        + (f" {_LOW_WORDS}" if low else ""),
    )


_LOW_WORDS = (
    "The weights are stored in few bits, so the left arm is the rounding of the whole "
    "forward pass and the bottom lies to the right of fp32's."
)


def _disagreement(x: Tensor, lost: Sequence[bool]) -> list[float]:
    """rms difference of neighbours in the grid, as a share of their rms size."""
    a, b = x[:, :-1], x[:, 1:]
    size = ((a.square() + b.square()) / 2).mean(0).sqrt()
    apart = (a - b).square().mean(0).sqrt() / size
    still = (a == 0).double().mean(0) > 0.5  # a probe that most directions do not see
    apart[still | ~apart.isfinite()] = math.inf
    return [math.inf if lost[j] else float(y) for j, y in enumerate(apart)]


def _first_valley(apart: Sequence[float]) -> list[int]:
    """The first run of pairs that agree; far out, smooth nonsense may agree again."""
    inside = [y < NOISY for y in apart]
    if True not in inside:
        return []
    first = inside.index(True)
    rest = inside[first:]
    last = first + (rest.index(False) if False in rest else len(rest))
    return list(range(first, last))


def _scale(space: Space) -> float:
    """Root mean square of all weights that move; 1 when all are zero."""
    square = sum(float(torch.linalg.vector_norm(s.base.float())) ** 2 for s in space)
    return math.sqrt(square / space.numel) or 1.0


def _realised(space: Space, eps: float) -> float:
    """The share of a probe that arrives in matrices of few bits, by samples."""
    total = 0.0
    for s in space:
        if s.dtype not in LOW or len(s.shape) < 2:  # engines keep vectors in fp32
            total += s.numel
            continue
        w = s.base.flatten()[:4096].float()
        moved = (w + eps).to(s.dtype).float() - (w - eps).to(s.dtype).float()
        total += s.numel * float(moved.mean()) / (2 * eps)
    return total / space.numel


def _steps(slopes: Tensor, grid: Sequence[float]) -> str:
    """A sentence for objectives that move in steps, or for those that are noise."""
    moves = (2 * slopes * torch.tensor(grid)).abs().flatten()
    moves = moves[moves.isfinite()]
    levels = {f"{x:.4g}" for x in moves.tolist() if x}
    if len(levels) < len(moves) / 3:
        return (
            f" It moves in steps of {float(moves[moves > 0].min()):.3g}, as an "
            "accuracy does: ask it on a larger batch, which needs a larger eps all "
            "the same, or train on a smooth loss."
        )
    return " Use fp32 weights, a larger batch or a smoother loss."
