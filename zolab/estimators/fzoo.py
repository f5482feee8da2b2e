"""FZOO: one-sided differences over the spread of the losses: normalised descent.

    c_i = (L(theta + eps z_i) - L(theta)) / (N std),   std over L_1 ... L_N (by N - 1)
    gradient = sum_i c_i z_i

std is close to eps |grad|, so the gradient is close to grad / |grad|: its length does
not depend on eps or on the loss's unit, steps are long where the loss is flat. An
affine map of the loss, a L + b with a > 0, changes nothing but rounding.

S. Dang et al., FZOO: fast zeroth-order optimizer for fine-tuning large language models
towards Adam-scale speed, arXiv:2506.09034. Theirs: N 8, eps 1e-4, lr 5e-5 for OPT-13B.

Cost: N + 1 forward passes a step, in one ask. With `reuse=True` std is that of this
step's N losses and the last step's, each around its own mean, since batches differ in
level. So N = 4 has the std of eight losses for five passes (their N / 2 + 1). The
spread is in the log, a number a step: a resumed run is the run that was stopped.

Where published code differs: it divides by std also when all losses tie, and the
weights are NaN from then on; here a tie is a gradient of zeros. Its reuse of losses is
never switched on, so the rule above is ours.

What normalising costs: an eps so small that the losses differ by rounding alone still
gives a step of full length, in a random direction. `zolab.suggest` finds an eps above
that.
"""

from __future__ import annotations

import math
from typing import Any

from zolab.estimators.base import (
    Family,
    Keys,
    Proposal,
    check_estimator,
    directions,
)
from zolab.estimators.shaping import deviations
from zolab.gradient import Probe, ZOGradient, round16


class FZOO:
    """Normalised one-sided differences along `num_queries` (N) >= 2 directions."""

    def __init__(
        self,
        *,
        eps: float = 1e-4,
        num_queries: int = 8,
        family: str | Family = "rademacher",
        reuse: bool = False,
    ) -> None:
        check_estimator(eps, num_queries, family)
        if num_queries < 2:
            raise ValueError(
                f"num_queries is {num_queries}, expected at least 2: one loss has no "
                "standard deviation"
            )
        self.eps, self.num_queries, self.family = round16(eps), num_queries, family
        self.reuse, self.scalars = bool(reuse), int(reuse)
        self._last: tuple[int, float] | None = None  # a step and its spread

    @property
    def settings(self) -> dict[str, Any]:
        kwargs = {"num_queries": self.num_queries, "reuse": self.reuse}
        return {"name": "FZOO", "eps": self.eps, **kwargs}

    def propose(self, key: Keys) -> Proposal:
        n = self.num_queries
        ds = directions(self.family, key, n)
        clean, *ups = yield [Probe(), *(Probe(((d, self.eps),)) for d in ds)]
        _, spread = deviations([up.value for up in ups])  # std * sqrt(n - 1)
        root, freedom = spread, n - 1
        if self.reuse and self._last is not None:
            root, freedom = math.hypot(spread, self._earlier(key.step)), 2 * (n - 1)
        scalars = (spread,) if self.reuse else ()
        if root == 0:
            return ZOGradient(tuple((d, 0.0) for d in ds), scalars)
        size = math.sqrt(freedom) / n
        terms = []
        for d, up in zip(ds, ups, strict=True):
            terms.append((d, size * ((up.value - clean.value) / root)))
        return ZOGradient(tuple(terms), scalars)

    def observe(self, key: Keys, gradient: ZOGradient) -> None:
        """Remember the spread of a step that was taken, or that the log holds."""
        if self.reuse:
            self._last = key.step, gradient.scalars[0]

    def state_dict(self) -> dict[str, Any]:
        """The spread, for a run without a journal."""
        return {"last": self._last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._last = state["last"]

    def _earlier(self, step: int) -> float:
        assert self._last is not None
        if self._last[0] >= step:
            raise ValueError(
                f"the estimator has seen step {self._last[0]} and is asked for step "
                f"{step}: its memory belongs to one run, so make one an optimizer"
            )
        return self._last[1]
