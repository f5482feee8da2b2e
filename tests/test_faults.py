"""What goes wrong in real life: kills, torn and damaged files, full disks, Ctrl-C.

Law 5: the log determines the weights, and killing the process at any instant loses at
most the step in flight. Everything else is one clear error with nothing moved.
"""

import errno
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import bits, closure, mlp, same_bits

import zolab
from zolab.engines import Resident
from zolab.errors import JournalError, NonFiniteLossError

KILLS = 50
SETTING = {"lr": 1e-2, "eps": 1e-3, "seed": 3, "weight_decay": 0.1}
DTYPE = torch.bfloat16  # rounds stochastically, so the steps' numbers matter too


pytestmark = pytest.mark.usefixtures("one_thread")


def start(path=None, **changes):
    """A model at the base weights, an optimizer (which resumes), a step."""
    model = mlp(0, DTYPE)
    opt = zolab.MeZO(model, journal=path, **SETTING | changes)
    loss = closure(model)

    def step():
        """Every thirteenth loss is not a number."""
        if opt.steps % 13 != 5:
            return opt.step(loss)
        with pytest.raises(NonFiniteLossError):
            opt.step(lambda: float("nan") * loss())

    return model, opt, step


def reference(n):
    """The bits after 0, 1, ... n steps that nobody interrupted."""
    model, _, step = start()
    found = [bits(model)]
    for _ in range(n):
        step()
        found.append(bits(model))
    return found


def equal(model, want):
    return all(torch.equal(a, b) for a, b in zip(bits(model), want, strict=True))


def logged(path, n):
    """A finished run of n steps; returns its optimizer, closed."""
    _, opt, step = start(path)
    for _ in range(n):
        step()
    opt.journal.close()
    return opt


def kill_many(path, kills):
    """Fork a run that resumes and steps, kill it at a random instant, again and again.

    After each kill the log must give the uninterrupted run's bits and have no fewer
    steps than the run had reported.
    """
    torch.set_num_threads(1)
    want, (ideal, _, ideal_step) = reference(1), start()
    ideal_step()
    rng, reached = random.Random(0), 0
    for _ in range(kills):
        told, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            _, opt, step = start(path)
            while True:
                step()
                os.write(tell, opt.steps.to_bytes(4, "little"))
        os.close(tell)
        # Steps, not seconds, so that a slow machine gets as far; sometimes none at all.
        words = b"".join(os.read(told, 4) for _ in range(rng.choice([0, 1, 2, 4])))
        time.sleep(rng.uniform(0.0, 0.02))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status), "the run ended before it was killed"
        with os.fdopen(told, "rb") as f:
            words += f.read()
        if words:
            reached = int.from_bytes(words[-4:], "little")
        model = mlp(0, DTYPE)
        if not path.exists() or path.stat().st_size == 0:
            continue  # killed before the log began
        done = zolab.replay(model, path)
        assert reached <= done <= reached + 1, (reached, done)
        while len(want) <= done:
            ideal_step()
            want.append(bits(ideal))
        assert equal(model, want[done]), done
        reached = done
    print(reached)


def test_killed_at_any_instant(tmp_path):
    here = Path(__file__).parent
    code = "import sys, pathlib, test_faults as t; "
    code += "t.kill_many(pathlib.Path(sys.argv[1]), int(sys.argv[2]))"
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(here.parent), str(here)])}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "log"), str(KILLS)],
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > KILLS  # it got somewhere between the kills


def test_cut_at_every_byte_of_the_last_two_records(tmp_path):
    path, want = tmp_path / "log", reference(8)
    opt = logged(path, 8)
    whole, size = path.read_bytes(), opt.journal.size
    for cut in range(1, 2 * size + 1):
        path.write_bytes(whole[:-cut])
        model, again, step = start(path)
        kept = 8 - (cut + size - 1) // size
        assert again.steps == kept and equal(model, want[kept]), cut
        if cut % 5 == 0:
            while again.steps < 8:
                step()
            assert equal(model, want[8]), cut
            assert path.read_bytes() == whole
        again.journal.close()


def test_any_flipped_bit_is_an_error_and_moves_nothing(tmp_path):
    path = tmp_path / "log"
    logged(path, 8)
    whole, rng = path.read_bytes(), random.Random(0)
    base = mlp(0, DTYPE)
    for _ in range(200):
        at, bit = rng.randrange(len(whole)), rng.randrange(8)
        damaged = bytearray(whole)
        damaged[at] ^= 1 << bit
        path.write_bytes(damaged)
        model = mlp(0, DTYPE)
        with pytest.raises(JournalError):
            zolab.MeZO(model, journal=path, **SETTING)
        with pytest.raises(JournalError):
            zolab.replay(model, path)
        assert same_bits(model, base), (at, bit)
        assert path.read_bytes() == damaged  # nor is the file mended behind our back


class Other(torch.nn.Module):
    """Another model altogether."""

    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(3, 3)


@pytest.mark.parametrize(
    ("model", "changes", "word"),
    [
        (mlp(1, DTYPE), {}, "base weights"),
        (mlp(0, torch.float32), {}, "slots"),
        (Other(), {}, "slots"),
        (mlp(0, DTYPE), {"seed": 4}, "seed"),
        (mlp(0, DTYPE), {"eps": 1e-2}, "estimator"),
        (mlp(0, DTYPE), {"num_queries": 2}, "quer"),
    ],
)
def test_a_foreign_journal(tmp_path, model, changes, word):
    path = tmp_path / "log"
    logged(path, 3)
    whole, before = path.read_bytes(), bits(model)
    errors = []  # kept, as a notebook keeps the last one with all its frames
    for _ in range(2):
        with pytest.raises(JournalError, match=word) as error:
            zolab.MeZO(model, journal=path, **SETTING | changes)
        errors.append(error.value)  # the second is not that the first holds the file
    assert equal(model, before) and path.read_bytes() == whole


def test_two_writers_at_once(tmp_path):
    path = tmp_path / "log"
    _, opt, step = start(path)
    step()
    with pytest.raises(JournalError, match="in use"):
        start(path)
    pid = os.fork()
    if pid == 0:  # another process
        try:
            start(path)
        except JournalError:
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    reader = mlp(0, DTYPE)
    assert zolab.replay(reader, path) == 1  # reading needs no lock
    step()
    opt.journal.close()
    assert start(path)[1].steps == 2


def test_a_log_made_while_we_looked_is_not_overwritten(tmp_path, monkeypatch):
    """Two runs begin, both see no file; the second opens it after the first ended."""
    path = tmp_path / "log"
    header = {"groups": 1, "queries": 1, "seed": 0}
    real = os.open

    def late(*args, **kwargs):
        monkeypatch.setattr(os, "open", real)
        with zolab.Journal(path, header) as first:
            first.append(0, [1.0], [2.0])
        return real(*args, **kwargs)

    monkeypatch.setattr(os, "open", late)
    with pytest.raises(JournalError, match="seed"):
        zolab.Journal(path, header | {"seed": 1})
    with zolab.Journal(path, header) as found:
        assert found.next_step == 1


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def half(real):
    """Writes one byte fewer each time, then nothing at all: a disk that fills up."""

    def write(fd, data):
        return real(fd, data[: len(data) // 2]) if len(data) > 2 else full()

    return write


@pytest.mark.parametrize("how", ["full", "half", "fsync"])
def test_a_full_disk_refuses_the_step(tmp_path, monkeypatch, how):
    path = tmp_path / "log"
    model, opt, step = start(path, fsync=how == "fsync")
    step()
    before, log, steps = bits(model), path.read_bytes(), opt.steps
    with monkeypatch.context() as m:
        if how == "fsync":
            m.setattr(os, "fsync", full)
        else:
            m.setattr(os, "write", full if how == "full" else half(os.write))
        with pytest.raises(JournalError, match="No space left"):
            step()
    assert equal(model, before) and path.read_bytes() == log and opt.steps == steps
    step()  # space was made
    opt.journal.close()
    want = reference(2)[2]
    assert equal(model, want) and equal(start(path)[0], want)


def test_short_writes_are_finished(tmp_path, monkeypatch):
    path, real = tmp_path / "log", os.write
    with monkeypatch.context() as m:
        m.setattr(os, "write", lambda fd, data: real(fd, data[:3]))
        model, opt, step = start(path)
        for _ in range(7):
            step()
        opt.journal.close()
    again, opt, _ = start(path)
    assert opt.steps == 7 and same_bits(model, again)


def test_a_file_that_may_not_grow(tmp_path):
    """The same from the operating system: a limit that cuts a record in two."""
    path = tmp_path / "log"
    model, opt, step = start(path)
    step()
    before, log = bits(model), path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(log) + 7, limits[1]))
        with pytest.raises(JournalError, match="nothing moved"):
            step()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert equal(model, before) and path.read_bytes() == log
    step()
    assert equal(model, reference(2)[2])


@pytest.mark.parametrize("handler", [signal.default_int_handler, "own", signal.SIG_IGN])
def test_ctrl_c_waits_until_the_update_is_whole(tmp_path, monkeypatch, handler):
    path, want = tmp_path / "log", reference(1)[1]
    model, opt, step = start(path)
    real, seen = Resident.apply, []

    def interrupted(self, updates):
        signal.raise_signal(signal.SIGINT)
        assert not seen
        real(self, updates)

    monkeypatch.setattr(Resident, "apply", interrupted)
    own = (lambda *_: seen.append(1)) if handler == "own" else handler
    before = signal.signal(signal.SIGINT, own)
    try:
        if handler is signal.default_int_handler:
            with pytest.raises(KeyboardInterrupt):
                step()
        else:
            step()
        assert signal.getsignal(signal.SIGINT) is own
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [1] * (handler == "own")
    assert opt.steps == 1 and equal(model, want)
    opt.journal.close()
    monkeypatch.undo()
    assert equal(start(path)[0], want)


def test_an_update_that_breaks_off_ends_the_run(tmp_path, monkeypatch):
    """Half the slots moved: the model is torn, the log is not."""
    path = tmp_path / "log"
    _, opt, step = start(path)
    step()

    def broken(self, updates):
        raise MemoryError

    with monkeypatch.context() as m:
        m.setattr(Resident, "apply", broken)
        with pytest.raises(MemoryError):
            step()
    with pytest.raises(JournalError, match="rebuild"):
        step()
    opt.journal.close()
    model, opt, step = start(path)
    assert opt.steps == 2 and equal(model, reference(2)[2])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("which", [0, 1])
def test_a_refused_step_is_in_the_log_and_moves_nothing(tmp_path, bad, which):
    path = tmp_path / "log"
    model = mlp(0, DTYPE)
    opt = zolab.MeZO(model, journal=path, **SETTING)
    loss, before = closure(model), bits(model)
    factors = iter([1.0, bad] if which else [bad, 1.0])
    with pytest.raises(NonFiniteLossError, match="step 0"):
        opt.step(lambda: loss() * next(factors))
    assert equal(model, before) and opt.steps == 1
    opt.step(loss)
    (d, _), *_ = opt.last.gradient.terms
    assert d.key == zolab.make_key(SETTING["seed"], 1, 0)  # another direction
    opt.journal.close()
    again = mlp(0, DTYPE)
    assert zolab.replay(again, path) == 2 and same_bits(again, model)
