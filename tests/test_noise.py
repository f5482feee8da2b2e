"""Law 1: directions are pure functions, with the moments that they promise."""

import json
import math
import zlib
from pathlib import Path

import pytest
import torch

from zolab.noise import (
    FAMILIES,
    FLIP,
    GOLDEN,
    MASK,
    MUL1,
    MUL2,
    direction,
    make_key,
    mix64,
    slot_id,
    stream,
    uniform_bits,
)

GOLDEN_FILE = Path(__file__).parent / "golden" / "directions.json"
N = 1 << 18
SLOTS = ("model.layers.0.q_proj.weight", "model.layers.1.q_proj.weight", "lm_head")


def by_hand(key: int, name: str, element: int, family: str) -> float:
    """The recipe once more, one element at a time, in Python's own integers."""

    def mix(x: int) -> int:
        x = ((x ^ x >> 30) * MUL1) & MASK
        x = ((x ^ x >> 27) * MUL2) & MASK
        return x ^ x >> 31

    k = mix(key ^ slot_id(name))
    j = element // 64 if family == "rademacher" else element
    h = mix(mix((k + j * GOLDEN) & MASK) ^ mix(k ^ FLIP))
    if family == "rademacher":
        return 1.0 if h >> element % 64 & 1 else -1.0
    return (h.bit_count() - 32) / 4


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("start", [0, 1, 63, 64, 1000, 2**31 - 70, 2**33 + 5])
def test_torch_equals_the_recipe_by_hand(family, start):
    z = direction(make_key(3, 1, 4), "w", 150, family=family, start=start)
    want = [by_hand(make_key(3, 1, 4), "w", start + i, family) for i in range(150)]
    assert z.tolist() == want


@pytest.mark.parametrize("case", json.loads(GOLDEN_FILE.read_text())["directions"])
def test_golden_file(case):
    key = make_key(*case["seed_step_query"])
    assert f"{key:016x}" == case["key"]
    assert f"{slot_id(case['slot']):016x}" == case["id"]
    z = direction(key, case["slot"], 4096, family=case["family"], start=case["start"])
    assert z[:8].tolist() == case["first"]
    assert zlib.crc32(z.numpy().tobytes()) == case["crc32"]


def test_golden_rounding_bits():
    case = json.loads(GOLDEN_FILE.read_text())["rounding"]
    s = stream(make_key(*case["seed_step_query"]), slot_id(case["slot"]))
    assert uniform_bits(s, torch.arange(8)).tolist() == case["first"]


@pytest.mark.parametrize("family", FAMILIES)
def test_any_slice_in_any_order(family):
    whole = direction(9, "w", (37, 53), family=family)
    flat = whole.flatten()
    assert torch.equal(direction(9, "w", 1961, family=family), flat)
    for a, b in [(0, 1), (63, 65), (100, 1961), (1960, 1961)]:
        part = direction(9, "w", b - a, family=family, start=a)
        assert torch.equal(part, flat[a:b])


def test_no_global_generator_is_read_or_advanced():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    a = direction(1, "w", 100)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(1)
    assert torch.equal(a, direction(1, "w", 100))


def test_unknown_family():
    with pytest.raises(ValueError, match="'gauss', expected one of"):
        direction(1, "w", 3, family="gauss")


# Statistics. Each check takes draw(key, slot, n) so that a broken draw can be shown
# to fail it; 5 standard errors, fixed keys, so a run never fails by chance.


def check_moments(draw, kurtosis):
    for key in (make_key(0, 0), make_key(0, 1), make_key(7, 123456)):
        z = draw(key, SLOTS[0], N).double()
        assert abs(z.mean()) < 5 / math.sqrt(N)
        spread = math.sqrt(max(kurtosis - 1, 1e-12) / N)
        assert abs(z.square().mean() - 1) <= 5 * spread
        assert abs(z.pow(4).mean() - kurtosis) < 0.05
        assert abs(z.pow(3).mean()) < 5 * math.sqrt(15 / N)


def check_independent(draw):
    """Keys that differ in step or query, slots, and neighbours are uncorrelated."""
    keys = [make_key(0, 0, 0), make_key(0, 0, 1), make_key(0, 1, 0), make_key(1, 0, 0)]
    zs = [draw(k, s, N).double() for k in keys for s in SLOTS]
    gram = torch.stack(zs) @ torch.stack(zs).T / N
    off = gram - torch.diag(gram.diag())
    assert off.abs().max() < 5 / math.sqrt(N), "two streams are correlated"
    for lag in (1, 2, 32, 63, 64, 65, 128, 4096):
        for z in zs[:3]:
            r = (z[:-lag] * z[lag:]).mean().abs()
            assert r < 5 / math.sqrt(N), f"neighbours {lag} apart are correlated"


@pytest.mark.parametrize(
    ("family", "kurtosis"), [("rademacher", 1), ("near_normal", 2.97)]
)
def test_moments_and_independence(family, kurtosis):
    def draw(key, slot, n):
        return direction(key, slot, n, family=family)

    check_moments(draw, kurtosis)
    check_independent(draw)


def test_near_normal_has_a_normal_histogram():
    """Against the binomial law it promises: chi-squared over its 1/4 steps."""
    z = direction(make_key(5, 5), "w", N, family="near_normal")
    ones = (z * 4 + 32).long()
    p = torch.tensor([math.comb(64, k) / 2**64 for k in range(65)], dtype=torch.float64)
    seen = torch.bincount(ones, minlength=65).double()
    big = p * N > 10
    chi2 = ((seen - p * N).square() / (p * N))[big].sum()
    dof = int(big.sum()) - 1
    assert chi2 < dof + 5 * math.sqrt(2 * dof)


def one_seed_for_every_layer(key, slot, n):
    return direction(key, "the same name", n)


def one_seed_for_every_query(key, slot, n):
    return direction(make_key(0, 0), slot, n)


def stuck_bit(key, slot, n):
    z = direction(key, slot, n)
    z[5::64] = z[4::64]
    return z


@pytest.mark.parametrize(
    "bug", [one_seed_for_every_layer, one_seed_for_every_query, stuck_bit]
)
def test_the_statistics_see_published_bugs(bug):
    """es-at-scale #46 gave every layer the same noise; the checks must notice."""
    with pytest.raises(AssertionError, match="correlated"):
        check_independent(bug)


def test_every_bit_of_a_key_matters():
    """Avalanche: flipping one input bit flips half of the output bits."""
    flips = [
        (mix64(x) ^ mix64(x ^ 1 << b)).bit_count()
        for x in (1, 12345, MASK // 3)
        for b in range(64)
    ]
    assert 28 < sum(flips) / len(flips) < 36
    assert min(flips) > 10
