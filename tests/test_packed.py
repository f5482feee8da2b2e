"""Packed weights: what is coded comes back, and whoever reads one reads its values."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import zolab
from zolab import storage
from zolab.engines.resident import Resident
from zolab.errors import SpaceError
from zolab.gradient import Direction, Probe, Update
from zolab.noise import make_key
from zolab.storage import coded, plain
from zolab.storage.codecs import WHOLE, Codec, codec, fit, nearest
from zolab.storage.packed import pack_bits, pack_tensor, unpack_at, unpack_bits, values

NAMES = ("int8", "int4", "int2", "uint8", "uint4", "uint2", "nf4", "e4m3")
SHAPES = ((5, 7), (3, 64), (8, 100), (1, 3), (2, 3, 5))
GROUPS = (0, WHOLE, 32, 3)


def weight(shape, seed=0):
    return zolab.direction(seed + 1, "w", shape, family="near_normal") * 0.1


@pytest.mark.parametrize("bits", (8, 4, 2))
@pytest.mark.parametrize("n", (0, 1, 2, 3, 4, 5, 9))
def test_bits_round_trip_at_every_odd_size(bits, n):
    codes = (torch.arange(n) * 37 % 2**bits).to(torch.uint8)
    dense = pack_bits(codes, bits)
    assert len(dense) == -(-n * bits // 8)
    assert torch.equal(unpack_bits(dense, bits, n), codes)
    assert torch.equal(unpack_at(dense, torch.arange(n), bits), codes.long())


def test_a_byte_holds_the_even_code_low():
    assert pack_bits(torch.tensor([3, 12], dtype=torch.uint8), 4).tolist() == [0xC3]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_level_round_trips(name, group, shape):
    """Values that are levels come back to the bit: also in the remainder of a row."""
    kind = codec(name, group=group)
    w = weight(shape)
    scale, zero = fit(w, kind)
    once = pack_tensor(w, kind, scale=scale, zero=zero)
    again = pack_tensor(values(once), kind, scale=scale, zero=zero)
    assert torch.equal(once.codes, again.codes)
    assert torch.equal(values(once), values(again))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("group", GROUPS)
def test_the_error_is_at_most_half_a_cell(name, group):
    kind, w = codec(name, group=group), weight((8, 100))
    p = pack_tensor(w, kind)
    table = kind.levels()
    widest = float((table[1:] - table[:-1]).max())
    rows, columns, size = kind.layout(w.shape)
    scale = p.scale.detach().repeat_interleave(size, 1)[:, :columns].reshape(w.shape)
    assert bool(((values(p) - w).abs() <= 0.5001 * widest * scale).all())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("start", (0, 1, 5, 64))
def test_kernels_agree_with_the_reference(name, group, start, monkeypatch):
    """The fast decode, the plain one and the definition: the same bits, any slice."""
    p = pack_tensor(weight((9, 50)), codec(name, group=group))
    n = 450 - start
    draw = storage.Draw(zolab.noise.stream(1, 2), "near_normal", 0.25)
    fast, slow = torch.empty(n), torch.empty(n)
    coded.materialise(p, (draw,), fast, start)
    monkeypatch.setenv("ZOLAB_KERNELS", "plain")
    coded.materialise(p, (draw,), slow, start)
    assert torch.equal(fast, slow)
    element = torch.arange(start, 450)
    want = plain.moved(p.decode().detach().reshape(-1)[start:], (draw,), element)
    assert torch.equal(slow, want)


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_rows(name):
    p = pack_tensor(weight((9, 50)), codec(name, group=16))
    draw = storage.Draw(zolab.noise.stream(1, 2), "rademacher", 0.25)
    index, out, whole = (
        torch.tensor([3, 3, 8, 0]),
        torch.empty(4, 50),
        torch.empty(9, 50),
    )
    coded.rows(p, (draw,), index, out)
    coded.materialise(p, (draw,), whole, 0)
    assert torch.equal(out, whole[index])
    scale = p.scales() * 1.5
    coded.rows(p, (draw,), index, out, scale[index])
    coded.materialise(p, (draw,), whole, 0, scale)
    assert torch.equal(out, whole[index])


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="unknown codec 'int5'"):
        codec("int5")
    with pytest.raises(ValueError, match="group is -3"):
        codec("int4", group=-3)
    with pytest.raises(ValueError, match="NaN"):
        pack_tensor(torch.tensor([[1.0, float("nan")]]), codec("int4"))
    with pytest.raises(ValueError, match="does not fit"):
        pack_bits(torch.tensor([4], dtype=torch.uint8), 2)
    model = zolab.pack(nn.Linear(4, 4), "int4")
    with pytest.raises(SpaceError, match="nothing|no floating"):
        zolab.pack(model, "int4")
    with pytest.raises(SpaceError, match="would write"):
        model.weight.mul_(2)


def family(name):
    if name == "mha":
        return nn.MultiheadAttention(8, 2, batch_first=True), torch.randn(2, 3, 8)
    if name == "conv":
        return nn.Conv2d(3, 4, 3), torch.randn(1, 3, 8, 8)
    if name == "embedding":
        return nn.Embedding(10, 6), torch.tensor([[1, 9, 3]])
    return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3)), torch.randn(2, 8)


@pytest.mark.parametrize("name", ("mha", "conv", "embedding", "linear"))
@pytest.mark.parametrize("kind", ("int4", "nf4"))
def test_any_torch_call_reads_the_values(name, kind):
    torch.manual_seed(0)
    model, x = family(name)
    zolab.pack(model, kind)
    plainly = zolab.unpack(copy.deepcopy(model))
    call = (lambda m: m(x, x, x)[0]) if name == "mha" else lambda m: m(x)
    assert torch.equal(call(model), call(plainly))
    assert all(not hasattr(p, "packed") for p in plainly.parameters())


def tiny():
    return zolab.load_model("tiny")[0]


IDS = torch.arange(24).view(2, 12) * 7 % 4096


def loss(model):
    return lambda: model(IDS, labels=IDS).loss


@pytest.mark.parametrize("scratch", ("one", "all"))
@pytest.mark.parametrize("moving", ("scales", "weights", "norms"))
def test_a_probe_is_the_model_with_its_values_moved(scratch, moving):
    """Codes, scales or neither: the mode's loss is that of the moved tensors."""
    model = zolab.pack(tiny(), "int4", group=48)
    for n, p in model.named_parameters():
        scale, code = n.endswith("_scale"), hasattr(p, "packed")
        wanted = {
            "scales": scale,
            "weights": code,
            "norms": not (scale or code),
        }
        p.requires_grad_(wanted[moving])
    opt = zolab.MeZO(model, eps=1e-2, engine=Resident(scratch=scratch))
    d = Direction(make_key(0, 0), "near_normal")
    term = (d, 0.0078125)
    got = opt.engine.evaluate([Probe((term,))], {"loss": loss(model)})[0].value
    by_hand = copy.deepcopy(model)
    slots = {s.name: s for s in opt.space}
    for name, p in by_hand.named_parameters():
        if name in slots and not hasattr(p, "packed"):
            p.data += 0.0078125 * slots[name].direction(d)
    for name, p in zolab.unpack(by_hand).named_parameters():
        if name in slots and slots[name].packed:
            p.data += 0.0078125 * slots[name].direction(d)
    with torch.no_grad():
        assert got == by_hand(IDS, labels=IDS).loss.item()


def test_weights_in_storage_do_not_move_at_lr_0():
    model = codes_only(tiny())
    before = [p.codes.clone() for p in zolab.packed_weights(model).values()]
    opt = zolab.MeZO(model, lr=0.0, eps=1e-2)
    opt.step(loss(model))
    after = [p.codes for p in zolab.packed_weights(model).values()]
    assert all(map(torch.equal, before, after))


def moved(p, c, *, decay=1.0, steps=1, family="rademacher", stochastic=True, first=0):
    """p after `steps` updates of size c along fresh directions."""
    slot = zolab.Space.of(holder(p)).slots[0]
    for t in range(first, first + steps):
        u = Update(((Direction(make_key(7, t), family), 1.0),), (-c,), (decay,))
        storage.update(slot, [(u, t)], seed=3, stochastic=stochastic)
    return p


def holder(p):
    from zolab.storage.packed import PackedWeight

    module = nn.Module()
    module.weight = nn.Parameter(PackedWeight.of(p), requires_grad=True)
    return module


@pytest.mark.parametrize("name", ("int8", "int4", "uint4", "nf4", "e4m3"))
@pytest.mark.parametrize("share", (0.37, 0.02, 1e-4))
def test_an_update_keeps_its_mean(name, share):
    """E[decode(after)] = decode(before) + c z, within 3.5 standard errors, any size."""
    kind = codec(name, group=0)
    n = 1 << 20
    middle = len(kind.table) // 2
    codes = torch.full((4, n // 4), middle, dtype=torch.uint8)
    p = zolab.storage.packed.Packed(
        kind,
        codes.shape,
        pack_bits(codes, kind.bits),
        nn.Parameter(torch.full((4, 1), 0.5), requires_grad=False),
        torch.full((4, 1), 7.0) if kind.zeros else None,
    )
    before = values(p)
    table = kind.levels()
    cell = float(table[middle + 1] - table[middle])
    c = zolab.gradient.round16(0.5 * cell * share)
    z = zolab.Space.of(holder(p)).slots[0].direction(Direction(make_key(7, 0)))
    change = (values(moved(p, c)) - before) * z
    down = float(table[middle] - table[middle - 1])
    spread = (0.5 * max(cell, down) * 0.5 * cell * share / n) ** 0.5
    assert abs(float(change.double().mean()) - c) < 3.5 * spread


def test_what_does_not_move_keeps_its_code():
    """A rounded z is often 0: there the code stays, whatever the random bits."""
    p = pack_tensor(weight((16, 64)), codec("int4"))
    before = unpack_bits(p.codes, 4, 1024)
    slot = zolab.Space.of(holder(p)).slots[0]
    d = Direction(make_key(1, 0), "rounded", right=1, rank=4)
    z = slot.direction(d).reshape(-1)
    u = Update(((d, 1.0),), (0.3,), (1.0,))
    storage.update(slot, [(u, 0)], seed=0, stochastic=True)
    same = unpack_bits(p.codes, 4, 1024) == before
    assert 0.2 < float((z == 0).float().mean()) < 0.6
    assert bool(same[z == 0].all()) and not bool(same[z != 0].all())


def test_codes_stop_at_the_ends_of_the_table():
    p = pack_tensor(weight((4, 8)), codec("int4"))
    codes = unpack_bits(moved(p, 100.0).codes, 4, 32)
    assert set(codes.tolist()) == {0, 14}


def test_pending_steps_are_steps_one_by_one():
    a, b = (pack_tensor(weight((6, 50)), codec("int4")) for _ in range(2))
    moved(a, 0.01, decay=0.99, steps=3)
    slot = zolab.Space.of(holder(b)).slots[0]
    us = [
        (Update(((Direction(make_key(7, t)), 1.0),), (-0.01,), (0.99,)), t)
        for t in range(3)
    ]
    storage.update(slot, us, seed=3, stochastic=True)
    assert torch.equal(a.codes, b.codes)


def test_nearest_rounding_loses_small_steps_and_stochastic_keeps_them():
    kept = []
    for stochastic in (True, False):
        p = pack_tensor(weight((64, 64)), codec("int4"))
        before = values(p)
        moved(p, 1e-3, stochastic=stochastic)
        kept.append(float((values(p) - before).abs().sum()))
    assert kept[0] > 0 == kept[1]


@pytest.mark.parametrize("bits", (2, 3, 4, 8))
def test_two_roundings_of_a_direction(bits):
    """Each has the direction as its mean; together they are independent given it."""
    element = torch.arange(1 << 18)
    s = zolab.noise.stream(5, 6)
    u = zolab.noise.elements(s, element, "near_normal")
    a, b = (
        zolab.noise.rounded(s, zolab.noise.stream(make_key(5, w), 6), bits, element)
        for w in (1, 2)
    )
    step = 2.0 ** (4 - bits)
    assert bool((a / step == (a / step).round()).all())
    assert bool(((a - u).abs() < step).all())
    n = len(element) ** 0.5
    for e in (a - u, b - u):
        assert abs(float(e.mean())) <= 4 * float(e.std()) / n
    product = (a - u) * (b - u)
    assert abs(float(product.mean())) <= 4 * float(product.std()) / n
    if bits <= 4:
        assert float((a - u).square().mean()) > 0.1
    else:
        assert torch.equal(a, u)


def test_codes_and_their_scales_do_not_both_move():
    model = zolab.pack(tiny(), "int4").requires_grad_(True)
    with pytest.raises(SpaceError, match="both require grad"):
        zolab.MeZO(model)


def codes_only(model):
    for p in zolab.pack(model, "int4").parameters():
        p.requires_grad_(hasattr(p, "packed"))
    return model


def test_replay_gives_the_same_codes(tmp_path):
    model = codes_only(tiny())
    again = copy.deepcopy(model)
    opt = zolab.MeZO(model, lr=1e-3, eps=1e-2, journal=tmp_path / "log", seed=5)
    for _ in range(3):
        opt.step(loss(model))
    zolab.replay(again, tmp_path / "log")
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        if hasattr(a, "packed"):
            assert torch.equal(a.packed.codes, b.packed.codes)
        else:
            assert torch.equal(a, b)


def test_gradients_reach_scales_and_inputs():
    """The first-order twin of QZO back-propagates into the scales."""
    layer = zolab.pack(nn.Linear(8, 4), "int4", group=4)
    layer.weight_scale.requires_grad_(True)
    x = torch.randn(3, 8, requires_grad=True)
    layer(x).square().sum().backward()
    w = layer.weight.packed.decode().detach()
    level = w / layer.weight_scale.detach().repeat_interleave(4, 1)
    y = F.linear(x, w, layer.bias)
    g = (2 * y).T @ x
    want = (g * level).view(4, 2, 4).sum(-1)
    torch.testing.assert_close(layer.weight_scale.grad, want.detach())
    assert x.grad is not None


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("relative", (False, True))
def test_the_gradient_of_a_scale_is_that_of_the_definition(name, relative):
    """Also with zero points, units and a group that is cut short."""
    layer = zolab.pack(nn.Linear(10, 4, bias=False), name, group=4)
    p = layer.weight.packed
    if relative:
        p.relative()
    p.scale.requires_grad_(True)
    x = torch.linspace(-1, 1, 30).view(3, 10)
    found = [
        torch.autograd.grad(w.square().sum(), p.scale)[0]
        for w in (layer(x), F.linear(x, p.decode()))
    ]
    torch.testing.assert_close(*found)


def test_a_tied_weight_is_skipped_under_all_its_names():
    model = zolab.pack(tiny(), "int4", skip=["*embed*"])
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not hasattr(model.lm_head.weight, "packed")
    model = zolab.pack(tiny(), "int4", skip=["lm_head*"])
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert hasattr(model.lm_head.weight, "packed")


def test_codecs_as_published():
    assert len(codec("e4m3").table) == 253 and codec("e4m3").top == 448
    assert codec("nf4").table[7] == 0.0 and len(codec("nf4").table) == 16
    assert isinstance(codec("int4"), Codec) and codec("int4").table[0] == -7
    flat = nearest(torch.zeros(2, 3), codec("int4"), torch.ones(2, 1), None)
    assert flat.tolist() == [[7, 7, 7], [7, 7, 7]]
