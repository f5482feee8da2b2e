"""What a torch call takes, writes and returns, seen from outside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from zolab.engines.guards import generators


def map_leaves(f: Callable[[Any], Any], x: Any) -> Any:
    """x with f at every leaf of its tuples, lists and dicts, named ones too."""
    if isinstance(x, tuple | list):
        parts = [map_leaves(f, y) for y in x]
        return type(x)(*parts) if hasattr(x, "_fields") else type(x)(parts)
    if isinstance(x, dict):
        return {k: map_leaves(f, y) for k, y in x.items()}
    return f(x)


def target_of(func: Any, args: Any, kwargs: Any) -> Any:
    """What the call writes to, or None: `x.add_(y)`, `x[i] = y`, `add(x, y, out=z)`."""
    if kwargs.get("out") is not None:
        return kwargs["out"]
    name = getattr(func, "__name__", "")
    writes = name.endswith("_") and not name.endswith("__")
    if writes or name in ("__set__", "__setitem__") or kwargs.get("inplace"):
        return args[0] if args else next(iter(kwargs.values()), None)
    return None


_DTYPES: dict[Any, torch.dtype | None] = {}


def result_dtype(func: Any, args: Any, kwargs: Any) -> torch.dtype | None:
    """The dtype of func's result on the stored values: computed once a signature."""
    signature: list[Any] = [func]
    for device in ("cpu", "cuda"):
        signature.append(torch.is_autocast_enabled(device))
        signature.append(torch.get_autocast_dtype(device))

    def note(x: Any) -> Any:
        if isinstance(x, Tensor):
            signature.append((x.dtype, x.dim() == 0))
        elif isinstance(x, torch.dtype | str):
            signature.append(x)
        return x

    map_leaves(note, args), map_leaves(note, kwargs)
    key = tuple(signature)
    if key not in _DTYPES:
        restore = generators()
        out = func(*args, **kwargs)
        restore()
        first = out[0] if isinstance(out, tuple | list) and out else out
        _DTYPES[key] = first.dtype if isinstance(first, Tensor) else None
    return _DTYPES[key]
