"""Chapter 42: its claims' controls fail, and its record is whole."""

import copy

import pytest
import torch
from torch import nn

import zolab
from zolab import lab
from zolab.bench import table
from zolab.bench.judge import start
from zolab.bench.ledger import ledger
from zolab.bench.rows import ALL, GRID, PLANS, Job
from zolab.families import Keys, Rounded
from zolab.lab import claims
from zolab.space import Space
from zolab.storage.packed import values
from zolab.tasks import Sentiment, loss, splits

pytestmark = pytest.mark.usefixtures("one_thread")


def judge(name: str, measured: float, se: float | None = None) -> str:
    return claims.ledger()[name].judge(measured, se)


@pytest.fixture(scope="module")
def base():
    model, tokenizer = zolab.load_model("tiny")
    task = Sentiment(tokenizer, words=("down", "up"), max_tokens=24)
    return model, task.batch(splits(train=16, dev=0, test=2).train)


def packed(base, codec="int4"):
    return zolab.pack(copy.deepcopy(base[0]), codec)


@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
def test_nearest_rounding_has_another_noise(rounding, base):
    """And on the whole grid of step sizes: (1) without its square, at half a mark."""
    opt = zolab.QuZO(packed(base), lr=1e-4, eps=1e-3, bits=8, rounding=rounding)
    slot = opt.space["model.layers.0.self_attn.q_proj.weight"]
    start, told, path = values(slot.packed), 0.0, 0.0
    step = slot.packed.scales().repeat_interleave(64, 1).double()
    for _ in range(6):
        opt.step(lambda: loss(opt.model, base[1]))
        terms = opt.last.gradient.terms
        x = sum(1e-4 * c * slot.direction(d) for d, c in terms)
        told, path = told - x, path + x.abs() * (step - x.abs())
    besides = values(slot.packed) - start - told
    ratio = besides.square().double() / path.mean()
    found = float(ratio.mean()), float(ratio.std()) / 128
    holds = judge("grid-noise-in-a-model", *found) == claims.HOLDS
    assert holds is (rounding == "stochastic")

    g, n = torch.Generator().manual_seed(0), 10_000
    up = (torch.rand(8, n, generator=g) < 0.5).sum(0).double()
    for law, right in ((8 * 0.5 * 0.5, True), (8 * 0.5, False)):
        verdict = judge("grid-noise-by-path", float(up.var()) / law, (2 / n) ** 0.5)
        assert (verdict == claims.HOLDS) is right


def worth(bits, two, n=8000, d=64):
    """(length of the mean, se), and worth at the best lr, from five keys."""
    slot = Space.of(nn.Linear(d, n, bias=False)).slots[0]
    grad, means, gains = torch.linspace(-1, 2, d), [], []
    for key in range(3, 8):
        u1, u2 = (
            slot.direction(Rounded(bits, k).direction(Keys(key, 0), 0))
            for k in (1, 2 if two else 1)
        )
        along = (u1 @ grad) * (u2 @ grad) / grad.square().sum()
        size = (u1 @ grad).square() * u2.square().sum(1) / grad.square().sum()
        means.append(float(along.mean()))
        gains.append(float(along.mean() ** 2 / size.mean() * d))
    return lab.mean_se(means), gains


def test_one_rounding_is_not_two():
    (two, se2), (one, se1) = (worth(4, k)[0] for k in (True, False))
    f = 1.15625
    assert judge("two-roundings-unbiased", two, se2) == claims.HOLDS
    assert judge("two-roundings-unbiased", one, se1) == claims.NOT_SEEN
    assert judge("one-rounding-is-longer", one / f, se1 / f) == claims.HOLDS
    assert judge("one-rounding-is-longer", two / f, se2 / f) == claims.NOT_SEEN


def test_from_six_bits_on_they_are_one():
    """At six bits to the bit, so that there is no spread to judge by."""
    for bits, verdict in ((4, claims.OPPOSITE), (6, claims.NOT_SEEN)):
        two, one = (worth(bits, k)[1] for k in (True, False))
        ratios = [a / b for a, b in zip(two, one, strict=True)]
        assert (ratios == [1.0] * 5) is (bits == 6)
        assert judge("two-roundings-help", lab.mean_se(ratios)[0]) == verdict


def changed(base, method) -> int:
    model = packed(base)
    ps = zolab.packed_weights(model).values()
    kept = [p.codes.clone() for p in ps]
    opt = method(model)
    opt.step(lambda: loss(model, base[1]))
    return sum(int((p.codes != k).sum()) for p, k in zip(ps, kept, strict=True))


def test_quzo_changes_codes(base):
    name = "qzo-codes-stand-still"
    assert judge(name, changed(base, zolab.QZO)) == claims.HOLDS
    assert judge(name, changed(base, lambda m: zolab.QuZO(m, lr=1e-3))) != claims.HOLDS


@pytest.mark.parametrize(("lean", "verdict"), [(0, "SAME"), (1, "OPPOSITE")])
def test_fewer_directions_with_all_the_gradient_gain(lean, verdict):
    """One weight of 64 moves: it has all of the slope, for 64 times more, or none."""
    w = nn.Linear(64, 1, bias=False)
    nn.init.zeros_(w.weight)
    b = torch.nn.functional.one_hot(torch.tensor([lean]), 64)
    some = zolab.masks.Bits.of(torch.arange(64).view(1, 64) == 0)
    gains = []
    for masks in ({"weight": some}, {}):
        opt = zolab.MeZO(w, lr=0.0, eps=2.0**-7, masks=masks)
        found = []
        for _ in range(100):
            opt.step(lambda: (0.5 * w.weight.square() - b * w.weight).sum())
            up, down = opt.last.losses
            found.append([((up - down) / 2) ** 2, up + down])
        a, h = torch.tensor(found).mean(0).tolist()
        gains.append(a / h / 2)
    found = judge("qzo-fewer-directions", gains[0] / gains[1])
    assert found == getattr(claims, verdict)


@pytest.fixture(scope="module")
def record():
    return table.recorded("tiny", device="cpu", item="grid")


def test_the_record_is_whole(record):
    assert set(record["chosen"]) == set(GRID) and not record["failed"]
    assert record["setting"]["steps"] == 300
    for row in record["chosen"]:
        runs = table.judged(record, row)
        assert len(runs) == (1 if row == "zero" else 5)
        assert all(run["score"]["n"] == 1000 for run in runs)
        grid = record["grids"][row]
        tuned = {f"{row} tune {x:g} seed 100" for x in grid if ALL[row].knob}
        assert len(tuned) in (0, 3) and tuned <= record["runs"].keys()
        assert record["chosen"][row] in grid


def test_the_record_of_smollm2_is_tuned_alike():
    record = table.recorded("smollm2-135m", device="cpu", item="grid")
    assert not record["changed"] and {"qzo", "steps", "bias"} < set(record["chosen"])
    for row in record["chosen"]:
        runs = table.judged(record, row)
        assert len(runs) == (1 if row == "zero" else 3)
        assert all(run["score"]["n"] == 500 for run in runs)
        tuned = [f"{row} tune {x:g} seed 100" for x in record["grids"][row]]
        assert not ALL[row].knob or set(tuned) <= record["runs"].keys()
    assert set(GRID) - set(record["costs"]) == {"adam4"}  # not measured there


def test_a_row_against_itself_is_not_ahead(record):
    mean, se = table.ahead(record, "qlora", "qlora")
    assert mean == 0
    above = ["zoqo-learns", "qzo-learns", "qzo-on-a-four-bit-file"]
    for name in ("quzo-4-bits-above-first-order", *above):
        assert judge(name, mean, se or 0.01) == claims.NOT_SEEN
    assert judge("qzo-relative", 0.0, 0.01) == claims.NOT_SEEN
    for name in ("quzo-8-bits-as-mezo", "qzo-as-its-twin"):
        assert judge(name, mean, se) == claims.SAME
        assert judge(name, *table.ahead(record, "qlora", "zero")) == claims.NOT_SEEN


def test_a_row_needs_the_memory_that_it_needs(record):
    peaks = {row: cost["peak_mb"] for row, cost in record["costs"].items()}
    assert judge("qzo-less-memory", peaks["steps"] / peaks["qzo"]) == claims.SAME
    assert judge("qzo-less-memory", peaks["qzo"] / peaks["qzo"]) == claims.NOT_SEEN


@pytest.mark.parametrize(
    "row, floats, longs", [("qzo", 1, 0), ("steps", 3, 0), ("adam4", 4, 2)]
)
def test_what_the_embedding_adds_to_a_peak(row, floats, longs):
    """Copies of its size at the peak of a step: fp32, and torchao's indices."""
    if row == "adam4":
        pytest.importorskip("torchao")
    model, tokenizer = zolab.load_model("tiny")
    task = Sentiment(tokenizer, words=("down", "up"), max_tokens=24)
    batch = next(task.batches(splits(train=40, dev=0, test=2).train, 16))
    job = Job(row, "tiny", PLANS["tiny"].grid(row)[1])

    def build():
        _, step = start(copy.deepcopy(model), ALL[row], job)
        return lambda: step(batch, 1.0)

    n = model.get_input_embeddings().weight.numel()
    blocks = ledger(build, device="cpu").blocks
    assert (blocks[4 * n], blocks[8 * n]) == (floats, longs)


def test_a_tight_clip_is_seen(base):
    opt = zolab.QZO(packed(base), lr=0.0)
    size = []
    for _ in range(4):
        opt.step(lambda: loss(opt.model, base[1]))
        size.append(abs(opt.last.gradient.terms[0][1]))
    for clip, verdict in ((100.0, claims.NOT_SEEN), (min(size) / 2, claims.SAME)):
        share = sum(x > clip for x in size) / len(size)
        assert judge("clip-at-100", share) == verdict


@pytest.mark.parametrize(
    ("how", "verdict"),
    [
        ({}, claims.NOT_SEEN),
        ({"dtype": torch.float16}, claims.NOT_SEEN),
        ({"dtype": torch.float16, "rounding": "nearest"}, claims.SAME),
    ],
)
def test_fp32_scales_keep_their_steps(how, verdict, base):
    opt = zolab.QZO(packed(base), lr=1e-7, **how)
    slot = opt.space["model.layers.0.mlp.up_proj.weight_scale"]
    start, told = slot.base.float().clone(), 0.0
    for _ in range(3):
        opt.step(lambda: loss(opt.model, base[1]))
        told -= sum(1e-7 * c * slot.direction(d) for d, c in opt.last.gradient.terms)
    went = slot.base.float() - start
    share = float((went * told).sum() / told.square().sum())
    assert judge("half-loses-steps", share) == verdict
