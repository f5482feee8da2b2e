"""ZOTrainer: the Trainer's loop around our step, and a run that resumes bit for bit."""

import copy
import doctest
import json
import os
import subprocess
import sys
from pathlib import Path

import families
import pytest
import torch
from helpers import same_bits

import zolab
from zolab.errors import JournalError, LossError, NonFiniteLossError
from zolab.journal import STEP, Journal

pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")
trainer_module = pytest.importorskip("zolab.integrations.trainer")
ZOTrainer = trainer_module.ZOTrainer

pytestmark = pytest.mark.filterwarnings("ignore")


def rows(n=24, seed=0):
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, families.VOCAB, (n, 6), generator=g)
    return [{"input_ids": r, "labels": r.clone()} for r in ids]


def arguments(path, **kwargs):
    settings = {
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "save_strategy": "no",
        "logging_steps": 1,
    }
    return transformers.TrainingArguments(str(path), **(settings | kwargs))


def trainer(path, model=None, zo=None, cls=ZOTrainer, extra=None, **kwargs):
    model = families.make("llama").model if model is None else model
    zo = {"eps": 1e-2} if zo is None else zo
    args = arguments(path, **kwargs)
    return cls(model, args, train_dataset=rows(), zo=zo, **(extra or {}))


def steps_of(path):
    with Journal(path / "journal.zolab", readonly=True) as journal:
        return [r for r in journal.records if r.kind == STEP]


class Spy(transformers.TrainerCallback):
    """The names of what was called, in order."""

    def __init__(self, **at):
        self.events, self.at = [], at

    def __getattribute__(self, name):
        if name.startswith("on_"):
            self.events.append(name)
            action = self.at.get(name)
            if action:
                return lambda args, state, control, **kw: action(state, control, **kw)
        return object.__getattribute__(self, name)


def by_hand(model, batches, lrs, **kwargs):
    opt = zolab.MeZO(model, eps=1e-2, seed=42, **kwargs)
    losses = []
    for batch, lr in zip(batches, lrs, strict=True):
        for group in opt.param_groups:
            group["lr"] = lr
        losses.append(opt.step(lambda b=batch: model(**b).loss))
    return losses


def stacked(data, index):
    return {k: torch.stack([data[i][k] for i in index]) for k in data[0]}


class InOrder(ZOTrainer):
    def _get_train_sampler(self, dataset=None):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def test_equals_the_loop_by_hand(tmp_path):
    """Batches, schedule, decay, loss: the same bits and logs as ten plain lines."""
    t = trainer(tmp_path, cls=InOrder, weight_decay=0.1, warmup_steps=2)
    mine = copy.deepcopy(t.model)
    t.train()
    lrs = [1e-2 * f for f in (0, 0.5, 1, 0.75, 0.5, 0.25)]
    batches = [stacked(rows(), range(4 * i, 4 * i + 4)) for i in range(6)]
    losses = by_hand(mine, batches, lrs, weight_decay=0.1)
    assert same_bits(t.model, mine)
    logged = [x["loss"] for x in t.state.log_history if "loss" in x]
    assert logged == pytest.approx(losses)
    assert [r.lr[0] for r in steps_of(tmp_path)] == pytest.approx(lrs)
    assert all("grad_norm" not in x for x in t.state.log_history)
    assert all(x["projected_grad"] > 0 for x in t.state.log_history if "loss" in x)
    assert all(p.grad is None for p in t.model.parameters())


def test_no_gradient_is_asked_for(tmp_path):
    modes = []

    class Asking(ZOTrainer):
        def compute_loss(self, model, inputs, **kwargs):
            modes.append((torch.is_grad_enabled(), model.training))
            loss = super().compute_loss(model, inputs, **kwargs)
            assert not loss.requires_grad
            assert loss.dtype == torch.float32
            return loss

    seen = Spy(on_step_end=lambda s, c, model, **kw: modes.append(model.training))
    t = trainer(tmp_path, cls=Asking, extra={"callbacks": [seen]}, max_steps=2)
    t.train()
    assert modes == 2 * [(False, False), (False, False), True]


def test_norms_and_biases_do_not_decay(tmp_path):
    t = trainer(tmp_path, families.make("gpt2").model, weight_decay=0.1, max_steps=1)
    t.train()
    header = json.loads(json.dumps(t.zo.journal.header))
    assert header["weight_decay"] == [0.1, 0.0]
    spared = {name for name, *_, group in header["slots"] if group == 1}
    norms = {"ln_1", "ln_2", "ln_f"}
    for name, *_ in header["slots"]:
        is_norm = norms & set(name.split("."))
        assert (name in spared) == bool(is_norm or name.endswith("bias")), name


def test_callbacks_evaluation_and_best_model(tmp_path):
    spy = Spy()
    t = trainer(
        tmp_path,
        extra={
            "eval_dataset": rows(8, seed=1),
            "compute_metrics": lambda p: {"width": p.predictions.shape[-1]},
            "callbacks": [spy],
        },
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=3,
        save_steps=3,
        load_best_model_at_end=True,
    )
    result = t.train()
    assert result.global_step == 6
    assert {"train_loss", "train_runtime"} <= result.metrics.keys()
    evals = [x for x in t.state.log_history if "eval_loss" in x]
    assert [x["step"] for x in evals] == [3, 6]
    assert all(x["eval_width"] == families.VOCAB for x in evals)
    counts = {e: spy.events.count(e) for e in set(spy.events)}
    for event in ("step_begin", "step_end", "pre_optimizer_step", "optimizer_step"):
        assert counts[f"on_{event}"] == 6
    assert counts["on_evaluate"] == counts["on_save"] == 2
    assert counts["on_train_begin"] == counts["on_train_end"] == 1


@pytest.mark.parametrize("loss_kwargs", [True, False])
def test_accumulation_is_one_loss(tmp_path, loss_kwargs):
    """Three batches of four rows make the step of one batch of twelve."""
    finals = []
    for size, times in ((12, 1), (4, 3)):
        t = trainer(
            tmp_path / str(times),
            cls=InOrder,
            max_steps=2,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=times,
        )
        t.model_accepts_loss_kwargs = loss_kwargs
        t.train()
        losses = [x["loss"] for x in t.state.log_history if "loss" in x]
        finals.append(
            (losses, [r.coefficients[0] for r in steps_of(tmp_path / str(times))])
        )
    assert finals[0][0] == pytest.approx(finals[1][0], rel=1e-5)
    assert finals[0][1] == pytest.approx(finals[1][1], rel=1e-2)


def test_own_loss_collator_and_factory(tmp_path):
    """compute_loss is the objective, so it may be anything; labels may be popped."""

    class Popping(ZOTrainer):
        def compute_loss(self, model, inputs, **kwargs):
            labels = inputs.pop("labels")
            return (model(**inputs).logits.argmax(-1) != labels).float().mean()

    def factory(model, **kwargs):
        asked.update(kwargs)
        return zolab.ZOOptimizer(model, estimator=zolab.OneSided(eps=1e-2), **kwargs)

    def collate(items):
        return stacked(items, range(len(items)))

    asked = {}
    t = trainer(tmp_path, zo=factory, cls=Popping, extra={"data_collator": collate})
    t.train()
    assert asked["lr"] == 1e-2 and asked["seed"] == 42
    assert len(t.zo.last.losses) == 2
    assert len(steps_of(tmp_path)) == 6


def test_label_smoothing_sees_the_labels_at_every_probe(tmp_path):
    trainer(tmp_path, label_smoothing_factor=0.1, zo={"num_queries": 2}).train()
    assert len(steps_of(tmp_path)) == 6


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_nan_reaches_the_user(tmp_path, bad):
    """The Trainer's filter is on by default and would log the mean of the past."""

    class Failing(ZOTrainer):
        def compute_loss(self, model, inputs, **kwargs):
            loss = super().compute_loss(model, inputs, **kwargs)
            return loss * (bad if self.state.global_step == 3 else 1)

    t = trainer(tmp_path, cls=Failing)
    assert t.args.logging_nan_inf_filter
    with pytest.raises(NonFiniteLossError, match="step 3"):
        t.train()
    assert [r.step for r in steps_of(tmp_path)] == [0, 1, 2]


def test_a_bf16_loss_is_refused(tmp_path):
    class Low(ZOTrainer):
        def compute_loss(self, model, inputs, **kwargs):
            return super().compute_loss(model, inputs, **kwargs).bfloat16()

    with pytest.raises(LossError, match="bfloat16"):
        trainer(tmp_path, cls=Low).train()


@pytest.mark.parametrize(
    ("name", "dtype"), [("llama", torch.bfloat16), ("lora", torch.float32)]
)
def test_resume_is_bit_equal(tmp_path, name, dtype):
    """Stop at any step; the checkpoint and the journal give the uninterrupted run."""
    if name == "lora":
        pytest.importorskip("peft")

    def run(path, stop=None, resume=None):
        def maybe_stop(state, control, **kw):
            if state.global_step == stop:
                raise KeyboardInterrupt

        t = trainer(
            tmp_path / path,
            families.make(name, dtype).model,
            extra={"callbacks": [Spy(on_step_begin=maybe_stop)]},
            save_strategy="steps",
            save_steps=2,
            max_steps=8,
            weight_decay=0.1,
        )
        t.train(resume_from_checkpoint=resume)
        return t

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("parts", stop=5)  # the journal has 5 steps, the last checkpoint 4
    again = run("parts", resume=True)
    assert again.state.global_step == 8
    assert same_bits(again.model, whole.model)
    logs = [(tmp_path / p / "journal.zolab").read_bytes() for p in ("whole", "parts")]
    assert logs[0] == logs[1]
    kept = tmp_path / "parts" / "journal.zolab.5"
    assert logs[0].startswith(kept.read_bytes())
    replayed = families.make(name, dtype).model
    assert zolab.replay(replayed, tmp_path / "parts" / "journal.zolab") == 8
    assert same_bits(replayed, whole.model)


KILLED = """
import os, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import test_trainer as t
def die(state, control, **kw):
    if state.global_step == 5:
        os._exit(9)
spy = t.Spy(on_step_begin=die)
run = t.trainer(Path({out!r}), extra={{"callbacks": [spy]}}, max_steps=8,
                save_strategy="steps", save_steps=2)
run.train()
"""


def test_a_killed_process_resumes(tmp_path):
    settings = {"max_steps": 8, "save_strategy": "steps", "save_steps": 2}
    script = KILLED.format(
        tests=str(Path(__file__).parent), out=str(tmp_path / "killed")
    )
    root = str(Path(zolab.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": root},
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 9, done.stderr.decode()[-2000:]
    again = trainer(tmp_path / "killed", **settings)
    again.train(resume_from_checkpoint=True)
    whole = trainer(tmp_path / "whole", **settings)
    whole.train()
    assert same_bits(again.model, whole.model)


def test_resume_without_a_journal(tmp_path):
    """Then the checkpoint's weights are the start, as in the plain Trainer."""
    settings = {"save_strategy": "steps", "save_steps": 2}
    zo = {"eps": 1e-2, "journal": None}
    whole = trainer(tmp_path, zo=zo, **settings)
    whole.train()
    assert not (tmp_path / "journal.zolab").exists()
    again = trainer(tmp_path, zo=zo, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert same_bits(again.model, whole.model)


def test_what_resume_refuses(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2}
    t = trainer(tmp_path, **settings)
    t.train()
    with pytest.raises(JournalError, match="holds a run of 6 steps"):
        trainer(tmp_path, **settings).train()
    with pytest.raises(JournalError, match="load the weights that the run started"):
        trainer(tmp_path, t.model, **settings).train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="new ZOTrainer"):
        t.train(resume_from_checkpoint=True)
    with pytest.raises(JournalError, match="its estimator is"):
        trainer(tmp_path, zo={"eps": 0.5}, **settings).train(
            resume_from_checkpoint=True
        )
    (tmp_path / "checkpoint-6" / "zolab.json").unlink()
    with pytest.raises(JournalError, match="not saved by a ZOTrainer"):
        trainer(tmp_path, **settings).train(resume_from_checkpoint=True)


def test_train_twice_goes_on(tmp_path):
    t = trainer(tmp_path, max_steps=2)
    t.train()
    t.train()
    assert [r.step for r in steps_of(tmp_path)] == [0, 1, 2, 3]


def test_what_the_constructor_refuses(tmp_path):
    model = families.make("llama").model
    sgd = torch.optim.SGD(model.parameters())
    with pytest.raises(ValueError, match="zo="):
        trainer(tmp_path, model, extra={"optimizers": (sgd, None)})
    with pytest.raises(ValueError, match="no compile"):
        trainer(tmp_path, model, torch_compile=True)


def test_autocast_arguments(tmp_path):
    t = trainer(tmp_path, bf16=True, max_steps=2)
    t.train()
    assert t.model.dtype == torch.float32
    assert len(set(t.zo.last.losses)) == 2


def test_the_example(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner(verbose=False)
    for test in doctest.DocTestFinder(recurse=False).find(ZOTrainer, "example"):
        runner.run(test)
    found = runner.summarize(verbose=False)
    assert (found.failed, found.attempted) == (0, 8)


def test_zolab_does_not_import_transformers():
    code = "import sys, zolab.integrations; assert 'transformers' not in sys.modules"
    root = str(Path(zolab.__file__).parents[1])
    subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": root}, check=True
    )
