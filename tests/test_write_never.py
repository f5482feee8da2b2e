"""A base that is only read: one arithmetic, two engines, after a kill, from a log."""

import copy
import math
import os
import stat

import families
import pytest
import torch
from helpers import same_bits
from safetensors import safe_open
from test_streamed import Net, loss_of
from torch import nn

import zolab
from zolab import FZOO, SPSA, MeZO, Momentum, Resident, Streamed, ZOOptimizer, storage
from zolab.bench.streamed import idle
from zolab.engines.mode import is_vector
from zolab.engines.readonly import ReadOnly
from zolab.errors import BudgetError, JournalError, SpaceError, StoreError
from zolab.families import Keys, LowRank
from zolab.gradient import Direction, Probe, Update
from zolab.space import Space
from zolab.storage import plain
from zolab.storage.disk import Disk
from zolab.storage.ram import Ram
from zolab.storage.throttled import Throttled

pytestmark = pytest.mark.usefixtures("one_thread")
FAMILY = LowRank(rank=2, every=2)


class NoWrites(Ram):
    """A store that nobody may write to once it is filled."""

    def write(self, block, data, mark):
        raise AssertionError("a block was written back")


def resident(**kwargs):
    return Resident(scratch="one", base="read-only", **kwargs)


def streamed(**kwargs):
    return Streamed(write_back="never", **({"store": NoWrites()} | kwargs))


def start(model, engine, **kwargs):
    usual = {"lr": 1e-2, "eps": 1e-2, "family": FAMILY}
    return MeZO(model, engine=engine, **(usual | kwargs))


def run(model, engine, steps=5, closure=None, **kwargs):
    opt = start(model, engine, **kwargs)
    losses = []
    for _ in range(steps):
        opt.step(closure or loss_of(model))
        losses.append(opt.last.losses)
    return losses, opt


def deltas(engine):
    """Every bit of what the run added."""
    return {
        s.name: (s.delta.scale, {n: bits(p) for n, p in s.delta.pairs.items()})
        for s in engine.readonly.slots
    }


def bits(pair):
    return pair.left.numpy().tobytes(), pair.right.numpy().tobytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "settings",
    [{}, {"slots": 1}, {"probes_per_pass": 1}, {"blocks": ["layers.0", "layers.3"]}],
)
def test_streamed_is_resident(settings, dtype):
    a, b = Net(dtype), Net(dtype)
    more = {"num_queries": 2, "weight_decay": 0.1}
    want, one = run(a, resident(), **more)
    got, two = run(b, streamed(**settings), **more)
    assert got == want
    assert deltas(one.engine) == deltas(two.engine)
    x = torch.arange(9)[None]
    with torch.no_grad():
        assert torch.equal(a(x), b(x))
    one.engine.release(), two.engine.release()
    assert same_bits(a, b) and not same_bits(a, Net(dtype))


@pytest.mark.parametrize("name", ["opt", "gpt2", "llama", "t5", "mamba"])
def test_families_of_models(name):
    first = families.make(name)
    a, b = (copy.deepcopy(first.model) for _ in range(2))
    how = {"steps": 3, "eps": 2.0**-3}
    want, one = run(a, resident(unseen="ignore"), closure=lambda: first.loss(a), **how)
    got, two = run(b, streamed(unseen="ignore"), closure=lambda: first.loss(b), **how)
    assert got == want
    with torch.no_grad():
        assert torch.equal(first.logits(a), first.logits(b))
    one.engine.release(), two.engine.release()
    assert same_bits(a, b)


def test_the_stored_matrices_never_move_and_the_vectors_do():
    model, base = Net(), Net()
    run(model, resident())
    for (name, p), q in zip(model.named_parameters(), base.parameters(), strict=True):
        assert torch.equal(p, q) is (p.dim() > 1), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_sum_that_it_says(dtype):
    """base + sum of all updates, decayed, drawn out in fp64."""
    model = Net(dtype)
    opt = start(model, resident(), weight_decay=0.5)
    want = {s.name: s.base.double() for s in opt.space}
    for _ in range(6):
        opt.step(loss_of(model))
        ((d, c),) = opt.last.gradient.terms
        for s in opt.space:
            moved = want[s.name] * (1 - 1e-2 * 0.5)
            want[s.name] = moved - 1e-2 * c * s.direction(d).double()
    opt.engine.release()
    for s in opt.space:
        if is_vector(s):
            continue  # rounded each step, as always
        # rounded once; a term's scale, at most 0.3 here, has sixteen bits
        near = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-20
        found = s.base.double()
        assert torch.allclose(found, want[s.name], rtol=near, atol=1e-5), s.name


def test_small_updates_survive_in_bf16():
    """Sixty steps too small for bf16 to store: their sum is there, not a part of it."""
    model = nn.Sequential(nn.Linear(8, 8, bias=False)).to(torch.bfloat16)
    model[0].weight.data.fill_(1.0)
    engine = resident(unseen="ignore")
    engine.bind(model, Space.of(model), seed=0, rounding="nearest")
    d = Direction(1, "low_rank", right=2, rank=1)
    u = Update(((d, 1.0),), (2.0**-12,), (1.0,))
    engine.apply([(u, t) for t in range(64)])
    z = engine.space["0.weight"].direction(d)
    engine.release()
    assert torch.equal(model[0].weight.float(), 1 - 2.0**-6 * z)


def test_any_slice_has_the_bits_of_the_whole():
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        layer = nn.Linear(70, 50, bias=False).to(dtype)
        still = ReadOnly(Space.of(layer))
        (slot,) = still.space
        keys = [Keys(3, t, (1e-2,)) for t in range(5)]
        terms = [(FAMILY.direction(k, 0), 0.37 * (t + 1)) for t, k in enumerate(keys)]
        u = [(Update((x,), (1e-2,), (0.999,)), t) for t, x in enumerate(terms)]
        storage.update(slot, u, seed=0, stochastic=True)
        probe = [(FAMILY.direction(Keys(3, 9), 0), 0.125)]
        whole = storage.materialise(slot, probe, torch.empty_like(slot.base))
        for a, b in ((0, 1), (7, 50), (49, 50)):
            part = torch.empty(b - a, 70, dtype=dtype)
            storage.materialise(slot, probe, part, start=70 * a)
            assert torch.equal(part, whole[a:b])
        index = torch.tensor([3, 3, 49, 0])
        got = storage.rows(slot, probe, index, torch.empty(4, 70, dtype=dtype))
        assert torch.equal(got, whole[index])
        # term after term and column after column, by hand
        w = slot.base.float() * slot.delta.scale
        for p in slot.delta.pairs.values():
            for k in range(2):
                w = w + p.left[k][:, None] * p.right[k].float()
        w = plain.moved(w, storage.draws(slot, probe), torch.arange(3500).view(50, 70))
        assert torch.equal(w.to(dtype), whole)


@pytest.mark.parametrize("rule", ["momentum", "fzoo"])
def test_other_rules_and_estimators(rule):
    def train(engine):
        model = Net()
        opt = ZOOptimizer(
            model,
            estimator=(FZOO if rule == "fzoo" else SPSA)(family=FAMILY),
            rule=Momentum(beta=0.5) if rule == "momentum" else None,
            lr=1e-3,
            engine=engine,
        )
        for _ in range(4):
            opt.step(loss_of(model))
        engine.release()
        return model

    assert same_bits(train(resident()), train(streamed()))


@pytest.mark.parametrize("make", [resident, streamed])
def test_a_slope_is_taken_at_base_plus_delta(make):
    model = Net()
    ask = zolab.ForwardGradient(family=FAMILY)
    opt = ZOOptimizer(model, estimator=ask, lr=1e-2, engine=make())
    for _ in range(3):
        opt.step(loss_of(model))
    probe = Probe(((FAMILY.direction(Keys(0, 9), 0), 1.0),), want="jvp")
    (found,) = opt.engine.evaluate([probe], {"loss": loss_of(model)})
    opt.engine.release()  # exact in fp32
    plain_engine = Resident(scratch="one")
    plain_engine.bind(model, Space.of(model), seed=0, rounding="nearest")
    (want,) = plain_engine.evaluate([probe], {"loss": loss_of(model)})
    assert found == want


def coded():
    """Matrices of four bits that stand still; their scales, norms and biases learn."""
    model = zolab.pack(Net(), "int4", group=16, skip=["embed*", "head*"])
    for name, p in model.named_parameters():
        p.requires_grad_(name.endswith("_scale") or p.dim() == 1)
    return model


def test_packed_weights_stand_still_and_their_scales_get_factors():
    a, b = coded(), coded()
    want, one = run(a, resident())
    got, two = run(b, streamed())
    assert got == want and len({x for pair in want for x in pair}) == 10
    assert deltas(one.engine) == deltas(two.engine)
    assert any("scale" in name for name in deltas(one.engine))
    model = coded()
    model.layers[0][0].weight.requires_grad_(True)
    model.layers[0][0].weight_scale.requires_grad_(False)
    with pytest.raises(SpaceError, match="is packed"):
        start(model, resident())


# the log


def test_kill_resume_replay_and_the_other_engine(tmp_path):
    whole = Net()
    _, opt = run(whole, resident(), 6)
    kept = deltas(opt.engine)
    opt.engine.release()
    for first, then in ((streamed, resident), (resident, streamed)):
        path = tmp_path / first.__name__
        _, half = run(Net(), first(), 3, journal=path)
        half.journal.close()  # the process is gone; nothing else was saved
        model = Net()
        _, rest = run(model, then(), 3, journal=path)
        assert rest.steps == 6
        assert deltas(rest.engine) == kept
        rest.engine.release()
        rest.journal.close()
        assert same_bits(model, whole)
        again = Net()
        assert zolab.replay(again, path) == 6  # an ordinary model, merged
        assert same_bits(again, whole)


def test_a_snapshot_is_factors_and_a_replay_starts_there(tmp_path):
    model = Net()
    _, opt = run(model, streamed(), 3, journal=tmp_path / "log")
    shot = opt.snapshot()
    with safe_open(shot, "pt") as file:
        found = set(file.keys())
    matrices = {s.name for s in opt.engine.readonly.slots}
    assert not found & matrices
    assert found >= {s.name for s in opt.space} - matrices
    for _ in range(2):
        opt.step(loss_of(model))
    opt.engine.release()
    opt.journal.close()
    for engine in (None, streamed()):
        again = Net()
        assert zolab.replay(again, tmp_path / "log", engine=engine) == 5
        if engine is not None:
            engine.release()
        assert same_bits(again, model)


def test_the_header_names_the_arithmetic_and_refuses_the_other(tmp_path):
    _, opt = run(Net(), resident(), 2, journal=tmp_path / "still")
    assert opt.journal.header["arithmetic"].startswith("w = base + ")
    opt.journal.close()
    _, other = run(Net(), Resident(scratch="one"), 2, journal=tmp_path / "moved")
    other.journal.close()
    for path, engine in (("still", Resident(scratch="one")), ("moved", resident())):
        with pytest.raises(JournalError, match="arithmetic"):
            start(Net(), engine, journal=tmp_path / path)
        with pytest.raises(JournalError, match="another arithmetic"):
            zolab.replay(Net(), tmp_path / path, engine=engine)


# the store


def test_nothing_goes_down_and_each_block_comes_up_once():
    store = Throttled(Ram(), rate=1e12)
    model = Net()
    opt = start(model, streamed(store=store), num_queries=4)
    opt.step(loss_of(model))
    idle(opt.engine)
    before = dict(store.sent)
    for _ in range(4):
        opt.step(loss_of(model))
    idle(opt.engine)
    size = sum(s.nbytes for s in opt.engine.sizes)
    assert store.sent["up"] - before["up"] == 4 * size
    assert store.sent["down"] == 0 and sum(s.moving for s in opt.engine.sizes) == 0


def test_a_file_may_be_read_only_and_serve_two_runs(tmp_path, monkeypatch):
    path, real, opened = tmp_path / "blocks", os.open, []
    _, opt = run(Net(), streamed(store="disk", path=path), 2)
    with pytest.raises(StoreError, match="only read"):
        opt.engine.store.write(0, torch.zeros(9, dtype=torch.uint8), 1)
    for file in (path, opt.engine.store.index):
        os.chmod(file, stat.S_IRUSR)  # which does not stop root

    def spy(name, flags, *mode):
        opened.append(flags & os.O_ACCMODE)
        return real(name, flags, *mode)

    monkeypatch.setattr(os, "open", spy)
    _, again = run(Net(), streamed(store="disk", path=path), 2)  # beside the first
    assert opened == [os.O_RDONLY] * 2
    assert deltas(again.engine) == deltas(opt.engine)
    again.engine.release()


def test_a_store_that_is_filled_is_not_shared_before(tmp_path):
    first = Disk(tmp_path / "blocks", readonly=True)
    model = Net()
    engine = Streamed(store=first, write_back="never")
    engine.bind(model, Space.of(model), seed=0, rounding="nearest")
    writer = Disk(tmp_path / "blocks")
    with pytest.raises(StoreError, match="in use"):
        Streamed(store=writer).bind(Net(), Space.of(Net()), seed=0, rounding="nearest")


# what lies on the device


def growth(model, rank):
    """Bytes of one V for every matrix, by the formula of the docstring."""
    found = 0
    for s in Space.of(model):
        if not is_vector(s):
            m, n = s.matrix
            found += rank * (4 * m + n)
    return found


def test_it_grows_with_every_new_v_and_the_budget_ends_it():
    model = Net()
    each = growth(model, 2)
    opt = start(model, streamed(budget="1MB"))
    assert opt.engine.footprint.delta == 0
    fixed = opt.engine.footprint.total
    for step in range(5):
        opt.step(loss_of(model))
        assert opt.engine.footprint.delta == (step // 2 + 1) * each
        held = sum(
            x.nbytes
            for s in opt.engine.readonly.slots
            for p in s.delta.pairs.values()
            for x in (p.left, p.right)
        )
        assert held == opt.engine.footprint.delta
    again = Net()
    opt = start(again, streamed(budget=fixed + 2 * each))
    for _ in range(4):
        opt.step(loss_of(again))
    kept = deltas(opt.engine)
    with pytest.raises(BudgetError, match=r"delta .* budget .* more steps"):
        opt.step(loss_of(again))
    assert opt.steps == 4 and deltas(opt.engine) == kept
    opt.engine.release()  # what the run made is not lost


# the model outside of a step, and what is refused


@pytest.mark.parametrize("make", [resident, streamed])
def test_outside_of_a_step_the_model_is_the_trained_one(make):
    model = Net()
    x = torch.arange(9)[None]
    _, opt = run(model, make(), lr=3e-2)
    with torch.no_grad():
        whole, part = model(x), model.head(torch.ones(1, 16))
        with opt.engine.at(Probe()):
            assert torch.equal(model(x), whole)
    with pytest.raises(SpaceError, match="no_grad"):
        model(x)
    with pytest.raises(SpaceError, match="release"):
        model.state_dict()
    with torch.no_grad(), pytest.raises((SpaceError, StoreError)):
        copy.deepcopy(model)(x)
    with torch.no_grad(), pytest.raises(IndexError):
        model(x + 99)  # an error within leaves no mode behind
    opt.engine.release()
    assert "layers.0.0.weight" in model.state_dict()
    with torch.no_grad():
        assert torch.equal(model(x), whole)
        assert torch.equal(model.head(torch.ones(1, 16)), part)
        assert not torch.allclose(Net()(x), whole, atol=1e-3)
    model(x).sum().backward()  # an ordinary model again


@pytest.mark.parametrize("make", [resident, streamed])
def test_a_second_optimizer_takes_over_what_the_first_made(make):
    a, b = Net(), Net()
    run(a, make())
    run(b, resident())[1].engine.release()
    _, opt = run(a, make(), seed=5)
    _, other = run(b, resident(), seed=5)
    assert deltas(opt.engine) == deltas(other.engine)


@pytest.mark.parametrize("make", [resident, streamed])
def test_refused_before_anything_moves(make, tmp_path):
    model = Net()
    opt = start(model, make(), family="rademacher", journal=tmp_path / "log")
    with pytest.raises(ValueError, match=r"LowRank.* was given rademacher"):
        opt.step(loss_of(model))
    assert opt.steps == 0 and not opt.journal.records
    opt.journal.close()
    opt.engine.release()
    assert same_bits(model, Net())
    rule = zolab.Dense(zolab.Adam())
    opt = ZOOptimizer(model, estimator=SPSA(family=FAMILY), rule=rule, engine=make())
    with pytest.raises(ValueError, match="given a tensor"):
        opt.step(loss_of(model))
    opt.engine.release()
    half = zolab.masks.Random(0.5)
    with pytest.raises(SpaceError, match="mask"):
        start(model, make(), masks={"embed.weight": half})
    opt = start(model, make())
    opt.step(loss_of(model))
    with pytest.raises((SpaceError, StoreError), match="edits"):
        opt.rebase()


def test_bad_words():
    with pytest.raises(ValueError, match="write_back is 'seldom'"):
        Streamed(write_back="seldom")
    with pytest.raises(ValueError, match="base is 'frozen'"):
        Resident(base="frozen")


def test_one_window_is_a_frozen_v():
    """A V that is kept for the whole run: A is trained alone, nothing grows."""
    model = Net()
    family = LowRank(rank=4, every=10**6)
    _, opt = run(model, streamed(), family=family, steps=4)
    assert all(len(s.delta.pairs) == 1 for s in opt.engine.readonly.slots)
    one = opt.engine.readonly.slots[1]
    (pair,) = one.delta.pairs.values()
    assert pair.left.shape == (4, one.matrix[0]) and math.isfinite(pair.left.sum())
