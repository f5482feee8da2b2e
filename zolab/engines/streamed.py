"""The engine for a model larger than its device: blocks pass through a window.

    opt = zolab.MeZO(model, engine=zolab.Streamed(store="ram", budget="8GB"))

A pass brings each block to the device once, for all probes of the step side by side.
There it takes the updates that it missed, is sent back while it computes, and answers
every probe. So a step moves each block's bytes up once and its moving bytes down once,
whatever the number of probes; the weights, as on any engine, are perturbed in scratch
only. The update of the last step is applied when a block comes by again, or by `flush`.

    update, then probes, per visit      time of a step ~ max(transfer, compute)

The bits are the resident engine's: the same kernels on the same values in one order.

L. Wang et al., ZO2, arXiv:2503.12668: a block that was loaded takes the last step's
update and serves two forward passes. The published program never flushes the last one.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from zolab import storage
from zolab.empty import Fill
from zolab.engines import baton
from zolab.engines.backlog import Backlog
from zolab.engines.base import Objectives
from zolab.engines.blocks import Block
from zolab.engines.footprint import footprint, parse_bytes
from zolab.engines.guards import Seal, eval_mode, generators
from zolab.engines.housed import Housed
from zolab.engines.mode import TILE
from zolab.engines.outside import enter
from zolab.engines.passes import answers, side_by_side
from zolab.engines.resident import Resident
from zolab.engines.scratch import Pool
from zolab.engines.traffic import Traffic
from zolab.engines.visiting import Visiting, visit
from zolab.engines.window import Window
from zolab.errors import BaseChangedError, StoreError
from zolab.gradient import Answer, Probe, Update
from zolab.space import Space
from zolab.storage.blocks import Store
from zolab.storage.disk import Disk
from zolab.storage.ram import Ram

AT_MOST = 256  # updates that wait for a block, before a flush takes them


class Streamed(Resident):
    """Evaluate probes block by block; the model lies in `store`, not on the device.

    `store` is "ram", "disk" (with `path`, a file that an interrupted run goes on with)
    or a store of your own (`zolab.storage.blocks.Store`). `blocks` names what streams,
    by default the items of the model's outermost ModuleLists. `device` is where the
    blocks compute, `budget` ("8GB") what may lie there besides activations. With
    `write_back=m` a block is written every m steps and replays the last ones at each
    visit. With `write_back="never"` the store is only read, and what a run along
    `family=LowRank(...)` adds lies on the device: see `zolab.engines.readonly`. `fill`
    gives the values of a model from `zolab.empty_weights`. `embeddings="ram"` keeps
    embedding tables in host memory, too, and brings looked-up rows.
    """

    def __init__(
        self,
        *,
        store: str | Store = "ram",
        path: str | os.PathLike[str] | None = None,
        device: str | torch.device | None = None,
        budget: int | str | None = None,
        blocks: Sequence[str] | None = None,
        slots: int = 2,
        probes_per_pass: int = 8,
        write_back: int | str = 1,
        fill: Fill | None = None,
        unseen: str = "raise",
        embeddings: str = "device",
    ) -> None:
        if embeddings not in ("device", "ram"):
            raise ValueError(f"embeddings is {embeddings!r}, expected device or ram")
        never = write_back == "never"
        base = "read-only" if never else "written"
        super().__init__(scratch="one", unseen=unseen, base=base)
        for name, n in (
            ("slots", slots),
            ("probes_per_pass", probes_per_pass),
            ("write_back", 1 if never else write_back),
        ):
            if not isinstance(n, int) or n < 1:
                raise ValueError(f"{name} is {n!r}, expected at least 1")
        self.store = _store(store, path, readonly=never)
        usual = "cuda" if torch.cuda.is_available() else "cpu"
        self.device: torch.device = torch.device(device or usual)
        self.budget = None if budget is None else parse_bytes(budget)
        self.names, self.number, self.fill = blocks, slots, fill
        self.by_rows = embeddings == "ram"
        self.together, self.write_back = probes_per_pass, write_back
        # The arithmetic is the resident engine's, and so is what the log says of it.
        self.plan = {"engine": "resident", "tile": TILE, "scratch": "one"}
        self.bound: weakref.ref[nn.Module] | None = None

    def bind(self, model: nn.Module, space: Space, *, seed: int, rounding: str) -> None:
        if any(s.curvature for s in space):
            raise StoreError(
                "HiZOO keeps a Hessian as large as the weights in fp32: it does not "
                "stream. Use Resident(), or an estimator without curvature."
            )
        if self.bound is not None and self.bound() is model and self.given is space:
            self._rewrite()
            return
        space = self.take_over(model, space)
        self.model, self.space, self.seed = model, space, seed
        self.stochastic, self.keep = rounding == "stochastic", False
        self.house = Housed(
            *(model, space, self.store, self.device),
            names=self.names,
            fill=self.fill,
            by_rows=self.by_rows,
        )
        apart = {id(m.weight) for m in self.house.tables}
        self.tables = {s.name for s in space if id(s.params[0]) in apart}
        self.blocks, self.sizes = self.house.blocks, self.house.sizes
        self.of, self.rest = self.house.of, self.house.rest
        self.footprint = footprint(
            *(model, space, self.blocks),
            slots=self.number,
            probes=self.together,
            tables=self.house.tables,
        )
        self.footprint.check(self.budget)
        try:
            self.house.move_in(space)
        except BaseException:
            self.store.close()  # a notebook keeps the error, and the file locked
            raise
        self.rest_mark = 0
        wide = max((s.dtype.itemsize for s in space), default=4)
        self.pool = Pool(self.footprint.scratch // wide)
        self.window = Window(
            self.store,
            self.sizes,
            device=self.device,
            slots=self.number,
            leave=self.house.leave,
        )
        self.traffic = Traffic(
            self.house,
            self.window,
            write_back=AT_MOST if self.readonly else int(self.write_back),
            seed=seed,
            stochastic=self.stochastic,
        )
        self.seen: set[str] = set()
        self._checked = self.unseen == "ignore"
        self._direct: Visiting | None = None
        self.house.hook(before=self._enter, after=self._exit, saved=self.flush)
        self.house.hooks += enter(
            self.house.tables, apart, self._visit, what="whose embeddings are in RAM"
        )
        self.bound = weakref.ref(model)
        self.hold()
        self._seal()

    def release(self) -> None:
        """Leave the model as an ordinary one, its values in host memory."""
        if self.bound is not None:
            self.flush()
            self.window.close()
            self.house.move_out()
            self.store.close()
            self.bound = None
        super().release()

    @contextmanager
    def at(self, probe: Probe) -> Iterator[nn.Module]:
        mode = self.mode(probe)
        self._direct, before = mode, self._direct
        try:
            with eval_mode(self.model), torch.no_grad(), mode:
                yield self.model
        finally:
            self._direct = before

    def evaluate(self, probes: list[Probe], objectives: Objectives) -> list[Answer]:
        found: list[Answer] = []
        restore = generators()
        self.window.raise_failed()
        with eval_mode(self.model):
            for group in side_by_side(probes, self.together):
                restore()
                found += answers(group, objectives, self.traffic, self.mode)
        self.check_seen()
        self.traffic.backlog.forget(self.store.marks)
        self._seal()
        return found

    def apply(self, updates: Sequence[tuple[Update, int]]) -> None:
        due = [(u, t) for u, t in updates if t >= self.rest_mark]
        for slot in self.rest if self.readonly is None else self.space:
            storage.update(slot, due, seed=self.seed, stochastic=self.stochastic)
        self.rest_mark = max([self.rest_mark, *(t + 1 for _, t in due)])
        if self.readonly is not None:
            self.footprint = replace(self.footprint, delta=self.readonly.nbytes)
            self._seal()
            return
        self.traffic.backlog.add(updates)
        self.traffic.backlog.forget(self.store.marks)
        if len(self.traffic.backlog.pending) >= AT_MOST:
            self.flush()
        self._seal()

    def accept(self, u: Update) -> None:
        if self.readonly is not None:
            more = self.readonly.nbytes + self.readonly.growth(u)
            replace(self.footprint, delta=more).check(self.budget)

    def flush(self) -> None:
        """Give every block the updates that it has missed, and put it home."""
        if self.readonly is None:
            self.traffic.flush()
        self._seal()

    def check(self) -> None:
        self.seal.check()
        now = self._versions()
        if moved := [name for name in now if now[name] != self.versions[name]]:
            raise BaseChangedError(
                f"the weights of {', '.join(moved[:3])} changed outside the optimizer; "
                "a streamed block is not where they were written to. Undo the edit."
            )

    def digest(self) -> str:
        assert self.store.base is not None
        return self.store.base.partition(":")[0]

    def load(self, values: Mapping[str, Tensor], step: int) -> None:
        self.traffic.settle()
        with torch.no_grad():
            for slot in self.rest:
                if slot.delta is None:
                    slot.params[0].data.copy_(values[slot.name])
            if self.readonly is None:
                self.house.rewrite(values, step)
            else:
                self.readonly.load(values)
        self.rest_mark = step
        self.traffic.backlog = Backlog(step)
        self.traffic.settle()
        self._seal()

    def begin(self, step: int, run: str) -> None:
        marks = self.store.marks
        if max(marks) > step:
            raise StoreError(
                f"the store's blocks have taken {max(marks)} steps, the run {step}: "
                "its log was cut or is another run's. Pass the log that goes with the "
                "store, or another path."
            )
        if not self.traffic.backlog.pending:
            self.traffic.backlog = Backlog(min(marks))
        self.traffic.backlog.now = self.rest_mark = step
        if self.readonly is None:  # what is only read may serve many runs
            self.store.begin(run)

    def mode(self, probe: Probe) -> Visiting:
        kind, absent = visit(probe.want), self.house.absent
        return kind(
            *(self.space, probe.terms),
            seen=self.seen,
            absent=absent,
            pool=self.pool,
            tables=self.tables,
        )

    def _visit(self) -> Visiting:
        return self.mode(Probe())

    def _enter(self, block: Block) -> None:
        """Before a block's forward pass: in a step wait for it, else bring it."""
        if baton.current() is not None:
            baton.pause(block)
            return
        if torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
            raise StoreError(
                "a streamed model computes no gradients: call it under torch.no_grad()"
            )
        with torch._C.DisableTorchFunction():  # `at` would see parameters written to
            self.traffic.bring(block)
            self.traffic.ahead(block)

    def _exit(self, block: Block) -> None:
        turn = baton.current()
        mode = self._direct if turn is None else turn.mode
        if mode is not None:
            mode.forget(self.house.names[block.index])

    def _rewrite(self) -> None:
        """Accept edits: what the model reads is what the store shall hold."""
        if self.readonly is not None:
            raise StoreError("a store that is only read takes no edits")
        self.flush()
        self.traffic.rewrite()
        self._seal()

    def _seal(self) -> None:
        self.seal = Seal(Space(tuple(self.rest)))
        self.versions = self._versions()

    def _versions(self) -> dict[str, int]:
        """How often anybody wrote to a streamed slot, by torch's own count."""
        slots = [s for of in self.of for s in of]
        return {s.name: sum(p._version for p in s.params) for s in slots}


def _store(
    store: str | Store, path: str | os.PathLike[str] | None, *, readonly: bool
) -> Store:
    if store == "ram" and path is None:
        return Ram()
    if store == "disk" and path is not None:
        return Disk(path, readonly=readonly)
    if isinstance(store, str) or path is not None:
        raise ValueError(
            f'store is {store!r} with path {path!r}; expected "ram", or "disk" with '
            "the path of a file, or a store without a path"
        )
    return store
