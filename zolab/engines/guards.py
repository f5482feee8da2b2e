"""What surrounds an evaluation: eval mode, equal random numbers, an alarm."""

from __future__ import annotations

import random
import signal
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from zolab.errors import BaseChangedError
from zolab.space import Space


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode; its own flag comes back, also after an error.

    The flags are set one by one: some modules' `eval()` also edits weights (LoRA
    layers that merge), and a closure may call `model.train()`.
    """
    flags = [(m, m.training) for m in model.modules()]
    for m, _ in flags:
        m.training = False
    try:
        yield
    finally:
        for m, training in flags:
            m.training = training


def generators() -> Callable[[], None]:
    """Remember the global generators; call the result to bring them back.

    Every probe of a step then sees the same random numbers (common random numbers):
    a sampled answer changes only because the weights did.
    """
    cpu, python, arrays = (
        torch.get_rng_state(),
        random.getstate(),
        np.random.get_state(),
    )
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None

    def restore() -> None:
        torch.set_rng_state(cpu)
        random.setstate(python)
        np.random.set_state(arrays)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)

    return restore


class Seal:
    """An alarm for weights edited behind the optimizer's back.

    Compares addresses, version counters (in-place edits count up, `.data` edits do
    not) and up to 64 samples a slot. `set` after every write of ours.
    """

    def __init__(self, space: Space) -> None:
        self.space = space
        self.set()

    def set(self) -> None:
        self.found = self._look()

    def check(self) -> None:
        now = self._look()
        if now == self.found:
            return
        pairs = zip(self.space, now[0], self.found[0], strict=True)
        moved = [s.name for s, a, b in pairs if a != b]
        raise BaseChangedError(
            f"the weights of {', '.join(moved[:3]) or 'some slot'} changed outside the "
            "optimizer, so its log no longer determines them. Undo the edit, or call "
            "opt.rebase() to accept it (a journal then gets a snapshot)."
        )

    def _look(self) -> tuple[list[tuple[int, int]], int]:
        where = [(s.params[0].data_ptr(), s.params[0]._version) for s in self.space]
        samples = []
        for s in self.space:
            flat = s.base.view(-1)
            samples.append(flat[:: max(1, flat.numel() // 64)][:64].float())
        devices = {x.device for x in samples}
        crc = 0
        for device in sorted(devices, key=str):
            part = torch.cat([x for x in samples if x.device == device])
            crc = zlib.crc32(part.cpu().numpy().tobytes(), crc)
        return where, crc


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back: between the log's write and the last weight it would tear."""
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is None:  # None: set by C code
        yield
        return
    held: list[Any] = []
    try:
        before = signal.signal(signal.SIGINT, lambda *a: held.append(a))
    except ValueError:  # a subinterpreter
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if held:
            signal.raise_signal(signal.SIGINT)
