"""Chapter 10: its claims' controls fail."""

import pytest

from zolab import plan
from zolab.bench.peak import tensors
from zolab.lab import claims
from zolab.plan import Shape, Window, Work, find, peak

pytestmark = pytest.mark.usefixtures("one_thread")

FEW = Shape("few", "opt", 128, 2, 4, 512, 64, 66)
SMALL = Shape("small", "opt", 512, 4, 8, 2048, 8192, 514)
ZO2 = {"1.3b": 3.75, "175b": 18.04}


def verdict(name, measured):
    return claims.ledger()[name].judge(measured)


def test_without_means_a_weight_takes_eight():
    more = Shape("more", "opt", 128, 6, 4, 512, 64, 66)
    work = Work(1, 4, "fp32")
    added = tensors(more, "sgd", work) - tensors(FEW, "sgd", work)
    each = added / (more.parameters - FEW.parameters)
    assert each == pytest.approx(8, abs=0.2)
    for name in ("sixteen-fp32", "sixteen-mixed"):
        assert verdict(name, each) == claims.NOT_SEEN


def test_a_sum_without_a_part_is_seen():
    work = Work(1, 64, "fp32")
    found, whole = tensors(SMALL, "lora", work), peak(SMALL, "lora", work)
    assert verdict("sum-is-the-ledgers", abs(whole.total / found - 1)) == claims.HOLDS
    for part in ("weights", "activations", "logits"):
        less = whole.total - whole.parts[part]
        assert verdict("sum-is-the-ledgers", 1 - less / found) == claims.NOT_SEEN


def test_a_second_copy_is_not_inferences_memory():
    """Below 64 MB zolab copies the model, and its peak is no longer inference's."""
    work = Work(1, 4, "fp32")
    ratio = tensors(FEW, "mezo", work) / tensors(FEW, "inference", work)
    assert ratio > 1.5
    assert verdict("mezo-over-inference", ratio) != claims.SAME


def test_sgd_is_not_three_times_mezo():
    work = Work(1, 64, "fp32")
    ratio = tensors(SMALL, "sgd", work) / tensors(SMALL, "mezo", work)
    assert verdict("adamw-over-mezo", ratio) != claims.SAME


def test_six_slots_need_more_than_zo2():
    def ratio(slots):
        work, window = Work(1, 2048, "fp16"), Window(slots=slots)
        shapes = ((find(f"opt-{k}"), gb) for k, gb in ZO2.items())
        return max(plan.streamed(s, work, window).total / 1e9 / gb for s, gb in shapes)

    assert verdict("zo2-by-arithmetic", ratio(2)) == claims.SAME
    assert verdict("zo2-by-arithmetic", ratio(6)) != claims.SAME
