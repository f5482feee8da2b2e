"""What tensors hold, counted call by call, in whichever thread they are made.

    peak = max over time of sum of bytes of the storages that calls returned and live

The ledger (`zolab.bench.ledger`) hears of the calling thread alone, and a streamed
engine's probes have threads of their own. Here a dispatch mode around the closure sees
every storage that an operation returns, in its thread; what an operation frees before
it returns is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

T = TypeVar("T")


class Live:
    """Bytes `now` and at the `peak`; storages of `known` tensors do not count."""

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        self.now = self.peak = 0
        self.sizes: dict[int, int] = {}
        self.known = {t.untyped_storage()._cdata for t in known}

    def watch(self, closure: Callable[[], T]) -> Callable[[], T]:
        """The same closure, its calls counted."""

        def watched() -> T:
            with _Seen(self):
                return closure()

        return watched

    def meet(self, t: Tensor) -> None:
        """Count the tensor's storage until it is freed."""
        storage = t.untyped_storage()
        key = storage._cdata
        if key in self.sizes or key in self.known:
            return
        self.sizes[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.now -= self.sizes.pop(key)


class _Seen(TorchDispatchMode):
    def __init__(self, live: Live) -> None:
        super().__init__()
        self.live = live

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor):
                self.live.meet(x)
        return out
