"""The bench of two bits: equal passes, one start, choice on texts that do not judge."""

import json
import math
from dataclasses import replace
from importlib.util import find_spec
from unittest.mock import Mock

import pytest
import torch

import zolab
from zolab.bench import two_bits
from zolab.tasks.perplexity import nats, some, texts

pytestmark = pytest.mark.usefixtures("one_thread")
ROWS = {row.name: row for row in two_bits.ROWS}


@pytest.fixture(scope="module")
def data():
    model, tokenizer = zolab.load_model("tiny")
    whole = texts(tokenizer, ["a film of " + w for w in ("love", "war", "joy", "tea")])
    base = dict.fromkeys("vh", nats(model, whole))
    calibrate = some(whole, torch.arange(250) % 4)
    return two_bits.Data(calibrate, whole, whole, base)


@pytest.mark.parametrize("name, each", [("zeroqat", 2), ("not rounded", 3)])
def test_passes_are_what_is_equal(data, monkeypatch, name, each):
    asked, loss = [], zolab.lm_loss

    def counted(model, batch):
        asked.append((len(batch["input_ids"]), torch.is_grad_enabled()))
        return loss(model, batch)

    monkeypatch.setattr(zolab, "lm_loss", counted)
    row = replace(ROWS[name], start="all", bits=None)  # no rounding: no clip search
    two_bits.train(row, 1e-4, 0, 6, data)
    forward = each == 2
    assert asked == [(8, not forward)] * (6 if forward else 2)


def test_training_starts_where_clip_search_ends(data):
    start = two_bits.train(ROWS["zeroqat light"], 0.0, 0, 2, data)
    packed = two_bits.after("clip", 2, data)
    gap, error = data.gap(start, "h")
    assert gap == pytest.approx(data.gap(packed, "h")[0], abs=2e-3)
    assert abs(gap) > 5e-2 and error > 0


@pytest.mark.parametrize("name", ["zeroqat", "not rounded"])
def test_a_run_that_bursts_is_no_candidate(data, monkeypatch, name):
    loss = zolab.lm_loss
    monkeypatch.setattr(zolab, "lm_loss", lambda *args: loss(*args) * math.nan)
    assert two_bits.train(replace(ROWS[name], bits=None), 1e-3, 0, 6, data) is None


def test_lr_is_chosen_by_the_validation_texts_and_its_seed_does_not_judge(monkeypatch):
    asked = []

    def train(row, lr, seed, passes, data):
        asked.append((lr, seed))
        assert passes == 6 or (passes, lr, seed) == (0, 3e-3, 0)
        return None if lr == 1e-2 else (lr, seed)

    class Parts:  # lr 3e-3 is best on v, 3e-2 on h
        def gap(self, model, part):
            return (abs(math.log(model[0] / (3e-3 if part == "v" else 3e-2))), 0.1)

    monkeypatch.setattr(two_bits, "train", train)
    row = replace(ROWS["zeroqat"], lrs=(1e-3, 3e-3, 1e-2, 3e-2))
    found = two_bits.run(row, 2, 6, Parts())
    assert found["lr"] == 3e-3 and math.isinf(found["tried"][2])
    assert asked[5:] == [(3e-3, 0), (3e-3, 1)] and {s for _, s in asked[:4]} == {100}
    assert len(found["gaps"]) == 2


def test_a_row_of_one_lr_is_not_tuned_and_gets_its_passes(monkeypatch):
    asked = []
    monkeypatch.setattr(two_bits, "train", lambda row, *args: asked.append(args[:3]))
    data = Mock(gap=Mock(return_value=(0.1, 0.0)))
    found = two_bits.run(ROWS["zeroqat light, six times"], 2, 6, data)
    assert asked == [(1e-2, 0, 0), (1e-2, 0, 36), (1e-2, 1, 36)]
    assert found["passes"] == 36 and found["tried"] == [] and found["began"] == (0.1, 0)


def test_activations_are_rounded_where_a_row_says_so(data):
    def gap(**how):
        row = replace(ROWS["zeroqat light, w4a4"], **how)
        return abs(data.gap(two_bits.train(row, 1e-3, 0, 0, data), "h")[0])

    assert gap(activations=None) < 0.5 * gap()  # four bits of weights are little
    assert gap(activations=16) == pytest.approx(gap(activations=None), abs=1e-3)


def test_what_is_recorded_is_not_measured_again(data, monkeypatch, tmp_path):
    monkeypatch.setattr(two_bits.Data, "load", classmethod(lambda cls: data))
    ran = []
    monkeypatch.setattr(
        two_bits,
        "run",
        lambda row, *_: ran.append(row.name) or {"lr": 1, "tried": [], "gaps": []},
    )
    args = ["--out", str(tmp_path), "--only"]
    for only in (["zeroqat"], ["zeroqat", "qat light"]):
        assert two_bits.main([*args, *only]) == 0
    assert ran == ["zeroqat", "qat light"]
    record = json.loads((tmp_path / two_bits.PATH).read_text("utf-8"))
    assert set(record["trained"]) == {"zeroqat", "qat light"}
    assert record["perplexity"] > 1
    assert record["trained"]["qat light"]["by"]["commit"] == record["commit"]


@pytest.mark.skipif(find_spec("torchao") is not None, reason="here it is installed")
def test_without_torchao_its_row_says_so(data, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(two_bits.Data, "load", classmethod(lambda cls: data))
    assert two_bits.main(["--out", str(tmp_path), "--only", "torchao qat"]) == 0
    assert "torchao is not installed" in capsys.readouterr().out
    record = json.loads((tmp_path / two_bits.PATH).read_text("utf-8"))
    assert record["trained"] == {}


def test_without_hqq_the_others_go_on(data, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(two_bits.Data, "load", classmethod(lambda cls: data))
    monkeypatch.setattr(two_bits.Data, "gap", lambda *_: (0.1, 0.01))
    monkeypatch.setattr(two_bits, "after", lambda *_: None)
    monkeypatch.setattr(two_bits, "find_spec", lambda name: None)
    assert two_bits.main(["--out", str(tmp_path), "--only", "after"]) == 0
    assert "hqq is not installed" in capsys.readouterr().out
    record = json.loads((tmp_path / two_bits.PATH).read_text("utf-8"))
    assert set(record["after"]) == {"nearest", "clip", "gptq", "gptq clip"}
