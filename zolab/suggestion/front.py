"""The front door: suggest(model, objective) -> Suggestion."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from zolab.engines.base import Engine
from zolab.engines.guards import generators
from zolab.engines.resident import Resident
from zolab.space import Space
from zolab.suggestion.ask import Ask, check_call
from zolab.suggestion.curve import measure_curve
from zolab.suggestion.rate import measure_rate


@dataclass(frozen=True)
class Suggestion:
    """eps and lr for SPSA with one direction and signs, and why.

    `reason`: plain sentences with the numbers. `curve`: (eps, disagreement of the
    slopes around it, as a share of their size; infinite where the probe is lost in
    rounding or leaves the numbers). `trace`: tr H with its standard error. `share`: of
    the slope's square, what two batches have in common (1.0 when only one was given).
    `forwards`: passes spent.
    """

    eps: float
    lr: float
    reason: str
    curve: tuple[tuple[float, float], ...]
    trace: tuple[float, float]
    share: float
    forwards: int

    def __str__(self) -> str:
        return f"eps {self.eps:.2g}, lr {self.lr:.2g}. {self.reason}"

    def plot(self) -> None:
        """Draw the U curve (needs matplotlib; without it, its words)."""
        # Here and not at the top: lab lies above the package and may be absent.
        from zolab.lab.figures import figure, line

        seen = [(e, y) for e, y in self.curve if math.isfinite(y)]
        alt = (
            f"Disagreement of neighbouring slopes against eps: lowest, "
            f"{min(y for _, y in seen):.1g} of their size, near eps {self.eps:.1g}; "
            f"{seen[0][1]:.1g} at eps {seen[0][0]:.1g} and {seen[-1][1]:.1g} at "
            f"{seen[-1][0]:.1g}."
        )
        with figure(alt=alt, title="Do neighbouring slopes agree?") as ax:
            ax.axvline(self.eps, color="#555555", ls=(0, (2, 2)), lw=1)
            line(ax, [e for e, _ in seen], [y for _, y in seen])
            ax.set(
                xscale="log",
                yscale="log",
                xlabel="eps",
                ylabel="difference / size of slopes",
            )


def suggest(
    model: nn.Module,
    objective: Callable[..., Any],
    *,
    batches: int | None = None,
    directions: int = 16,
    seed: int = 0,
    engine: Engine | None = None,
) -> Suggestion:
    """Suggest eps and lr for MeZO on what has requires_grad, at the present weights.

    `objective()` is the loss of one batch, the same at every call; with `batches=n` it
    is `objective(i)`, the loss of batch i < n, and the noise of a batch is measured,
    too. It is called as MeZO's closure is: without gradients, modules in eval mode.
    `directions` are those behind lr; three eighths of them draw the curve behind eps.

    Nothing moves: weights, modules' modes and the global generators are as before.
    Raises SuggestionError, which says what to change, for an objective that is not
    finite, that answers differently at one point (a new batch a call, dropout, sampled
    text), that does not move with the weights, or in which no eps shows a slope (an
    accuracy of few examples); LossError for one that returns no fp32 number.
    """
    if batches is not None and batches < 2:
        raise ValueError(f"batches is {batches}, expected None or at least 2")
    if directions < 8:
        raise ValueError(f"directions is {directions}, expected at least 8")
    check_call(objective, batches)
    space = Space.of(model)
    engine = engine or Resident()
    engine.bind(model, space, seed=seed, rounding="nearest")
    restore = generators()
    try:
        ask = Ask(engine, objective, batches, seed, restore)
        curve = measure_curve(ask, space, 3 * directions // 8)
        rate = measure_rate(ask, curve, directions)
    finally:
        restore()
    return Suggestion(
        eps=curve.eps,
        lr=rate.lr,
        reason=f"{curve.reason} {rate.reason}",
        curve=tuple(zip(curve.middles, curve.apart, strict=True)),
        trace=rate.trace,
        share=rate.share,
        forwards=ask.forwards,
    )
