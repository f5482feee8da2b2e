"""Packed weights: decoded and moved, looked up by rows, stepped on the grid.

    materialise   out = cast(scale (table[code] - zero) + sum s z)
    rows          the same for looked-up rows of a matrix
    update        code <- code + round((decay - 1) (table[code] - zero)
                                       + sum c z / scale),          kept on the table

An update stays in units of levels: what does not move keeps its code exactly, and a
step of a millionth of a level is rounded up with probability one in a million (32
random bits). On a table whose levels are not equally far apart the rounding is between
neighbours. With `snap` (ZOQO) a move is sign(c) z levels, max(floor(|c| / scale), 1)
of them. Where a scale is 0 no code steps: no code changes a weight there.

As for plain weights there are three kernels of the same bits: `coded_plain` (torch, the
definition), `coded_cpu` (numba) and `coded_gpu` (Triton).
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from zolab.storage.packed import Packed

if TYPE_CHECKING:
    from zolab.storage import Draw, Step


def materialise(
    packed: Packed,
    draws: Sequence[Draw],
    out: Tensor,
    start: int,
    scale: Tensor | None = None,
) -> None:
    """out = cast(elements from `start`, moved).

    `scale` stands for the scales of the groups `packed.span(start, out.numel())`.
    """
    if n := out.numel():
        part = slice(*packed.span(start, n))
        s = packed.scale.detach().view(-1)[part] if scale is None else scale.view(-1)
        if packed.unit is not None:
            s = s.float() * packed.unit.view(-1)[part].float()
        zero = None if packed.zero is None else packed.zero.view(-1)[part].float()
        _kernel(out, draws).materialise(packed, draws, out, start, s.float(), zero)


def rows(
    packed: Packed,
    draws: Sequence[Draw],
    index: Tensor,
    out: Tensor,
    scale: Tensor | None = None,
) -> None:
    """out[i] = row index[i]; `scale` are these rows' scales, (n, groups a row)."""
    if out.numel():
        at = packed.row(index)
        s = packed.scale.detach()[at] if scale is None else scale
        if packed.unit is not None:
            s = s.float() * packed.unit[at].float()
        zero = None if packed.zero is None else packed.zero[at].float()
        _kernel(out, draws).rows(packed, draws, index, out, s.float(), zero)


def update(packed: Packed, steps: Sequence[Step]) -> None:
    """Move the codes, step after step, in place."""
    if packed.shape.numel():
        s = packed.scales().view(-1)
        zero = None if packed.zero is None else packed.zero.view(-1).float()
        moves = [d for step in steps for d in step.draws]
        _kernel(packed.codes, moves).update(packed, steps, s, zero)


def _kernel(where: Tensor, draws: Sequence[Draw]) -> Any:
    """The module beside the fastest one that knows the draws' families."""
    from zolab.storage import kernel

    name = kernel(where.device, draws).__name__.rpartition(".")[2]
    return importlib.import_module(f"zolab.storage.coded_{name}")
