"""Rows of chapter 42's table, and that each twin is one: same codes, same slots."""

import copy

import pytest
import torch
from test_table import SMALL
from torch import nn

import zolab
from zolab.bench.adapters import lora
from zolab.bench.grid import EVERY
from zolab.bench.judge import measure, run
from zolab.bench.rows import GRID, PLANS, ROWS, Job
from zolab.storage.codecs import codec
from zolab.storage.packed import pack_tensor, values

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = vars(SMALL) | {"steps": 2, "train": 40, "dev": 8, "held_out": 12}
NEW = [row for row in GRID if row not in ROWS]
NEEDS = {"adam8": "bitsandbytes", "adam4": "torchao"}


@pytest.mark.parametrize("row", NEW)
def test_every_row_is_fitted_and_judged(row):
    if row in NEEDS:
        pytest.importorskip(NEEDS[row])
    job = Job(**TINY | {"row": row, "value": PLANS["tiny"].grid(row)[1]})
    found = run(job)
    assert found["score"]["n"] == 12 and found["ended"] is None
    assert found["steps"] == 4


def test_budgets_are_equal():
    for plan in PLANS.values():
        assert {len(plan.grid(row)) for row in NEW} <= {1, 3}


def test_a_step_in_four_bits_needs_less_than_one_in_thirty_two():
    peaks = {
        row: measure(Job(**TINY | {"row": row, "value": PLANS["tiny"].grid(row)[1]}))
        for row in ("mezo-lean", "qzo", "steps", "adam-lean")
    }
    mb = {row: found["peak_mb"] for row, found in peaks.items()}
    assert mb["qzo"] < mb["mezo-lean"] < mb["adam-lean"]
    assert mb["qzo"] < mb["steps"] < mb["adam-lean"]


X, Y = torch.linspace(-1, 1, 24).view(3, 8), torch.linspace(0, 1, 12).view(3, 4)


def layer(codec="int4"):
    torch.manual_seed(0)
    return zolab.pack(nn.Linear(8, 4, bias=False), codec, group=4)


def test_the_twin_of_qzo_has_its_mean_as_gradient():
    """Back-propagation into the scales is what QZO's slopes average to."""
    model = layer()
    scale = model.weight.packed.scale.requires_grad_(True)
    (model(X) - Y).square().mean().backward()
    want = scale.grad.clone()
    opt = zolab.QZO(layer(), lr=0.0, eps=2.0**-10)
    rows = []
    for _ in range(600):
        opt.step(lambda: (opt.model(X) - Y).square().mean())
        rows.append(opt.last.gradient.to_dense(opt.space)["weight_scale"])
    rows = torch.stack(rows).double()
    z = (rows.mean(0) - want) / (rows.std(0) / len(rows) ** 0.5)
    assert float(z.abs().max()) < 4
    assert float(want.abs().max() / (rows.std(0) / len(rows) ** 0.5).max()) > 8


def test_peft_reads_packed_layers():
    peft = pytest.importorskip("peft")
    model, _ = zolab.load_model("tiny")
    zolab.pack(model, "nf4")
    ids = torch.arange(24).view(2, 12)
    with torch.no_grad():
        before = model(ids).logits
    config = peft.LoraConfig(r=4, target_modules=list(EVERY), init_lora_weights=True)
    adapted = peft.get_peft_model(model, config)
    out = adapted(ids).logits
    assert torch.equal(out, before)  # B is 0
    out.square().mean().backward()
    grads = {n: p.grad for n, p in adapted.named_parameters() if p.requires_grad}
    assert len(grads) == 2 * 7 * len(model.model.layers)
    assert all(float(g.abs().sum()) > 0 for n, g in grads.items() if "lora_B" in n)
    codes = zolab.packed_weights(adapted)
    assert {p.codec.name for p in codes.values()} == {"nf4"}


def test_our_lora_on_packed_layers_is_lora_on_their_values():
    model, _ = zolab.load_model("tiny")
    zolab.pack(model, "nf4")
    plain = zolab.unpack(copy.deepcopy(model))
    ids = torch.arange(24).view(2, 12)
    grads = []
    for m in (model, plain):
        lora(m, seed=1, targets=EVERY)
        m(ids).logits.square().mean().backward()
        grads.append([p.grad for p in m.parameters() if p.requires_grad])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_bitsandbytes_has_the_same_nf4():
    bnb = pytest.importorskip("bitsandbytes")
    w = zolab.direction(3, "w", (64, 128), family="near_normal") * 0.02
    ours = values(pack_tensor(w, codec("nf4")))
    theirs = bnb.functional.dequantize_4bit(
        *bnb.functional.quantize_4bit(w, blocksize=64, quant_type="nf4")
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
