"""The device's few slots, through which all blocks pass: load, compute, send back.

    slot 0    load 0 | compute 0      | load 2 | compute 2 ...
    slot 1             load 1           compute 1  send 1 | load 3
    link up   [0]      [1]              [2]
    link down               [0]                  [1]

A block is asked for when it is needed, and the next one is loaded meanwhile. What was
updated is sent back while the block still computes, because probes read the update and
do not change it. Two lanes, one thread each: a transfer up and one down at a time.

On a GPU the lanes' copies run on streams of their own, and events say when a slot may
be read and when it may be overwritten; the host waits for nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zolab.storage.blocks import Size, Store


@dataclass(frozen=True)
class Span:
    """What a lane did: "up", "down" or "wait" (the host's, for a load), in seconds."""

    lane: str
    block: int
    start: float
    end: float


@dataclass(eq=False)
class Slot:
    """A buffer: which block is in it, and how many steps that block has taken here."""

    data: Tensor
    staging: Tensor | None = None
    block: int = -1
    mark: int = 0
    loaded: Future[Any] | None = None
    sent: Future[Any] | None = None
    used: Any = None  # a GPU's event: the last computation that read this slot


class Window:
    """`slots` buffers on `device`, each as large as the largest block.

    `leave(block)` is called when a block loses its slot.
    """

    def __init__(
        self,
        store: Store,
        sizes: Sequence[Size],
        *,
        device: torch.device,
        slots: int,
        leave: Callable[[int], None],
    ) -> None:
        self.store, self.sizes, self.device, self.leave = store, sizes, device, leave
        room = max(s.nbytes for s in sizes)
        staged = device.type == "cuda" and not store.direct
        with torch.inference_mode(False):
            self.slots = [
                Slot(
                    torch.empty(room, dtype=torch.uint8, device=device),
                    torch.empty(room, dtype=torch.uint8).pin_memory()
                    if staged
                    else None,
                )
                for _ in range(min(slots, len(sizes)))
            ]
        self.order = list(self.slots)  # least lately used first
        self.lanes = {k: ThreadPoolExecutor(1, f"zolab-{k}") for k in ("up", "down")}
        self.streams = {
            k: torch.cuda.Stream(device) if device.type == "cuda" else None
            for k in self.lanes
        }
        self.spans: list[Span] | None = None  # a list: write down what the lanes do

    def take(self, block: int) -> Slot:
        """The slot with the block's bytes in it, loaded."""
        slot = self.ask(block)
        assert slot.loaded is not None
        began = time.perf_counter()
        try:
            ready = slot.loaded.result()
        except BaseException:
            self.forget(slot)
            raise
        self._note("wait", block, began)
        if ready is not None:
            torch.cuda.current_stream(self.device).wait_event(ready)
        return slot

    def ask(self, block: int) -> Slot:
        """Begin to load the block, unless it is here, into the slot left longest."""
        slot = next((s for s in self.slots if s.block == block), None)
        if slot is not None:
            self._touch(slot)
            return slot
        slot = self.order[0]
        self._touch(slot)
        if slot.block >= 0:
            self.leave(slot.block)
        sent, slot.sent, slot.block = slot.sent, None, block

        def load() -> Any:
            gone = sent.result() if sent is not None else None
            began = time.perf_counter()
            slot.mark = self.store.marks[block]
            with self._on("up", gone, slot.used):
                self._read(block, slot)
            self._note("up", block, began)
            return self._event("up")

        slot.loaded = self.lanes["up"].submit(load)
        return slot

    def send(self, slot: Slot) -> None:
        """Begin to write the slot's moving bytes back, with its mark."""
        self.raise_failed()
        block, mark, ready, before = slot.block, slot.mark, self._event(), slot.sent

        def write() -> Any:
            if before is not None:
                before.result()
            began = time.perf_counter()
            with self._on("down", ready):
                self._write(block, slot, mark)
            self._note("down", block, began)
            return self._event("down")

        slot.sent = self.lanes["down"].submit(write)

    def raise_failed(self) -> None:
        """Raise what broke a transfer back; what it carried will be made again."""
        for slot in self.slots:
            if slot.sent is not None and slot.sent.done() and slot.sent.exception():
                sent, slot.sent = slot.sent, None
                self.forget(slot)
                sent.result()

    def rest(self, slot: Slot) -> None:
        """The block has computed: on a GPU, all that was launched read the slot."""
        slot.used = self._event()

    def forget(self, slot: Slot) -> None:
        """What is in the slot is not to be used again."""
        if slot.block >= 0:
            self.leave(slot.block)
        slot.block, slot.loaded = -1, None

    def drain(self) -> None:
        """Wait until all that was sent has arrived; raises the first StoreError."""
        for slot in self.slots:
            sent, slot.sent = slot.sent, None
            if sent is None:
                continue
            try:
                gone = sent.result()
            except BaseException:
                self.forget(slot)
                raise
            if gone is not None:
                gone.synchronize()

    def empty(self) -> None:
        """Wait for both lanes and forget every slot."""
        for slot in self.slots:
            for future in (slot.loaded, slot.sent):
                if future is not None and future.exception() is not None:
                    slot.sent = None
            self.forget(slot)
        self.drain()

    def close(self) -> None:
        """End the lanes' threads."""
        for lane in self.lanes.values():
            lane.shutdown(wait=True)

    def _read(self, block: int, slot: Slot) -> None:
        if slot.staging is None:
            self.store.read(block, slot.data)
            return
        torch.cuda.current_stream().synchronize()  # the staging's last copy; this lane
        self.store.read(block, slot.staging)
        slot.data.copy_(slot.staging, non_blocking=True)

    def _write(self, block: int, slot: Slot, mark: int) -> None:
        if slot.staging is None:
            self.store.write(block, slot.data, mark)
            return
        slot.staging.copy_(slot.data, non_blocking=True)
        torch.cuda.current_stream().synchronize()
        self.store.write(block, slot.staging, mark)

    @contextmanager
    def _on(self, lane: str, *events: Any) -> Iterator[None]:
        """On the lane's stream, after these events; on a CPU there is neither."""
        stream = self.streams[lane]
        if stream is None:
            yield
            return
        with torch.cuda.stream(stream):
            for event in events:
                if event is not None:
                    stream.wait_event(event)
            yield

    def _event(self, lane: str = "") -> Any:
        if self.device.type != "cuda":
            return None
        stream = self.streams.get(lane) or torch.cuda.current_stream(self.device)
        return stream.record_event()

    def _touch(self, slot: Slot) -> None:
        self.order.remove(slot)
        self.order.append(slot)

    def _note(self, lane: str, block: int, began: float) -> None:
        if self.spans is not None:
            self.spans.append(Span(lane, block, began, time.perf_counter()))
