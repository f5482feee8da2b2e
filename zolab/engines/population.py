"""A population in one batched forward: low-rank directions are never materialised.

    member p's linear layer:   x (W + s_p U_p V_p')' = x W' + (x V_p) (s_p U_p)'

Many probes share the product with W, which is read once for all of them; what is a
member's own costs 2 r (rows + columns) multiplications a token. `torch.vmap` carries
the members through everything between the layers, so the closure is written for one
model, as always. The losses are those of `Resident` up to the rounding of a sum; the
update is the same, bit for bit, for equal coefficients.

B. Sarkar et al., Evolution strategies at the hyperscale (EGGROLL), arXiv:2511.16652.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zolab import storage
from zolab.engines.base import Objectives
from zolab.engines.guards import eval_mode
from zolab.engines.mode import Materialise
from zolab.engines.readout import number
from zolab.engines.resident import Resident
from zolab.errors import LossError
from zolab.gradient import Answer, Probe
from zolab.noise import signs
from zolab.space import Slot, Space

Factors = dict[str, tuple[Tensor, Tensor]]  # a slot's (rows, r) and (columns, r)


class Population(Resident):
    """Evaluate up to `members` probes in one forward pass; their activations together.

    For estimators that ask many questions at once along `family=LowRank(...)`: FZOO,
    EvolutionStrategy, SPSA with several queries. The closure returns its loss as a
    tensor and decides nothing by it (no `.item()`, no generation). ValueError on other
    directions, on masks and on forward derivatives.
    """

    def __init__(self, *, members: int = 16, unseen: str = "raise") -> None:
        super().__init__(scratch="one", unseen=unseen)
        if members < 1:
            raise ValueError(f"members is {members}, expected at least 1")
        self.members = members

    def bind(self, model: nn.Module, space: Space, *, seed: int, rounding: str) -> None:
        super().bind(model, space, seed=seed, rounding=rounding)
        self.plan = {"engine": "population", "members": self.members}
        if partial := [s.name for s in space if s.mask or s.curvature]:
            raise ValueError(
                f"{partial[0]} has a mask or a curvature: its perturbation has no low "
                "rank. Use Resident()."
            )

    def evaluate(self, probes: list[Probe], objectives: Objectives) -> list[Answer]:
        answers = []
        for name, same in groupby(probes, lambda p: p.objective):
            asked = list(same)
            if any(p.want != "value" for p in asked):
                raise ValueError("a population gives losses only; use Resident()")
            for i in range(0, len(asked), self.members):
                part = asked[i : i + self.members]
                answers += self._together(part, objectives[name])
        self.check_seen()
        return answers

    def _together(
        self, probes: Sequence[Probe], closure: Callable[[], Any]
    ) -> list[Answer]:
        every = {s.name: factors(s, probes) for s in self.space}

        def one(mine: Factors) -> Tensor:
            with Members(self.space, mine, seen=self.seen):
                return one_number(closure())

        with eval_mode(self.model), torch.no_grad(), explained():
            losses = torch.vmap(one)(every)
        return [Answer(number(x)) for x in losses]


class Members(Materialise):
    """While active, the space's parameters read as each member's, without a copy."""

    tall = 0  # every matrix goes the way of a head that is too tall for the scratch

    def __init__(self, space: Space, factors: Factors, *, seen: set[str]) -> None:
        super().__init__(space, (), keep=False, seen=seen)
        self.factors = factors
        self.moves = dict.fromkeys(factors, True)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        slot = self._slot(args[2]) if func is torch.addmm and len(args) == 3 else None
        if slot and not kwargs:  # GPT-2 stores its layers transposed
            self.seen.update(s.name for s in self._slots_in(args))
            bias, x = self._swap(args[:2], False)
            left, right = self._like(slot, x)
            return torch.addmm(bias, x, slot.base) + x @ left @ right.T
        return super().__torch_function__(func, types, args, kwargs)

    def value(self, slot: Slot, dtype: torch.dtype, *, pooled: bool = False) -> Tensor:
        """The slot itself: small for a vector, a copy a member for a matrix."""
        left, right = self.factors[slot.name]
        return (slot.base.float() + (left @ right.T).reshape(slot.shape)).to(dtype)

    def _tiled(self, slot: Slot, x: Tensor, _: Any, bias: Any = None) -> Tensor:
        x, bias = self._swap((x, bias), False)
        left, right = self._like(slot, x)
        return F.linear(x, slot.base, bias) + x @ right @ left.T

    def _embedding(self, slot: Slot, index: Tensor) -> Tensor:
        left, right = self.factors[slot.name]
        return (slot.base[index].float() + left[index] @ right.T).to(slot.dtype)

    def _like(self, slot: Slot, x: Tensor) -> tuple[Tensor, Tensor]:
        left, right = self.factors[slot.name]
        return left.to(x.dtype), right.to(x.dtype)


def factors(slot: Slot, probes: Sequence[Probe]) -> tuple[Tensor, Tensor]:
    """Of a slot (members, rows, r), the scales in it, and (members, columns, r).

    r is the sum of a probe's ranks; a probe of fewer terms gets zeros.
    """
    moves = [storage.draws(slot, p.terms) for p in probes]
    if odd := {d.family for m in moves for d in m} - {"low_rank"}:
        raise ValueError(
            f"a population's directions are {sorted(odd)[0]}, expected low_rank: "
            "family=LowRank(rank=1, every=1)"
        )
    rows, columns = slot.matrix
    width = max(sum(d.rank for d in m) for m in moves)
    left = torch.zeros(len(probes), rows, width, device=slot.base.device)
    right = torch.zeros(len(probes), columns, width, device=slot.base.device)
    for p, m in enumerate(moves):
        at = 0
        for d in m:
            here = slice(at, at := at + d.rank)
            left[p, :, here] = d.scale * signs(d.stream, rows, d.rank, left.device)
            right[p, :, here] = signs(d.right, columns, d.rank, left.device)
    return left, right


def one_number(loss: Any) -> Tensor:
    """The closure's tensor, checked as `number` checks it; LossError."""
    if not isinstance(loss, Tensor):
        kind = type(loss).__name__
        raise LossError(
            f"the closure returned {kind}, expected the loss as a tensor: in a "
            "population it stands for every member's. Use Resident() otherwise."
        )
    if loss.numel() != 1 or loss.dtype not in (torch.float32, torch.float64):
        number(torch.zeros(loss.shape, dtype=loss.dtype))
    return loss.reshape(())


@contextmanager
def explained() -> Iterator[None]:
    """vmap's refusals, in the words of a closure's author."""
    try:
        with warnings.catch_warnings():  # attention falls back to one member at a time
            warnings.filterwarnings("ignore", message="There is a performance drop")
            yield
    except RuntimeError as error:
        if "vmap" not in str(error):
            raise
        raise LossError(
            "the closure does what a population cannot do together: it reads a number "
            "out of a tensor, draws at random or branches by a value. Use Resident(). "
            f"({str(error).splitlines()[0]})"
        ) from error
