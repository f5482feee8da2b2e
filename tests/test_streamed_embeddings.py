"""Embedding tables that stay in RAM: the resident bits, by rows, and fewer bytes."""

import copy

import families
import pytest
import torch
from helpers import same_bits
from test_streamed import Net, loss_of, resident, run
from test_write_never import FAMILY, deltas
from test_write_never import resident as only_read
from torch import nn

import zolab
from zolab import MeZO, Streamed, plan, storage
from zolab.engines.blocks import blocks_of
from zolab.engines.footprint import footprint
from zolab.errors import SpaceError, StoreError
from zolab.gradient import Direction, Probe
from zolab.masks import smallest
from zolab.plan import Shape, Window, Work
from zolab.space import Space
from zolab.storage import gather

pytestmark = pytest.mark.usefixtures("one_thread")


class Untied(Net):
    """Net with a head of its own, so that its embedding only looks rows up."""

    def __init__(self, dtype=torch.float32):
        super().__init__(dtype)
        torch.manual_seed(1)
        self.head.weight = nn.Parameter(torch.randn(40, 16, dtype=dtype) / 4)


def in_ram(**kwargs):
    return Streamed(embeddings="ram", **kwargs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("settings", [{}, {"slots": 1, "write_back": 3}])
def test_streamed_is_resident(monkeypatch, settings, dtype):
    a, b = Untied(dtype), Untied(dtype)
    more = {"num_queries": 2, "weight_decay": 0.1}
    want = run(a, resident(), **more)
    rows, real = [], gather.rows

    def spy(slot, draws, index, out):
        rows.append((slot.name, len(index)))
        real(slot, draws, index, out)

    monkeypatch.setattr(gather, "rows", spy)
    place = b.embed.weight.data_ptr()
    assert run(b, in_ram(**settings), **more) == want
    assert same_bits(a, b)
    assert b.embed.weight.data_ptr() == place  # it has not moved
    assert rows == [("embed.weight", 18)] * 4 * 4  # steps x probes, 2 x 9 tokens


@pytest.mark.parametrize("name", ["opt", "gpt_neox", "llama"])
def test_families_of_models(name):
    """OPT's head is tied to its tokens; its positions are a table of rows alone."""
    first = families.make(name, torch.bfloat16)
    a, b = (copy.deepcopy(first.model) for _ in range(2))
    how = {"steps": 3, "eps": 2.0**-3, "lr": 1e-2}
    want = run(
        a, resident(unseen="ignore"), closure=lambda m: lambda: first.loss(m), **how
    )
    engine = in_ram(unseen="ignore")
    if name == "llama":
        with pytest.raises(StoreError, match="tied"):
            run(b, engine, closure=lambda m: lambda: first.loss(m), **how)
        return
    got = run(b, engine, closure=lambda m: lambda: first.loss(m), **how)
    assert got == want and same_bits(a, b) and len(engine.tables) == 1


def test_beside_a_base_that_is_only_read():
    a, b = Untied(), Untied()
    how = {"family": FAMILY, "steps": 5}
    one, two = only_read(), in_ram(write_back="never")
    assert run(a, one, **how) == run(b, two, **how)
    assert deltas(one) == deltas(two)
    assert torch.equal(b.embed.weight, Untied().embed.weight)
    with torch.no_grad():
        x = torch.arange(9)[None]
        assert torch.equal(a(x), b(x))


def test_from_a_log(tmp_path):
    whole, half = Untied(), Untied()
    run(whole, resident(), 6)
    path = tmp_path / "log"
    opt = MeZO(half, lr=1e-2, eps=1e-2, engine=in_ram(), journal=path)
    for _ in range(3):
        opt.step(loss_of(half))
    opt.snapshot()
    opt.journal.close()
    again = Untied()
    opt = MeZO(again, lr=1e-2, eps=1e-2, engine=in_ram(), journal=path)
    for _ in range(3):
        opt.step(loss_of(again))
    opt.engine.flush()
    assert same_bits(again, whole)


def test_rows_have_the_bits_of_the_whole_table():
    for dtype in (torch.float32, torch.bfloat16):
        table = nn.Embedding(50, 70).to(dtype)
        (slot,) = Space.of(table)
        index = torch.tensor([3, 3, 49, 0])
        for family in ("rademacher", "near_normal"):
            terms = [(Direction(7, family), 0.125), (Direction(9, family), -0.5)]
            whole = storage.materialise(slot, terms, torch.empty(50, 70, dtype=dtype))
            out = torch.empty(4, 70, dtype=dtype)
            gather.rows(slot, storage.draws(slot, terms), index, out)
            assert torch.equal(out, whole[index])
    with pytest.raises(IndexError, match="got the index -1"):
        gather.rows(slot, (), index - 1, out)


def test_the_device_has_less_and_the_plan_says_so():
    from zolab.bench.steppers import build

    shape = Shape("x", "llama", 128, 2, 4, 512, 3000, kv_heads=2, tied=False)
    model = build(shape, Work(1, 8, "fp32"))
    space = Space.of(model)
    blocks = blocks_of(model, space)
    usual = footprint(model, space, blocks, slots=2, probes=2)
    engine = in_ram(probes_per_pass=2)
    engine.bind(model, space, seed=0, rounding="nearest")
    assert usual.total - engine.footprint.total == 4 * 3000 * 128
    ours = plan.on_device(shape, 4, Window(embeddings="ram"))
    assert engine.footprint.total == pytest.approx(ours.total, rel=0.01)
    w = Work(1, 8, "fp32")
    more = plan.in_ram(shape, w, Window(embeddings="ram")) - plan.in_ram(shape, w)
    assert more == 4 * 3000 * 128
    assert plan.moved(shape, w, Window(embeddings="ram")) == plan.moved(shape, w)


def test_outside_of_a_step_and_afterwards():
    a, b = Untied(), Untied()
    run(a, resident()), run(b, engine := in_ram())
    x = torch.arange(9)[None]
    with torch.no_grad():
        assert torch.equal(a(x), b(x))
        assert torch.equal(a.embed(x), b.embed(x))
        with engine.at(Probe()):
            assert torch.equal(a(x), b(x))
    with pytest.raises(SpaceError, match="no_grad"):
        b.embed(x)
    engine.release()
    b(x).sum().backward()


def test_what_is_refused():
    with pytest.raises(ValueError, match="embeddings is 'disk'"):
        Streamed(embeddings="disk")
    with pytest.raises(StoreError, match="tied"):
        run(Net(), in_ram(), 1)
    model = Untied()
    with pytest.raises(StoreError, match=r"embed\.weight is not on the device"):
        run(
            model,
            in_ram(),
            1,
            closure=lambda m: lambda: loss_of(m)() + m.embed.weight.sum(),
        )
    model.embed.weight.requires_grad_(False)
    with pytest.raises(StoreError, match="no embedding table moves"):
        run(model, in_ram(), 1)
    model = Untied()
    masks = smallest(Space.of(model).select("embed.weight"), 0.3)
    with pytest.raises(StoreError, match="no embedding table moves"):
        run(model, in_ram(), 1, masks=masks)
    ask = zolab.ForwardGradient()
    opt = zolab.ZOOptimizer(Untied(), estimator=ask, engine=in_ram())
    with pytest.raises(StoreError, match="not on the device"):
        opt.step(loss_of(opt.model))
