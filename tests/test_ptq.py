"""Post-training baselines: each does what it claims to do better than the nearest."""

import pytest
import torch
from torch import nn

import zolab
from zolab.bench.gptq import GPTQ
from zolab.quantized import clip_search
from zolab.quantized.clip import searched
from zolab.quantized.convert import unsigned
from zolab.quantized.fake import FakeLinear
from zolab.quantized.hqq import hqq
from zolab.storage.codecs import codec
from zolab.storage.packed import pack_tensor, values


def weight(*shape, seed=0, tail=True):
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(shape, generator=g)
    return w * (1 + 3 * (torch.rand(shape, generator=g) < 0.02)) if tail else w


def off(packed, w, p=2.0):
    return float((values(packed) - w).abs().pow(p).sum())


@pytest.mark.parametrize("kind", ("uint2", "uint4", "int2", "int4", "nf4"))
@pytest.mark.parametrize("group", (0, 16, 24))
def test_clip_search_errs_less_in_each_group(kind, group):
    """Never more than the nearest (its share 1 is in the grid); also in a remainder."""
    w, c = weight(6, 64), codec(kind, group=group)
    best, high, low = searched(w, c)
    found, plain = (
        (values(p) - w).square().view(6, 64) for p in (best, pack_tensor(w, c))
    )
    size = group or 64
    for a in range(0, 64, size):
        mine, theirs = (x[:, a : a + size].sum(1) for x in (found, plain))
        assert bool((mine <= theirs * 1.00001).all())
    assert float(found.sum()) < 0.99 * float(plain.sum())
    assert bool((high <= 1).all()) and bool((low >= 5 / 16).all())


def test_clip_search_finds_the_best_of_its_grid():
    """Against every pair of shares tried by hand through the fake linear's formula."""
    w, c = weight(1, 16, seed=3), unsigned(2, 16)
    grid = (1.0, 0.75, 0.5)
    _, high, low = searched(w, c, grid)
    f = FakeLinear(nn.Linear(16, 1), c, transform=False)
    errors = {}
    for a in grid:
        for b in grid:
            f.gamma_high.data[:], f.gamma_low.data[:] = (
                torch.logit(torch.tensor(x)) for x in (a, b)
            )
            errors[a, b] = float((f.rounded(w).detach() - w).square().sum())
    assert (float(high), float(low)) == min(errors, key=errors.get)


def test_fake_linears_start_from_the_search():
    linear = nn.Linear(64, 6)
    linear.weight.data = weight(6, 64)
    f = FakeLinear(linear, unsigned(2, 16), clip="search")
    want = values(clip_search("", linear.weight, unsigned(2, 16)))
    same = ((f.rounded(linear.weight) - want).abs() < 0.02).float().mean()
    assert float(same) > 0.97  # a share of 1 is kept to 0.999: no finite logit


def calibrated(seed=0):
    """A linear, and inputs with correlated channels."""
    model = nn.Sequential(nn.Linear(64, 12))
    model[0].weight.data = weight(12, 64, seed=seed, tail=False)
    g = torch.Generator().manual_seed(seed + 1)
    mix = torch.randn(64, 64, generator=g) / 8 + torch.eye(64)
    x = torch.randn(400, 64, generator=g) @ mix * torch.linspace(0.2, 2, 64)
    return model, x


@pytest.mark.parametrize("kind", ("uint2", "uint4", "int4"))
@pytest.mark.parametrize("clip", (False, True))
def test_gptq_changes_the_output_less(kind, clip):
    model, x = calibrated()
    w, c = model[0].weight.detach(), codec(kind, group=16)
    by = GPTQ(model, lambda: model(x), clip=clip)
    plain = clip_search("", w, c) if clip else pack_tensor(w, c)
    mine, theirs = (
        float((x @ (values(p) - w).T).square().sum())
        for p in (by("0.weight", w, c), plain)
    )
    assert mine < 0.9 * theirs


def test_gptq_of_white_inputs_is_the_nearest():
    """Where H is a multiple of I nothing is spread: it is rounding to nearest."""
    model, _ = calibrated()
    w, c = model[0].weight.detach(), codec("uint4", group=16)
    by = GPTQ(model, lambda: model(torch.eye(64)))
    assert torch.equal(values(by("0.weight", w, c)), values(pack_tensor(w, c)))


def test_gptq_column_by_hand():
    """Two columns: the second takes what the first one's rounding left."""
    model = nn.Sequential(nn.Linear(2, 1, bias=False))
    w = torch.tensor([[0.4, 1.0]])
    x = torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, 0.0]])
    model[0].weight.data = w
    by = GPTQ(model, lambda: model(x), damp=1e-9)
    h = 2 * x.T.double() @ x.double()
    inverse = torch.linalg.inv(h)
    c = codec("int2", group=0)  # levels -1, 0, 1; scale 1
    packed = by("0.weight", w, c)
    assert values(packed)[0, 0] == 0.0
    moved = 1.0 - 0.4 * inverse[0, 1] / inverse[0, 0]
    assert values(packed)[0, 1] == 1.0 and float(moved) > 1


def test_hqq_is_the_package():
    """Its own dequantisation, and less error in the norm that it minimises."""
    package = pytest.importorskip("hqq.core.quantize")
    w = weight(8, 64)
    for bits in (2, 3, 4, 8):
        c = unsigned(bits, 16)
        mine = hqq("w", w, c)
        code, found = package.Quantizer.quantize(
            w, nbits=bits, group_size=16, axis=1, bitpack=False, device="cpu",
            compute_dtype=torch.float32,
        )  # fmt: skip
        found["compute_dtype"] = torch.float32
        theirs = package.Quantizer.dequantize(code, found)
        torch.testing.assert_close(values(mine), theirs, atol=1e-5, rtol=1e-5)
    c = unsigned(2, 16)
    assert off(hqq("w", w, c), w, 0.7) < off(pack_tensor(w, c), w, 0.7)
    with pytest.raises(ValueError, match="no whole groups of 24"):
        hqq("w", w, unsigned(2, 24))
    with pytest.raises(ValueError, match="int4 has none"):
        hqq("w", w, codec("int4"))


@pytest.mark.parametrize("by", ("clip", "gptq", "hqq"))
def test_a_language_model_packed_by_each(by):
    model, _ = zolab.load_model("tiny")
    ids = torch.arange(64).view(2, 32) * 7 % 4096
    if by == "hqq":
        pytest.importorskip("hqq")
    how = {
        "clip": clip_search,
        "hqq": hqq,
        "gptq": GPTQ(model, lambda: model(ids)) if by == "gptq" else None,
    }[by]
    zolab.pack(model, "uint4", skip=["*embed*", "lm_head*"], by=how)
    assert len(zolab.packed_weights(model)) == 28
    assert bool(torch.isfinite(model(ids).logits).all())
