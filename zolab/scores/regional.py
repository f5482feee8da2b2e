"""Wanda++: Wanda's score plus a gradient that never leaves its block.

    S_ij = |w_ij| (alpha G_ij + ||x_j||),   G_ij^2 = mean over samples of
                                            (d ||f(x)||_2 / d w_ij)^2

f is one region (a decoder block), x what it is given. No graph leads into a region or
out of it, so back-propagation keeps the activations of one region and no more.

Y. Yang et al., Wanda++: pruning large language models via regional gradients,
arXiv:2503.04992 (alpha 100). Their regional optimisation, which moves the weights that
are left, is no score and is not here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zolab.engines.calls import map_leaves
from zolab.errors import ScoreError
from zolab.scores.wanda import Ask, Inputs
from zolab.space import Space


class Regional:
    """Hooks on the regions that add up squared regional gradients, a call a sample."""

    def __init__(self, space: Space, regions: Sequence[nn.Module]) -> None:
        ids = {id(p): s.name for s in space if len(s.shape) == 2 for p in s.params}
        self.squares: dict[str, Tensor] = {}
        self.calls: dict[str, int] = {}
        self.hooks: list[Any] = []
        for region in regions:
            mine = {ids[id(p)]: p for p in region.parameters() if id(p) in ids}
            self.hooks.append(region.register_forward_pre_hook(self._enter))
            leave = lambda r, a, out, mine=mine: self._leave(mine, out)  # noqa: E731
            self.hooks.append(region.register_forward_hook(leave))

    def _enter(self, region: nn.Module, args: Any) -> None:
        torch.set_grad_enabled(True)  # what came before was computed without a graph

    def _leave(self, mine: dict[str, nn.Parameter], out: Any) -> Any:
        first = out[0] if isinstance(out, tuple | list) else out
        grads: tuple[Tensor | None, ...] = torch.autograd.grad(
            first.float().norm(), list(mine.values()), allow_unused=True
        )
        torch.set_grad_enabled(False)
        for name, g in zip(mine, grads, strict=True):
            if g is None:  # a matrix that this region holds and does not use
                continue
            if not bool(g.isfinite().all()):
                raise ScoreError(f"the regional gradient of {name} is not finite")
            self.squares[name] = self.squares.get(name, 0) + g.double().square()
            self.calls[name] = self.calls.get(name, 0) + 1
        return map_leaves(_cut, out)

    def gradients(self) -> dict[str, Tensor]:
        """G by slot name, fp32."""
        return {n: (s / self.calls[n]).sqrt().float() for n, s in self.squares.items()}


def _cut(x: Any) -> Any:
    return x.detach() if isinstance(x, Tensor) else x


def wanda_pp(
    space: Space,
    asks: Iterable[Ask],
    regions: Sequence[nn.Module],
    *,
    alpha: float = 100.0,
) -> dict[str, Tensor]:
    """The score of each matrix of the space; every one must lie in a region.

    A closure of one sentence is a sample: of a batch the norm is taken as a whole.
    Raises ScoreError without a pass, on a matrix outside of the regions or unused in
    its own, and on numbers that are not finite.
    """
    inside, seen = Regional(space, regions), Inputs(space)
    try:
        with torch.no_grad(), seen:
            for ask in asks:
                ask()
    finally:
        for hook in inside.hooks:
            hook.remove()
    norms, found = seen.norms(), inside.gradients()
    if strangers := sorted(norms.keys() - found.keys()):
        raise ScoreError(
            f"{strangers[0]} has no regional gradient: it lies in none of the "
            f"{len(regions)} regions, or does not reach its region's output"
        )
    return {
        n: space[n].base.float().abs() * (alpha * found[n] + x)
        for n, x in norms.items()
    }
