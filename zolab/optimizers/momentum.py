"""Heavy-ball momentum without a momentum tensor: the last W gradients, drawn again.

    m_t = beta m_{t-1} + (1 - dampening) g_t
        = (1 - dampening) * sum_i beta^i g_{t-i},       cut at i < W
    w  <- (1 - lr * weight_decay) * w - lr * m_t

A gradient is a key and a coefficient, so remembering W of them costs a few numbers,
not a copy of the model; drawing them again costs W directions a step instead of one.
W is the smallest with beta^W <= 0.01: 44 at 0.9, 90 at 0.95, 459 at 0.99. What is cut
weighs beta^W of the whole. `window` says otherwise, `terms(num_queries)` is the cost.

`fold` = k pays that price every k steps. A step moves along its own gradient at once;
each k-th one also adds what the older ones are owed since the last fold, a number a
key. There, at a constant lr without decay, the weights are those of fold = 1 on the
same gradients; in between the pushes are up to k - 1 steps late. (W + 2k - 2) / k
directions a step: 44 becomes 7.25 at k = 8. What is owed is paid at the lr of the step
that pays; end a run on a multiple of k, or the last pushes are missing.

`dampening` is torch's, except that the first gradient is dampened like every other
(torch takes it whole): 0 is the heavy ball, whose steps are up to 1 / (1 - beta) times
longer than SGD's at the same lr; beta makes an average, an EMA. The decay is decoupled:
it never enters m, whereas torch.optim.SGD adds it to g.

A refused step is not in m, and beta counts accepted steps only. A replay drives the
rule from the log's first record, so after a resume the window is the uninterrupted
run's. It belongs to one run: a rule that is shown an earlier step than its last raises.

B. T. Polyak, Some methods of speeding up the convergence of iteration methods, USSR
Comput. Math. Math. Phys. 4 (1964). Published MeZO and ZO-LLM (arXiv:2402.11592) keep m
as dense tensors. ZO-LLM's conservative trainer also tries its candidates through that
same optimizer: with momentum, a step back by -2 is not the way back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

from zolab.gradient import Direction, Update, ZOGradient
from zolab.optimizers.sgd import SGD

CUT = 0.01  # the share of an endless memory that the window leaves out


def window_of(beta: float) -> int:
    """The smallest W >= 1 with beta^W <= 0.01, by products alone: no machine's log."""
    size, share = 1, beta
    while share > CUT:
        size, share = size + 1, share * beta
    return size


class Window:
    """The last gradients and their rates: `push` says what a step moves along.

    rate_t sum_{i < size} beta^i g_{t-i}, oldest first; with `fold` = k on every k-th
    push the sum of that over k steps, less what the steps between moved by themselves.
    """

    def __init__(self, beta: float, size: int, fold: int = 1) -> None:
        if size < 1 or fold < 1:
            what = f"window is {size}" if size < 1 else f"fold is {fold}"
            raise ValueError(f"{what}, expected at least 1")
        self.powers = [1.0]
        for _ in range(size - 1):
            self.powers.append(self.powers[-1] * beta)  # pow() differs between machines
        self.fold, self.reach = fold, size + fold - 1
        self.past: list[tuple[int, int, float, ZOGradient]] = []

    def push(self, g: ZOGradient, step: int, rate: float = 1.0) -> ZOGradient:
        """What to move along; the last step shown again takes its old g's place.

        (A step whose record could not be written is shown again by the next try.)
        """
        past = rewound(self.past, step)
        count = past[-1][1] + 1 if past else 1
        # One more than is summed, so that the last step can be taken back.
        self.past = [*past[-self.reach :], (step, count, rate, g)]
        if count % self.fold:
            return g * rate
        inside = self.past[-self.reach :]
        rates = [r for _, _, r, _ in reversed(inside)]
        total = ZOGradient(())
        for age in range(len(inside) - 1, -1, -1):
            h = inside[-1 - age][3]
            if self.fold == 1:  # two products, as the logs before `fold` had them
                total = total + h * self.powers[age] * rate
            else:
                total = total + h * self._owed(age, rates)
        return total

    def _owed(self, age: int, rates: Sequence[float]) -> float:
        """What the gradient of `age` steps ago is due for the last `fold` steps."""
        due = 0.0
        for ago in range(min(self.fold - 1, age), -1, -1):
            paid = ago == age and age > 0  # by the step that found it
            if not paid and age - ago < len(self.powers):
                due += rates[ago] * self.powers[age - ago]
        return due

    def terms(self) -> float:
        """Gradients that a step draws again, on average."""
        return (len(self.powers) + 2 * self.fold - 2) / self.fold

    def state_dict(self) -> list[Any]:
        """The past as plain numbers and words."""
        return [
            [step, count, rate, [[*astuple(d), c] for d, c in g.terms]]
            for step, count, rate, g in self.past
        ]

    def load_state_dict(self, state: list[Any]) -> None:
        self.past = [
            (step, n, rate, ZOGradient(tuple((Direction(*d), c) for *d, c in terms)))
            for step, n, rate, terms in state
        ]


def rewound(past: list[Any], step: int) -> list[Any]:
    """`past`, of (step, ...), without `step`; ValueError if a later one is there."""
    last = past[-1][0] if past else -1
    if step < last:
        raise ValueError(
            f"the rule has seen step {last} and is shown step {step}: its memory "
            "belongs to one run, so give each optimizer a new rule"
        )
    return past[:-1] if step == last else past


def check_beta(name: str, beta: float) -> None:
    """ValueError unless 0 <= beta < 1."""
    if not 0 <= beta < 1:
        raise ValueError(f"{name} is {beta}, expected 0 <= {name} < 1")


class Momentum:
    """SGD on m_t = sum_{i < window} beta^i (1 - dampening) g_{t-i}; one rule a run."""

    def __init__(
        self,
        *,
        beta: float = 0.9,
        dampening: float = 0.0,
        window: int | None = None,
        fold: int = 1,
    ) -> None:
        check_beta("beta", beta)
        check_beta("dampening", dampening)
        self.window = window_of(beta) if window is None else window
        self.beta, self.dampening, self.fold = beta, dampening, fold
        self._memory = Window(beta, self.window, fold)

    @property
    def settings(self) -> dict[str, Any]:
        names = ("beta", "dampening", "window")
        return {"name": "Momentum"} | {n: getattr(self, n) for n in names} | folds(self)

    def terms(self, num_queries: int = 1) -> float:
        """Directions that a step draws again for its update; SGD draws num_queries."""
        return self._memory.terms() * num_queries

    def update(
        self,
        g: ZOGradient,
        step: int,
        lr: Sequence[float],
        weight_decay: Sequence[float],
    ) -> Update:
        m = self._memory.push(g * (1.0 - self.dampening), step)
        return SGD().update(m, step, lr, weight_decay)

    def state_dict(self) -> dict[str, Any]:
        """The window, for a run without a journal; a replay needs none."""
        return {"window": self._memory.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._memory.load_state_dict(state["window"])


def folds(rule: Any) -> dict[str, int]:
    """`fold` for a header, left out at 1: logs from before it stay readable."""
    return {"fold": rule.fold} if rule.fold != 1 else {}
