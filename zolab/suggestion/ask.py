"""The objective at points along directions, and whether it can be asked at all."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

from zolab.engines.base import Engine
from zolab.errors import SuggestionError
from zolab.gradient import Direction, Probe, round16
from zolab.noise import make_key


class Ask:
    """The objective at points along directions; counts the forward passes."""

    def __init__(
        self,
        engine: Engine,
        objective: Callable[..., Any],
        batches: int | None,
        seed: int,
        restore: Callable[[], None],
    ) -> None:
        self.engine, self.seed, self.forwards = engine, seed, 0
        n = batches or 1
        self.closures: list[Callable[[], Any]] = [objective]
        if batches is not None:
            self.closures = [partial(objective, i) for i in range(n)]
        a, b = self.losses([Probe(), Probe()], 0)  # drawn numbers are equal for both
        (c,) = self.losses([Probe()], 0)  # the generators have moved on
        restore()
        _check_repeats(a, b, c)
        self.middle = [a, *(self.losses([Probe()], i)[0] for i in range(1, n))]
        if not all(map(math.isfinite, self.middle)):
            raise SuggestionError(
                f"the objective is {self.middle} at the present weights, expected "
                "finite numbers: look for a division by zero, a log of zero, an empty "
                "batch, or fp16 that overflowed"
            )

    def losses(self, probes: list[Probe], batch: int) -> list[float]:
        self.forwards += len(probes)
        answers = self.engine.evaluate(probes, {"loss": self.closures[batch]})
        return [x.value for x in answers]

    def along(self, query: int, eps: float, batch: int) -> tuple[float, float]:
        """The slope, and z'Hz by equation (3), along direction `query`."""
        d = Direction(make_key(self.seed, 0, query))
        eps = round16(eps)
        up, down = self.losses([Probe(((d, s * eps),)) for s in (1, -1)], batch)
        return (up - down) / (2 * eps), (up - 2 * self.middle[batch] + down) / eps**2


def check_call(objective: Callable[..., Any], batches: int | None) -> None:
    """Raise TypeError when the objective cannot be called the way `batches` says."""
    try:
        signature = inspect.signature(objective)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*([] if batches is None else [0]))
    except TypeError:
        wanted = "objective()" if batches is None else "objective(i), i < batches"
        raise TypeError(
            f"with batches={batches} the objective is called as {wanted}, but it is "
            f"objective{signature}"
        ) from None


def _check_repeats(a: float, b: float, c: float) -> None:
    def differ(x: float, y: float) -> bool:
        # A GPU's sums may differ in the last bits: that is noise, and measured.
        return abs(x - y) > 1e-5 * max(abs(x), abs(y))

    if differ(a, b):
        raise SuggestionError(
            f"the objective answers {a:.6g}, then {b:.6g} at the same weights with the "
            "same random numbers: does it take the next batch at every call? Take the "
            "batch outside, or use objective(i) with batches=n"
        )
    if differ(a, c):
        raise SuggestionError(
            f"the objective answers {a:.6g}, then {c:.6g} at the same weights: it "
            "draws random numbers (dropout that eval mode does not reach, sampling). "
            "Turn that off, or seed it inside the objective"
        )


def two_digits(x: float) -> float:
    """x as people write it: a suggestion is not known better than that."""
    return float(f"{x:.1e}")
