"""Wanda: a weight times the norm of what it multiplies, from forward passes only.

    S_ij = |w_ij| ||x_j||        ||x_j||^2 = sum over tokens of x_j^2

S_ij^2 is the squared change of the layer's outputs when w_ij is set to 0. Read like
that it covers an embedding, too: its input is one-hot, so row t counts how often token
t came. A tied table is an embedding and a head, and its changes add.

M. Sun et al., A simple and effective pruning approach for large language models,
arXiv:2306.11695; it compares within a row (an output): `masks.top(..., per="row")`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from zolab.errors import ScoreError
from zolab.space import Slot, Space

Ask = Callable[[], Any]


class Inputs(TorchFunctionMode):
    """While active, sums the squares of what meets each matrix of the space.

    `squares[name]` is (m, 1) + (1, n) broadcast: rows are inputs of an embedding and of
    `addmm`, columns of a linear layer. Parameters are found by identity.
    """

    def __init__(self, space: Space) -> None:
        super().__init__()
        self.slots = {id(p): s for s in space if len(s.shape) == 2 for p in s.params}
        self.squares: dict[str, Tensor] = {}
        self.others: dict[str, str] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        slot = self._slot(args[-1]) if func is torch.addmm and len(args) == 3 else None
        if slot is not None:
            self._add(slot, args[1], 0)
        elif func is F.linear or func is F.embedding:
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            if (slot := self._slot(weight)) is not None:
                self._add(slot, args[0], 1 if func is F.linear else None)
        elif used := [s for a in args if (s := self._slot(a)) is not None]:
            self.others[used[0].name] = getattr(func, "__name__", str(func))
        return func(*args, **kwargs)

    def _slot(self, x: Any) -> Slot | None:
        return self.slots.get(id(x)) if isinstance(x, Tensor) else None

    def _add(self, slot: Slot, x: Tensor, axis: int | None) -> None:
        m, n = slot.shape
        if axis is None:  # one-hot inputs: how often each row was looked up
            found = torch.bincount(x.reshape(-1), minlength=m).double()[:, None]
        else:
            squares = x.detach().reshape(-1, x.shape[-1]).double().square().sum(0)
            found = squares[None, :] if axis else squares[:, None]
        if not bool(found.isfinite().all()):
            raise ScoreError(f"the input of {slot.name} is not finite: no score of it")
        zeros = torch.zeros(1, 1, device=found.device, dtype=found.dtype)
        self.squares[slot.name] = self.squares.get(slot.name, zeros) + found

    def norms(self) -> dict[str, Tensor]:
        """||x|| by slot, to be broadcast over it; ScoreError on a matrix never met."""
        wanted = {s.name for s in self.slots.values()}
        if unseen := sorted(wanted - self.squares.keys()):
            met = self.others.get(unseen[0])
            why = f"only {met} read it" if met else "no forward pass read it"
            raise ScoreError(
                f"{len(unseen)} of {len(wanted)} matrices have no input norm, "
                f"{unseen[0]} first: {why}. Known are linear, embedding and addmm; "
                "select other slots, or run the model in the closures."
            )
        return {n: s.sqrt().float() for n, s in self.squares.items()}


def input_norms(space: Space, asks: Iterable[Ask]) -> dict[str, Tensor]:
    """||x|| of each matrix, over the forward passes that the closures `asks` make.

    Padding is input, too: feed sentences of one length, or a batch of one. Raises
    ScoreError without a pass, on a matrix that none read, and on inputs that are not
    finite.
    """
    seen = Inputs(space)
    with torch.no_grad(), seen:
        for ask in asks:
            ask()
    return seen.norms()


def wanda(space: Space, asks: Iterable[Ask]) -> dict[str, Tensor]:
    """|w| ||x|| of each matrix of the space, fp32, by slot name."""
    norms = input_norms(space, asks)
    return {n: space[n].base.float().abs() * x for n, x in norms.items()}
