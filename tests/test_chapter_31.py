"""Chapter 31: its claims' controls fail. Sleeps stand for chip and link."""

import time

import pytest
import torch
from helpers import closure, mlp
from torch import nn

import zolab
from zolab.lab import claims
from zolab.lab.passes import Pass, passes
from zolab.storage.ram import Ram
from zolab.storage.throttled import Throttled

pytestmark = pytest.mark.usefixtures("one_thread")
LOAD, BLOCKS = 0.015, 4  # seconds a block, blocks


def judge(name: str, measured: float | None) -> str:
    return claims.ledger()[name].judge(measured)


class Slow(nn.Linear):
    """A block that takes `seconds` for a probe."""

    def forward(self, x):
        time.sleep(self.seconds)
        return torch.tanh(super().forward(x))


def made(compute: float, rate: float = 64 * 64 * 4 / LOAD, queries=1, **options):
    """(model, opt) whose blocks compute so long for two probes."""
    torch.manual_seed(0)
    model = nn.Sequential(*(Slow(64, 64, bias=False) for _ in range(BLOCKS)))
    for block in model:
        block.seconds = compute / 2
    engine = zolab.Streamed(store=Throttled(Ram(), rate=rate), **options)
    return model, zolab.MeZO(model, lr=1e-3, num_queries=queries, engine=engine)


def fastest(compute: float, **options) -> Pass:
    """The pass that a busy machine disturbed least."""
    model, opt = made(compute, **options)
    x = torch.ones(3, 64)
    opt.engine.window.spans = spans = []
    for _ in range(5):
        opt.step(lambda: model(x).square().mean())
    return min(passes(spans)[1:], key=lambda p: p.seconds)


def count(a, b) -> int:
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return sum(int((x != y).sum()) for x, y in pairs)


def run(engine, steps: int = 4, early: bool = False) -> nn.Module:
    """Steps with a falling lr; `early`: each takes the next one's."""
    model = mlp()
    opt = zolab.MeZO(model, lr=1e-2, engine=engine)
    for k in range(steps):
        opt.param_groups[0]["lr"] = 1e-2 * 0.5 ** (k + early)
        opt.step(closure(model))
    return model


def resident():
    return zolab.Resident(scratch="one")


def test_the_next_steps_lr_is_another_run():
    engine = zolab.Streamed()
    streamed = run(engine)
    assert judge("streamed-bits", count(streamed, run(resident()))) != claims.HOLDS
    engine.flush()
    assert judge("streamed-bits", count(streamed, run(resident()))) == claims.HOLDS
    wrong = run(resident(), early=True)
    assert judge("streamed-bits", count(streamed, wrong)) == claims.NOT_SEEN


def test_a_flushed_run_is_not_one_step_late():
    def trained(steps: int, flushed: bool) -> list[torch.Tensor]:
        model, opt = made(0.0, rate=1e12)
        for _ in range(steps):
            opt.step(lambda: model(torch.ones(3, 64)).square().mean())
        if flushed:
            opt.engine.flush()
        opt.engine.window.drain()
        return [opt.engine.store.home(b)[0].clone() for b in range(BLOCKS)]

    def away(a, b) -> int:
        return sum(int((x != y).sum()) for x, y in zip(a, b, strict=True))

    before = trained(3, flushed=True)
    assert judge("one-step-late", away(trained(4, False), before)) == claims.HOLDS
    assert judge("one-step-late", away(trained(4, True), before)) == claims.NOT_SEEN


@pytest.mark.parametrize(("together", "reads"), [(8, 1), (2, 4)])
def test_two_probes_a_pass_read_four_times(together, reads):
    model, opt = made(0.0, rate=1e12, queries=4, probes_per_pass=together)
    for _ in range(5):
        opt.step(lambda: model(torch.ones(3, 64)).square().mean())
    models = opt.engine.store.sent["up"] // (BLOCKS * 64 * 64 * 4)
    assert models / opt.steps == reads
    verdict = judge("one-read-for-all-probes", models / opt.steps)
    assert verdict == (claims.HOLDS if reads == 1 else claims.NOT_SEEN)


def test_one_slot_takes_the_sum():
    p = fastest(LOAD, slots=1)
    assert judge("overlap-hides-transfer", p.seconds / p.bound) == claims.OPPOSITE
    assert p.seconds > 0.9 * (p.computing + p.up)


def test_a_sum_has_another_threshold():
    flat, slope = fastest(0.0, slots=1), fastest(4 * LOAD, slots=1)
    measured = flat.seconds / (slope.seconds / 4)
    assert judge("threshold-in-tokens", measured) == claims.NOT_SEEN


def test_a_read_for_each_direction_moves_nothing():
    def step(compute: float, queries: int) -> float:
        model, opt = made(compute, queries=queries, probes_per_pass=2)
        seconds = []
        for _ in range(4):
            began = time.perf_counter()
            opt.step(lambda: model(torch.ones(3, 64)).square().mean())
            seconds.append(time.perf_counter() - began)
        return min(seconds[1:])

    bend = {q: step(0.0, q) / step(3 * LOAD, q) for q in (1, 4)}
    assert judge("probes-move-the-threshold", bend[1] / bend[4]) == claims.NOT_SEEN


def test_nothing_measured_is_no_verdict():
    assert judge("opt-175b-in-18-gb", None) == claims.UNTESTED
