"""Updates that some blocks have not taken yet.

A step's update is known when the last block has computed, and by then the first ones
have left the device. So it waits here until each block comes by again. The learning
rate is that of the step that made it: an update is a list of numbers that nobody
refreshes. Flushing is taking what is due without a forward pass.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from zolab.errors import StoreError
from zolab.gradient import Update


class Backlog:
    """(update, step) pairs in log order; `now` is the step that comes next."""

    def __init__(self, now: int = 0) -> None:
        self.pending: deque[tuple[Update, int]] = deque()
        self.now = self.first = now

    def add(self, updates: Sequence[tuple[Update, int]]) -> None:
        for u, step in updates:
            self.pending.append((u, step))
            self.now = step + 1

    def due(self, mark: int) -> list[tuple[Update, int]]:
        """What a block that has taken `mark` steps still has to take."""
        if mark < self.first:
            raise StoreError(
                f"a block has taken {mark} steps, and the updates before step "
                f"{self.first} are gone: rebuild it from the log and the base weights"
            )
        return [(u, step) for u, step in self.pending if step >= mark]

    def forget(self, marks: Sequence[int]) -> None:
        """Let go of what all blocks have taken."""
        while self.pending and self.pending[0][1] < min(marks):
            self.first = self.pending.popleft()[1] + 1
