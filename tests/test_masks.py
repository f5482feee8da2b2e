"""Masks: what is not chosen keeps every bit, and one step has one mask."""

import copy
from dataclasses import replace

import pytest
import torch
from helpers import closure, mlp, same_bits
from test_storage import on_both, slot_of, terms

import zolab
from zolab import SPSA, ForwardGradient, HiZOO, Momentum, ZOOptimizer, masks, storage
from zolab.errors import JournalError, SpaceError
from zolab.gradient import Update
from zolab.masks import Bits
from zolab.space import Space

pytestmark = pytest.mark.usefixtures("one_thread")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
KINDS = {
    "smallest": lambda space: masks.smallest(space, 0.25),
    "largest": lambda space: masks.largest(space, 0.25),
    "random": lambda space: masks.random(space, 0.25, seed=5),
    "bits": lambda space: masks.top(
        {s.name: (s.base.float() * 7919).sin() for s in space}, 0.25
    ),
}
each = pytest.mark.parametrize("kind", KINDS)


def chosen(slot):
    flat = slot.base.float().reshape(-1)
    return slot.mask.chosen(flat, slot.id, torch.arange(len(flat))).view(slot.shape)


@each
@pytest.mark.parametrize("dtype", DTYPES)
def test_slices_rows_updates_and_kernels_have_equal_bits(monkeypatch, kind, dtype):
    slot = slot_of((300, 511), dtype)
    slot = replace(slot, mask=KINDS[kind](Space((slot,)))["w"])
    free = replace(slot, mask=None)
    where = chosen(slot)
    assert float(where.float().mean()) == pytest.approx(0.25, abs=0.03)
    whole = storage.materialise(free, terms(2), torch.empty_like(slot.base))
    want = torch.where(where, whole, slot.base)
    index = torch.tensor([299, 0, 7, 7])

    def parts():
        cuts = [(0, 70), (70, 133_001), (133_001, 153_300)]
        pieces = [torch.empty(b - a, dtype=dtype) for a, b in cuts]
        for (a, _), piece in zip(cuts, pieces, strict=True):
            storage.materialise(slot, terms(2), piece, start=a)
        return torch.cat(pieces).view_as(want)

    def rows():
        return storage.rows(slot, terms(2), index, torch.empty(4, 511, dtype=dtype))

    def moved(mask=slot.mask):
        other = replace(slot_of((300, 511), dtype), mask=mask)
        for step in (1, 2):  # momentum's several terms, decay, rounding
            u = Update(terms(3), (0.1,), (0.5,))
            storage.update(other, [(u, step)], seed=0, stochastic=True)
        return other.base

    for x in on_both(monkeypatch, parts):
        assert torch.equal(x, want)
    for x in on_both(monkeypatch, rows):
        assert torch.equal(x, want[index])
    fast, reference = on_both(monkeypatch, moved)
    assert torch.equal(fast, reference)
    if kind in ("random", "bits"):  # a threshold's mask follows the weights
        assert torch.equal(fast[~where], slot.base[~where])
        assert torch.equal(fast[where], moved(None)[where])


@each
@pytest.mark.parametrize("queries", [1, 3])
def test_a_step_has_one_mask_and_the_rest_keeps_its_bits(kind, queries):
    """Also with several queries, momentum and decay: probes and update move alike."""
    model = mlp(0, torch.bfloat16)
    before, space = copy.deepcopy(model), Space.of(model)
    opt = ZOOptimizer(
        model,
        estimator=SPSA(eps=0.1, num_queries=queries),
        rule=Momentum(),
        lr=0.5,
        weight_decay=0.1,
        masks=KINDS[kind](space),
    )
    where = {s.name: chosen(s) for s in opt.space}
    seen = []

    def loss():
        seen.append({n: p.float() * 1 for n, p in model.named_parameters()})
        return closure(model)()

    opt.step(loss)
    moved = {n: torch.zeros_like(w) for n, w in where.items()}
    for point in seen:
        for n, p in before.named_parameters():
            moved[n] |= point[n] != p.detach().float()
    for s in opt.space:
        old = dict(before.named_parameters())[s.name]
        assert not moved[s.name][~where[s.name]].any(), s.name
        assert torch.equal(s.base[~where[s.name]], old[~where[s.name]]), s.name
        assert (s.base != old)[where[s.name]].any() or not where[s.name].any()


def test_a_mask_that_is_asked_at_the_probe_is_another():
    """The defect that masks asked of perturbed weights have: the control."""
    slot = slot_of((300, 511), torch.float32)
    slot = replace(slot, mask=masks.smallest(Space((slot,)), 0.25)["w"])
    at = storage.materialise(slot, terms(1), torch.empty_like(slot.base))
    element = torch.arange(slot.numel)
    there = slot.mask.chosen(at.view(-1), slot.id, element).view(slot.shape)
    assert 0.001 < float((there != chosen(slot)).float().mean()) < 0.1


@pytest.mark.parametrize("kind", ["smallest", "largest"])
def test_a_threshold_is_the_bits_taken_from_the_same_weights(kind):
    slot = slot_of((300, 511), torch.float32)
    mask = KINDS[kind](Space((slot,)))["w"]
    where = chosen(replace(slot, mask=mask))
    sizes = slot.base.abs()
    inside, outside = sizes[where], sizes[~where]
    assert where.sum() == round(0.25 * slot.numel)
    assert (inside.max() <= outside.min()) == (kind == "smallest")
    assert (inside.min() >= outside.max()) == (kind == "largest")
    bits = Bits.of(where)
    assert len(bits.packed) == -(-slot.numel // 8)
    assert torch.equal(chosen(replace(slot, mask=bits)), where)


def test_top_ranks_within_rows_slots_or_all():
    scores = {"a": torch.arange(24.0).view(4, 6), "b": 100 + torch.arange(8.0)}

    def counts(per):
        found = masks.top(scores, 0.25, per=per)
        return {
            n: m.chosen(s.view(-1), 0, torch.arange(s.numel())).view(s.shape)
            for (n, m), s in zip(found.items(), scores.values(), strict=True)
        }

    assert counts("slot")["a"].sum() == 6 and counts("slot")["a"][3].all()
    assert counts("row")["a"].sum(1).tolist() == [2, 2, 2, 2]
    assert counts("all")["a"].sum() == 0 and counts("all")["b"].all()


@each
@pytest.mark.parametrize("make", [SPSA, lambda: HiZOO(smooth=0.01), ForwardGradient])
def test_the_log_determines_the_weights(tmp_path, kind, make):
    base, live = mlp(), mlp()

    def run(model, path, steps):
        chosen_now = KINDS[kind](Space.of(base))  # thresholds are the start's
        opt = ZOOptimizer(
            model, estimator=make(), lr=1e-2, journal=path, masks=chosen_now
        )
        for _ in range(steps):
            opt.step(closure(model))
        opt.journal.close()

    run(live, tmp_path / "log", 6)
    replayed, resumed = copy.deepcopy(base), copy.deepcopy(base)
    assert zolab.replay(replayed, tmp_path / "log") == 6
    run(resumed, tmp_path / "parts", 2)
    resumed = copy.deepcopy(base)
    run(resumed, tmp_path / "parts", 4)
    assert same_bits(replayed, live) and same_bits(resumed, live)
    assert not same_bits(live, base)


def test_a_log_knows_its_masks(tmp_path):
    path, space = tmp_path / "log", Space.of(mlp())
    bits = KINDS["bits"](space)

    def start(**kwargs):
        opt = zolab.MeZO(mlp(), lr=1e-2, journal=path, **kwargs)
        opt.step(closure(opt.model))
        opt.journal.close()

    start(masks=bits)
    for other in ({}, {"masks": KINDS["random"](space)}):
        with pytest.raises(JournalError, match="its masks is"):
            start(**other)
    beside = next(tmp_path.glob("log.masks*"))
    whole = beside.read_bytes()
    beside.write_bytes(whole[:-9])
    with pytest.raises(JournalError, match="is damaged"):
        zolab.replay(mlp(), path)
    beside.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(JournalError, match="holds another mask"):
        zolab.replay(mlp(), path)
    beside.unlink()
    with pytest.raises(JournalError, match="is missing"):
        zolab.replay(mlp(), path)
    start(masks=bits)  # who brings them writes them again
    assert beside.read_bytes() == whole


def test_bad_masks():
    space = Space.of(mlp())
    with pytest.raises(SpaceError, match="which are no slots"):
        space.masked({"nowhere": masks.Below(1.0)})
    with pytest.raises(SpaceError, match="has 1 bytes, expected"):
        space.masked({"1.weight": Bits(torch.zeros(1, dtype=torch.uint8))})
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match="share is"):
            masks.smallest(space, share)
    with pytest.raises(ValueError, match="per is 'layer'"):
        masks.top({}, 0.5, per="layer")
    with pytest.raises(ValueError, match="expected uint8 of one axis"):
        Bits(torch.zeros(3))
