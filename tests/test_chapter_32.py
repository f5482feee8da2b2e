"""Chapter 32: its claims' controls fail."""

import pytest
import torch
from test_stores import close, train, whole
from test_streamed import Net, loss_of, resident, run

import zolab
from zolab import MeZO, Streamed
from zolab.bench.streamed import idle
from zolab.lab import claims
from zolab.storage.disk import Disk
from zolab.storage.ram import Ram
from zolab.storage.throttled import Throttled

pytestmark = pytest.mark.usefixtures("one_thread")


def judge(name: str, measured: float) -> str:
    return claims.ledger()[name].judge(measured)


def differ(a, b) -> int:
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return sum(int((x != y).sum()) for x, y in pairs)


class Forgetful(Disk):
    """A file whose block 2 is marked, but not written, once."""

    forgets = True

    def write(self, block, data, mark):
        if block == 2 and self.forgets:
            self.forgets = False
            self.marks[block] = mark
            return
        super().write(block, data, mark)


def test_a_block_that_misses_an_update_is_seen(tmp_path):
    a, b = Net(), Net()
    run(a, resident(), 4)
    run(b, Streamed(store=Forgetful(tmp_path / "blocks")), 4)
    assert judge("disk-bits", differ(a, b)) != claims.HOLDS
    c = Net()
    run(c, Streamed(store="disk", path=tmp_path / "whole"), 4)
    assert judge("disk-bits", differ(a, c)) == claims.HOLDS


@pytest.mark.parametrize(("together", "holds"), [(2, True), (1, False)])
def test_one_probe_a_pass_reads_twice(together, holds):
    store = Throttled(Ram(), rate=1e12)
    engine = Streamed(store=store, probes_per_pass=together)
    model = Net()
    opt = MeZO(model, lr=1e-2, engine=engine)
    opt.step(loss_of(model))
    idle(engine)
    before = sum(store.sent.values())
    for _ in range(3):
        opt.step(loss_of(model))
    idle(engine)
    size = sum(s.nbytes for s in engine.sizes)
    moved = (sum(store.sent.values()) - before) / 3 / size
    assert (judge("disk-bytes-a-step", moved / 2) == claims.HOLDS) is holds


@pytest.mark.parametrize("slots", [2, 9])
def test_a_resident_model_replays_nothing(monkeypatch, slots):
    """With a slot for each block nothing is loaded again, and (m + 1) / 2 is wrong."""
    seen, real = [], zolab.storage.update

    def spy(slot, updates, **how):
        seen.append(len(updates))
        return real(slot, updates, **how)

    model = Net()
    opt = MeZO(model, lr=1e-2, engine=Streamed(slots=slots, write_back=4))
    opt.step(loss_of(model))
    monkeypatch.setattr(zolab.storage, "update", spy)
    rest = len(opt.engine.rest)
    for _ in range(8):
        opt.step(loss_of(model))
    visits = sum(len(x) for x in opt.engine.of) * 8
    replays = (sum(seen) - rest * 8) / visits
    holds = judge("disk-replays-a-visit", 2 * replays / 5) == claims.HOLDS
    assert holds is (slots == 2)


def test_without_its_marks_a_file_is_another_run(tmp_path):
    close(train(tmp_path, 3))
    (tmp_path / "a.blocks.marks").unlink()
    opt = train(tmp_path, 5)  # filled again from the base, and the log replayed
    opt.engine.flush()
    assert judge("disk-killed-mid-step", differ(opt.model, whole(5, tmp_path))) == (
        claims.HOLDS
    )
    close(opt)
    # bytes that are not what the log made of them: another run
    again = Net()
    engine = Streamed(store=Edited(tmp_path / "a.blocks"))
    journal = tmp_path / "a.zolab"
    opt = MeZO(again, lr=1e-2, eps=1e-2, engine=engine, journal=journal)
    while opt.steps < 7:
        opt.step(loss_of(again))
    opt.engine.flush()
    found = differ(again, whole(7, tmp_path))
    assert judge("disk-killed-mid-step", found) != claims.HOLDS


class Edited(Disk):
    """A file in which somebody has changed a weight of block 1, checksum and all."""

    def open(self, sizes, layout):
        goes_on = super().open(sizes, layout)
        size = self.sizes[1]
        data = torch.zeros(size.nbytes, dtype=torch.uint8)
        self.read(1, data)
        data.view(torch.float32)[0] += 1e-3
        super().write(1, data, self.marks[1])
        return goes_on


def test_a_third_slot_breaks_the_plan():
    model, holds = Net(), []
    for slots in (2, 3):
        engine = Streamed(slots=slots)
        run(model, engine, 1)
        there = sum(s.data.nbytes for s in engine.window.slots)
        planned = 2 * max(s.nbytes for s in engine.sizes)
        holds.append(judge("plan-bytes", planned / there) == claims.HOLDS)
        engine.release()
    assert holds == [True, False]
