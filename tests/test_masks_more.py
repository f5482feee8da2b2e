"""Masks: what is not chosen keeps every bit, and one mask holds for a whole step."""

import copy
import itertools
import math

import pytest
import torch
from helpers import closure, mlp, same_bits
from test_storage import DTYPES, on_both, slot_of
from torch import nn

import zolab
from zolab import (
    SPSA,
    ForwardGradient,
    HiZOO,
    LowRank,
    MeZO,
    Momentum,
    Space,
    ZOOptimizer,
    masks,
    storage,
)
from zolab.errors import JournalError, SpaceError
from zolab.gradient import Direction, Update, round32
from zolab.noise import make_key
from zolab.storage import partial

pytestmark = pytest.mark.usefixtures("one_thread")


def scored(space, share=0.3):
    """Bits that follow no rule: the best of some noise."""
    g = torch.Generator().manual_seed(5)
    scores = {s.name: torch.rand(s.shape, generator=g) for s in space}
    return masks.top(scores, share)


KINDS = {
    "smallest": lambda space: masks.smallest(space, 0.25),
    "largest": lambda space: masks.largest(space, 0.25),
    "random": lambda space: masks.random(space, 0.25, seed=3),
    "bits": scored,
}


def chosen(slot):
    """What the slot's mask chooses now, as bools of its shape."""
    element = torch.arange(slot.numel).view(slot.shape)
    return slot.mask.chosen(slot.base.float(), slot.id, element)


def raw(x):
    return x.contiguous().view(torch.int32 if x.dtype == torch.float32 else torch.int16)


# what is chosen


@pytest.mark.parametrize("share", [0.01, 0.25, 0.9, 1.0])
@pytest.mark.parametrize("kind", ["smallest", "largest"])
def test_a_threshold_takes_its_share_of_each_slot(kind, share):
    space = Space.of(nn.Sequential(nn.Linear(30, 41), nn.Linear(41, 7)))
    for s in space.masked(getattr(masks, kind)(space, share)):
        w = s.base.abs().reshape(-1).sort(descending=kind == "largest").values
        assert int(chosen(s).sum()) == max(1, round(share * s.numel))
        cut = w[int(chosen(s).sum()) - 1]
        inside = s.base.abs() <= cut if kind == "smallest" else s.base.abs() >= cut
        assert torch.equal(chosen(s), inside)


def test_random_takes_its_share_and_other_seeds_take_others():
    space = Space.of(nn.Linear(300, 200, bias=False))
    a, b, again = (
        chosen(space.masked(masks.random(space, 0.25, seed=s))["weight"])
        for s in (0, 1, 0)
    )
    assert torch.equal(a, again)
    assert float(a.float().mean()) == pytest.approx(0.25, abs=5 / math.sqrt(60_000))
    assert float((a & b).float().mean()) == pytest.approx(1 / 16, abs=0.005)
    whole = space.masked(masks.random(space, 1.0))["weight"]
    assert chosen(whole).all()


def test_top_by_slot_by_row_and_over_all():
    scores = {"a": torch.arange(12.0).view(3, 4), "b": 100 + torch.arange(8.0)}
    slots = {"a": slot_of((3, 4), torch.float32), "b": slot_of((8,), torch.float32)}

    def of(per, share):
        found = masks.top(scores, share, per=per)
        element = {n: torch.arange(s.numel()).view(s.shape) for n, s in scores.items()}
        return {n: m.chosen(slots[n].base, 0, element[n]) for n, m in found.items()}

    assert of("slot", 0.25)["a"].nonzero().tolist() == [[2, 1], [2, 2], [2, 3]]
    assert of("row", 0.25)["a"].nonzero().tolist() == [[0, 3], [1, 3], [2, 3]]
    assert of("row", 0.5)["a"].sum(1).tolist() == [2, 2, 2]
    every = of("all", 0.4)
    assert not every["a"].any() and every["b"].all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s: masks.smallest(s, 0.0), "share is 0.0"),
        (lambda s: masks.largest(s, 1.1), "share is 1.1"),
        (lambda s: masks.random(s, -1), "share is -1"),
        (lambda s: masks.top({"w": torch.ones(3)}, 0.5, per="layer"), "per is 'layer'"),
        (lambda s: masks.Bits(torch.ones(3)), "expected uint8 of one axis"),
        (lambda s: masks.mask_from({"name": "Odd"}), "unknown mask 'Odd'"),
        (lambda s: masks.mask_from({"name": "Bits"}), "bits, and they are missing"),
    ],
)
def test_bad_masks(make, message):
    with pytest.raises(ValueError, match=message):
        make(Space.of(mlp()))


def test_masks_of_nothing_and_of_another_size_are_refused():
    space = Space.of(mlp())
    with pytest.raises(SpaceError, match="'nowhere'"):
        space.masked({"nowhere": masks.Below(1.0)})
    with pytest.raises(SpaceError, match="has 2 bytes, expected 22: a bit for each"):
        space.masked({"0.weight": masks.Bits.of(torch.ones(16))})


# kernels


def some_masks(slot):
    g = torch.Generator().manual_seed(1)
    noise = torch.rand(slot.shape, generator=g)
    found = {
        "below": masks.Below(0.01),  # no fp32 number, and weights may lie on it
        "at a weight": masks.Below(abs(float(slot.base.reshape(-1)[0]))),
        "above": masks.Above(0.013),
        "random": masks.Random(0.3, seed=2),
        "bits": masks.Bits.of(noise < 0.3),
    }
    return {n: Space((slot,)).masked({"w": m})["w"] for n, m in found.items()}


TERMS = ((Direction(5), 1e-3), (Direction(6, "near_normal"), 2e-3))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (63,), (129,), (300, 511), (5, 7, 11)])
def test_kernels_and_slices_have_equal_bits(monkeypatch, dtype, shape):
    for name, slot in some_masks(slot_of(shape, dtype)).items():
        n, a = slot.numel, slot.numel // 3
        for out in {dtype, torch.float32}:

            def whole(slot=slot, out=out, n=n):
                return storage.materialise(slot, TERMS, torch.empty(n, dtype=out))

            fast, reference = on_both(monkeypatch, whole)
            assert torch.equal(raw(fast), raw(reference)), name
            piece = torch.empty(n - a, dtype=out)
            storage.materialise(slot, TERMS, piece, start=a)
            assert torch.equal(piece, fast[a:]), name
            w = slot.base.reshape(-1).to(out)
            still = ~chosen(slot).reshape(-1)
            assert torch.equal(raw(fast)[still], raw(w)[still]), name
        u = Update(TERMS, (0.1,), (round32(0.99),))

        def moved(slot=slot, u=u):
            other = copy.deepcopy(slot)
            storage.update(other, [(u, 1), (u, 2)], seed=0, stochastic=True)
            return other.base

        fast, reference = on_both(monkeypatch, moved)
        assert torch.equal(raw(fast), raw(reference)), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_rows_of_the_whole(monkeypatch, dtype):
    index = torch.tensor([36, 0, 5, 5, 1])
    for name, slot in some_masks(slot_of((37, 53), dtype)).items():
        whole = storage.materialise(slot, TERMS, torch.empty_like(slot.base))

        def rows(slot=slot):
            return storage.rows(slot, TERMS, index, torch.empty(5, 53, dtype=dtype))

        for got in on_both(monkeypatch, rows):
            assert torch.equal(got, whole[index]), name


def test_any_number_of_threads_gives_the_same_bits():
    for name, slot in some_masks(slot_of((600, 511), torch.bfloat16)).items():
        u = Update(TERMS, (0.1,), (round32(0.99),))
        found = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            other = copy.deepcopy(slot)
            storage.update(other, [(u, 1)], seed=0, stochastic=True)
            out = torch.empty_like(slot.base)
            storage.materialise(slot, TERMS, out)
            found.append((raw(other.base), raw(out)))
        torch.set_num_threads(1)
        assert all(map(torch.equal, *found)), name


def test_odd_numbers_are_weights_too():
    """Infinities, -0 and the smallest that are not chosen keep their bits."""
    w = torch.tensor([math.inf, -math.inf, 2.0, -0.0, 0.0, 1e-45, 1.0])
    for dtype, mask in itertools.product(
        DTYPES, (masks.Below(0.5), masks.Above(0.5), masks.Bits.of(torch.zeros(7)))
    ):
        slot = slot_of((7,), dtype)
        slot.params[0].data = w.to(dtype)
        slot = Space((slot,)).masked({"w": mask})["w"]
        still, before = ~chosen(slot), raw(slot.base.clone())
        u = Update(TERMS, (0.1,), (round32(0.9),))
        storage.update(slot, [(u, 1)], seed=0, stochastic=True)
        assert torch.equal(raw(slot.base)[still], before[still])
        assert int(still.sum()) >= 3


# training


def tied(dtype=torch.float32):
    """A tied head, a norm and a bias: 0.weight is embedding and head."""
    torch.manual_seed(0)

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.norm = nn.Embedding(11, 16), nn.LayerNorm(16)
            self.head = nn.Linear(16, 11)
            self.head.weight = self.embed.weight

        def forward(self, x):
            return self.head(self.norm(self.embed(x)))

    return Tied().to(dtype)


RUNS = {
    "plain": lambda: {"estimator": SPSA(eps=1e-2)},
    "four queries": lambda: {"estimator": SPSA(eps=1e-2, num_queries=4)},
    "momentum": lambda: {"estimator": SPSA(eps=1e-2), "rule": Momentum()},
    "low rank": lambda: {"estimator": SPSA(eps=1e-2, family=LowRank(every=2))},
    "hizoo": lambda: {"estimator": HiZOO(eps=1e-2, smooth=1e-2)},
    "forward": lambda: {"estimator": ForwardGradient(num_queries=2)},
}


def run(model, name, kind, steps=5, **kwargs):
    space = Space.of(model)
    found = KINDS[kind](space) if kind else None
    opt = ZOOptimizer(
        model, **RUNS[name](), lr=1e-2, weight_decay=0.1, masks=found, **kwargs
    )
    for _ in range(steps):
        opt.step(closure(model))
    if opt.journal:
        opt.journal.close()
    return opt


def moved_unchosen(model, name, kind):
    """(unchosen weights whose bits changed, chosen ones that did, all)."""
    before = copy.deepcopy(model)
    opt = run(model, name, kind)
    old = {s.name: s for s in Space.of(before).masked(KINDS[kind](Space.of(before)))}
    wrong = right = 0
    for s in opt.space:
        changed = raw(s.base) != raw(old[s.name].base)
        wrong += int((changed & ~chosen(old[s.name])).sum())
        right += int((changed & chosen(old[s.name])).sum())
    return wrong, right


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [lambda d: mlp(0, d), tied], ids=["mlp", "tied"])
def test_masked_out_weights_keep_every_bit(kind, name, dtype, make):
    """Also with weight decay, random rounding, momentum and more than one query."""
    wrong, right = moved_unchosen(make(dtype), name, kind)
    assert wrong == 0 and right > 20


def test_a_mask_that_the_update_ignores_is_seen(monkeypatch):
    """What a published code does with more than one query: only probes are masked."""
    update = storage.update

    def unmasked(slot, *args, **kwargs):
        from dataclasses import replace

        update(replace(slot, mask=None), *args, **kwargs)

    monkeypatch.setattr(storage, "update", unmasked)
    wrong, _ = moved_unchosen(mlp(), "four queries", "random")
    assert wrong > 500


def probe_points(model, kind):
    """What two probes and the update of one step moved, as bools by slot."""
    before = {s.name: s.base.clone() for s in Space.of(model)}
    found = KINDS[kind](Space.of(model))
    opt = MeZO(model, lr=0.1, eps=0.05, masks=found)
    seen = []

    def ask():
        at = {s.name: s.params[0].clone() for s in opt.space}  # a copy at the probe
        seen.append({n: at[n] != before[n] for n in at})
        return closure(model)()

    opt.step(ask)
    seen.append({s.name: s.base != before[s.name] for s in opt.space})
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_both_probes_and_the_update_have_one_mask(kind):
    up, down, update = probe_points(mlp(), kind)
    for name in up:
        assert torch.equal(up[name], down[name])
        assert torch.equal(up[name], update[name])


def test_a_mask_that_is_asked_at_the_probe_is_seen(monkeypatch):
    """The bug of a mask from theta + eps z: the two probes move other weights."""

    def asked_at_the_probe(slot, x, w, draws, start):
        storage.kernel(x.device, draws).add(x, draws, start)
        element = torch.arange(start, start + len(x))
        x.copy_(torch.where(slot.mask.chosen(x, slot.id, element), x, w))

    monkeypatch.setattr(partial, "_move", asked_at_the_probe)
    up, down, update = probe_points(mlp(), "smallest")
    assert any(not torch.equal(up[n], down[n]) for n in up)
    assert any(not torch.equal(up[n], update[n]) for n in up)


@pytest.mark.parametrize("name", RUNS)
def test_lr_zero_moves_nothing(name):
    model = mlp()
    with torch.no_grad():
        model[0].weight[0] = -0.0
    before = copy.deepcopy(model)
    opt = ZOOptimizer(model, **RUNS[name](), lr=0.0, masks=scored(Space.of(model)))
    opt.step(closure(model))
    assert same_bits(model, before)


# the estimate under a mask


def estimate(opt):
    """What a step's gradient is under the masks, all slots one after another."""
    terms = opt.last.gradient.terms
    return torch.cat([storage.tangent(s, terms).reshape(-1) for s in opt.space])


@pytest.mark.parametrize("estimator", [SPSA(eps=1e-3), ForwardGradient()])
@pytest.mark.parametrize("kind", KINDS)
def test_its_mean_is_the_masked_gradient(kind, estimator):
    model, n = mlp(), 4000
    space = Space.of(model)
    opt = ZOOptimizer(model, estimator=estimator, lr=0.0, masks=KINDS[kind](space))
    model.zero_grad()
    closure(model)().backward()
    gradient = torch.cat([s.params[0].grad.reshape(-1) for s in opt.space])
    inside = torch.cat([chosen(s).reshape(-1) for s in opt.space])
    rows = []
    for _ in range(n // 20):
        opt.step(closure(model))
        rows.append(estimate(opt).double())
    x = torch.stack(rows)
    assert not x[:, ~inside].any()
    scores = (x.mean(0) - gradient)[inside] / (x.std(0)[inside] / math.sqrt(len(x)))
    assert float(scores.square().mean().sqrt()) == pytest.approx(1, abs=0.2)
    # the control: of the whole gradient it is not the mean
    off = x.mean(0) - gradient
    assert float(off[~inside].norm()) == pytest.approx(float(gradient[~inside].norm()))


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("q", [1, 16])
def test_the_cosine_is_that_of_the_weights_that_move(share, q):
    """E cos^2 = q / (q + d_masked - 1) with the masked gradient; d is not in it."""
    torch.manual_seed(0)
    model = nn.Linear(50, 40, bias=False)
    slope = torch.randn(40, 50)
    found = masks.random(Space.of(model), share, seed=1)
    opt = MeZO(model, lr=0.0, eps=0.5, num_queries=q, masks=found)
    slot = opt.space["weight"]
    inside = chosen(slot).reshape(-1)
    d, g = int(inside.sum()), slope.reshape(-1)[inside]
    squares = []
    for _ in range(150):
        opt.step(lambda: (model.weight * slope).sum())
        e = estimate(opt)[inside]
        squares.append(float((e @ g / e.norm() / g.norm()) ** 2))
    ratio = sum(squares) / len(squares) * (q + d - 1) / q
    assert ratio == pytest.approx(1, abs=0.4)
    assert sum(squares) / len(squares) * (q + 1999) / q > 1.5  # the old d is wrong


# the log


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_log_determines_the_weights(tmp_path, name, kind, dtype):
    base, live = mlp(0, dtype), mlp(0, dtype)
    run(live, name, kind, 6, journal=tmp_path / "log")
    replayed, resumed = copy.deepcopy(base), copy.deepcopy(base)
    assert zolab.replay(replayed, tmp_path / "log") == 6
    assert same_bits(replayed, live) and not same_bits(live, base)
    found = KINDS[kind](Space.of(base))  # of the weights that the run began with
    for steps in (2, 4):
        opt = ZOOptimizer(
            resumed,
            **RUNS[name](),
            lr=1e-2,
            weight_decay=0.1,
            masks=found,
            journal=tmp_path / "parts",
        )
        for _ in range(steps):
            opt.step(closure(resumed))
        opt.journal.close()
        if steps == 2:
            resumed = copy.deepcopy(base)
    assert same_bits(resumed, live)


def begun(tmp_path, kind, path="log"):
    model = mlp()
    run(model, "plain", kind, 3, journal=tmp_path / path)
    return tmp_path / path


def test_the_header_names_the_masks_and_bits_lie_beside_the_log(tmp_path):
    from zolab.journal import Journal

    for kind in KINDS:
        path = begun(tmp_path, kind, kind)
        with Journal(path, readonly=True) as journal:
            named = journal.header["masks"]
        assert named.keys() == {s.name for s in Space.of(mlp())}
        beside = path.with_name(path.name + ".masks.safetensors")
        assert beside.exists() == (kind == "bits")
    assert beside.stat().st_size < 1231 / 8 + 1000  # a bit an element


@pytest.mark.parametrize("began", [None, *KINDS])
@pytest.mark.parametrize("goes_on", [None, *KINDS])
def test_a_run_goes_on_with_its_own_masks_only(tmp_path, began, goes_on):
    path = begun(tmp_path, began)
    model = mlp()
    found = KINDS[goes_on](Space.of(model)) if goes_on else None
    before = copy.deepcopy(model)

    def go_on():
        return ZOOptimizer(
            model, **RUNS["plain"](), weight_decay=0.1, masks=found, journal=path
        )

    if began == goes_on:
        assert go_on().steps == 3
        return
    with pytest.raises(JournalError, match="another run: its masks is"):
        go_on()
    assert same_bits(model, before)


@pytest.mark.parametrize("damage", ["gone", "cut", "another", "empty"])
def test_missing_bits_are_one_clear_error(tmp_path, damage):
    path = begun(tmp_path, "bits")
    beside = path.with_name("log.masks.safetensors")
    if damage == "gone":
        beside.unlink()
    elif damage == "cut":
        beside.write_bytes(beside.read_bytes()[:-9])
    elif damage == "empty":
        beside.write_bytes(b"")
    else:
        other = mlp()
        found = scored(Space.of(other), 0.5)
        opt = MeZO(other, masks=found, journal=tmp_path / "other")
        opt.journal.close()
        beside.write_bytes((tmp_path / "other.masks.safetensors").read_bytes())
    model = mlp()
    before = copy.deepcopy(model)
    words = {"gone": "is missing", "another": "holds another mask of 0.weight"}
    with pytest.raises(JournalError, match=words.get(damage, "is damaged")):
        zolab.replay(model, path)
    assert same_bits(model, before)


def test_bits_that_an_older_run_left_are_written_over(tmp_path):
    path = begun(tmp_path, "bits")
    path.unlink()
    found = scored(Space.of(mlp()), 0.5)
    live = mlp()
    opt = MeZO(live, lr=1e-2, masks=found, journal=path)
    opt.step(closure(live))
    opt.journal.close()
    again = mlp()
    zolab.replay(again, path)
    assert same_bits(again, live)


def test_a_snapshot_and_a_replay_that_starts_there(tmp_path):
    model = mlp()
    opt = MeZO(model, lr=1e-2, masks=scored(Space.of(model)), journal=tmp_path / "log")
    for i in range(4):
        if i == 2:
            opt.snapshot()
        opt.step(closure(model))
    opt.journal.close()
    stranger = mlp(99)
    zolab.replay(stranger, tmp_path / "log")
    assert same_bits(stranger, model)


def test_the_mask_follows_from_the_seed_not_from_the_model():
    """A key in the header is enough to choose the same elements anywhere."""
    slot = slot_of((40, 30), torch.float32)
    mask = masks.Random(0.5, seed=4)
    again = masks.mask_from(mask.settings)
    element = torch.arange(1200)
    a, b = (m.chosen(slot.base.view(-1), slot.id, element) for m in (mask, again))
    assert torch.equal(a, b)
    other = mask.chosen(slot.base.view(-1), make_key(0, 0), element)
    assert not torch.equal(a, other)
