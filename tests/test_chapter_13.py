"""Chapter 13: its claims' controls fail, and the machinery that it leans on works."""

import time

import pytest
import torch
from helpers import bits, closure, mlp, same_bits

import zolab
from zolab import direction, lab, make_key
from zolab.engines.inplace import PublishedMeZO
from zolab.gradient import round16, round32
from zolab.lab import claims, exercises
from zolab.lab.figures import canvas

STEPS = 20

pytestmark = pytest.mark.usefixtures("one_thread")


def judge(name: str, measured: float) -> str:
    return claims.ledger()[name].judge(measured)


@pytest.fixture
def run(tmp_path):
    """(model, header, records) of a run whose lr falls, with weight decay."""
    model = mlp()
    groups = [{"params": list(model.parameters())}]
    path = tmp_path / "run"
    opt = zolab.MeZO(model, weight_decay=0.1, journal=path, param_groups=groups)
    for k in range(STEPS):
        opt.param_groups[0]["lr"] = 1e-2 * (1 - k / 40)
        opt.step(closure(model))
    opt.journal.close()
    return model, opt.journal.header, opt.journal.records, path


def forged(path, header, rows) -> torch.nn.Module:
    """The model that a log of these rows rebuilds."""
    with zolab.Journal(path, header) as j:
        for step, lr, g in rows:
            j.append(step, [lr], [g])
    model = mlp()
    zolab.replay(model, path)
    return model


def count(a, b) -> int:
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return sum(int((x != y).sum()) for x, y in pairs)


def test_a_log_with_another_lr_or_order_is_another_run(run, tmp_path):
    model, header, records, _ = run
    rows = [(r.step, r.lr[0], r.coefficients[0]) for r in records]
    as_logged = forged(tmp_path / "same", header, rows)
    assert judge("log-is-the-run", count(as_logged, model)) == claims.HOLDS
    now = [(s, rows[-1][1], g) for s, _, g in rows]
    steady = header | {"weight_decay": [0.0]}
    others = [(header, now), (header, rows[::-1]), (header, rows[1:]), (steady, rows)]
    for i, (h, wrong) in enumerate(others):
        other = forged(tmp_path / str(i), h, wrong)
        assert judge("log-is-the-run", count(other, model)) == claims.NOT_SEEN


def test_the_perturbations_belong_to_the_published_log():
    model, log = mlp(), []
    opt = PublishedMeZO(model, lr=1e-2, eps=1e-3, weight_decay=0.1, seed=3)
    for _ in range(STEPS):
        opt.step(closure(model))
        log.append((opt.step_seed, opt.projected_grad))

    def share(log, **options) -> float:
        m = mlp()
        again = PublishedMeZO(m, lr=1e-2, eps=1e-3, weight_decay=0.1)
        again.replay(log, **options)
        return 1 - count(m, model) / sum(p.numel() for p in m.parameters())

    name = "published-log-to-the-bit"
    assert judge(name, share(log)) == claims.HOLDS
    assert judge(name, share(log, probes=())) == claims.NOT_SEEN
    short = [(s, torch.tensor(g).half().item()) for s, g in log]
    assert judge(name, share(short)) == claims.NOT_SEEN
    assert judge(name, share([(s + 1, g) for s, g in log])) == claims.NOT_SEEN


def test_two_bytes_a_step_would_fit():
    name = "log-below-a-tenth-of-a-megabyte"
    assert claims.ledger()[name].distance != "none"
    assert judge(name, (4 + 2 * 20_000) / 1e6) == claims.SAME
    assert judge(name, 16 * 20_000 / 1e6) == claims.OPPOSITE


def test_a_thousand_queries_a_step_outgrow_an_adapter(tmp_path):
    header = {"groups": 1, "queries": 1000}
    with zolab.Journal(tmp_path / "a", header) as j:
        j.append(0, [1.0], [0.5] * 1000)
        a_step = j.end - j.start
    assert judge("log-below-an-adapter", 20_000 * a_step / 38e6) == claims.OPPOSITE


def share_summed_first(w: torch.Tensor, scales: list[float]) -> float:
    one, total = w, torch.zeros_like(w)
    for k, c in enumerate(scales):
        push = c * direction(make_key(0, k), "w", w.shape)
        one, total = one + push, total + push
    return float((one != w + total).float().mean())


def test_terms_on_a_coarse_grid_may_be_summed_first():
    name = "sum-first-differs"
    w = mlp()[1].weight.detach()
    ours = share_summed_first(w, [1e-3 * (k + 1) / 3 for k in range(40)])
    assert judge(name, ours) == claims.SAME
    # weights and pushes on one grid: every sum is exact, in any order
    w = torch.arange(-32, 32) * 2.0**-30
    exact = share_summed_first(w, [k * 2.0**-30 for k in range(40)])
    assert exact == 0 and judge(name, exact) == claims.NOT_SEEN


def test_running_the_steps_again_is_no_replay(run):
    model = run[0]
    loss, seconds = closure(model), []
    opt = zolab.MeZO(model, lr=1e-3)
    for _ in range(2):
        began = time.perf_counter()
        for _ in range(STEPS):
            opt.step(loss)
        seconds.append(time.perf_counter() - began)
    again = seconds[1] / seconds[0]
    assert judge("replay-without-forwards", again) == claims.OPPOSITE


# what the chapter leans on


def test_a_replay_asks_nothing(run):
    """No forward pass: a model whose forward fails is rebuilt all the same."""

    class Mute(torch.nn.Sequential):
        def forward(self, *_):
            raise AssertionError("asked")

    model = Mute(*mlp())
    assert zolab.replay(model, run[3]) == STEPS
    assert same_bits(model, run[0])


def test_the_published_replay_ends_where_its_log_does():
    model = mlp()
    before = bits(model)
    PublishedMeZO(model).replay([])
    assert all(torch.equal(a, b) for a, b in zip(bits(model), before, strict=True))


@pytest.mark.parametrize("student", ["", "ada", "emmy", "grace", "sofya"])
def test_an_answer_that_rounds_as_equation_1_is_right(student):
    def rounded(w, records, wd):
        for z, lr, g in records:
            w = round32(round32(round32(1 - lr * wd) * w) + round16(-lr * g) * z)
        return w

    assert exercises.judge("13.decay", rounded, student)[0] == "right"


def test_bars_stand_in_order_with_their_notes():
    pytest.importorskip("matplotlib")
    with canvas("two bars, the first one on top", "", 300, 200) as (ax, image):
        for part in range(2):
            lab.bars(ax, {"a": 1, "b": 10}, ["x", "y"], style=part, part=part, parts=2)
        tops = [p.get_y() for p in ax.patches]
        low, high = ax.get_ylim()
        notes = [t.get_text() for t in ax.texts]
    assert low > high and tops[0] < tops[2] < tops[1] < tops[3]
    assert notes == ["x", "y", "x", "y"] and image
