"""Functions that take turns: each runs in its own thread, one at a time.

A closure is ordinary Python and cannot be stopped half way through a model, unless it
runs in a thread that waits. `Turn.resume` lets it run until it calls `pause(x)` or
ends; so several closures walk through the model block by block, side by side, and a
block that was loaded once serves all of them.

Each keeps its own random numbers: it starts with the generators as they were, and finds
them at every turn as it left them.
"""

from __future__ import annotations

import contextvars
import functools
import threading
from collections.abc import Callable
from typing import Any

import torch

from zolab.engines.guards import generators

_HERE = threading.local()


class Stopped(BaseException):
    """Raised inside a closure that another one's error ended; not to be caught."""


class Turn:
    """`work()` in a thread of its own, which moves between `resume` and `pause`."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.work, self.restore = work, generators()
        self.mine, self.theirs = threading.Semaphore(0), threading.Semaphore(0)
        self.wants: Any = None
        self.result: Any = None
        self.error: BaseException | None = None
        self.done = self.stopped = False
        self.mode: Any = None  # what its caller wants to find again
        context, calls = contextvars.copy_context(), _settings()
        self.thread = threading.Thread(
            target=lambda: context.run(self._run, calls),
            name="zolab-probe",
            daemon=True,
        )

    def resume(self) -> Any:
        """Let it go on to its next `pause`; returns what that wants, None at the end.

        Raises what the work raised.
        """
        outside = generators()
        self.restore()
        try:
            if self.thread.ident is None:
                self.thread.start()
            else:
                self.mine.release()
            self.theirs.acquire()
            self.restore = generators()
        finally:
            outside()
        if self.done:
            self.thread.join()
        if self.error is not None:
            raise self.error
        return self.wants

    def stop(self) -> None:
        """End it where it stands, its `finally` clauses included."""
        if self.thread.ident is not None and not self.done:
            self.stopped = True
            self.mine.release()
            self.thread.join()

    def _run(self, settings: list[Callable[[], None]]) -> None:
        _HERE.turn = self
        try:
            for set_ in settings:
                set_()
            self.result = self.work()
        except BaseException as error:
            self.error = error
        self.done, self.wants = True, None
        self.theirs.release()


def current() -> Turn | None:
    """The turn that this thread runs, if any."""
    return getattr(_HERE, "turn", None)


def pause(wants: Any) -> None:
    """Give the baton back; returns when it is our turn again."""
    turn = current()
    assert turn is not None
    turn.wants = wants
    turn.theirs.release()
    turn.mine.acquire()
    if turn.stopped:
        raise Stopped


def _settings() -> list[Callable[[], None]]:
    """What torch keeps for each thread: a new one is told what its caller's says."""
    calls: list[Callable[[], None]] = []
    for kind in ("cpu", "cuda"):
        on, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        calls.append(functools.partial(torch.set_autocast_enabled, kind, on))
        calls.append(functools.partial(torch.set_autocast_dtype, kind, dtype))
    device = torch.get_default_device()
    if device.type != "cpu":
        calls.append(functools.partial(torch.set_default_device, device))
    if torch.cuda.is_initialized():
        calls.append(
            functools.partial(torch.cuda.set_device, torch.cuda.current_device())
        )
    return calls
