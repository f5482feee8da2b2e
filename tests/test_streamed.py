"""Law 4 on the streamed engine: the resident engine's bits, whatever comes and goes."""

import copy
import threading

import families
import pytest
import torch
import torch.nn.functional as F
from helpers import closure, mlp, same_bits
from test_families import ESTIMATORS
from torch import nn

import zolab
from zolab import (
    FZOO,
    SPSA,
    Adam,
    AdaMU,
    Dense,
    MeZO,
    Momentum,
    SignSGD,
    Streamed,
    ZOOptimizer,
)
from zolab.bench.streamed import idle
from zolab.engines.blocks import blocks_of
from zolab.engines.footprint import parse_bytes
from zolab.errors import BaseChangedError, BudgetError, NonFiniteLossError, StoreError
from zolab.gradient import Direction, Probe
from zolab.masks import smallest
from zolab.space import Space
from zolab.storage.ram import Ram
from zolab.storage.throttled import Throttled

pytestmark = pytest.mark.usefixtures("one_thread")
NAMED = {"lstm": ["body"]}  # a model without a list of modules


class Net(nn.Module):
    """Five blocks of unequal size, one weight tied across two of them."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(40, 16)
        widths = (16, 48, 16, 32, 16)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(16, w), nn.GELU(), nn.Linear(w, 16)) for w in widths
        )
        self.layers[3][2].bias = self.layers[0][2].bias
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 40)
        self.head.weight = self.embed.weight
        self.to(dtype)

    def forward(self, x, early=None):
        h = self.embed(x)
        for i, layer in enumerate(self.layers):
            if i != early:
                h = h + layer(h)
        return self.head(self.norm(h))


def loss_of(model, seed=1):
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 40, (2, 9), generator=g)
    return lambda: F.cross_entropy(
        model(x)[:, :-1].flatten(0, 1).float(), x[:, 1:].flatten()
    )


def resident(**kwargs):
    return zolab.Resident(scratch="one", **kwargs)


def run(model, engine, steps=4, closure=None, **kwargs):
    opt = MeZO(model, engine=engine, **({"lr": 1e-2, "eps": 1e-2} | kwargs))
    losses = []
    for _ in range(steps):
        opt.step(closure(model) if closure else loss_of(model))
        losses.append(opt.last.losses)
    opt.engine.flush()
    return losses


def both(streamed, steps=4, make=Net, closure=None, **kwargs):
    """The same run on either engine: losses and bits must agree."""
    a, b = make(), make()
    want = run(a, resident(unseen="ignore"), steps, closure, **kwargs)
    got = run(b, streamed, steps, closure, **kwargs)
    assert got == want
    assert same_bits(a, b)
    return b


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", families.MAKERS)
def test_every_family(name, dtype):
    first = families.make(name, dtype)

    def make():
        return copy.deepcopy(first.model)

    def closure(model):
        return lambda: first.loss(model)

    engine = Streamed(blocks=NAMED.get(name), unseen="ignore")
    eps = {"lr": 1e-2, "eps": 2.0**-3}
    model = both(engine, 3, make, closure, **eps)
    assert len(engine.blocks) >= (1 if name in NAMED else 2)
    with torch.no_grad():
        assert torch.equal(first.logits(model), first.logits(copy.deepcopy(model)))


POLICIES = {
    "one slot": {"slots": 1},
    "three slots": {"slots": 3},
    "all slots": {"slots": 9},
    "every third": {"write_back": 3},
    "every hundredth": {"write_back": 100},
    "one probe a pass": {"probes_per_pass": 1},
    "three probes a pass": {"probes_per_pass": 3},
    "named": {"blocks": ["layers.*"]},
    "pairs": {"blocks": ["layers.0", "layers.3"]},
}


@pytest.mark.parametrize("store", ["ram", "disk"])
@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy(tmp_path, policy, store):
    where = {"path": tmp_path / "blocks"} if store == "disk" else {}
    kwargs = dict(POLICIES[policy])
    if policy == "named":
        kwargs["blocks"] = [f"layers.{i}" for i in range(5)]
    engine = Streamed(store=store, **where, **kwargs)
    for dtype in (torch.float32, torch.bfloat16):
        (tmp_path / "blocks.marks").unlink(missing_ok=True)
        both(
            engine,
            5,
            lambda dtype=dtype: Net(dtype),
            num_queries=3,
            weight_decay=0.1,
        )


RULES = {"momentum": Momentum(), "adam": Adam(beta1=0.5), "sign": SignSGD()}
MADE = {n: make for n, make in ESTIMATORS.items() if n != "hizoo"}
MADE |= dict.fromkeys(RULES, SPSA) | {"fzoo": FZOO}


@pytest.mark.parametrize("name", MADE)
def test_every_estimator_and_rule(name):
    def train(engine):
        model, rule = mlp(), copy.deepcopy(RULES.get(name))
        opt = ZOOptimizer(
            model, estimator=MADE[name](), rule=rule, lr=1e-2, engine=engine
        )
        for _ in range(3):
            opt.step(closure(model), full=closure(model, 2))
        opt.engine.flush()
        return model

    assert same_bits(train(resident()), train(Streamed()))


@pytest.mark.parametrize("write_back", [1, 3])
@pytest.mark.parametrize("name", ["dense", "adamu", "folded"])
def test_rules_whose_updates_are_tensors(name, write_back):
    def train(engine):
        torch.manual_seed(0)
        model = Net()
        rule = {
            "dense": lambda: Dense(Adam()),
            "adamu": lambda: AdaMU(warm=1, settle=3),
            "folded": lambda: Momentum(fold=2),
        }[name]()
        ask = getattr(rule, "estimator", SPSA)(eps=1e-2)
        opt = ZOOptimizer(model, estimator=ask, rule=rule, lr=1e-3, engine=engine)
        for _ in range(5):
            opt.step(loss_of(model))
        opt.engine.flush()
        return model

    want = train(resident(unseen="ignore"))
    engine = Streamed(unseen="ignore", write_back=write_back)
    if name == "dense" and write_back > 1:
        with pytest.raises(ValueError, match="needs a rule of directions"):
            train(engine)
    else:
        assert same_bits(want, train(engine))


def test_schedules_use_the_lr_of_the_step_that_made_the_coefficient():
    def train(engine):
        model = Net()
        opt = MeZO(model, lr=1e-1, eps=1e-2, engine=engine)
        schedule = torch.optim.lr_scheduler.ExponentialLR(opt, 0.3)
        for _ in range(4):
            opt.step(loss_of(model))
            schedule.step()
        opt.engine.flush()
        return model

    assert same_bits(train(resident()), train(Streamed(write_back=3)))


def test_masks_and_groups():
    def train(engine):
        model = Net()
        masks = smallest(Space.of(model).select("layers.*.weight"), 0.3)
        groups = [
            {"params": list(model.layers.parameters()), "lr": 1e-2},
            {"params": [model.embed.weight], "lr": 1e-3},
        ]
        opt = ZOOptimizer(
            model, estimator=SPSA(), engine=engine, param_groups=groups, masks=masks
        )
        for _ in range(3):
            opt.step(loss_of(model))
        opt.engine.flush()
        return model

    assert same_bits(train(resident(unseen="ignore")), train(Streamed(unseen="ignore")))


def test_a_block_is_loaded_once_a_step_for_all_probes():
    """And sent back once: 1.0 x up and 1/m x down, counted in bytes."""
    for m in (1, 2):
        store = Throttled(Ram(), rate=1e12)
        engine = Streamed(store=store, write_back=m)
        model = Net()
        opt = MeZO(model, lr=1e-2, num_queries=4, engine=engine)
        opt.step(loss_of(model))
        idle(engine)
        before = dict(store.sent)
        for _ in range(4):
            opt.step(loss_of(model))
        idle(engine)
        size = sum(s.nbytes for s in engine.sizes)
        assert store.sent["up"] - before["up"] == 4 * size
        assert store.sent["down"] - before["down"] == 4 // m * size


def test_a_visit_that_brings_no_update_touches_no_weight(monkeypatch):
    model = Net()
    opt = MeZO(model, lr=1e-2, num_queries=2, engine=Streamed(probes_per_pass=2))
    opt.step(loss_of(model))
    seen, real = [], zolab.storage.update

    def spy(slot, updates, **how):
        seen.append(len(updates))
        return real(slot, updates, **how)

    monkeypatch.setattr(zolab.storage, "update", spy)
    opt.step(loss_of(model))  # two passes: the second one has nothing to bring
    slots = sum(len(x) for x in opt.engine.of) + len(opt.engine.rest)
    assert seen == [1] * slots


def test_adapters_send_back_adapters_alone():
    first = families.make("lora")
    store = Throttled(Ram(), rate=1e12)
    engine = Streamed(store=store)
    both(
        engine,
        3,
        lambda: copy.deepcopy(first.model),
        lambda model: lambda: first.loss(model),
        eps=2.0**-3,
    )
    assert 0 < store.sent["down"] < store.sent["up"] / 5


def test_the_model_called_outside_a_step_is_the_updated_one():
    a, b = Net(), Net()
    x = torch.arange(9)[None]
    oa = MeZO(a, lr=1e-2, engine=resident())
    ob = MeZO(b, lr=1e-2, engine=Streamed())
    for _ in range(3):
        oa.step(loss_of(a)), ob.step(loss_of(b))
        with torch.no_grad():
            assert torch.equal(a(x), b(x))
    with pytest.raises(StoreError, match="no_grad"):
        b(x)
    saved = b.state_dict()  # flushes
    assert all(torch.equal(v, saved[k]) for k, v in a.state_dict().items())


def test_a_point_can_be_visited():
    model, other = Net(), Net()
    engine = Streamed()
    engine.bind(model, Space.of(model), seed=0, rounding="stochastic")
    plain = resident()
    plain.bind(other, Space.of(other), seed=0, rounding="stochastic")
    probe = Probe(((Direction(7), 0.125),))
    x = torch.arange(9)[None]
    with engine.at(probe), plain.at(probe):
        assert torch.equal(model(x), other(x))


def test_generation_with_early_exits_and_unequal_lengths():
    """Probes that stop at different tokens, and skip different blocks."""

    def closure(model):
        def ask():
            x = torch.arange(5)[None]
            total = 0.0
            for i in range(4):
                out = model(x, early=int(x[0, -1]) % 5)[0, -1].float()
                total += float(out.max())
                x = torch.cat([x, out.argmax()[None, None]], 1)
                if total > 2 + i:
                    break
            return total

        return ask

    both(Streamed(unseen="ignore"), 5, closure=closure, num_queries=3, eps=0.3)


@pytest.mark.parametrize("name", ["llama", "t5", "mamba"])
def test_generate(name):
    first = families.make(name)

    def closure(model):
        def ask():
            out = model.generate(
                first.batch["input_ids"], max_new_tokens=4, do_sample=True
            )
            return float(out.float().mean()) + float(torch.rand(()))

        return ask

    torch.manual_seed(3)
    a, b = (copy.deepcopy(first.model) for _ in range(2))
    torch.manual_seed(5)
    want = run(a, resident(unseen="ignore"), 2, closure, eps=0.1)
    after = torch.rand(())
    torch.manual_seed(5)
    assert run(b, Streamed(unseen="ignore"), 2, closure, eps=0.1) == want
    assert torch.equal(torch.rand(()), after)  # the generators agree afterwards


def test_autocast_of_the_caller_reaches_the_probes():
    def closure(model):
        return loss_of(model)

    def train(engine):
        model = Net()
        opt = MeZO(model, lr=1e-2, engine=engine)
        with torch.autocast("cpu", torch.bfloat16):
            opt.step(loss_of(model))
        return opt.last.losses

    assert train(resident()) == train(Streamed())


def test_a_forward_gradient_streams():
    def train(engine):
        model = Net()
        opt = ZOOptimizer(
            model,
            estimator=zolab.ForwardGradient(num_queries=2),
            lr=1e-2,
            engine=engine,
        )
        opt.step(loss_of(model))
        opt.engine.flush()
        return model

    assert same_bits(train(resident()), train(Streamed()))


# what goes wrong


def test_an_error_in_a_probe_stops_all_and_moves_nothing():
    a, b = Net(), Net()
    opt = MeZO(b, lr=1e-2, num_queries=2, engine=Streamed())
    opt.step(loss_of(b))
    calls = []

    def broken():
        calls.append(1)
        mine = len(calls)
        loss = loss_of(b)()
        if mine == 3:
            raise RuntimeError("no more data")
        return loss

    with pytest.raises(RuntimeError, match="no more data"):
        opt.step(broken)
    assert not [t for t in threading.enumerate() if t.name == "zolab-probe"]
    with pytest.raises(NonFiniteLossError):
        opt.step(lambda: loss_of(b)() * float("nan"))
    opt.step(loss_of(b))
    opt.engine.flush()
    oa = MeZO(a, lr=1e-2, num_queries=2, engine=resident())
    oa.step(loss_of(a))
    oa.steps += 1  # the refused number
    oa.step(loss_of(a))
    assert same_bits(a, b)


def test_ctrl_c_in_a_pass_loses_nothing():
    a, b = Net(), Net()
    opt = MeZO(b, lr=1e-2, engine=Streamed())

    def interrupted():
        loss_of(b)()
        raise KeyboardInterrupt

    opt.step(loss_of(b))
    with pytest.raises(KeyboardInterrupt):
        opt.step(interrupted)
    opt.step(loss_of(b))
    opt.engine.flush()
    run(a, resident(), 2, eps=1e-3)
    assert same_bits(a, b)


class Failing(Ram):
    """A store whose n-th transfer fails."""

    def __init__(self, read=0, write=0):
        super().__init__()
        self.left = {"read": read, "write": write}

    def _count(self, what):
        self.left[what] -= 1
        if self.left[what] == 0:
            raise StoreError(f"the disk is full ({what})")

    def read(self, block, out):
        self._count("read")
        super().read(block, out)

    def write(self, block, data, mark):
        self._count("write")
        super().write(block, data, mark)


@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize("n", range(1, 13))
@pytest.mark.parametrize("what", ["read", "write"])
def test_a_transfer_that_fails_is_made_again(what, n, slots):
    a, b = Net(), Net()
    opt = MeZO(b, lr=1e-2, engine=Streamed(store=Failing(**{what: n}), slots=slots))
    done = failed = 0
    while done < 4:
        try:
            opt.step(loss_of(b))
            done += 1
        except StoreError:
            failed += 1
            assert failed == 1
    for _ in range(2):
        try:
            opt.engine.flush()
            break
        except StoreError:
            failed += 1
    assert failed == 1
    oa = MeZO(a, lr=1e-2, engine=resident())
    for _ in range(4):
        oa.step(loss_of(a))
    assert same_bits(a, b)


def test_weights_read_outside_of_their_block_are_named():
    class Peeking(Net):
        def forward(self, x):
            return super().forward(x) + self.layers[1][0].weight.sum()

    model = Peeking()
    with pytest.raises(StoreError, match=r"layers\.1\.0\.weight is read outside"):
        run(model, Streamed(), 1)


def test_an_edit_behind_our_back_is_seen_or_accepted():
    model, other = Net(), Net()
    for m, engine in ((model, Streamed()), (other, resident())):
        opt = MeZO(m, lr=1e-2, engine=engine)
        opt.step(loss_of(m))
        opt.engine.flush()
        with torch.no_grad():
            m.layers[2][0].weight.add_(1.0)
        with pytest.raises(BaseChangedError, match=r"layers\.2\.0\.weight"):
            opt.step(loss_of(m))
        opt.rebase()
        opt.step(loss_of(m))
        opt.engine.flush()
    assert same_bits(model, other)


def test_a_second_optimizer_finds_an_ordinary_model():
    a, b = Net(), Net()
    run(a, resident(), 2)
    run(b, Streamed(), 2)
    run(a, resident(), 2, seed=5)
    run(b, Streamed(), 2, seed=5)  # another engine: the first lets go
    assert same_bits(a, b)


def test_the_budget():
    model = Net()
    engine = Streamed(budget="1MB")
    engine.bind(model, Space.of(model), seed=0, rounding="stochastic")
    need = engine.footprint.total
    with pytest.raises(BudgetError, match=r"window .* rest .* the budget is 0\.0 MB"):
        Streamed(budget=need - 1).bind(
            Net(), Space.of(Net()), seed=0, rounding="stochastic"
        )
    assert parse_bytes("8GB") == 8e9 and parse_bytes("1.5 MiB") == 1.5 * 2**20
    with pytest.raises(ValueError, match="8 bananas"):
        parse_bytes("8 bananas")


def test_the_formula_is_what_lies_on_the_device():
    """Within 3 %: window, rest and scratch, after steps that needed all of it."""
    for name in ("opt", "llama", "gpt2", "t5", "encoder"):
        f = families.make(name)
        engine = Streamed(unseen="ignore", probes_per_pass=2)
        run(f.model, engine, 2, lambda model, f=f: lambda: f.loss(model))
        inside = {id(p) for b in engine.blocks for x in b.pieces for p in x.params}
        rest = {p.data_ptr(): p for p in f.model.parameters() if id(p) not in inside}
        found = sum(s.data.nbytes for s in engine.window.slots)
        found += sum(p.nbytes for p in rest.values())
        found += sum(b.nbytes for b in engine.pool.buffers.values())
        found += sum(b.nbytes for b in f.model.buffers())
        want = engine.footprint.total - engine.footprint.vectors
        assert found == pytest.approx(want, rel=0.03), name
        assert found <= want * 1.0001


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"store": "tape"}, "tape"),
        ({"store": "disk"}, "path"),
        ({"slots": 0}, "slots is 0"),
        ({"write_back": 0}, "write_back is 0"),
        ({"probes_per_pass": 0}, "probes_per_pass is 0"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Streamed(**settings)


def test_blocks_are_found_or_named():
    model = Net()
    space = Space.of(model)
    blocks = blocks_of(model, space)
    assert [b.name for b in blocks] == [f"layers.{i}" for i in range(5)]
    held = {x.name for b in blocks for x in b.pieces}
    assert "layers.0.2.bias" not in held  # tied across blocks: stays
    with pytest.raises(StoreError, match="no module is called 'decoder'"):
        blocks_of(model, space, ["decoder"])
    with pytest.raises(StoreError, match="lies within"):
        blocks_of(model, space, ["layers", "layers.0"])
    with pytest.raises(StoreError, match="name what streams"):
        blocks_of(nn.Linear(3, 3), Space.of(nn.Linear(3, 3)))


def test_a_hessian_is_refused():
    model = Net()
    with pytest.raises(StoreError, match="Hessian"):
        ZOOptimizer(model, estimator=zolab.HiZOO(), engine=Streamed())
