"""Who comes to the device next, with what it missed, and when it goes home.

A block that arrives takes the updates that it has not seen, in log order. It is sent
back at once when it is `write_back` steps ahead of its store, while it computes.
"""

from __future__ import annotations

from zolab import storage
from zolab.engines.backlog import Backlog
from zolab.engines.blocks import Block
from zolab.engines.housed import Housed
from zolab.engines.window import Slot, Window


class Traffic:
    """Moves the blocks of `house` through `window`; what they miss is in `backlog`."""

    def __init__(
        self,
        house: Housed,
        window: Window,
        *,
        write_back: int,
        seed: int,
        stochastic: bool,
    ) -> None:
        self.house, self.window, self.write_back = house, window, write_back
        self.seed, self.stochastic = seed, stochastic
        self.marks = house.store.marks
        self.backlog = Backlog(min(self.marks))
        count = len(house.blocks)
        self.follows = {i: (i + 1) % count for i in range(count)}
        self.here = count - 1

    def bring(self, block: Block, *, send: bool = True) -> Slot:
        """The block on the device, with all that it missed, and on its way back."""
        i = block.index
        self.follows[self.here], self.here = i, i
        held = self.window.take(i)
        try:
            due = self.backlog.due(held.mark)
            self.house.arrive(block, held.data)
            for slot in self.house.of[i] if due else ():
                storage.update(slot, due, seed=self.seed, stochastic=self.stochastic)
            held.mark = self.backlog.now
        except BaseException:
            self.window.forget(held)
            raise
        self.house.absent.difference_update(self.house.names[i])
        if send and due and held.mark - self.marks[i] >= self.write_back:
            self.window.send(held)
        return held

    def ahead(self, block: Block) -> None:
        """Load what was wanted after it the last time into the other slots."""
        i = block.index
        for _ in range(len(self.window.slots) - 1):
            i = self.follows[i]
            self.window.ask(i)

    def nearest(self, wanted: list[Block]) -> Block:
        """Of the wanted blocks, the first one that comes round."""
        count = len(self.house.blocks)
        return min(wanted, key=lambda b: (b.index - self.here - 1) % count)

    def flush(self) -> None:
        """Give every block what it has missed, and put it home."""
        for block in self.house.blocks:
            if self.marks[block.index] < self.backlog.now:
                self.window.send(self.bring(block, send=False))
        self.settle()

    def rewrite(self) -> None:
        """Send every block home as its parameters are now."""
        for block in self.house.blocks:
            self.window.send(self.bring(block, send=False))
        self.settle()

    def settle(self) -> None:
        """Every block at home, where its store has it now."""
        try:
            self.window.drain()
        finally:
            self.window.empty()
            for block in self.house.blocks:
                self.house.leave(block.index)
