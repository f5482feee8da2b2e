"""The front door: a step, its log, and the same bits from the log again."""

import copy

import pytest
import torch
from helpers import bits, closure, mlp, same_bits
from torch.optim.lr_scheduler import LinearLR

import zolab
from zolab.errors import (
    BaseChangedError,
    JournalError,
    LossError,
    NonFiniteLossError,
    ZolabError,
)
from zolab.gradient import round16, round32

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def train(model, steps=20, **kwargs):
    opt = zolab.MeZO(model, **({"lr": 1e-2, "eps": 1e-2} | kwargs))
    for _ in range(steps):
        opt.step(closure(model))
    return opt


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"num_queries": 3},
        {"weight_decay": 0.1},
        {"family": "near_normal"},
        {"rounding": "nearest"},
        {"fsync": True},
        {"seed": 2**40 + 1},
        {"engine": lambda: zolab.Resident(scratch="one")},
    ],
)
def test_the_log_determines_the_weights(tmp_path, dtype, kwargs):
    """Law 4a, resident: live = replayed = resumed in the middle = continued."""

    def settings():
        return {k: v() if callable(v) else v for k, v in kwargs.items()}

    base, path = mlp(dtype=dtype), tmp_path / "log"
    live = copy.deepcopy(base)
    train(live, 20, journal=path, **settings()).journal.close()
    assert not same_bits(live, base)

    replayed = copy.deepcopy(base)
    assert zolab.replay(replayed, path) == 20
    assert same_bits(replayed, live)

    half, parts = copy.deepcopy(base), tmp_path / "parts"
    train(half, 8, journal=parts, **settings()).journal.close()
    again = copy.deepcopy(base)
    opt = train(again, 12, journal=parts, **settings())
    assert opt.steps == 20 and same_bits(again, live)
    assert zolab.replay(copy.deepcopy(base), path, upto=8) == 8
    assert parts.read_bytes() == path.read_bytes()


def unlucky(other):
    """A number whose product with `other` rounds differently once stored as fp32."""
    for i in range(10**6):
        x = 1.0 + i / 999983
        if round16(x * other) != round16(round32(x) * round32(other)):
            return x
    raise AssertionError("no such number")


@pytest.mark.parametrize("which", ["lr", "loss"])
def test_live_steps_use_what_the_log_will_say(tmp_path, which):
    """The learning rate and the slope are rounded to fp32 before they are used."""
    lr, slope = (unlucky(3.0), 3.0) if which == "lr" else (3.0, unlucky(3.0))
    live, eps = mlp(), 0.5
    opt = zolab.MeZO(live, lr=lr, eps=eps, journal=tmp_path / "log")
    answers = [0.0, slope]
    opt.step(lambda: float(live(torch.arange(3)).sum()) * 0 + answers.pop())
    again = mlp()
    zolab.replay(again, tmp_path / "log")
    assert same_bits(again, live)


def test_replay_on_other_kernels_and_threads(tmp_path, monkeypatch):
    base = mlp(dtype=torch.bfloat16)
    live = copy.deepcopy(base)
    train(live, 10, journal=tmp_path / "log", num_queries=2, weight_decay=0.1)
    monkeypatch.setenv("ZOLAB_KERNELS", "plain")
    other = copy.deepcopy(base)
    zolab.replay(other, tmp_path / "log")
    assert same_bits(other, live)


@pytest.mark.parametrize("dtype", DTYPES)
def test_lr_zero_moves_no_bit(dtype):
    """Law 2: no perturb and restore, so nothing is left behind."""
    model = mlp(dtype=dtype)
    before = bits(model)
    train(model, 5, lr=0.0, num_queries=2)
    assert all(torch.equal(a, b) for a, b in zip(bits(model), before, strict=True))


def test_same_seed_same_run_other_seed_other_run():
    models = [mlp() for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        train(model, 5, seed=seed)
    assert same_bits(models[0], models[1]) and not same_bits(models[0], models[2])


def test_it_learns_and_reports():
    model = mlp()
    loss = closure(model)
    first = float(loss().detach())
    opt = zolab.MeZO(model, lr=2e-2, eps=1e-3)
    values = [opt.step(loss) for _ in range(300)]
    assert float(loss()) < 0.5 * first
    assert values[-1] == sum(opt.last.losses) / 2
    assert opt.last.seconds > 0 and len(opt.last.gradient.terms) == 1
    assert all(p.grad is None for p in model.parameters())


def test_the_scheduler_s_lr_is_in_the_log(tmp_path):
    base = mlp()
    live = copy.deepcopy(base)
    opt = zolab.MeZO(live, lr=1e-2, eps=1e-2, journal=tmp_path / "log")
    schedule = LinearLR(opt, 1.0, 0.0, total_iters=10)
    for _ in range(10):
        opt.step(closure(live))
        schedule.step()
    logged = [r.lr[0] for r in opt.journal.records]
    assert logged[0] == pytest.approx(1e-2) and logged[-1] == pytest.approx(1e-3)
    zolab.replay(base, tmp_path / "log")
    assert same_bits(base, live)


def test_groups_have_their_own_lr(tmp_path):
    model = mlp()
    before = copy.deepcopy(model)
    groups = [
        {"params": [model[0].weight], "lr": 0.0},
        {"params": [model[1].weight, model[3].weight]},
    ]
    train(model, 3, param_groups=groups, journal=tmp_path / "log")
    assert torch.equal(model[0].weight, before[0].weight)
    assert torch.equal(model[2].weight, before[2].weight), "in no group: does not move"
    assert not torch.equal(model[1].weight, before[1].weight)
    zolab.replay(before, tmp_path / "log")
    assert same_bits(before, model)


def test_decay_is_decoupled_and_spares_norms():
    model = mlp()
    before = copy.deepcopy(model)
    opt = zolab.MeZO(model, lr=0.1, eps=1e-3, weight_decay=0.5)
    opt.step(lambda: model(torch.arange(3)).sum() * 0.0)
    torch.testing.assert_close(model[1].weight, before[1].weight * 0.95)
    for kept in ("1.bias", "2.weight", "2.bias"):
        assert torch.equal(model.get_parameter(kept), before.get_parameter(kept))


def test_only_lr_may_change_in_a_run(tmp_path):
    model = mlp()
    opt = train(model, 2, journal=tmp_path / "log")
    opt.param_groups[0]["weight_decay"] = 0.5
    with pytest.raises(JournalError, match="only lr may change in a run"):
        opt.step(closure(model))
    with pytest.raises(ValueError, match="the groups are fixed"):
        opt.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))]})


def test_snapshot_starts_a_replay(tmp_path):
    base = mlp()
    live = copy.deepcopy(base)
    opt = train(live, 6, journal=tmp_path / "log")
    opt.snapshot()
    for _ in range(4):
        opt.step(closure(live))
    opt.journal.close()
    stranger = mlp(seed=99)
    assert zolab.replay(stranger, tmp_path / "log") == 10
    assert same_bits(stranger, live)
    early, want = copy.deepcopy(base), copy.deepcopy(base)
    zolab.replay(early, tmp_path / "log", upto=5)
    train(want, 5)
    assert same_bits(early, want)


def test_foreign_base_is_refused_and_left_alone(tmp_path):
    train(mlp(), 3, journal=tmp_path / "log").journal.close()
    other = mlp(seed=1)
    before = bits(other)
    with pytest.raises(JournalError, match="starts from other base weights"):
        zolab.replay(other, tmp_path / "log")
    with pytest.raises(JournalError, match="moves 0.weight .* the model has None"):
        zolab.replay(torch.nn.Linear(2, 2), tmp_path / "log")
    with pytest.raises(JournalError, match="has 3 steps, not 9"):
        zolab.replay(mlp(), tmp_path / "log", upto=9)
    assert all(torch.equal(a, b) for a, b in zip(bits(other), before, strict=True))


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"seed": 5}, "seed"),
        ({"eps": 1e-1}, "estimator"),
        ({"num_queries": 2}, "estimator"),
        ({"weight_decay": 0.1}, "groups"),
        ({"rounding": "nearest"}, "rounding"),
    ],
)
def test_resuming_with_other_settings_is_refused(tmp_path, change, key):
    train(mlp(), 3, journal=tmp_path / "log").journal.close()
    with pytest.raises(JournalError, match=f"its {key} is"):
        train(mlp(), 3, journal=tmp_path / "log", **change)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_non_finite_loss_is_refused_loudly(tmp_path, bad):
    model, answers = mlp(), [1.0, bad]
    opt = zolab.MeZO(model, lr=1e-2, journal=tmp_path / "log")
    before = bits(model)
    with pytest.raises(NonFiniteLossError, match="step 0: .* nothing moved"):
        opt.step(lambda: model(torch.arange(3)).sum() * 0 + answers.pop())
    assert all(torch.equal(a, b) for a, b in zip(bits(model), before, strict=True))
    assert opt.steps == 1
    opt.step(closure(model))
    assert [r.kind for r in opt.journal.records] == [1, 0]
    again = mlp()
    zolab.replay(again, tmp_path / "log")
    assert same_bits(again, model)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda m: None, "returned NoneType, expected one number"),
        (lambda m: torch.zeros(3), r"returned shape \(3,\), expected one number"),
        (lambda m: torch.zeros((), dtype=torch.bfloat16), "expected float32"),
        (lambda m: "1.0x", "returned str"),
    ],
)
def test_what_is_not_a_loss(result, message):
    model = mlp()
    with pytest.raises(LossError, match=message):
        zolab.MeZO(model).step(lambda: (model(torch.arange(3)), result(model))[1])


def test_any_number_is_an_objective():
    """Law 7: a reward or an accuracy is a Python float, an int, a 0-d fp64 tensor."""
    for make in (float, int, lambda x: torch.tensor(float(x), dtype=torch.float64)):
        model = mlp()
        zolab.MeZO(model).step(lambda m=model, f=make: f(m(torch.arange(3)).sum() > 0))


def test_a_closure_that_raises_changes_nothing(tmp_path):
    model = mlp().train()
    model[2].eval()
    opt = zolab.MeZO(model, lr=1.0, journal=tmp_path / "log")
    before, size = bits(model), (tmp_path / "log").stat().st_size

    def broken():
        closure(model)()
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        opt.step(broken)
    assert all(torch.equal(a, b) for a, b in zip(bits(model), before, strict=True))
    assert opt.steps == 0 and (tmp_path / "log").stat().st_size == size
    assert [m.training for m in model] == [True, True, False, True]


def in_place(model):
    with torch.no_grad():
        model[1].weight.mul_(1.5)


def through_data(model):
    model[1].weight.data.mul_(1.5)


def replaced(model):
    model[1].weight.data = model[1].weight.data.clone() * 1.5


@pytest.mark.parametrize("edit", [in_place, through_data, replaced])
def test_a_base_edited_behind_our_back(tmp_path, edit):
    model = mlp()
    opt = train(model, 3, journal=tmp_path / "log")
    edit(model)
    with pytest.raises(BaseChangedError, match="of 1.weight changed"):
        opt.step(closure(model))
    opt.rebase()
    opt.step(closure(model))
    opt.journal.close()
    again = mlp()
    zolab.replay(again, tmp_path / "log")
    assert same_bits(again, model)


def test_state_dict_continues(tmp_path):
    a, b = mlp(), mlp()
    opt = train(a, 5)
    state = opt.state_dict()
    other = zolab.MeZO(b, lr=1.0, eps=1e-2)
    b.load_state_dict(a.state_dict())
    other.load_state_dict(state)
    assert other.steps == 5 and other.param_groups[0]["lr"] == 1e-2
    opt.step(closure(a)), other.step(closure(b))
    assert same_bits(a, b)
    with pytest.raises(ValueError, match="the state has seed 0, this run 3"):
        zolab.MeZO(mlp(), seed=3).load_state_dict(state)


def test_unknown_names():
    with pytest.raises(AttributeError, match="zolab has no 'Lion'"):
        zolab.Lion  # noqa: B018
    with pytest.raises(ValueError, match="scratch is 'some'"):
        zolab.Resident(scratch="some")
    with pytest.raises(ValueError, match="no objective 'rank'; there are loss"):
        model = mlp()
        estimator = zolab.SPSA()
        estimator.propose = lambda key: (yield [zolab.Probe(objective="rank")])
        zolab.ZOOptimizer(model, estimator=estimator).step(closure(model))
    assert issubclass(JournalError, ZolabError)


def test_importing_is_light():
    """No torch before the first name is used: the CLI and docs stay quick."""
    import subprocess
    import sys

    code = "import sys, zolab; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
