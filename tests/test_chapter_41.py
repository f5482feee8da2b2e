"""Chapter 41: its claims' controls fail."""

import math

import pytest
import torch

import zolab
from zolab import lab, noise
from zolab.lab import claims
from zolab.storage.codecs import codec, fit, nearest
from zolab.storage.packed import pack_bits, pack_tensor, unpack_bits, values

pytestmark = pytest.mark.usefixtures("one_thread")


def judge(name: str, measured: float, se: float | None = None) -> str:
    return claims.ledger()[name].judge(measured, se)


def error(w, name, group=64):
    back = values(pack_tensor(w, codec(name, group=group)))
    return float((back - w).norm() / w.norm())


def gain(tensors, worse, better):
    """dB, mean and standard error over tensors."""
    ratios = [error(w, *worse) / error(w, *better) for w in tensors]
    return lab.mean_se([20 * math.log10(x) for x in ratios])


def normal(seed, shape=(32, 256)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def drop_the_last(codes, bits):
    whole = len(codes) // (8 // bits) * (8 // bits)
    return pack_bits(codes[:whole], bits)


@pytest.mark.parametrize("pack", [pack_bits, drop_the_last])
def test_a_packer_that_drops_the_last_is_seen(pack):
    w, kind = normal(0, (7, 101)), codec("int4")
    code = nearest(w, kind, *fit(w, kind)).flatten()
    data = pack(code, 4)
    found = unpack_bits(data, 4, code.numel())
    changed = code.numel() - int((found == code[: len(found)]).sum())
    holds = judge("packed-codes-come-back", changed) == claims.HOLDS
    assert holds is (pack is pack_bits)


def over_the_law(w, name):
    scale = fit(w, codec(name))[0]
    law = float(scale.square().mean().sqrt()) / 12**0.5
    return error(w, name) / (law / float(w.square().mean().sqrt()))


def test_three_marks_do_not_follow_the_law():
    tensors = [normal(k) for k in range(6)]
    for name, holds in (("int4", True), ("int8", True), ("int2", False)):
        ratio = lab.mean_se([over_the_law(w, name) for w in tensors])
        assert (judge("half-a-step-error", *ratio) == claims.HOLDS) is holds


@pytest.mark.parametrize("columns", [256, 200])
def test_a_remainder_needs_a_ruler_too(columns):
    packed = pack_tensor(normal(0, (32, columns)), codec("uint4"))
    bits = 8 * packed.nbytes / packed.shape.numel()
    name = "packed-bits-a-weight"
    assert judge(name, bits / (4 + 64 * -(-columns // 64) / columns)) == claims.HOLDS
    divided = judge(name, bits / (4 + 64 / 64))  # as if 64 went into every row
    assert (divided == claims.HOLDS) is (columns == 256)
    assert judge(name, bits / (4 + 32 / 64)) == claims.NOT_SEEN  # zeros are numbers


def test_equal_weights_gain_nothing_from_groups():
    """Signs of one size: the largest of a row is the largest of every group."""
    signs = [0.1 * (1 + 0.3 * normal(k).sign()) for k in range(5)]
    pair = ("int4", 0), ("int4", 64)
    assert judge("groups-on-real-weights", *gain(signs, *pair)) != claims.SAME
    real = [*lab.smollm2_rows().embedding.chunk(5)]
    assert judge("groups-on-real-weights", *gain(real, *pair)) == claims.SAME


def test_uniform_weights_prefer_even_marks():
    pair = ("int4", 64), ("nf4", 64)
    name = "nf4-on-real-weights"
    normals = [normal(k) for k in range(5)]
    uniform = [torch.special.ndtr(w) - 0.5 for w in normals]
    assert judge(name, *gain(normals, *pair)) == claims.SAME
    assert judge(name, *gain(uniform, *pair)) == claims.OPPOSITE


def test_weights_of_all_sizes_prefer_floating_marks():
    pair = ("e4m3", 64), ("int8", 64)
    name = "int8-against-e4m3"
    normals = [normal(k) for k in range(5)]
    spread = [w * (2.5 * normal(k + 9)).exp() for k, w in enumerate(normals)]
    assert judge(name, *gain(normals, *pair)) == claims.SAME

    def worst(w, kind):  # relative error of each weight: what sizes far apart ask for
        back = values(pack_tensor(w, codec(kind, group=64)))
        return float(((back - w) / w).abs().median())

    ratios = [worst(w, "e4m3") / worst(w, "int8") for w in spread]
    found = lab.mean_se([20 * math.log10(x) for x in ratios])
    assert judge(name, *found) == claims.OPPOSITE


def test_nearest_is_wrong_for_each_number():
    draws = 20_000
    x = torch.linspace(-3.3, 3.4, 15).double()
    u = noise.uniform32(noise.stream(1, 2), torch.arange(15 * draws)) / 2**32
    se = ((x - x.floor()) * (x.ceil() - x) / draws).sqrt()
    sr = x.floor() + (u.view(-1, 15).double() < x - x.floor())
    name = "each-rounding-is-right-on-average"
    for way, holds in ((sr, True), (x.round().expand(draws, 15), False)):
        off = ((way.mean(0) - x) / se).abs().max()
        assert (judge(name, float(off)) == claims.HOLDS) is holds


def test_sixteen_random_bits_go_too_far_and_nearest_nowhere():
    g, count, size = torch.Generator().manual_seed(1), 20_000, 1e-5
    k = torch.zeros(3, count).double()
    for _ in range(1000):
        u = torch.randint(2**32, (count,), generator=g).double() / 2**32
        k += size
        up = torch.stack([u, (u * 2**16).floor() / 2**16]) < k[1:] - k[1:].floor()
        k = torch.cat([k[:1].round(), k[1:].floor() + up])
    found = []
    for way in k / (1000 * size):
        se = float(way.std()) / count**0.5
        found.append(judge("tiny-steps-add-up", float(way.mean()), se) == claims.HOLDS)
    assert found == [False, True, False]


def test_errors_that_agree_are_no_curvature():
    """Errors all along the gradient are felt in first order: loss goes as the error."""
    model = zolab.load_model("tiny")[0]
    ids = torch.arange(48).view(2, 24) * 7 % 4096
    name = "loss-follows-the-square-of-the-error"
    loss = lambda: model(ids, labels=ids).loss  # noqa: E731
    matrices = [p for p in model.parameters() if p.ndim == 2]
    slopes = torch.autograd.grad(loss(), matrices)
    start = [p.detach().clone() for p in matrices]

    @torch.no_grad()
    def more(errors, times):
        found = []
        for sign in (1, -1) if errors is not slopes else (1,):
            for p, w, e in zip(matrices, start, errors, strict=True):
                p.data = w + sign * times * e
            found.append(float(loss()))
        for p, w in zip(matrices, start, strict=True):
            p.data = w
        return sum(found) / len(found) - float(loss())

    rounding = [values(pack_tensor(w, codec("int4"))) - w for w in start]
    for errors, size, holds in ((rounding, 1.0, True), (slopes, 1e-3, False)):
        power = math.log2(more(errors, 2 * size) / more(errors, size))
        assert (judge(name, power) == claims.SAME) is holds, power
