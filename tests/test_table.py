"""The table of chapter 14: rows run, the best is chosen blindly, a stop costs a run."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import zolab
from zolab.bench import fill, table
from zolab.bench.__main__ import main
from zolab.bench.adapters import Prefix, lora
from zolab.bench.fill import RunError, Table
from zolab.bench.fits import InContext, held_out, last_states, right_ones, score
from zolab.bench.judge import measure, run
from zolab.bench.rows import GRID, PLANS, ROWS, TRAINED, Job
from zolab.tasks import Sentiment, f1_of, loss, splits
from zolab.tasks.sentiment import margins

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = Job("", "tiny", steps=4, train=80, dev=20, held_out=30)


@pytest.fixture(scope="module")
def tiny():
    model, tokenizer = zolab.load_model("tiny")
    return model, Sentiment(tokenizer, words=("down", "up"), max_tokens=24)


# the adapters


def test_a_prefix_of_real_tokens_is_these_tokens(tiny):
    model, task = tiny
    batch = task.batch(held_out(5))
    prefix = Prefix(model, seed=3).model
    with torch.no_grad():
        ours = prefix(batch.ids).last_hidden_state
        ids = torch.cat([prefix.ids.expand(5, -1), batch.ids], 1)
        true = model.model(input_ids=ids).last_hidden_state[:, prefix.ids.shape[1] :]
    torch.testing.assert_close(ours, true, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["lora", "prefix"])
def test_an_adapter_alone_moves_and_begins_where_it_should(kind, tiny):
    _, task = tiny
    model, _ = zolab.load_model("tiny")
    batch = task.batch(held_out(4))
    before = margins(model, batch).detach()
    whole = sum(p.numel() for p in model.parameters())
    adapted = lora(model, seed=1) if kind == "lora" else Prefix(model, seed=1)
    after = margins(adapted, batch).detach()
    assert torch.equal(before, after) == (kind == "lora")
    opt = zolab.MeZO(adapted, lr=1.0, eps=1e-2)
    assert opt.space.numel < whole / 50
    frozen = {
        n: p.clone() for n, p in adapted.named_parameters() if not p.requires_grad
    }
    opt.step(lambda: loss(adapted, batch))
    assert not torch.equal(margins(adapted, batch), after)
    now = dict(adapted.named_parameters())
    assert all(torch.equal(now[n], p) for n, p in frozen.items())


def test_lora_says_what_it_did_not_find():
    with pytest.raises(zolab.ZolabError, match="no layer called q_proj or v_proj"):
        lora(torch.nn.Linear(2, 2))


# the fits and their scores


def test_examples_stand_between_the_first_token_and_the_sentence(tiny):
    model, task = tiny
    data = splits(train=20, dev=0, test=2).train
    batch = InContext(**vars(task), shown=data[:2]).batch(data[4:7])
    rows = zip(batch.ids, batch.last, strict=True)
    said = [task.tokenizer.decode(row[:n]) for row, n in rows]
    plain = task.batch(data[4:7])
    for i, text in enumerate(said):
        assert text.index("it was down") < text.index("it was up")
        assert text.endswith(task.tokenizer.decode(plain.ids[i, 1 : plain.last[i]]))
        assert batch.ids[i, batch.last[i]] == plain.ids[i, plain.last[i]]
    none = InContext(**vars(task)).batch(data[4:7])
    assert torch.equal(none.ids, plain.ids) and torch.equal(none.last, plain.last)


def test_the_probe_reads_what_the_head_reads(tiny):
    model, task = tiny
    rows = held_out(6)
    x, y = last_states(model, task, rows, size=4)
    assert y.tolist() == [s.label for s in rows]
    logits = x.float() @ model.lm_head.weight.detach().T
    blame, praise = task.options()
    want = margins(model, task.batch(rows)).detach()
    torch.testing.assert_close(
        logits[:, praise] - logits[:, blame], want, atol=1e-4, rtol=1e-4
    )


def test_a_score_knows_each_answer_and_f1_is_not_accuracy():
    label = torch.tensor([0.0, 1, 1, 1, 0])
    margin = torch.tensor([-1.0, 2, -1, 3, -2])
    found = score(margin, label)
    assert right_ones(found).tolist() == [1, 1, 0, 1, 1]
    assert found["accuracy"] == 0.8
    assert found["f1"] == pytest.approx(2 * 2 / (2 * 2 + 0 + 1))
    assert float(f1_of(-torch.ones(3), torch.zeros(3))) == 0


def test_held_out_snippets_do_not_depend_on_how_many():
    assert held_out(10) == held_out(30)[:10]


# one run


@pytest.mark.parametrize("row", list(ROWS))
def test_every_row_is_fitted_judged_and_measured(row):
    value = PLANS["tiny"].grid(row)[1 if ROWS[row].knob else 0]
    job = Job(**vars(SMALL) | {"row": row, "value": value})
    found, cost = run(job), measure(job)
    assert found["score"]["n"] == 30 and 0 <= found["score"]["accuracy"] <= 1
    assert cost["peak_mb"] > 1.18 * 4, "the weights are in it"
    if row in TRAINED:
        assert found["points"][-1] == [4, found["score"]["accuracy"]]
        assert 0 <= found["flat"] <= 1
        assert found["ended"] is None and cost["step_seconds"] > 0
    assert json.loads(json.dumps(found)) == found == run(job), "a function of the job"
    tuned = run(Job(**vars(job) | {"tune": True}))
    assert tuned["score"]["n"] == 20, "validation sentences, not held-out ones"


def test_adamw_needs_more_memory_than_mezo():
    peaks = {
        row: measure(Job(**vars(SMALL) | {"row": row, "value": 1e-3}))["peak_mb"]
        for row in ("zero", "mezo", "adamw")
    }
    assert peaks["zero"] < peaks["mezo"] < 2 * peaks["zero"] < peaks["adamw"]


def test_a_run_on_the_cpu_is_measured_there_on_a_machine_with_a_gpu(monkeypatch):
    job = Job(**vars(SMALL) | {"row": "zero"})
    peak = measure(job)["peak_mb"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert measure(job)["peak_mb"] == pytest.approx(peak, rel=0.05)


# the table


class Fake:
    """Answers at once, and counts; `best` wins on validation, the first value later."""

    def __init__(self, best=1, stop_at=None, fail="", seconds=0.1):
        self.made, self.best, self.stop_at = [], best, stop_at
        self.fail, self.seconds = fail, seconds

    def __call__(self, what, job):
        if len(self.made) == self.stop_at:
            raise KeyboardInterrupt
        self.made.append((what, job))
        if job.row == self.fail:
            raise RunError("no memory")
        if what == "measure":
            return {"peak_mb": 1.0, "step_seconds": self.seconds}
        good = PLANS["tiny"].grid(job.row)[self.best if job.tune else 0] == job.value
        label = torch.ones(8)
        found = score(torch.where(torch.arange(8) < 4 + 3 * good, 1.0, -1.0), label)
        return {
            "score": found,
            "steps": job.steps,
            "points": [],
            "ended": None,
            "flat": 0.0,
        }


def table_of(path, fake, **options):
    return Table(path / "t.json", SMALL, 2, run=fake, **options)


def test_the_value_is_chosen_on_validation(tmp_path):
    for best in range(3):
        fake = Fake(best=best)
        found = Table(tmp_path / f"{best}.json", SMALL, 2, run=fake).fill(["mezo"])
        assert found["chosen"]["mezo"] == PLANS["tiny"].grid("mezo")[best]
        jobs = [job for what, job in fake.made if what == "run"]
        assert [job.tune for job in jobs] == [True] * 3 + [False] * 2
        assert {job.seed for job in jobs if job.tune} == {fill.TUNING}
        assert [job.seed for job in jobs[3:]] == [0, 1]
    assert {
        len(PLANS[m].grid(row)) for m in PLANS for row in ROWS if ROWS[row].knob
    } == {3}, "equal budgets"


def test_another_grid_runs_what_it_lacks(tmp_path, monkeypatch):
    """A grid that is moved, since the best stood at its edge, keeps what was run."""
    old = table_of(tmp_path, Fake(best=0)).fill(["mezo"])
    plan = PLANS["tiny"]
    moved = replace(plan, rates=plan.rates | {"mezo": (3e-5, 1e-4, 3e-4)})
    monkeypatch.setitem(PLANS, "tiny", moved)
    fake = Fake(best=0)
    found = table_of(tmp_path, fake).fill(["mezo"])
    assert found["grids"]["mezo"] == moved.rates["mezo"] != old["grids"]["mezo"]
    assert [job.value for what, job in fake.made] == [3e-5, 1e-4, 3e-5, 3e-5]
    assert old["chosen"]["mezo"] == 3e-4 and found["chosen"]["mezo"] == 3e-5
    assert old["runs"].keys() < found["runs"].keys()


def test_what_was_finished_is_not_run_again(tmp_path):
    rows = ["bias", "mezo", "adamw"]
    whole = Fake()
    table_of(tmp_path / "whole", whole).fill(rows)
    made = []
    for stop_at in (2, 5, None):
        fake = Fake(stop_at=stop_at)
        if stop_at is None:
            record = table_of(tmp_path / "torn", fake).fill(rows)
        else:
            with pytest.raises(KeyboardInterrupt):
                table_of(tmp_path / "torn", fake).fill(rows)
        made += fake.made
    assert made == whole.made and len(made) == 3 + 6 + 6
    assert (
        record["runs"]
        == json.loads((tmp_path / "whole" / "t.json").read_text())["runs"]
    )
    again = Fake()
    table_of(tmp_path / "torn", again).fill(rows)
    assert again.made == []
    other = Table(tmp_path / "torn" / "t.json", Job(**vars(SMALL) | {"train": 60}), 2)
    assert other.record["runs"] == {}, "another setting is another record"


def test_a_failed_run_leaves_its_row_out_and_is_tried_again(tmp_path):
    record = table_of(tmp_path, Fake(fail="adamw")).fill(["bias", "adamw"])
    assert (
        set(record["chosen"]) == {"bias"} and record["failed"]["adamw"] == "no memory"
    )
    record = table_of(tmp_path, Fake()).fill(["bias", "adamw"])
    assert set(record["chosen"]) == {"bias", "adamw"} and record["failed"] == {}


def test_costs_alone_are_measured_and_a_fit_goes_on_from_them(tmp_path):
    fake = Fake()
    record = table_of(tmp_path, fake).fill(["bias", "adamw"], fit=False)
    assert set(record["costs"]) == {"bias", "adamw"} and record["date"]
    assert record["runs"] == record["chosen"] == {} and len(fake.made) == 2
    assert table.said(record, "bias") == "-"
    again = Fake()
    record = table_of(tmp_path, again).fill(["bias"])
    assert set(record["chosen"]) == {"bias"}
    right = record["runs"]["bias 0 seed 0"]["score"]["accuracy"]
    assert table.said(record, "bias").startswith(f"{right:.3f} ± 0.")
    assert {what for what, _ in again.made} == {"run"}, "what a record has is kept"


def test_steps_are_cut_to_what_the_minutes_allow(tmp_path):
    long = Job(**vars(SMALL) | {"steps": 1000})
    cut = Table(tmp_path / "a.json", long, 2, workers=4, run=Fake(seconds=1.0))
    # five runs of 1,000 seconds on four workers, in 0.8 x 10 minutes
    steps = cut.fill(["mezo"], minutes=10)["setting"]["steps"]
    assert steps == pytest.approx(1000 * 480 * 4 / 5000, abs=5)
    again = Table(tmp_path / "a.json", long, 2, workers=4, run=Fake())
    assert again.base.steps == steps, "a run that goes on keeps them"
    free = Table(tmp_path / "b.json", long, 2, workers=4, run=Fake(seconds=0.01))
    assert free.fill(["mezo"], minutes=10)["setting"]["steps"] == 1000


def test_a_child_says_what_went_wrong(monkeypatch):
    def failed(*_, **__):
        return subprocess.CompletedProcess(
            [], 1, "", "Traceback\nValueError: no memory\n"
        )

    monkeypatch.setattr(fill.subprocess, "run", failed)
    with pytest.raises(RunError, match="mezo 0 seed 0: ValueError: no memory"):
        fill.child("run", Job("mezo", "tiny"))


def test_without_a_library_its_row_fails_and_the_others_go_on(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    base = Job(**vars(SMALL) | {"steps": 2})
    table = Table(tmp_path / "t.json", base, 1, rows=GRID, item="grid", timer="qzo")
    record = table.fill(["adam4", "bias"])
    assert set(record["chosen"]) == {"bias"}
    assert "torchao" in record["failed"]["adam4 tune 0.0003 seed 100"]


def test_a_child_answers_like_this_process():
    job = Job(**vars(SMALL) | {"row": "bias"})
    assert fill.child("run", job) == run(job)


def test_the_command_writes_a_record_that_can_be_read(tmp_path, capsys):
    small = ["--steps", "2", "--train", "80", "--held-out", "20", "--seeds", "2"]
    options = ["--model", "tiny", *small, "--out", str(tmp_path)]
    assert main(["table", *options, "--only", "zero", "bias", "adamw"]) == 0
    assert capsys.readouterr().out.count(" MB") == 3
    record = table.recorded("tiny", folder=tmp_path)
    assert str(tmp_path) not in json.dumps(record)
    assert record["chosen"]["adamw"] in PLANS["tiny"].grid("adamw")
    assert (
        len(table.judged(record, "adamw")) == 2
        and len(table.judged(record, "zero")) == 1
    )
    assert table.judged(record, "mezo") == []
    assert table.seconds(record, "adamw") > 0
    assert table.recorded("no-such-model", folder=tmp_path) is None


def test_pairs_of_answers_are_compared_sentence_by_sentence():
    def runs(*rows):
        ones = [torch.tensor(r, dtype=torch.float) * 2 - 1 for r in rows]
        return [{"score": score(m, torch.ones(len(m)))} for m in ones]

    a, b = runs([1] * 60 + [0] * 40), runs([1] * 50 + [0] * 50)
    record = {"chosen": {"a": 0.0, "b": 0.0}, "runs": {}}
    for name, (one,) in {"a": a, "b": b}.items():
        record["runs"][f"{name} 0 seed 0"] = one
    gap, se = table.ahead(record, "a", "b")
    assert gap == pytest.approx(0.1) and se == pytest.approx((0.1 * 0.9 / 99) ** 0.5)
    p, alone = table.mean(record, "a")
    assert p == pytest.approx(0.6) and alone == pytest.approx((0.24 / 100) ** 0.5)
    assert se < alone, "what is hard for both drops out"
