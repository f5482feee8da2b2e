"""A store behind a slow link: what a bus or a disk does to the engine, on any machine.

    seconds of a transfer = max(its own, latency + bytes / rate)

Up and down are separate lanes, as on a PCIe bus.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from torch import Tensor

from zolab.storage.blocks import Size, Store


class Throttled:
    """`inner` at `rate` bytes a second, each transfer at least `latency` seconds.

    `sent` counts the bytes: "up" to the device, "down" to the store.
    """

    def __init__(self, inner: Store, *, rate: float, latency: float = 0.0) -> None:
        if not rate > 0 or latency < 0:
            raise ValueError(f"rate {rate}, latency {latency}: expected > 0 and >= 0")
        self.inner, self.rate, self.latency = inner, rate, latency
        self.sent = {"up": 0, "down": 0}

    @property
    def direct(self) -> bool:
        return self.inner.direct

    @property
    def marks(self) -> list[int]:
        return self.inner.marks

    def open(self, sizes: Sequence[Size], layout: str) -> bool:
        self.sizes = list(sizes)
        return self.inner.open(sizes, layout)

    def fill(self, block: int, data: Tensor) -> None:
        self.inner.fill(block, data)

    def seal(self, base: str) -> None:
        self.inner.seal(base)

    @property
    def base(self) -> str | None:
        return self.inner.base

    def begin(self, run: str) -> None:
        self.inner.begin(run)

    def read(self, block: int, out: Tensor) -> None:
        began = time.perf_counter()
        self.inner.read(block, out)
        self._wait(began, "up", self.sizes[block].nbytes)

    def write(self, block: int, data: Tensor, mark: int) -> None:
        began = time.perf_counter()
        self.inner.write(block, data, mark)
        self._wait(began, "down", self.sizes[block].moving)

    def close(self) -> None:
        self.inner.close()

    def home(self, block: int) -> tuple[Tensor, Tensor]:
        return self.inner.home(block)

    def _wait(self, began: float, lane: str, nbytes: int) -> None:
        self.sent[lane] += nbytes
        until = began + self.latency + nbytes / self.rate
        time.sleep(max(0.0, until - time.perf_counter()))
