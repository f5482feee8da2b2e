"""The plan's sum beside torch's own ledger: tensors, within five percent."""

import pytest
import torch

from zolab.bench import peak as bench
from zolab.bench.ledger import ledger
from zolab.bench.peak import tensors
from zolab.bench.steppers import STEPS
from zolab.plan import Shape, Work, peak

pytestmark = pytest.mark.usefixtures("one_thread")

# The loss, the way back and the update are each the fullest moment of one of them.
SHAPES = {
    "logits": ("opt", (128, 4, 4, 512, 4000, 514), Work(2, 64, "fp32")),
    "deep": ("opt", (128, 8, 4, 512, 300, 514), Work(8, 64, "fp32")),
    "wide": ("opt", (256, 2, 4, 1024, 6000, 514), Work(1, 16, "fp32")),
    "llama": ("llama", (128, 8, 4, 384, 300, 0, 2), Work(8, 64, "bf16")),
    "gpt2": ("gpt2", (128, 4, 4, 512, 1000, 514), Work(4, 64, "fp32")),
}
CASES = [
    *((name, m, False) for name in SHAPES for m in ("mezo", "adamw", "lora")),
    ("logits", "inference", False),
    ("deep", "sgd", True),
    ("deep", "lora", True),
    ("wide", "sgd", False),
    ("wide", "sgd", True),
    ("llama", "inference", False),
    ("llama", "adamw-mixed", False),
    ("llama", "adamw-mixed", True),
]


def shape(name):
    family, sizes, work = SHAPES[name]
    return Shape(name, family, *sizes), work


@pytest.mark.parametrize(("name", "method", "checkpoint"), CASES)
def test_the_sum_is_the_ledgers_within_five_percent(name, method, checkpoint):
    s, work = shape(name)
    found = tensors(s, method, work, checkpoint=checkpoint)
    assert peak(s, method, work, checkpoint=checkpoint).total == pytest.approx(
        found, rel=0.05
    )


@pytest.mark.parametrize("method", ["adam8", "qlora"])
def test_the_eight_and_four_bit_ones_too(method):
    pytest.importorskip("bitsandbytes")
    for name in ("logits", "deep", "wide"):
        s, work = shape(name)
        found = tensors(s, method, work)
        assert peak(s, method, work).total == pytest.approx(found, rel=0.05)


def test_peft_needs_what_our_lora_needs(monkeypatch):
    peft = pytest.importorskip("peft")
    s, work = shape("deep")
    ours = tensors(s, "lora", work)

    def theirs(model, closure, rank):
        config = peft.LoraConfig(r=rank, target_modules="all-linear")
        inner = peft.get_peft_model(model, config).get_base_model()
        return STEPS["adamw"](inner, closure, rank)

    monkeypatch.setitem(STEPS, "lora", theirs)
    assert tensors(s, "lora", work) == pytest.approx(ours, rel=0.01)


def test_a_process_is_measured_beside_its_own_overhead(tmp_path, capsys):
    tiny = Shape("tiny", "opt", 128, 2, 4, 512, 2000, 514)
    rows = bench.run(tiny, Work(2, 16), [("adamw", "fp32", False)], 1)
    (row,) = rows
    assert row["plan_mb"] == pytest.approx(row["tensors_mb"], rel=0.05)
    assert row["overhead_mb"][0] > 100  # Python and torch
    assert row["process_mb"][0] > row["overhead_mb"][0]
    assert "plan / tensors 1.0" in bench.said(row)


def test_the_ledger_counts_bytes():
    def build():
        kept = torch.zeros(1000)

        def run():
            a = kept + 1
            b = a * 2
            del a
            return float((b + b).sum())

        return run

    found = ledger(build)
    assert found.start == 4000
    assert 3 * 4000 <= found.peak < 3 * 4000 + 100  # and the sum
    assert found.blocks[4000] == 3
    with pytest.raises(ValueError, match="times is 0"):
        ledger(build, times=0)


def test_a_forgotten_moment_is_seen():
    """Without the logits, the moments or half of a block the five percent are gone."""
    s, work = shape("logits")
    found = tensors(s, "lora", work)
    whole = peak(s, "lora", work)
    assert whole.moment == "the loss"
    assert whole.total == pytest.approx(found, rel=0.05)
    for part in ("logits", "activations", "weights"):
        assert abs((whole.total - getattr(whole, part)) / found - 1) > 0.05
