"""Many processes, one run: each answers its share of the probes, numbers go around.

    process r of W evaluates probes r, r + W, r + 2 W, ...; all of them see all answers

Every process runs the same program on the same base weights and batches. Nobody sends
weights, gradients or directions: 8 bytes a probe are exchanged. Directions are pure
functions of their keys, so all make the same update. With W processes of one thread
the answers have the bits of one process of one thread, in the same order.

A. Chen et al., DeepZero, arXiv:2310.02025 (forward parallelism over coordinates).
Strided shares, because a probe of a late layer is cheap where `Reuse` answers it.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from zolab.engines.base import Engine, Objectives
from zolab.engines.resident import Resident
from zolab.errors import WorkerError
from zolab.gradient import Answer, Probe, Update
from zolab.space import Space

OK, FAILED = 0.0, 1.0


class Parallel:
    """An engine around an engine, one in each process of a torch.distributed group.

    A closure uses the same batch in every process. What one process raises, the others
    hear of, and the step is refused by all: WorkerError. So it is when processes hold
    other weights or ask other probes. A journal belongs to one process, or each has its
    own; `exchanged` counts the bytes that a process sent.
    """

    def __init__(
        self, inner: Engine | None = None, *, group: dist.ProcessGroup | None = None
    ) -> None:
        self.inner, self.group, self.exchanged = inner or Resident(), group, 0

    def bind(self, model: nn.Module, space: Space, *, seed: int, rounding: str) -> None:
        if not dist.is_initialized():
            raise WorkerError(
                "there is no process group: start the program with torchrun and call "
                'torch.distributed.init_process_group("gloo"), or use zolab.engines.'
                "forked"
            )
        self.rank, self.workers = (
            dist.get_rank(self.group),
            dist.get_world_size(self.group),
        )
        self.inner.bind(model, space, seed=seed, rounding=rounding)
        # The answers are one process's, and so is the plan that a journal holds.
        self.space, self.plan = self.inner.space, self.inner.plan
        base = int(self.digest()[:8], 16), zlib.crc32(repr((seed, rounding)).encode())
        self._agree(self._gather(base), "base weights or another seed")

    def evaluate(self, probes: list[Probe], objectives: Objectives) -> list[Answer]:
        mine, size = probes[self.rank :: self.workers], -(-len(probes) // self.workers)
        kinds = 2 if any(p.want == "jvp" for p in probes) else 1  # slopes, too
        sent = torch.full((2 + kinds * size,), torch.nan, dtype=torch.float64)
        sent[0], sent[1] = OK, zlib.crc32(repr(probes).encode())
        try:
            answers = self.inner.evaluate(mine, objectives) if mine else []
            for i, a in enumerate(answers):
                sent[2 + i] = a.value
                if a.tangent is not None:
                    sent[2 + size + i] = a.tangent
        except BaseException:
            sent[0] = FAILED
            self._gather(sent.tolist())  # or the others would wait for ever
            raise
        heard = self._gather(sent.tolist())
        if failed := [r for r, x in enumerate(heard) if x[0] != OK]:
            raise WorkerError(f"process {failed[0]} raised: its own output says why")
        self._agree([x[1:2] for x in heard], "probes")
        out = []
        for i, probe in enumerate(probes):
            numbers, at = heard[i % self.workers], 2 + i // self.workers
            tangent = float(numbers[at + size]) if probe.want == "jvp" else None
            out.append(Answer(float(numbers[at]), tangent))
        return out

    @property
    def arithmetic(self) -> str:
        return self.inner.arithmetic

    def accept(self, u: Update) -> None:
        self.inner.accept(u)

    def values(self) -> dict[str, Tensor]:
        return self.inner.values()

    def apply(self, updates: Sequence[tuple[Update, int]]) -> None:
        self.inner.apply(updates)

    def flush(self) -> None:
        self.inner.flush()

    def check(self) -> None:
        self.inner.check()

    def digest(self) -> str:
        return self.inner.digest()

    def load(self, values: Mapping[str, Tensor], step: int) -> None:
        self.inner.load(values, step)

    def begin(self, step: int, run: str) -> None:
        self.inner.begin(step, run)

    def at(self, probe: Probe) -> AbstractContextManager[nn.Module]:
        return self.inner.at(probe)

    def _gather(self, numbers: Sequence[float]) -> list[Tensor]:
        """Every process's numbers, by rank, as fp64: no bit is lost."""
        mine = torch.tensor(numbers, dtype=torch.float64)
        heard = [torch.empty_like(mine) for _ in range(self.workers)]
        dist.all_gather(heard, mine, group=self.group)
        self.exchanged += mine.nbytes
        return heard

    def _agree(self, heard: Sequence[Tensor], what: str) -> None:
        if odd := [r for r, x in enumerate(heard) if not torch.equal(x, heard[0])]:
            raise WorkerError(
                f"process {odd[0]} has other {what} than process 0: all must run the "
                "same program"
            )
