"""The dense form of a rule: tensors as large as the weights, for any gradient.

    SGD        g                                                    0 bytes a weight
    SignSGD    sign(g), coordinate by coordinate                    0
    Momentum   m <- beta m + (1 - dampening) g                      4
    Adam       m, v <- averages of g and g * g                      8
               m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + adam_eps)

with g = sum_i c_i z_i drawn out. For teaching, for parity with published code, which
keeps these tensors (MeZO-Adam, ZO-LLM), and for what the windows refuse: several
queries, and z that are not signs. `window` and `fold` mean nothing here. On Rademacher
z and one query a window is its dense form to beta^W.

The memory is fp32 on the slot's device, beside 2 bytes a bf16 weight. It is a function
of the log like the weights are: a replay makes it again, from the first record also
when it starts at a snapshot (a direction a record), and nothing else stores it.

D. P. Kingma and J. Ba, Adam, arXiv:1412.6980. S. Liu et al., signSGD via zeroth-order
oracle, ICLR 2019.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from zolab.gradient import Direction, Update, ZOGradient
from zolab.optimizers.base import Rule, rule_from
from zolab.optimizers.momentum import rewound
from zolab.optimizers.sgd import SGD
from zolab.space import Slot

Memory = dict[str, Any]
"""Of one slot: `step` that it saw last, and what the rule keeps."""


class Dense:
    """`Dense(Adam())`: the same rule on tensors; one rule a run.

    Raises ValueError for a rule that has no dense form here, and beside HiZOO.
    """

    def __init__(self, rule: Rule | Mapping[str, Any]) -> None:
        self.rule = rule_from(dict(rule)) if isinstance(rule, Mapping) else rule
        name = self.rule.settings["name"]
        if name not in MOVES:
            raise ValueError(f"rule is {name}, expected one of {', '.join(MOVES)}")
        self._moves = MOVES[name]
        self._log: list[tuple[int, ZOGradient]] = []  # what some slot has not seen yet
        self._slots: dict[str, Memory] = {}

    @property
    def settings(self) -> dict[str, Any]:
        return {"name": "Dense", "rule": self.rule.settings}

    @property
    def bytes_a_weight(self) -> int:
        """What the memory adds to a weight; none before the first step."""
        return BYTES[self.rule.settings["name"]]

    def check(self, estimator: Any) -> None:
        """ValueError, before the first step, beside an estimator with a Hessian."""
        if getattr(estimator, "smooth", None) is not None:
            raise ValueError(
                f"{type(estimator).__name__} keeps a Hessian by whose root directions "
                "are divided; a dense update is none. Take a rule of directions, as SGD"
            )

    def update(
        self,
        g: ZOGradient,
        step: int,
        lr: Sequence[float],
        weight_decay: Sequence[float],
    ) -> Update:
        log = rewound(self._log, step)
        seen = min((s["step"] for s in self._slots.values()), default=-1)
        self._log = [*(x for x in log if x[0] > seen), (step, g)]
        u = SGD().update(ZOGradient(()), step, lr, weight_decay)
        return replace(u, dense=partial(self._move, step))

    @torch.no_grad()
    def _move(self, step: int, slot: Slot) -> Tensor:
        """What moves a slot at a step. A replay may ask long after it made updates."""
        memory = self._slots.setdefault(slot.name, {"step": -1})
        if memory["step"] >= step:
            raise ValueError(
                f"{slot.name} is given step {step} again, and its memory is at step "
                f"{memory['step']}: an engine that gives a block its updates more than "
                "once (Streamed with write_back above 1) needs a rule of directions"
            )
        move = torch.zeros(slot.shape, device=slot.base.device)
        for at, g in self._log:
            if memory["step"] < at <= step:
                move = self._moves(self.rule, memory, _drawn(g, slot))
                memory["step"] = at
        return move

    def state_dict(self) -> dict[str, Any]:
        """The tensors, for a run without a journal."""
        log = [[s, [[*astuple(d), c] for d, c in g.terms]] for s, g in self._log]
        return {"log": log, "slots": {n: dict(m) for n, m in self._slots.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._log = [
            (s, ZOGradient(tuple((Direction(*d), c) for *d, c in terms)))
            for s, terms in state["log"]
        ]
        self._slots = {
            n: {k: x.clone() if isinstance(x, Tensor) else x for k, x in m.items()}
            for n, m in state["slots"].items()
        }


def _drawn(g: ZOGradient, slot: Slot) -> Tensor:
    total = torch.zeros(slot.shape, device=slot.base.device)
    for d, c in g.terms:
        total += c * slot.direction(d)
    return total


def _sgd(rule: Any, memory: Memory, g: Tensor) -> Tensor:
    return g


def _sign(rule: Any, memory: Memory, g: Tensor) -> Tensor:
    return g.sign()


def _momentum(rule: Any, memory: Memory, g: Tensor) -> Tensor:
    m = memory.get("m", torch.zeros_like(g))
    memory["m"] = rule.beta * m + (1.0 - rule.dampening) * g
    return memory["m"]


def _adam(rule: Any, memory: Memory, g: Tensor) -> Tensor:
    zero = torch.zeros_like(g)
    memory["m"] = rule.beta1 * memory.get("m", zero) + (1.0 - rule.beta1) * g
    memory["v"] = rule.beta2 * memory.get("v", zero) + (1.0 - rule.beta2) * (g * g)
    b1 = memory["b1"] = memory.get("b1", 1.0) * rule.beta1
    b2 = memory["b2"] = memory.get("b2", 1.0) * rule.beta2
    return (
        memory["m"] / (1.0 - b1) / ((memory["v"] / (1.0 - b2)).sqrt() + rule.adam_eps)
    )


MOVES: Mapping[str, Callable[[Any, Memory, Tensor], Tensor]] = {
    "SGD": _sgd,
    "SignSGD": _sign,
    "Momentum": _momentum,
    "Adam": _adam,
}
BYTES = {"SGD": 0, "SignSGD": 0, "Momentum": 4, "Adam": 8}
