"""The side-by-side with TRL: what it measures, and what it says of it."""

import importlib.util
import math

import pytest
import torch
from safetensors.torch import load_file

from zolab.bench import rl
from zolab.tasks.bases import load_base
from zolab.tasks.sorting import is_held_out

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_run_of_ours_counts_its_updates_and_leaves_its_weights(tmp_path):
    path = tmp_path / "weights.safetensors"
    row = rl.child("ours", 0, 5, str(path))
    assert len(row["rewards"]) == 5 and 0.1 < row["rewards"][0] < 0.45
    assert 0 < row["cpu_s"] < row["first_s"] and row["peak_mb"] > 100
    trained, (base, _) = load_file(path), load_base("sorting")
    assert trained.keys() == base.state_dict().keys()
    moved = [not torch.equal(trained[k], v) for k, v in base.state_dict().items()]
    assert all(moved)


@pytest.mark.skipif(
    importlib.util.find_spec("trl") is not None, reason="here TRL is installed"
)
def test_an_interpreter_without_trl_says_so(tmp_path):
    assert rl.child("trl", 0, 1, str(tmp_path / "w"))["missing"] in ("datasets", "trl")


def test_both_see_the_same_prompts_and_none_is_held_out():
    first = [p for i in range(3) for p in rl.prompts(0, i)]
    assert len(first) == 96 and first == [p for i in range(3) for p in rl.prompts(0, i)]
    assert first != [p for i in range(3) for p in rl.prompts(1, i)]
    assert not any(map(is_held_out, first))


def rows(cpu, peak, pass1):
    return [
        {"cpu_s": c, "peak_mb": m, "pass@1": p, "pass@8": 1.0, "greedy": 0.9 + p / 100}
        for c, m, p in zip(cpu, peak, pass1, strict=True)
    ]


def test_the_verdicts_follow_from_pairs_of_the_same_seed():
    ours = rows([0.2, 0.4, 0.2], [400, 410, 405], [0.80, 0.82, 0.84])
    theirs = rows([0.4, 0.8, 0.5], [500, 500, 400], [0.81, 0.83, 0.82])
    lines = {x.name: x for x in rl.compare({"ours": ours, "trl": theirs})}
    cpu = lines["CPU seconds of an update, ours / trl"]
    assert cpu.values == pytest.approx((0.5, 0.5, 0.4)) and cpu.met
    peak = lines["peak of the process, ours / trl"]
    assert peak.median == pytest.approx(0.82) and peak.met
    assert lines["pass@1: distance in standard errors"].met
    far = rl.apart([0.1, 0.11, 0.12], [0.8, 0.81, 0.82], "pass@1")
    assert far.median > 3 and not far.met


def test_one_seed_alone_has_no_spread():
    assert math.isnan(rl.apart([0.8], [0.8], "greedy").median)


def test_without_a_peer_ours_stand_alone():
    names = [x.name for x in rl.compare({"ours": rows([0.2], [400], [0.8])})]
    assert all(name.startswith("ours: ") for name in names) and len(names) == 5
