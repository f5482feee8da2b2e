"""ZO-AdaMU's probes: along a mixture of fresh noise and of what was probed before.

    z'  = sqrt(alpha) u,     z'' = m_{t-1} + sqrt(1 - alpha) u'        u, u' near normal
    m_t = beta1 z' + (1 - beta1) z''
    g   = (L(theta + eps m_t) - L(theta - eps m_t)) / (2 eps)

The rule that moves along g m_t is `zolab.optimizers.AdaMU`; `AdaMU.estimator` makes
these probes with its numbers. m is a list of keys, two a step with weights that shrink
by 1 - beta1: 11 at the paper's last 0.9, where they are cut below 2^-20. The second key
follows from the first, so that the log holds one slope a step.

S. Jiang et al., ZO-AdaMU optimizer: adapting perturbation by the momentum and
uncertainty in zeroth-order optimization, AAAI 2024, arXiv:2312.15184, equations 4 to 7.
"""

from __future__ import annotations

import math
from dataclasses import asdict, astuple, dataclass
from typing import Any

from zolab.estimators.base import Keys, Proposal, check_estimator, directions
from zolab.gradient import Direction, Probe, Term, ZOGradient, round16
from zolab.noise import make_key

LEAST = 2.0**-20  # a key that weighs less in m is forgotten


@dataclass(frozen=True)
class Mixture:
    """How m is mixed at each step; alpha, beta1 and beta2 fall from 1 to their ends.

    1 before step `warm`, the end from step `settle` on, and between them a smooth
    step (within 0.01 of the half cosine, and of the same bits everywhere). The paper's
    equation (7) for that part does not start at 1. Its program has warm 1024 and
    settle at 0.8 of all steps. `signed` adds m_{t-1} with its slope's sign.
    """

    warm: int
    settle: int
    alpha: float = 0.5
    beta1: float = 0.9
    beta2: float = 0.01
    signed: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.warm <= self.settle:
            raise ValueError(
                f"warm is {self.warm} and settle {self.settle}, expected steps with "
                "0 <= warm <= settle"
            )
        for name in ("alpha", "beta1", "beta2"):
            if not 0 < (end := getattr(self, name)) <= 1:
                raise ValueError(f"{name} is {end}, expected 0 < {name} <= 1")

    def at(self, step: int) -> tuple[float, float, float]:
        """(alpha, beta1, beta2) of a step."""
        if step < self.warm:
            share = 0.0
        elif step >= self.settle:
            share = 1.0
        else:
            x = (step - self.warm) / (self.settle - self.warm)
            share = x * x * (3.0 - 2.0 * x)
        ends = (self.alpha, self.beta1, self.beta2)
        alpha, beta1, beta2 = (1.0 - share + share * end for end in ends)
        return alpha, beta1, beta2


@dataclass(frozen=True)
class Mixed:
    """One step's z', z'' and m as terms of 16-bit weights, and beta1, beta2."""

    first: tuple[Term, ...]
    second: tuple[Term, ...]
    m: tuple[Term, ...]
    beta1: float
    beta2: float


class History:
    """m of the steps that were taken: `mixed` is what a step asks along."""

    def __init__(self, mixture: Mixture) -> None:
        self.mixture = mixture
        self.past: list[tuple[int, tuple[Term, ...]]] = []  # m of the last two steps

    def mixed(self, step: int, d: Direction) -> Mixed:
        """`d` is the step's first direction; a step before the last raises."""
        alpha, beta1, beta2 = self.mixture.at(step)
        before = self._before(step)
        other = Direction(make_key(d.key, step, 1), d.family)
        first = _kept([(d, math.sqrt(alpha))])
        second = _kept([*before, (other, math.sqrt(1.0 - alpha))])
        parts = [(d, (1.0 - beta1) * c) for d, c in second]
        m = _kept([*parts, *((d, beta1 * c) for d, c in first)])
        return Mixed(first, second, m, beta1, beta2)

    def push(self, step: int, d: Direction, slope: float) -> None:
        """The step was taken."""
        sign = -1.0 if self.mixture.signed and slope < 0 else 1.0
        m = tuple((d, sign * c) for d, c in self.mixed(step, d).m)
        kept = [x for x in self.past if x[0] < step]
        self.past = [*kept[-1:], (step, m)]

    def _before(self, step: int) -> tuple[Term, ...]:
        last = self.past[-1][0] if self.past else -1
        if step < last:
            raise ValueError(
                f"AdaMU has seen step {last} and is shown step {step}: its memory "
                "belongs to one run, so give each optimizer new ones"
            )
        earlier = [m for s, m in self.past if s < step]
        return earlier[-1] if earlier else ()

    def state_dict(self) -> list[Any]:
        return [[s, [[*astuple(d), c] for d, c in m]] for s, m in self.past]

    def load_state_dict(self, state: list[Any]) -> None:
        self.past = [(s, tuple((Direction(*d), c) for *d, c in m)) for s, m in state]


def _kept(terms: list[Term]) -> tuple[Term, ...]:
    return tuple((d, round16(c)) for d, c in terms if abs(c) >= LEAST)


class AdaMUProbes:
    """One slope along m_t; 2 forward passes a step. For the rule `AdaMU` alone."""

    num_queries, family = 1, "near_normal"

    def __init__(self, mixture: Mixture, *, eps: float = 1e-3) -> None:
        check_estimator(eps, 1, self.family)
        self.mixture, self.eps = mixture, round16(eps)
        self._history = History(mixture)

    @property
    def settings(self) -> dict[str, Any]:
        return {"name": "AdaMUProbes", "eps": self.eps} | asdict(self.mixture)

    def propose(self, key: Keys) -> Proposal:
        (d,) = directions(self.family, key, 1)
        m = self._history.mixed(key.step, d).m
        sides = (1.0, -1.0)
        up, down = yield [
            Probe(tuple((x, round16(s * self.eps * c)) for x, c in m)) for s in sides
        ]
        return ZOGradient(((d, (up.value - down.value) / (2 * self.eps)),))

    def observe(self, key: Keys, gradient: ZOGradient) -> None:
        """A step was taken, now or in the log that a resume reads."""
        ((d, slope),) = gradient.terms
        self._history.push(key.step, d, slope)

    def state_dict(self) -> list[Any]:
        return self._history.state_dict()

    def load_state_dict(self, state: list[Any]) -> None:
        self._history.load_state_dict(state)
