"""A run that is watched: stopped anywhere and resumed it is the run that was not."""

import copy
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from helpers import mlp, same_bits
from torch.nn import functional as F

import zolab
from zolab import lab
from zolab.errors import JournalError, NonFiniteLossError
from zolab.lab import screen
from zolab.lab.curve import Curve
from zolab.tasks import Sentence, Sentiment, error_rate, mistakes, read_table, splits

pytestmark = pytest.mark.usefixtures("one_thread")
BASE = mlp()


def cross(model, batch):
    x, y = batch
    return F.cross_entropy(model(x).float(), y)


def batches(start=0):
    for step in itertools.count(start):
        g = torch.Generator().manual_seed(step)
        yield torch.randint(0, 11, (2, 8), generator=g)


def run(path, steps, objective=cross, *, notes=None, **options):
    """Open or resume the journal at `path`, as the playground's cell does."""
    model = copy.deepcopy(BASE)
    opt = zolab.MeZO(model, lr=1e-2, eps=1e-2, journal=path, notes=notes)
    found = lab.watch(opt, objective, batches(opt.steps), steps=steps, **options)
    return model, found


class Clicks:
    """Stops the run after `n` calls of the objective, as the button would."""

    def __init__(self, n, how):
        self.left, self.how = n, how

    def __call__(self, model, batch):
        self.left -= 1
        if self.left == 0:
            self.how()
        return cross(model, batch)


@pytest.mark.parametrize("calls", [1, 2, 7, 16])
def test_stopped_and_resumed_is_not_stopped_to_the_bit(tmp_path, calls, monkeypatch):
    whole, _ = run(tmp_path / "whole", 12)
    stops = []
    kept = screen.Screen.__init__

    def init(self, steps, start, marks, stop):
        stops.append(stop)
        kept(self, steps, start, marks, stop)

    monkeypatch.setattr(screen.Screen, "__init__", init)
    model, found = run(tmp_path / "log", 12, Clicks(calls, lambda: stops[-1]()))
    assert found.steps == (calls + 1) // 2, "the step under way was finished"
    assert "Run the cell again" in found.ended
    half = copy.deepcopy(BASE)
    assert zolab.replay(half, tmp_path / "log") == found.steps
    assert same_bits(half, model)
    model, found = run(tmp_path / "log", 12)
    assert found.steps == 12
    assert same_bits(model, whole)
    assert (tmp_path / "log").read_bytes() == (tmp_path / "whole").read_bytes()
    curves = [(tmp_path / f"{n}.csv").read_text() for n in ("whole", "log")]
    assert curves[0] == curves[1]


def test_an_interrupt_waits_for_the_step_and_is_told(tmp_path, capsys):
    def interrupt():
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "log", 12, Clicks(5, interrupt))
    assert "stopped after step 3 of 12" in capsys.readouterr().out


def test_a_second_interrupt_does_not_wait(tmp_path, capsys):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)  # a background shell's is to ignore it
    whole, _ = run(tmp_path / "whole", 12)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "log", 12, Clicks(6, twice))
    assert "stopped after step 2 of 12" in capsys.readouterr().out
    model, _ = run(tmp_path / "log", 12)
    assert same_bits(model, whole)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_killed_process_loses_only_the_step_under_way(tmp_path):
    """Killed for good, the curve's torn line included, it goes on to the same bits."""
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import os, signal, test_watch
def die(): os.kill(os.getpid(), signal.SIGKILL)
test_watch.run({str(tmp_path / "log")!r}, 12, test_watch.Clicks(10, die))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr[-500:]
    with (tmp_path / "log.csv").open("a") as file:
        file.write("4,0.")
    whole, _ = run(tmp_path / "whole", 12)
    model, found = run(tmp_path / "log", 12)
    assert same_bits(model, whole)
    assert sorted(found.curve.losses) == list(range(12))


def test_a_changed_setting_is_refused_by_name(tmp_path):
    notes = lab.notes(lr=1e-2, batch_size=8, objective=cross)
    run(tmp_path / "log", 3, notes=notes)
    before = (tmp_path / "log").read_bytes()
    changed = [
        ({"lr": 1e-3}, "its lr is 0.01, this one has 0.001"),
        ({"batch size": 16}, "its batch size is 8, this one has 16"),
        (lab.notes(objective=batches), "its objective is .cross, source .*batches"),
        ({"data": "other"}, "says nothing of its data"),
    ]
    for change, said in changed:
        with pytest.raises(JournalError, match=said):
            run(tmp_path / "log", 6, notes=notes | change)
    with pytest.raises(JournalError, match="its estimator is"):
        zolab.MeZO(mlp(), lr=1e-2, eps=1e-3, journal=tmp_path / "log", notes=notes)
    with pytest.raises(JournalError, match="other base weights"):
        zolab.MeZO(mlp(1), lr=1e-2, eps=1e-2, journal=tmp_path / "log", notes=notes)
    assert (tmp_path / "log").read_bytes() == before
    assert run(tmp_path / "log", 6, notes=notes)[1].steps == 6
    with pytest.raises(ValueError, match=r"\['seed'\]"):
        run(tmp_path / "new", 6, notes={"seed": 1})


def test_notes_are_small_and_see_what_changes():
    rows = [Sentence("a", 0), Sentence("b", 1)]
    assert lab.notes(x=(1, "a", None), p=Path("q")) == {"x": [1, "a", None], "p": "q"}
    a, b, c = (lab.notes(d=r) for r in (rows, rows[::-1], [rows[0], Sentence("b", 0)]))
    assert len({str(x) for x in (a, b, c)}) == 3
    assert "2 sentences" in a["d"]
    assert lab.notes(f=cross) != lab.notes(f=batches)
    assert lab.notes(f=len) == {"f": "len"}
    with pytest.raises(TypeError, match="Tensor is no"):
        lab.notes(w=torch.ones(2))


def test_refused_steps_are_shown_counted_and_replayed(tmp_path, capsys):
    calls = itertools.count()

    def sometimes(model, batch):
        return float("nan") if next(calls) in (4, 9) else cross(model, batch)

    model, found = run(tmp_path / "log", 8, sometimes, score=lambda m: 0.5, every=4)
    said = capsys.readouterr().out
    assert found.curve.refused == [2, 4]
    assert sorted(found.curve.losses) == [0, 1, 3, 5, 6, 7]
    assert "2 refused" in said
    assert "step 2 refused: losses [nan, " in said
    assert "nothing moved" in said
    again = copy.deepcopy(BASE)
    assert zolab.replay(again, tmp_path / "log") == 8
    assert same_bits(again, model)
    assert run(tmp_path / "log", 8)[1].curve.refused == [2, 4], "after a resume, too"


def test_ten_refusals_in_a_row_raise_and_close_the_journal(tmp_path, capsys):
    with pytest.raises(NonFiniteLossError):
        run(tmp_path / "log", 30, lambda m, b: cross(m, b) * float("inf"))
    assert "broken off by an error" in capsys.readouterr().out
    model = copy.deepcopy(BASE)
    assert zolab.replay(model, tmp_path / "log") == 10
    assert same_bits(model, BASE)


def test_an_objective_that_samples_samples_again_after_a_resume(tmp_path):
    def noisy(model, batch):
        return cross(model, batch) + 0.1 * torch.rand(()) + 0.1 * random.random()

    torch.manual_seed(5)
    before = torch.get_rng_state()
    whole, _ = run(tmp_path / "whole", 8, noisy)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    run(tmp_path / "log", 3, noisy)
    torch.rand(3)
    model, found = run(tmp_path / "log", 8, noisy)
    assert same_bits(model, whole)
    assert len(set(found.curve.losses.values())) == 8


def test_a_finished_run_only_shows_itself(tmp_path, capsys):
    first, _ = run(tmp_path / "log", 4, score=lambda m: 0.25, every=2)
    capsys.readouterr()
    again, found = run(tmp_path / "log", 4, score=lambda m: 1 / 0, every=2)
    assert same_bits(first, again)
    assert found.curve.scores == {0: 0.25, 2: 0.25, 4: 0.25}
    assert "done: 4 steps" in capsys.readouterr().out


def test_the_journal_is_free_though_the_optimizer_lives(tmp_path):
    """A notebook's last cell still holds it when the cell is run again."""
    opts = []
    for steps in (2, 4):
        path = tmp_path / "log"
        opts.append(zolab.MeZO(copy.deepcopy(BASE), lr=1e-2, eps=1e-2, journal=path))
        lab.watch(opts[-1], cross, batches(opts[-1].steps), steps=steps)
    assert opts[-1].steps == 4


def test_the_curve_forgets_what_the_journal_does_not_have(tmp_path):
    path = tmp_path / "c.csv"
    curve = Curve(path)
    for step in range(5):
        curve.add(step, loss=step / 3)
    curve.add(3, score=0.5)
    curve.add(5, score=0.75)
    again = Curve(path, done=3)
    assert again.losses == {0: 0.0, 1: 1 / 3, 2: 2 / 3}
    assert again.scores == {3: 0.5}
    assert Curve(path, done=9).scores == {3: 0.5}, "forgotten in the file, too"
    assert not Curve(path).losses
    assert again.smooth(2) == ([0, 1, 2], pytest.approx([0, 1 / 6, 1 / 2]))


def test_the_status_names_what_a_watcher_needs(capsys):
    curve = Curve()
    for step in range(30):
        curve.add(step, loss=1 - step / 100)
    curve.add(30, score=0.625)
    seen = screen.Screen(60, 0, {"bias only": 0.55}, lambda: None)
    seen.began = time.monotonic() - 10
    text = seen.status(curve, 30)
    for part in ("step 30/60", "objective 0.805", "accuracy 0.625 (bias only 0.550)"):
        assert part in text
    assert "3.0 steps/s | 10 s left | peak" in text
    assert "0.625; bias only is 0.550." in seen.say(curve, 30)
    html = seen._picture(curve, 30, text).html
    assert "<img" in html
    assert 'alt="After 30 steps' in html
    seen.draw(curve, 30)
    assert capsys.readouterr().out == "", "a pipe gets a line a score"
    seen.draw(curve, 30, now=True)
    assert "step 30/60" in capsys.readouterr().out


def test_in_a_notebook_the_button_stops_and_an_interrupt_returns(monkeypatch, tmp_path):
    shown = []

    class Handle:
        def update(self, thing):
            shown.append(thing)

    def display(thing, display_id):
        shown.append(thing)
        return Handle()

    import IPython.display

    monkeypatch.setattr(screen, "in_notebook", lambda: True)
    monkeypatch.setattr(IPython.display, "display", display)

    def click():  # from another thread, as a subshell does
        thread = threading.Thread(target=shown[0].click)
        thread.start()
        thread.join()

    _, found = run(tmp_path / "log", 12, Clicks(4, click))
    assert found.steps == 2
    assert shown[0].description == "Stop"
    assert "stopped after step 2 of 12" in repr(shown[-1])
    assert "<img" in shown[-2].html
    shown.clear()
    _, found = run(tmp_path / "log", 12, Clicks(4, lambda: os.kill(os.getpid(), 2)))
    assert found.steps == 4, "and no KeyboardInterrupt, so the next cells run"


# the playground's objectives on the real model


@pytest.fixture(scope="module")
def films():
    model, tokenizer = zolab.load_model("tiny")
    return model, Sentiment(tokenizer, words=("down", "up")), splits(train=64, test=32)


def test_batches_go_on_where_they_were(films):
    _, task, data = films
    whole = task.batches(data.train, 20, seed=3)
    seen = list(itertools.islice(whole, 8))  # three a round
    later = task.batches(data.train, 20, seed=3, start=5)
    for batch in seen[5:]:
        found = next(later)
        assert torch.equal(found.ids, batch.ids)
        assert torch.equal(found.label, batch.label)
    with pytest.raises(zolab.ZolabError, match="a batch of 0"):
        next(task.batches(data.train, 0))


def test_the_error_rate_is_an_objective(films, tmp_path):
    model, task, data = films
    batch = task.batch(data.train[:16])
    with torch.no_grad():
        rate = float(error_rate(model, batch))
    wrong = mistakes(model, task, data.train[:16])
    assert rate == len(wrong) / 16
    sure = [abs(m) for m, _ in wrong]
    assert sure == sorted(sure, reverse=True)
    assert all((m > 0) != (s.label == 1) for m, s in wrong)

    def words(model, batch):  # the reader's own: numbers come from anywhere
        return float(error_rate(model, batch)) + 0.0 * batch.ids.shape[1]

    for name, objective in (("rate", error_rate), ("own", words)):
        opt = zolab.MeZO(
            copy.deepcopy(model), lr=1e-3, eps=1e-2, journal=tmp_path / name
        )
        found = lab.watch(opt, objective, task.batches(data.train, 16), steps=4)
        assert all((16 * 2 * x).is_integer() for x in found.curve.losses.values())


def test_a_table_feeds_the_task(films):
    _, task, _ = films
    parts = read_table("embedded").splits()
    batch = next(task.batches(parts.train, 8))
    assert batch.ids.shape[0] == 8
    assert set(batch.label.tolist()) <= {0, 1}
