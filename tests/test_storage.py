"""The kernels equal the reference bit for bit, and rounding keeps small updates."""

import itertools

import pytest
import torch
from torch import nn

from zolab import storage
from zolab.gradient import Direction, Update, round16, round32
from zolab.noise import FAMILIES, direction, make_key, slot_id
from zolab.space import Slot, Space
from zolab.storage import plain

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1,), (63,), (64,), (129,), (37, 53), (300, 511), (5, 7, 11)]


def slot_of(shape, dtype, scale=0.02, seed=0):
    torch.manual_seed(seed)
    p = nn.Parameter((torch.randn(shape) * scale).to(dtype))
    return Slot("w", slot_id("w"), (p,))


def terms(n, family="rademacher", scale=1e-3):
    return tuple(
        (Direction(make_key(0, i), family), round16(scale * (i + 1))) for i in range(n)
    )


def on_both(monkeypatch, run):
    """run() with the fast kernels and with the reference."""
    fast = run()
    monkeypatch.setenv("ZOLAB_KERNELS", "plain")
    reference = run()
    monkeypatch.delenv("ZOLAB_KERNELS")
    return fast, reference


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("count", [0, 1, 3])
def test_materialise_equals_reference(monkeypatch, dtype, family, count):
    for shape, out in itertools.product(SHAPES, {dtype, torch.float32}):
        s = slot_of(shape, dtype)
        for start, n in {(0, s.numel), (s.numel // 3, s.numel - s.numel // 3)}:

            def run(s=s, start=start, n=n, out=out):
                buffer = torch.empty(n, dtype=out)
                return storage.materialise(s, terms(count, family), buffer, start=start)

            fast, reference = on_both(monkeypatch, run)
            assert torch.equal(fast, reference), (shape, start)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_materialise_is_base_plus_scale_times_z(dtype, family):
    s = slot_of((37, 53), dtype)
    want = s.base.float()
    for d, scale in terms(2, family):
        want = want + scale * direction(d.key, "w", (37, 53), family=family)
    got = storage.materialise(s, terms(2, family), torch.empty_like(s.base))
    assert torch.equal(got, want.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_rows_of_the_whole(monkeypatch, dtype, family):
    s = slot_of((37, 53), dtype)
    index = torch.tensor([36, 0, 5, 5, 1])
    whole = storage.materialise(s, terms(2, family), torch.empty_like(s.base))

    def run():
        out = torch.empty(5, 53, dtype=dtype)
        return storage.rows(s, terms(2, family), index, out)

    for got in on_both(monkeypatch, run):
        assert torch.equal(got, whole[index])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stochastic", [True, False])
def test_update_equals_reference_at_any_thread_count(monkeypatch, dtype, stochastic):
    updates = [
        (Update(terms(2), (0.3,), (round32(0.999),)), 7),
        (Update(terms(1, "near_normal"), (0.1,), (1.0,)), 8),
    ]

    def run(threads=1):
        s = slot_of((700, 511), dtype)
        torch.set_num_threads(threads)
        storage.update(s, updates, seed=5, stochastic=stochastic)
        return s.base

    before = torch.get_num_threads()
    try:
        fast, reference = on_both(monkeypatch, run)
        assert torch.equal(fast, reference)
        for threads in (2, 3):
            assert torch.equal(run(threads), reference)
    finally:
        torch.set_num_threads(before)


def test_updates_one_by_one_are_updates_at_once():
    updates = [(Update(terms(1), (0.1 * i,), (1.0,)), i) for i in range(5)]
    a, b = slot_of((300, 511), torch.bfloat16), slot_of((300, 511), torch.bfloat16)
    storage.update(a, updates, seed=1, stochastic=True)
    for u in updates:
        storage.update(b, [u], seed=1, stochastic=True)
    assert torch.equal(a.base, b.base)


def test_every_step_rounds_with_its_own_bits():
    moved = []
    for step in (1, 2):
        s = slot_of((300, 511), torch.bfloat16)
        u = Update(terms(1), (1e-3,), (1.0,))
        storage.update(s, [(u, step)], seed=1, stochastic=True)
        moved.append(s.base.clone())
    assert not torch.equal(*moved)


def test_log_order_matters_and_is_kept():
    """Summing pending terms first is another arithmetic: it must not be ours."""
    s = slot_of((300, 511), torch.float32)
    first, second = terms(2, "near_normal", scale=round16(1 / 3))
    want = s.base.clone()
    for d, scale in (first, second):
        want = want + scale * s.direction(d)
    pending = first[1] * s.direction(first[0]) + second[1] * s.direction(second[0])
    got = storage.materialise(s, (first, second), torch.empty_like(s.base))
    assert torch.equal(got, want)
    assert (got != s.base + pending).float().mean() > 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1e-7, 1e-6, 1e-5, 1e-4])
def test_stochastic_rounding_realises_small_updates(dtype, size):
    """Law 6: nearest rounding loses a 1e-6 update, random rounding keeps its mean."""
    c = round16(size)
    step = Update(((Direction(make_key(0, 0)), 1.0),), (c,), (1.0,))
    share = {}
    for stochastic in (True, False):
        s = slot_of((1000, 1000), dtype)
        before, z = s.base.double(), s.direction(step.terms[0][0]).double()
        storage.update(s, [(step, 3)], seed=0, stochastic=stochastic)
        share[stochastic] = float(((s.base.double() - before) * -z).mean() / c)
    # sd of one rounding is below half a step, 2^-9 or 2^-12 of a weight near 0.03
    noise = (0.03 * 2.0 ** (-8 if dtype == torch.bfloat16 else -11)) / 2 / 1e3 / c
    assert abs(share[True] - 1) < max(5 * noise, 0.01)
    if size <= 1e-6:
        assert share[False] < 0.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stochastic_rounding_is_unbiased_and_picks_a_neighbour(dtype):
    values = torch.tensor([0.1, -0.3, 1.0, 3e-6, -4e-7, 5e-5, -7.77, 0.0])
    bits = torch.arange(65536)
    for v in values:
        w = v.expand(65536).clone()
        out = plain.stochastic_round(w, bits, dtype).double()
        assert len(out.unique()) <= 2
        gap = (out.max() - out.min()).item()
        assert abs(out.mean() - v.double()) <= max(gap * 2**-12, 1e-12), v
    exact = values.to(dtype).float()
    assert torch.equal(plain.stochastic_round(exact, bits[:8], dtype).float(), exact)


def test_nan_and_infinity_stay():
    w = torch.tensor([float("nan"), float("inf"), -float("inf")])
    for dtype in (torch.bfloat16, torch.float16):
        out = plain.stochastic_round(w, torch.full((3,), 65535), dtype).float()
        assert out[0].isnan() and out[1:].tolist() == w[1:].tolist()


def test_scales_are_exact_products():
    """16 significant bits times z fit fp32, so a fused multiply-add changes nothing."""
    z = direction(1, "w", 4096, family="near_normal").double()
    for x in (1e-3, 1 / 3, 7.123e-9, 12345.678):
        s = round16(x)
        assert abs(s / x - 1) < 2**-16
        assert torch.equal((s * z).float().double(), s * z)
    assert round16(0.0) == 0.0


def test_space_digest_sees_one_bit():
    m = nn.Linear(8, 8)
    before = Space.of(m).digest()
    m.weight.data.view(torch.int32)[3, 3] ^= 1
    assert Space.of(m).digest() != before
