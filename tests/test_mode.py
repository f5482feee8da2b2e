"""Law 3: inside a probe the model computes what a perturbed copy computes, bit for bit.

The copy is an ordinary model whose parameters were set to base + eps * z, each rounded
once to the storage type. eps is 1/8 and vectors are multiples of 1/16, so that in bf16
the vectors (fp32 inside a probe, law 6) have no other value in the copy.
"""

import copy
import functools
import random

import families
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import closure, mlp, same_bits
from torch import nn
from torch.overrides import TorchFunctionMode

import zolab
from zolab.engines import calls
from zolab.engines import mode as mode_module
from zolab.errors import InPlaceEditError, SpaceError, UnseenSlotError
from zolab.gradient import Direction, Probe
from zolab.space import Space

D, EPS = Direction(12345), 2.0**-3
POINT = Probe(((D, EPS),))
FLOAT, BF16 = torch.float32, torch.bfloat16
SCRATCH = ["one", "all"]


pytestmark = pytest.mark.usefixtures("one_thread")


class Nothing(TorchFunctionMode):
    """nn.TransformerEncoder leaves its fused path under any function mode.

    The fused path has other bits than the plain one, so the copy runs under a mode
    too, and both sides compute the plain one.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def engine(model, scratch="one", **kwargs):
    e = zolab.Resident(scratch=scratch, **kwargs)
    e.bind(model, Space.of(model), seed=0, rounding="stochastic")
    return e


def moved(model, eps=EPS, direction=D):
    """A copy that stands at the probe, by a way that shares nothing with the mode.

    It is frozen, because torch multiplies a slice (the last token's hidden state) by a
    weight in another way when the weight requires grad, even under no_grad: folded
    into one product instead of a batch, with other bits.
    """
    other = copy.deepcopy(model).requires_grad_(False)
    names = {n for n, p in model.named_parameters() if p.requires_grad}
    for name, p in other.named_parameters():  # names a tied weight once
        if name in names:
            name = name.removeprefix("base_model.model.")
            z = zolab.direction(direction.key, name, tuple(p.shape))
            p.data.copy_(p.data.float() + eps * z)
    return other


@functools.cache
def family(name, dtype=FLOAT):
    return families.make(name, dtype)


@functools.cache
def at_copy(name, dtype=FLOAT):
    f = family(name, dtype)
    with torch.no_grad(), Nothing():
        frozen = copy.deepcopy(f.model).requires_grad_(False)
        return f.logits(moved(f.model)), f.loss(moved(f.model)), f.logits(frozen)


@pytest.mark.parametrize("dtype", [FLOAT, BF16])
@pytest.mark.parametrize("name", families.MAKERS)
def test_probe_equals_perturbed_copy(name, dtype):
    """And nothing stored moves, and each parameter is seen."""
    f = family(name, dtype)
    before = copy.deepcopy(f.model)
    logits, loss, still = at_copy(name, dtype)
    assert not torch.equal(logits, still)
    for scratch in SCRATCH:
        e = engine(f.model, scratch)
        with e.at(POINT):
            mine = f.logits()
            assert mine.dtype == logits.dtype
            assert torch.equal(mine, logits), scratch
            assert torch.equal(f.loss(), loss), scratch
        assert e.seen == {s.name for s in e.space}
        with e.at(Probe()):
            assert torch.equal(f.logits(), still)
    assert same_bits(f.model, before)


@pytest.mark.parametrize("dtype", [FLOAT, BF16])
@pytest.mark.parametrize("name", families.MAKERS)
def test_tiles(name, dtype, monkeypatch):
    """Every linear in tiles of 16 rows, not only heads above 6,144 rows."""
    monkeypatch.setattr(mode_module, "TILE", 16)
    f = family(name, dtype)
    with engine(f.model).at(POINT):
        assert torch.equal(f.logits(), at_copy(name, dtype)[0])


@pytest.mark.parametrize("height", [6145, 6158, 6200, 12289])
def test_a_head_that_tiles_do_not_divide(height):
    """Tiles are even and of whole blocks, or their last rows would have other bits.

    On one thread: several cut the rows of a matrix-vector product where the height
    says, so that for one token a few of a tile's rows differ in fp32 (by 1e-6).
    """
    torch.manual_seed(0)
    model = nn.Linear(576, height)
    other = moved(model)
    for shape in [(64, 576), (2, 5, 576), (1, 576), (576,), (0, 576)]:
        x = torch.randn(shape)
        want = other(x)
        with engine(model).at(POINT):
            assert torch.equal(model(x), want), shape


@pytest.mark.parametrize("scratch", SCRATCH)
@pytest.mark.parametrize("name", families.GENERATING.split())
def test_generate(name, scratch):
    """Greedy decoding with a cache: tokens and scores of each step."""
    f = family(name)
    key = "input_ids"
    settings = {
        "max_new_tokens": 6,
        "do_sample": False,
        "output_scores": True,
        "return_dict_in_generate": True,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    want = moved(f.model).generate(f.batch[key], **settings)
    with engine(f.model, scratch).at(POINT) as model:
        mine = model.generate(f.batch[key], **settings)
    assert torch.equal(mine.sequences, want.sequences)
    assert all(map(torch.equal, mine.scores, want.scores))
    assert not torch.equal(
        mine.scores[0], f.model.generate(f.batch[key], **settings).scores[0]
    )


@pytest.mark.parametrize("scratch", SCRATCH)
@pytest.mark.parametrize("name", ["opt", "llama", "bert", "convolutional", "lora"])
def test_autocast(name, scratch):
    """Autocast entered inside each probe, or once around both.

    Autocast caches the cast of a leaf, so two in-place probes within one context see
    the first one's weights twice; materialised values are no leaves.
    """
    f = family(name)
    e = engine(f.model, scratch)
    probes = [Probe(((D, s * EPS),)) for s in (1, -1)]
    want = []
    for s in (1, -1):
        other = moved(f.model, s * EPS)
        with torch.no_grad(), torch.autocast("cpu", BF16):
            want.append(float(f.loss(other)))

    def cast():
        with torch.autocast("cpu", BF16):
            return f.loss()

    inside = [a.value for a in e.evaluate(probes, {"loss": cast})]
    with torch.autocast("cpu", BF16):
        outside = [a.value for a in e.evaluate(probes, {"loss": f.loss})]
    assert inside == outside == want
    assert want[0] != want[1]


# Wrappers: the same weights under other names, or called in another way.


class Wrapped(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


@pytest.mark.parametrize("depth", [1, 2])
def test_wrapped_names_give_the_same_slots(depth):
    f = family("llama")
    wrapped = f.model
    for _ in range(depth):
        wrapped = Wrapped(wrapped)
    plain, other = Space.of(f.model), Space.of(wrapped)
    assert [(s.name, s.id) for s in plain] == [(s.name, s.id) for s in other]
    with engine(wrapped).at(POINT):
        assert torch.equal(f.logits(wrapped), at_copy("llama")[0])


def test_adapters_do_not_rename_what_they_wrap():
    """LoRA around a model: base slots keep name and id, so directions stay."""
    peft = pytest.importorskip("peft")
    plain = {s.name: s.id for s in Space.of(family("llama").model)}
    config = peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(copy.deepcopy(family("llama").model), config)
    found = {s.name: s.id for s in Space.of(adapted, frozen=True)}
    assert plain.items() <= found.items()
    assert all("lora" in name for name in found.keys() - plain.keys())


def test_adapter_off_is_the_base():
    f = family("lora")
    with torch.no_grad(), f.model.disable_adapter():
        want = f.logits()
    with engine(f.model).at(POINT):
        with f.model.disable_adapter():
            assert torch.equal(f.logits(), want)
        assert torch.equal(f.logits(), at_copy("lora")[0])


def by_keywords(f):
    return f.logits()


def by_functional_call(f):
    weights = dict(f.model.named_parameters())
    return torch.func.functional_call(f.model, weights, (), f.batch).logits


def by_detached_weights(f):
    weights = {k: p.detach() for k, p in f.model.named_parameters()}
    return torch.func.functional_call(f.model, weights, (), f.batch).logits


def by_state_dict(f):
    other = families.make(f.name, f.model.dtype).model
    other.load_state_dict(f.model.state_dict())
    return f.logits(other)


def by_copy(f):
    return f.logits(copy.deepcopy(f.model))


def by_inference_mode(f):
    with torch.inference_mode():
        f.logits()
    return f.logits()


@pytest.mark.parametrize("scratch", SCRATCH)
@pytest.mark.parametrize("dtype", [FLOAT, BF16])
@pytest.mark.parametrize(
    "way",
    [
        by_keywords,
        by_functional_call,
        by_detached_weights,
        by_state_dict,
        by_copy,
        by_inference_mode,
    ],
)
def test_ways_to_call_a_model(way, dtype, scratch):
    f = family("llama", dtype)
    with engine(f.model, scratch).at(POINT):
        assert torch.equal(way(f), at_copy("llama", dtype)[0])


@pytest.mark.parametrize("by", ["object", "memory"])
def test_tied_weight_is_moved_once(by):
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7, bias=False))
    tied = model[0].weight
    model[1].weight = tied if by == "object" else nn.Parameter(tied.data)
    (slot,) = Space.of(model)
    want = slot.base + EPS * slot.direction(D)
    for scratch in SCRATCH:
        with engine(model, scratch).at(POINT):
            assert torch.equal(model[0].weight.clone(), want)
            assert torch.equal(model[1].weight.clone(), want)
            assert torch.equal(model[0](torch.arange(7)), want)
            assert torch.equal(model[1](torch.eye(4)), want.T)


# One call: ways to compute one thing, in fp32 and bf16, with and without kept scratch.


class Bag(nn.Module):
    """A matrix, a taller one, a stack of matrices and two vectors."""

    def __init__(self, dtype):
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.w = nn.Parameter(torch.randn(12, 8, generator=g))
        self.q = nn.Parameter(torch.randn(5, 8, generator=g))
        self.e = nn.Parameter(torch.randn(3, 8, 8, generator=g))
        self.v = nn.Parameter(torch.randint(-15, 16, (8,), generator=g) / 8)
        self.b = nn.Parameter(torch.randint(-15, 16, (12,), generator=g) / 8)
        self.to(dtype)
        self.x = torch.randn(4, 8, generator=g).to(dtype)


LINEAR = {
    "F.linear": lambda m, x: F.linear(x, m.w),
    "keywords": lambda m, x: F.linear(weight=m.w, input=x),
    "matmul": lambda m, x: x @ m.w.T,
    "torch.mm": lambda m, x: torch.mm(x, m.w.t()),
    "out=": lambda m, x: torch.mm(x, m.w.t(), out=x.new_empty(4, 12)),
    "einsum": lambda m, x: torch.einsum("bi,oi->bo", x, m.w),
    "aten": lambda m, x: torch.ops.aten.linear(x, m.w),
    "overload": lambda m, x: torch.ops.aten.mm.default(x, m.w.t()),
    ".data": lambda m, x: x @ m.w.data.t(),
    "detach": lambda m, x: x @ m.w.detach().t(),
    "slices": lambda m, x: torch.cat([F.linear(x, m.w[:5]), x @ m.w[5:].T], 1),
    "rows": lambda m, x: F.linear(x, torch.stack(list(m.w))),
    "unbind": lambda m, x: F.linear(x, torch.stack(m.w.unbind())),
    "embedding": lambda m, x: F.linear(x, F.embedding(torch.arange(12), m.w)),
    "int32": lambda m, x: F.linear(x, F.embedding(torch.arange(12).int(), m.w)),
    "index": lambda m, x: F.linear(x, m.w[torch.arange(12)]),
    "clone": lambda m, x: F.linear(x, m.w.clone()),
    "bytes": lambda m, x: F.linear(x, m.w.view(torch.uint8).view(x.dtype)),
    "copy_": lambda m, x: F.linear(x, x.new_empty(12, 8).copy_(m.w)),
    "vmap": lambda m, x: torch.vmap(lambda row: F.linear(row, m.w))(x),
    "function": lambda m, x: Product.apply(x, m.w),
    "numpy": lambda m, x: F.linear(
        x, torch.from_numpy(m.w.detach().float().numpy()).to(x.dtype)
    ),
}


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        return F.linear(x, w)


def iadd(m, x):
    x += m.v
    return x


def add_(m, x):
    x.add_(m.v)  # what it returns is dropped
    return x


def out_(m, x):
    y = torch.empty_like(x)
    torch.add(x, m.v, out=y)
    return y


def set_all(m, x):
    y = torch.empty_like(x)
    y[:] = m.v
    return x + y


def copied(m, x):
    y = torch.empty_like(x)
    y.copy_(m.v.expand(4, 8))
    return x + y


def in_a_view(m, x):
    x[2:].add_(m.v)
    x[:2] += m.v
    return x


ADD = {
    "+": lambda m, x: x + m.v,
    "reversed": lambda m, x: m.v + x,
    "torch.add": lambda m, x: torch.add(x, m.v),
    "alpha": lambda m, x: torch.add(x, m.v, alpha=1),
    "+=": iadd,
    "add_": add_,
    "out=": out_,
    "setitem": set_all,
    "copy_": copied,
    "views": in_a_view,
    "expand": lambda m, x: x + m.v.expand(4, 8),
    "view": lambda m, x: x + m.v.view(1, -1),
    "bytes": lambda m, x: x + m.v.view(torch.uint8).view(x.dtype),
    "stack": lambda m, x: x + torch.stack([m.v] * 4),
    "float": lambda m, x: (x.float() + m.v.float()).to(x.dtype),
    "item": lambda m, x: x + torch.tensor([a.item() for a in m.v]).to(x.dtype),
    "tolist": lambda m, x: x + torch.tensor(m.v.tolist()).to(x.dtype),
    "where": lambda m, x: torch.where(m.v == m.v, x + m.v, x),
    "sort": lambda m, x: x + m.v.sort().values[m.v.argsort().argsort()],
    "vmap": lambda m, x: torch.vmap(lambda row: row + m.v)(x),
    "foreach": lambda m, x: x + torch._foreach_mul([m.v, m.b], 1.0)[0],
    "inplace in a list": lambda m, x: torch._foreach_add([x], [m.v])[0],
}
OTHER = {
    "learned input": lambda m, x: F.linear(m.q, m.w),
    "learned input, bias": lambda m, x: F.linear(m.q, m.w, m.b),
    "two slots": lambda m, x: torch.cat([m.w, m.q]),
    "experts": lambda m, x: [F.linear(x, m.e[i]) for i in range(3)],
    "bmm": lambda m, x: torch.bmm(x.expand(3, 4, 8), m.e),
    "layer norm": lambda m, x: F.layer_norm(x, (8,), m.v, m.v),
    "rms norm": lambda m, x: F.rms_norm(x, (8,), m.v),
    "prelu": lambda m, x: F.prelu(x, m.v),
    "max": lambda m, x: tuple(m.v.max(0)),
    "topk": lambda m, x: tuple(torch.topk(m.v, 3)),
    "dtypes": lambda m, x: [m.v.to(t) for t in (FLOAT, BF16, torch.half)],
    "type": lambda m, x: [m.v.type(f"torch.{t}Tensor") for t in ("BFloat16", "Float")],
    "max_norm": lambda m, x: F.embedding(torch.tensor([1, 4]), m.w, max_norm=0.5),
    "bag": lambda m, x: F.embedding_bag(torch.tensor([[1, 2], [3, 4]]), m.w),
    "no token": lambda m, x: F.embedding(torch.zeros(2, 0, dtype=torch.long), m.w),
    "state": lambda m, x: list(m.state_dict().values()),
    "norm": lambda m, x: nn.utils.get_total_norm([m.w, m.e]),
    "bad row": lambda m, x: F.embedding(torch.tensor([12]), m.w),
    "negative row": lambda m, x: F.embedding(torch.tensor([-1]), m.w),
}


def outcome(way, model):
    torch.manual_seed(3)
    try:
        with torch.no_grad():
            return way(model, model.x.clone())
    except IndexError:
        return "IndexError"


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def bag_pairs(ways, dtype, scratch):
    m = Bag(dtype)
    for name, way in ways.items():
        want = outcome(way, moved(m))
        for _ in range(2):  # what the first call learns must not change the second
            with engine(m, scratch).at(POINT):
                yield name, outcome(way, m), want


@pytest.mark.parametrize("scratch", SCRATCH)
@pytest.mark.parametrize("dtype", [FLOAT, BF16])
@pytest.mark.parametrize("tile", [mode_module.TILE, 4])
def test_ways_to_use_a_parameter(dtype, scratch, tile, monkeypatch):
    monkeypatch.setattr(mode_module, "TILE", tile)
    results = []
    for ways in (LINEAR, ADD):
        group = list(bag_pairs(ways, dtype, scratch))
        assert all(
            torch.allclose(b.float(), group[0][2].float(), 0.02) for *_, b in group
        )
        results += group
    for name, mine, want in [*results, *bag_pairs(OTHER, dtype, scratch)]:
        assert equal(mine, want), name


WRITES = {
    "add_": lambda m: m.w.add_(1),
    "+=": lambda m: m.w.__iadd__(1),
    "-=": lambda m: m.w.__isub__(1),
    "/=": lambda m: m.w.__itruediv__(2),
    "setitem": lambda m: m.w.__setitem__(0, 1.0),
    "vector": lambda m: m.v.clamp_(0),
    "data": lambda m: setattr(m.w, "data", m.w * 2),
    "out": lambda m: torch.mul(m.w, 2, out=m.w),
    "init": lambda m: nn.init.zeros_(m.w),
    "init by keyword": lambda m: nn.init.normal_(m.v),
    "foreach": lambda m: torch._foreach_add_([m.w, m.q], 1.0),
    "inplace": lambda m: F.relu(m.w, inplace=True),
    "aten": lambda m: torch.ops.aten.add_(m.w, 1),
    "copy_": lambda m: m.w.copy_(m.w * 2),
}
HARMLESS = {
    "requires_grad_": lambda m: m.w.requires_grad_(True),
    "requires_grad": lambda m: setattr(m.w, "requires_grad", True),
    "grad": lambda m: setattr(m.w, "grad", None),
    "zero_grad": lambda m: m.zero_grad(),
    "own tensor": lambda m: (m.w * 2).add_(m.v),
    "scratch": lambda m: m.w.data.add_(1),
}


@pytest.mark.parametrize("scratch", SCRATCH)
@pytest.mark.parametrize("dtype", [FLOAT, BF16])
@pytest.mark.parametrize("name", [*WRITES, *HARMLESS])
def test_writes_to_a_parameter(name, dtype, scratch):
    m = Bag(dtype)
    before = copy.deepcopy(m)
    with engine(m, scratch).at(POINT):
        if name in HARMLESS:
            HARMLESS[name](m)
        else:
            with pytest.raises(InPlaceEditError, match="parameter [wqv]"):
                WRITES[name](m)
    assert same_bits(m, before)


# Steps: what stays, what comes back, what is refused.


@pytest.mark.parametrize("scratch", SCRATCH)
@pytest.mark.parametrize("dtype", [FLOAT, BF16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "bert", "convolutional"])
def test_lr_zero_changes_nothing(name, dtype, scratch):
    """Law 2: neither weights nor buffers, with decay and two queries as well."""
    f = families.make(name, dtype)
    f.model.train()
    before = copy.deepcopy(f.model)
    opt = zolab.MeZO(
        f.model,
        lr=0.0,
        weight_decay=0.1,
        num_queries=2,
        engine=zolab.Resident(scratch=scratch),
    )
    losses = [opt.step(f.loss) for _ in range(3)]
    assert same_bits(f.model, before)
    assert len(set(losses)) == 3


def test_flags_come_back():
    """Each module's own, also after an error, and when the closure trains."""
    model = mlp()
    model.train()
    model[2].eval()
    flags = [m.training for m in model.modules()]
    seen = []

    def good():
        seen.extend(m.training for m in model.modules())
        model.train()
        return closure(model)()

    def bad():
        raise ZeroDivisionError

    opt = zolab.MeZO(model)
    opt.step(good)
    assert not any(seen[: len(flags)])
    assert [m.training for m in model.modules()] == flags
    with pytest.raises(ZeroDivisionError):
        opt.step(bad)
    assert [m.training for m in model.modules()] == flags


def test_eval_mode_calls_no_method_of_the_model():
    """`eval()` of layers that merge adapters edits weights."""

    class Merging(nn.Linear):
        def train(self, mode=True):
            self.weight.data += 1
            return super().train(mode)

    model = Merging(3, 3)
    before = copy.deepcopy(model)
    zolab.MeZO(model, lr=0.0).step(lambda: model(torch.ones(3)).sum())
    assert same_bits(model, before)


def test_unseen_parameters_are_named():
    model = mlp()
    model.spare = nn.Linear(2, 2)
    with pytest.raises(UnseenSlotError, match=r"2 of 9 .* spare\.weight, spare\.bias"):
        zolab.MeZO(model).step(
            lambda: nn.Sequential(*model[:4])(torch.tensor([1])).sum()
        )


def test_a_closure_on_another_copy_is_named():
    model, other = mlp(), mlp()
    before = copy.deepcopy(model)
    with pytest.raises(UnseenSlotError, match="none of the .* another copy"):
        zolab.MeZO(model).step(closure(other))
    assert same_bits(model, before)


@pytest.mark.parametrize("how", ["wrapped", "in place", "part"])
def test_compiled_models_are_refused(how):
    model = mlp()
    if how == "wrapped":
        model = torch.compile(model)
    elif how == "in place":
        model.compile()
    else:
        model[1].compile()
    with pytest.raises(SpaceError, match="compiled"):
        zolab.MeZO(model)


def draws(model):
    """Random numbers of every global generator, and of ops on a parameter."""
    noise = [torch.rand(()).item(), random.random(), float(np.random.rand())]
    noise += F.dropout(torch.ones(8), 0.5, True).tolist()
    noise += torch.randn_like(model[2].weight).tolist()
    noise += (F.dropout(model[2].bias + 1, 0.5, True) != 0).tolist()
    return noise


@pytest.mark.parametrize("dtype", [FLOAT, BF16])
def test_probes_see_equal_random_numbers(dtype):
    """And afterwards the generators stand where one plain call would leave them."""
    model, seen = mlp(dtype=dtype), []

    def noisy():
        seen.append(draws(model))
        return closure(model)() + sum(seen[-1][:3])

    def seed():
        torch.manual_seed(5), random.seed(5), np.random.seed(5)

    opt = zolab.MeZO(model, num_queries=2)
    calls._DTYPES.clear()  # as in a fresh process: dtypes are found by trying
    seed()
    opt.step(noisy)
    assert len(seen) == 4
    assert all(s == seen[0] for s in seen)
    after = torch.rand(1).item(), random.random(), np.random.rand()
    seed()
    with opt.engine.at(Probe()):
        noisy()
    assert (torch.rand(1).item(), random.random(), np.random.rand()) == after


# Law 6.


def realised(build, gain, eps=1e-3):
    """The share of a probe's change of the output that survives, by projection."""
    torch.manual_seed(0)
    norm = build(gain.numel())
    norm.weight.data = gain.clone()
    exact, low = copy.deepcopy(norm).double(), norm.to(BF16)
    x = torch.randn(2000, gain.numel()).to(BF16)
    z = zolab.direction(D.key, "weight", tuple(gain.shape))
    with torch.no_grad():
        start = low(x).float()
        want = exact(x.double())
        exact.weight.data += eps * z
        want = exact(x.double()) - want
        with engine(low, unseen="ignore").at(Probe(((D, eps),))):
            mine = low(x)
            assert mine.dtype == BF16
        rounded = copy.deepcopy(low)
        rounded.weight.data = (gain + eps * z).to(BF16)
        plain = rounded(x).float() - start

    def share(change):
        return float((change.double() * want).sum() / (want * want).sum())

    return share(mine.float() - start), share(plain)


class Rms(nn.Module):
    """How LLaMA writes it: normalise, cast to bf16, then times the gain."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        h = x.to(torch.promote_types(x.dtype, FLOAT))
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * h.to(x.dtype)


TRAINED = 1 + torch.randn(256, generator=torch.Generator().manual_seed(1)) / 4


@pytest.mark.parametrize("build", [nn.LayerNorm, nn.RMSNorm, Rms])
def test_small_probes_of_norm_gains_survive(build):
    """A probe of 1e-3 moves the output of a trained norm by what it should."""
    mine, plain = realised(build, TRAINED.to(BF16).float())
    assert mine >= 0.95
    assert mine <= 1.05
    assert abs(plain - 1) > 0.2  # rounded gains: some stay, some jump too far


@pytest.mark.parametrize("build", [nn.LayerNorm, nn.RMSNorm])
def test_gains_of_one(build):
    """Fresh norms: rounding the gain to bf16 loses nearly the whole probe."""
    mine, plain = realised(build, torch.ones(256))
    assert mine >= 0.95
    assert plain < 0.05
