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
    for m, training in flags:
        if training:  # a Module's attribute takes microseconds to set
            m.training = False
    try:
        yield
    finally:
        for m, training in flags:
            if m.training is not training:
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
        pairs = zip(self.space, now, self.found, strict=True)
        moved = [s.name for s, a, b in pairs if a != b]
        raise BaseChangedError(
            f"the weights of {', '.join(moved[:3])} changed outside the "
            "optimizer, so its log no longer determines them. Undo the edit, or call "
            "opt.rebase() to accept it (a journal then gets a snapshot)."
        )

    def _look(self) -> list[tuple[int, int, int]]:
        samples = []
        for s in self.space:
            flat = s.base.view(-1)
            samples.append(flat[:: max(1, flat.numel() // 64)][:64].float())
        crc = [0] * len(samples)
        for device in {x.device for x in samples}:  # one transfer each
            here = [i for i, x in enumerate(samples) if x.device == device]
            part = torch.cat([samples[i] for i in here]).cpu().numpy()
            ends = np.cumsum([samples[i].numel() for i in here])
            for i, values in zip(here, np.split(part, ends[:-1]), strict=True):
                crc[i] = zlib.crc32(values.tobytes())
        first = (s.base if s.packed else s.params[0] for s in self.space)
        return [(p.data_ptr(), p._version, c) for p, c in zip(first, crc, strict=True)]


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
