"""The reader's lines and the package's must agree: to the bit, or say how nearly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zolab.lab.show import say


class NotTheSame(AssertionError):
    """Two ways to compute one thing differ; the message says where."""


def same(mine: Any, theirs: Any, *, tol: float | None = None) -> None:
    """Numbers, tensors, lists, dicts or modules: equal bits, or within `tol`.

    `tol` is relative to the largest magnitude of `theirs` in the same tensor. Says how
    many numbers were compared, tied tensors once; raises NotTheSame with the place and
    both values.
    """
    left, right = dict(_flatten(mine)), dict(_flatten(theirs))
    if left.keys() != right.keys():
        odd = sorted(left.keys() ^ right.keys())[:3]
        raise NotTheSame(f"only one side has {', '.join(odd)}")
    worst = 0.0
    for place, a in left.items():
        worst = max(worst, _compare(place, a, right[place], tol))
    memory = {(t.data_ptr(), t.shape, t.stride()): t.numel() for t in right.values()}
    count = sum(memory.values())
    how = "equal bits" if worst == 0 else f"within {worst:.1e} (allowed {tol:.0e})"
    say(f"same: {count:,} numbers, {how}")


def _flatten(x: Any, place: str = "value") -> Iterator[tuple[str, Tensor]]:
    if isinstance(x, nn.Module):
        x = dict(x.state_dict())
    if isinstance(x, Tensor):
        yield place, x.detach()
    elif isinstance(x, Mapping):
        for key, value in x.items():
            yield from _flatten(
                value, str(key) if place == "value" else f"{place}.{key}"
            )
    elif isinstance(x, list | tuple):
        for i, value in enumerate(x):
            yield from _flatten(value, f"{place}[{i}]")
    else:
        yield place, torch.as_tensor(x, dtype=torch.float64)


def _compare(place: str, a: Tensor, b: Tensor, tol: float | None) -> float:
    """The largest difference, relative to b's largest magnitude."""
    if a.shape != b.shape or a.dtype != b.dtype:
        kinds = [f"{tuple(t.shape)} {t.dtype}" for t in (a, b)]
        raise NotTheSame(f"{place}: mine is {kinds[0]}, theirs {kinds[1]}")
    if not a.numel() or torch.equal(a, b):
        return 0.0
    gap = (a.double() - b.double()).abs().nan_to_num(nan=torch.inf)
    relative = float(gap.max() / b.double().abs().max().clamp_min(1e-300))
    if tol is not None and relative <= tol:
        return relative
    at = int(gap.argmax())
    where = [int(i) for i in torch.unravel_index(torch.tensor(at), a.shape)]
    many = int((a != b).sum())
    raise NotTheSame(
        f"{place}{where or ''}: mine {float(a.reshape(-1)[at]):.9g}, theirs "
        f"{float(b.reshape(-1)[at]):.9g}; {many:,} of {a.numel():,} numbers differ, "
        f"at most by {relative:.2g} of the largest"
        + ("" if tol is None else f", allowed {tol:g}")
    )
