"""Blocks in a file: whole after a kill at any instant, and never another run's."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from helpers import same_bits
from test_streamed import Net, loss_of, resident

import zolab
from zolab import MeZO, Streamed
from zolab.errors import StoreError
from zolab.storage.blocks import Size
from zolab.storage.disk import Disk
from zolab.storage.ram import Ram

pytestmark = pytest.mark.usefixtures("one_thread")
SIZES = [Size(5000, 3000), Size(4096, 4096), Size(300, 0), Size(9000, 1)]


def data(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n,), generator=g, dtype=torch.uint8)


@pytest.mark.parametrize("make", [Ram, Disk])
def test_a_store_gives_back_what_it_was_given(tmp_path, make):
    store = make(tmp_path / "blocks") if make is Disk else make()
    assert store.open(SIZES, "x") is False
    for i, size in enumerate(SIZES):
        store.fill(i, data(size.nbytes, i))
    store.seal("base")
    for turn in range(3):
        for i, size in enumerate(SIZES):
            out = torch.zeros(9999, dtype=torch.uint8)
            store.read(i, out)
            want = data(size.nbytes, i)
            if turn:
                want[: size.moving] = data(size.nbytes, 10 * turn + i)[: size.moving]
            assert torch.equal(out[: size.nbytes], want)
            assert torch.equal(torch.cat(store.home(i)), want)
            store.write(i, data(size.nbytes, 10 * (turn + 1) + i), turn + 1)
    assert store.marks == [3, 3, 3, 3]


def filled(path):
    store = Disk(path)
    store.open(SIZES, "x")
    for i, size in enumerate(SIZES):
        store.fill(i, data(size.nbytes, i))
    store.seal("base")
    return store


def test_a_file_goes_on_where_it_was_left(tmp_path):
    store = filled(tmp_path / "blocks")
    store.write(1, data(4096, 9), 7)
    store.begin("run")
    store.close()
    again = Disk(tmp_path / "blocks")
    assert again.open(SIZES, "x") is True
    assert again.marks == [0, 7, 0, 0] and again.base == "base"
    out = torch.zeros(9999, dtype=torch.uint8)
    again.read(1, out)
    assert torch.equal(out[:4096], data(4096, 9))
    with pytest.raises(StoreError, match="another run"):
        again.begin("other")


def test_an_unfinished_fill_is_begun_again(tmp_path):
    store = Disk(tmp_path / "blocks")
    store.open(SIZES, "x")
    store.fill(0, data(5000))
    store.close()
    assert Disk(tmp_path / "blocks").open(SIZES, "x") is False


def test_two_at_once(tmp_path):
    store = filled(tmp_path / "blocks")
    with pytest.raises(StoreError, match="in use"):
        Disk(tmp_path / "blocks").open(SIZES, "x")
    store.close()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("cut", "it was cut"),
        ("flip", "fails its checksum"),
        ("flip still", "fails its checksum"),
        ("marks", "both records of block 0 are damaged"),
        ("header", "header fails its checksum"),
        ("foreign", "not a zolab store"),
        ("layout", "another model's blocks"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, damage, message):
    path = tmp_path / "blocks"
    store = filled(path)
    first, still = store._at(store.place[0]), store.still[0]
    store.close()

    def flip(file, at, count=1):
        with open(file, "r+b") as f:
            f.seek(at)
            old = f.read(count)
            f.seek(at)
            f.write(bytes(255 - b for b in old))

    if damage == "cut":
        os.truncate(path, path.stat().st_size - 1)
    elif damage.startswith("flip"):
        flip(path, first if damage == "flip" else still)
    elif damage == "marks":
        flip(store.index, 4096 + 8), flip(store.index, 4096 + 40)
    elif damage == "header":
        flip(store.index, 30)
    elif damage == "foreign":
        flip(store.index, 0, 4)
    again = Disk(path)
    with pytest.raises(StoreError, match=message):
        again.open(SIZES, "y" if damage == "layout" else "x")
        again.read(0, torch.zeros(9999, dtype=torch.uint8))
    again.close()


def test_a_torn_record_leaves_the_one_before(tmp_path):
    store = filled(tmp_path / "blocks")
    store.write(0, data(5000, 8), 1)
    with open(store.index, "r+b") as f:
        f.seek(4096 + 32 * (store.turn[0] & 1) + 6)
        f.write(b"\x55\x55")
    store.close()
    again = Disk(tmp_path / "blocks")
    again.open(SIZES, "x")
    assert again.marks[0] == 0
    out = torch.zeros(5000, dtype=torch.uint8)
    again.read(0, out)
    assert torch.equal(out, data(5000, 0))


def test_a_full_disk(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(StoreError, match=r"needs .* GB .* No space left"):
        Disk(tmp_path / "blocks").open(SIZES, "x")
    monkeypatch.undo()
    model, other = Net(), Net()
    opt = MeZO(model, lr=1e-2, engine=Streamed(store="disk", path=tmp_path / "b"))
    opt.step(loss_of(model))
    write, left = os.pwrite, [3]

    def sometimes(fd, view, at):
        left[0] -= 1
        if left[0] == 0:
            full()
        return write(fd, view, at)

    monkeypatch.setattr(os, "pwrite", sometimes)
    errors = 0
    for _ in range(4):
        try:
            opt.step(loss_of(model))
        except StoreError as error:
            assert "the block that was there is whole" in str(error)
            errors += 1
    opt.engine.flush()
    assert errors == 1
    plain = MeZO(other, lr=1e-2, engine=resident())
    for _ in range(4):
        plain.step(loss_of(other))
    assert same_bits(model, other)


# runs


def train(tmp_path, steps, model=None, name="a", **kwargs):
    model = model or Net()
    engine = Streamed(store="disk", path=tmp_path / f"{name}.blocks")
    opt = MeZO(
        model,
        lr=1e-2,
        eps=1e-2,
        engine=engine,
        journal=tmp_path / f"{name}.zolab",
        **kwargs,
    )
    while opt.steps < steps:
        opt.step(loss_of(model))
    return opt


def close(opt):
    opt.journal.close()
    opt.engine.store.close()


def whole(steps, tmp_path, **kwargs):
    """The weights after so many steps, by the resident engine, from a log."""
    model = Net()
    opt = MeZO(model, lr=1e-2, eps=1e-2, engine=resident(), **kwargs)
    for _ in range(steps):
        opt.step(loss_of(model))
    return model


def test_a_run_goes_on_in_its_file(tmp_path):
    close(train(tmp_path, 3))
    opt = train(tmp_path, 5)
    assert opt.steps == 5
    opt.engine.flush()
    assert same_bits(opt.model, whole(5, tmp_path))
    close(opt)
    replayed = Net()
    assert zolab.replay(replayed, tmp_path / "a.zolab") == 5
    assert same_bits(replayed, opt.model)


def test_any_engine_replays_the_log(tmp_path):
    close(train(tmp_path, 5))
    for engine in (Streamed(), Streamed(store="disk", path=tmp_path / "new", slots=1)):
        model = Net()
        zolab.replay(model, tmp_path / "a.zolab", engine=engine, upto=4)
        assert same_bits(model, whole(4, tmp_path))


def test_a_snapshot_starts_a_replay(tmp_path):
    opt = train(tmp_path, 3)
    opt.snapshot()
    while opt.steps < 5:
        opt.step(loss_of(opt.model))
    close(opt)
    wrong = Net()
    with torch.no_grad():
        wrong.layers[0][0].weight.add_(1)  # the snapshot stands in for the base
    zolab.replay(wrong, tmp_path / "a.zolab", engine=Streamed())
    assert same_bits(wrong, whole(5, tmp_path))


def test_logs_and_files_of_other_runs(tmp_path):
    close(train(tmp_path, 3))
    shutil.copy(tmp_path / "a.blocks", tmp_path / "b.blocks")
    shutil.copy(tmp_path / "a.blocks.marks", tmp_path / "b.blocks.marks")
    with pytest.raises(StoreError, match="have taken [23] steps, the run 0"):
        train(tmp_path, 5, name="b")
    close(train(tmp_path, 4, name="c", seed=3))
    shutil.copy(tmp_path / "a.blocks", tmp_path / "c.blocks")
    shutil.copy(tmp_path / "a.blocks.marks", tmp_path / "c.blocks.marks")
    with pytest.raises(StoreError, match="another run"):
        train(tmp_path, 5, name="c", seed=3)
    model = Net()
    with torch.no_grad():
        model.embed.weight.add_(1)
    with pytest.raises(StoreError, match="not what the run"):
        train(tmp_path, 5, model)
    with pytest.raises(StoreError, match="have taken [23] steps, the run 1"):
        engine = Streamed(store="disk", path=tmp_path / "a.blocks")
        zolab.replay(Net(), tmp_path / "a.zolab", engine=engine, upto=1)


CHILD = """
    import sys
    sys.path.insert(0, {tests!r})
    import torch; torch.set_num_threads(1)
    from pathlib import Path
    from test_stores import train
    from test_streamed import loss_of
    opt = train(Path({where!r}), 0)
    opt.step(loss_of(opt.model))
    print("ready", flush=True)
    while True:
        opt.step(loss_of(opt.model))
"""


@pytest.mark.timeout(300)
def test_killed_at_any_instant(tmp_path):
    """SIGKILL in whatever phase: the next process goes on to the same bits."""
    code = textwrap.dedent(
        CHILD.format(tests=os.path.dirname(__file__), where=str(tmp_path))
    )
    steps = 0
    for i in range(4):
        child = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout.readline().strip() == "ready"
        time.sleep(0.05 + 0.037 * i)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        opt = train(tmp_path, 0)  # resumes
        assert opt.steps >= steps
        steps = opt.steps
        opt.engine.flush()
        model = Net()
        zolab.replay(model, _copy(tmp_path / "a.zolab", tmp_path / "look"))
        assert same_bits(opt.model, model)
        close(opt)
    assert steps > 3


def _copy(a, b):
    shutil.copy(a, b)
    return b
