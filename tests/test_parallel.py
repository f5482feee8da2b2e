"""W processes are one: equal bits, numbers only, and nobody waits for a dead one."""

import os
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from zolab.coordinates import Coordinates
from zolab.engines import Parallel, Resident, Reuse, forked
from zolab.errors import NonFiniteLossError, WorkerError
from zolab.estimators import CGE, SPSA, ForwardGradient
from zolab.optimizers.front import ZOOptimizer
from zolab.space import Space
from zolab.tasks import load_digits

DATA = load_digits(train=64).train

pytestmark = pytest.mark.skipif(sys.platform == "darwin", reason="no safe fork")


@pytest.fixture(autouse=True)
def one_thread():
    if torch.cuda.is_initialized():
        pytest.skip("CUDA does not survive a fork")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(72, 3), nn.Linear(3, 10)
    )


def loss(model, b):
    return F.cross_entropy(model(b.x), b.y)


def train(engine, make=lambda s: CGE(Coordinates.of(s, 0.3)), steps=3, **options):
    """(weights, losses of the last step) of a few steps on digits."""
    model = net()
    opt = ZOOptimizer(
        model, estimator=make(Space.of(model)), engine=engine, lr=0.1, **options
    )
    for step in range(steps):
        opt.step(partial(loss, model, DATA.batch(step, 16)))
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    return weights, opt.last.losses, getattr(engine, "exchanged", 0)


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("inner", [Resident, Reuse])
def test_any_number_of_processes_has_the_bits_of_one(workers, inner):
    right, losses, _ = train(Resident())
    for found, said, sent in forked(lambda rank: train(Parallel(inner())), workers):
        assert torch.equal(found, right) and said == losses
        # A number a probe and two for the head, each of 3 steps; two at the start.
        assert sent == 8 * (3 * (2 - (-len(losses) // workers)) + 2)


def test_estimators_that_ask_less_than_there_are_processes():
    for make in (lambda s: SPSA(), lambda s: ForwardGradient()):
        right, losses, _ = train(Resident(), make)
        work = partial(lambda make, rank: train(Parallel(), make), make)
        for found, said, _ in forked(work, 3):
            assert torch.equal(found, right) and said == losses


def test_a_journal_in_one_process_is_the_run(tmp_path):
    def work(rank):
        journal = tmp_path / "run.log" if rank == 0 else None
        return train(Parallel(), journal=journal)

    weights = forked(work, 2)[1][0]
    model = net()
    family = Coordinates.of(Space.of(model), 0.3)
    opt = ZOOptimizer(
        model, estimator=CGE(family), lr=0.1, journal=tmp_path / "run.log"
    )
    assert opt.steps == 3
    found = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert torch.equal(found, weights)


def test_sums_in_another_order_would_not_do():
    """The control: the same numbers, taken process by process as they arrive."""
    right, losses, _ = train(Resident(), steps=1)

    class Late(Parallel):
        def evaluate(self, probes, objectives):
            answers = super().evaluate(probes, objectives)
            return answers[::2] + answers[1::2]  # by process, not by probe

    found, said, _ = forked(lambda rank: train(Late(), steps=1), 2)[0]
    assert sorted(said) == sorted(losses) and not torch.equal(found, right)


def test_what_one_process_raises_all_hear():
    def work(rank):
        model = net()
        opt = ZOOptimizer(model, estimator=SPSA(), engine=Parallel(), lr=0.1)
        before = Space.of(model).digest()
        try:
            opt.step(lambda: 1 / 0 if rank == 1 else loss(model, DATA))
        except (WorkerError, ZeroDivisionError) as error:
            return type(error).__name__, str(error), before == Space.of(model).digest()

    said = forked(work, 3)
    assert [x[0] for x in said] == ["WorkerError", "ZeroDivisionError", "WorkerError"]
    assert "process 1 raised" in said[0][1] and all(x[2] for x in said)


def test_a_loss_that_is_not_finite_is_refused_by_all():
    def work(rank):
        model = net()
        opt = ZOOptimizer(model, estimator=SPSA(), engine=Parallel(), lr=0.1)
        with pytest.raises(NonFiniteLossError):
            opt.step(lambda: loss(model, DATA) / (rank if rank else float("nan")))
        return opt.steps

    assert forked(work, 2) == [1, 1]


def test_other_weights_and_other_probes_are_found_out():
    def other_base(rank):
        model = net()
        model[0].bias.data += rank
        ZOOptimizer(model, estimator=SPSA(), engine=Parallel())

    with pytest.raises(WorkerError, match="process 1 has other base weights"):
        forked(other_base, 2)

    def other_eps(rank):
        model = net()
        e = SPSA(eps=0.1 * (1 + rank))
        ZOOptimizer(model, estimator=e, engine=Parallel()).step(
            partial(loss, model, DATA)
        )

    with pytest.raises(WorkerError, match="process 1 has other probes"):
        forked(other_eps, 2)


def test_a_killed_process_and_a_missing_group_are_errors():
    with pytest.raises(WorkerError, match="no process group"):
        ZOOptimizer(net(), estimator=SPSA(), engine=Parallel())
    with pytest.raises(WorkerError, match="without a word"):
        forked(lambda rank: os._exit(9), 2)
    with pytest.raises(WorkerError, match="ZeroDivisionError"):
        forked(lambda rank: 1 // rank, 2)
    with pytest.raises(WorkerError, match="nothing for 0.5 s"):
        forked(lambda rank: __import__("time").sleep(30), 1, timeout=0.5)
    with pytest.raises(WorkerError, match="at least 1"):
        forked(print, 0)
