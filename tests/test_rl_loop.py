"""The loop: it learns, adds up, says what it did, and goes on where it broke off."""

import json
import math
import os
import signal
from dataclasses import replace
from functools import partial

import pytest
import torch
from bandit import drawing, expected_reward, judge
from policy import ANSWERS, Policy, gradient, rollout_of, token_logps

from zolab.rl import (
    AGGREGATIONS,
    RECIPES,
    CheckpointError,
    RolloutError,
    checkpoint,
    prepare,
    recipe,
    train,
)
from zolab.rl.losses import dpo
from zolab.rl.surrogate import surrogate

pytestmark = pytest.mark.usefixtures("one_thread")
TIMES = ("generate_s", "train_s", "cpu_s", "peak_bytes")


def adam(policy, lr=0.1):
    return torch.optim.AdamW(policy.parameters(), lr=lr, weight_decay=0.0)


def run(name="grpo", *, policy=None, steps=5, optimizer=None, changes=None, **kw):
    policy = policy or Policy()
    size = kw.pop("size", 4)
    done = train(
        policy,
        kw.pop("draw", drawing(policy, size=size)),
        kw.pop("reward", judge),
        recipe(name, **needs(name) | (changes or {})),
        optimizer=optimizer or adam(policy),
        steps=steps,
        bar=False,
        **kw,
    )
    return policy, done


def needs(name):
    return {"length": 2} if name == "dr_grpo" else {}


def greedy_of(policy):
    def greedy(rollout):
        ids = rollout.group.unique()
        p = token_logps(policy, rollout_of(ANSWERS)).logps.sum(1)
        return rollout_of([ANSWERS[int(p.argmax())]] * len(ids), ids)

    return greedy


@pytest.mark.parametrize("name", RECIPES.keys() - {"es"})
def test_every_recipe_learns_the_bandit(name):
    policy = Policy()
    before = expected_reward(policy)
    kw = {"greedy": greedy_of(policy)} if name == "remax" else {}
    _, done = run(name, policy=policy, steps=30, size=8, **kw)
    assert before < 0.3 and expected_reward(policy) > 0.75
    assert len(done.history) == 30
    assert done.history[0]["ratio_error"] < 1e-5


def test_random_rewards_teach_nothing():
    """The control."""
    g = torch.Generator().manual_seed(0)
    policy, _ = run(
        "grpo",
        steps=30,
        size=8,
        reward=lambda r: torch.rand(len(r), generator=g).round().tolist(),
    )
    assert expected_reward(policy) < 0.5


@pytest.mark.parametrize("how", AGGREGATIONS)
@pytest.mark.parametrize("loss", ["ppo_clip", "gspo", "dpo"])
def test_micro_batches_have_the_batchs_gradient(how, loss):
    policy = Policy()
    draw = drawing(policy, groups=8)
    rollout = draw(0, torch.Generator().manual_seed(0))
    r = recipe(
        "grpo", aggregation=how, length=2, loss=loss, entropy=0.1, beta=0.1, llds=0.1
    )
    other = Policy(1)
    reference = partial(token_logps, other)
    batch = prepare(rollout, judge(rollout), r, reference=lambda x: reference(x).logps)
    assert len(batch) >= 4
    whole = gradient(surrogate(policy, batch, r), policy)
    assert whole.norm() > 0.01
    for size in (2, 4):
        parts = batch.parts(size, signal_only=False)
        assert len(parts) > 1
        total = sum(gradient(surrogate(policy, batch, r, p), policy) for p in parts)
        assert torch.allclose(total, whole, atol=1e-6)


@pytest.mark.parametrize("how", AGGREGATIONS)
def test_rows_without_signal_are_left_out_and_nothing_changes(how):
    policy = Policy()
    rollout = drawing(policy, groups=3)(0, torch.Generator().manual_seed(0))
    r = recipe("grpo", aggregation=how, length=2)
    rewards = judge(rollout)
    rewards[:4] = [1.0] * 4
    batch = prepare(rollout, rewards, r)
    (rows,) = batch.parts(None, signal_only=True)
    assert 0 < len(rows) < len(batch) and r.signal_only
    a, b = (gradient(surrogate(policy, batch, r, x), policy) for x in (rows, None))
    assert torch.allclose(a, b, atol=1e-7) and b.norm() > 0.01
    for changes in ({"beta": 0.1}, {"entropy": 0.1}, {"llds": 0.1}, {"loss": "dpo"}):
        assert not recipe("grpo", **changes).signal_only
    assert recipe("grpo", beta=0.1, kl_in="reward").signal_only


def test_a_batch_without_any_signal_moves_nothing_not_even_by_momentum():
    policy, _ = run(steps=3)
    optimizer = adam(policy)
    run(policy=policy, optimizer=optimizer, steps=2)
    before = [p.clone() for p in policy.parameters()]
    _, done = run(
        policy=policy, optimizer=optimizer, steps=1, reward=lambda r: [1.0] * len(r)
    )
    assert all(map(torch.equal, before, policy.parameters()))
    assert done.history[0]["zero_std"] == 1 and done.history[0]["grad_norm"] == 0


def test_the_second_update_of_a_rollout_has_ratios_that_left_1():
    policy = Policy()
    slow = adam(policy, 0.01)
    _, done = run(policy=policy, changes={"updates": 4}, steps=1, optimizer=slow)
    row = done.history[0]
    assert row["ratio_error"] < 1e-5 < row["ratio_max"] - 1
    assert row["clip_low"] + row["clip_high"] == 0
    policy = Policy()
    _, done = run(
        policy=policy, changes={"updates": 8}, steps=1, optimizer=adam(policy, 0.3)
    )
    assert done.history[0]["clip_low"] + done.history[0]["clip_high"] > 0.05


def test_a_sampler_that_disagrees_is_seen_and_recomputing_repairs_it():
    policy = Policy()
    honest = drawing(policy)

    def untempered(cursor, generator):
        rollout = honest(cursor, generator)
        return rollout.scored(rollout.logps - 0.05 * rollout.mask)

    _, done = run(policy=policy, draw=untempered, steps=1)
    assert done.history[0]["ratio_error"] > 0.04
    policy = Policy()
    _, done = run(
        policy=policy, draw=drawing(policy), steps=1, changes={"recompute": True}
    )
    assert done.history[0]["ratio_error"] < 1e-6


def test_a_kl_in_the_loss_and_in_the_reward_both_hold_the_policy_back():
    far = {}
    for beta, where in ((0.0, "loss"), (1.0, "loss"), (1.0, "reward")):
        policy, base = Policy(), Policy()
        changes = {"beta": beta, "kl_in": where, "kl": "k2"}
        _, done = run(
            "rloo", policy=policy, steps=20, size=8, changes=changes, reference=base
        )
        with torch.no_grad():
            a, b = (
                token_logps(x, rollout_of(ANSWERS)).logps.sum(1) for x in (policy, base)
            )
        far[beta, where] = float((a.exp() * (a - b)).sum())
        assert ("kl_ref/k1" in done.history[-1]) == bool(beta)
    assert far[1.0, "loss"] < 0.5 * far[0.0, "loss"]
    assert far[1.0, "reward"] < 0.5 * far[0.0, "loss"]
    with pytest.raises(RolloutError, match="there is no reference"):
        run("rloo", steps=1, changes={"beta": 1.0})


def test_an_entropy_bonus_keeps_entropy():
    ends = []
    for bonus in (0.0, 0.5):
        _, done = run("rloo", steps=25, size=8, changes={"entropy": bonus})
        ends.append(done.history[-1]["entropy"])
    assert ends[1] > ends[0] + 0.1


def test_dynamic_sampling_draws_until_groups_differ():
    _, done = run("dapo", steps=3)
    for row in done.history:
        assert row["zero_std"] == 0 and row["drawn"] >= 8


def test_unscorable_rows_and_filters_are_counted():
    def half(rollout):
        return [None if i % 2 else r for i, r in enumerate(judge(rollout))]

    _, done = run(steps=1, size=8, reward=half)
    assert done.history[0]["unscored"] == 0.5
    filters = {"data_filters": ("overlong",), "token_filters": ("capo", "llds")}
    _, done = run(steps=2, size=8, changes=filters)
    assert done.history[0]["truncated"] > 0 and 0 <= done.history[0]["filtered"] < 1


def test_overlong_filtering_takes_truncated_rows_out_of_the_denominators():
    rollout = rollout_of([(0, 1), (2,), (1, 2), (1, 1)])
    assert rollout.truncated.tolist() == [True, False, False, True]
    batch = prepare(
        rollout,
        [1.0, 0.0, 0.0, 1.0],
        recipe("grpo", data_filters=("overlong",), aggregation="token-mean"),
    )
    assert batch.totals.tokens == 3 and batch.totals.rows == 4


def test_a_non_finite_gradient_is_refused_and_reported():
    policy = Policy()
    calls = []

    def sometimes(rollout):
        calls.append(1)
        return judge(rollout)

    def poison(t):
        scale = float("nan") if len(calls) == 2 else 1.0
        return -scale * t.advantages * t.logps

    _, done = run(
        policy=policy, changes={"loss": poison}, reward=sometimes, steps=3, size=8
    )
    assert [r["refused"] for r in done.history] == [0, 1, 0]
    assert all(p.isfinite().all() for p in policy.parameters())


def test_it_evaluates_before_step_1_and_keeps_the_best(tmp_path):
    policy = Policy()
    scores = iter([0.2, 0.9, 0.5, 0.4])
    kept = []

    def evaluate():
        kept.append([p.detach().clone() for p in policy.parameters()])
        return {"pass@1": next(scores), "pass@8": 1.0}

    _, done = run(
        policy=policy,
        steps=6,
        evaluate=evaluate,
        every=2,
        folder=tmp_path,
        save_every=1,
    )
    rows = [r for r in done.history if "eval/pass@1" in r]
    assert [r["step"] for r in rows] == [0, 2, 4, 6] and done.best == (2, 0.9)
    assert json.loads((tmp_path / "best.json").read_text()) == {
        "step": 2,
        "pass@1": 0.9,
    }
    from safetensors.torch import load_file

    best = load_file(tmp_path / "best.safetensors")
    assert torch.equal(best["first"], kept[1][0])
    assert not torch.equal(best["first"], policy.first)
    with pytest.raises(ValueError, match="best_by is 'greedy'"):
        run(steps=1, evaluate=lambda: {"pass@1": 0.0}, best_by="greedy")


def plain(history):
    return [{k: v for k, v in r.items() if k not in TIMES} for r in history]


EMA = {"advantage": "reinforce_ema"}


@pytest.mark.parametrize("changes", [{}, EMA, {"updates": 2, "tries": 3}])
def test_the_step_after_a_resume_has_the_same_bits(tmp_path, changes):
    """Weights, optimizer, running mean, history and generators."""
    kw = {
        "changes": changes,
        "save_every": 1,
        "schedule": lambda s: min(1, (s + 1) / 4),
    }
    kw |= {"evaluate": lambda: {"pass@1": 0.5}, "size": 8}
    torch.manual_seed(3)
    whole, done = run(steps=6, folder=tmp_path / "a", **kw)
    after = torch.rand(3)
    torch.manual_seed(3)
    run(steps=4, folder=tmp_path / "b", **kw)
    torch.manual_seed(99)  # another process
    policy = Policy(7)
    optimizer = adam(policy)
    _, again = run(
        policy=policy, optimizer=optimizer, steps=6, folder=tmp_path / "b", **kw
    )
    assert torch.equal(torch.rand(3), after)
    assert all(map(torch.equal, whole.parameters(), policy.parameters()))
    evaluations = [r for r in again.history if "eval/pass@1" in r]
    assert [r["step"] for r in evaluations] == [0, 4, 6]
    steps = [r for r in plain(again.history) if "loss" in r]
    assert steps == [r for r in plain(done.history) if "loss" in r]
    assert all(r["grad_norm"] > 0 for r in steps)
    state = optimizer.state_dict()["state"]
    assert state[0]["step"] == 6 * changes.get("updates", 1)


@pytest.mark.parametrize("lost", ["exp_avg", "initial_lr", "running"])
def test_what_a_checkpoint_forgets_shows_in_the_next_step(tmp_path, monkeypatch, lost):
    """The control: without the moments, the first lr or the baseline, other bits."""
    kw = {"size": 8, "save_every": 1, "changes": EMA, "schedule": lambda s: 1 / (s + 1)}
    whole, _ = run(steps=4, folder=tmp_path / "a", **kw)
    run(steps=3, folder=tmp_path / "b", **kw)
    honest = checkpoint.deep

    def forgetful(tensors, plain):
        state = honest(tensors, plain)
        for i in state["state"]:
            if lost == "exp_avg":
                state["state"][i][lost] *= 0
        state["param_groups"][0].pop(lost, None)
        return state

    monkeypatch.setattr(checkpoint, "deep", forgetful)
    if lost == "running":
        path = tmp_path / "b" / "history.jsonl"
        path.write_text(path.read_text().replace('"running": 0.', '"running": 0.1'))
    policy, _ = run(policy=Policy(7), steps=4, folder=tmp_path / "b", **kw)
    assert not torch.equal(policy.first, whole.first)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    run(steps=1, folder=tmp_path)
    with pytest.raises(CheckpointError, match="does not fit"):
        model = torch.nn.Linear(2, 2)
        checkpoint.load(tmp_path, model, adam(model))


def test_no_pickle_is_written(tmp_path):
    run(steps=2, folder=tmp_path, evaluate=lambda: {"pass@1": 1.0})
    kinds = {p.suffix for p in tmp_path.rglob("*") if p.is_file()}
    assert kinds == {".safetensors", ".json", ".jsonl"}
    state = {"state": {0: {"memory": object()}}, "param_groups": []}
    with pytest.raises(CheckpointError, match="memory is a object"):
        checkpoint.flat(state)


def test_an_interrupt_waits_for_the_step_and_saves_it(tmp_path):
    whole, done = run(steps=5, folder=tmp_path / "a", save_every=100)
    policy = Policy()
    honest, calls = drawing(policy), []

    def draw(cursor, generator):
        calls.append(cursor)
        if cursor == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return honest(cursor, generator)

    with pytest.raises(KeyboardInterrupt):
        run(policy=policy, draw=draw, steps=5, folder=tmp_path / "b", save_every=100)
    assert calls == [0, 1, 2]
    latest = json.loads((tmp_path / "b" / "latest.json").read_text())
    assert latest == {"checkpoint": "step-3"}
    policy = Policy(7)
    _, again = run(policy=policy, steps=5, folder=tmp_path / "b")
    assert all(map(torch.equal, whole.parameters(), policy.parameters()))
    assert plain(again.history) == plain(done.history)


def test_a_run_that_dies_goes_on_from_its_last_checkpoint(tmp_path):
    whole, done = run(steps=5, folder=tmp_path / "a")
    policy = Policy()
    honest = drawing(policy)

    def draw(cursor, generator):
        if cursor == 3:
            raise MemoryError
        return honest(cursor, generator)

    with pytest.raises(MemoryError):
        run(policy=policy, draw=draw, steps=5, folder=tmp_path / "b", save_every=2)
    history = tmp_path / "b" / "history.jsonl"
    assert len(history.read_text().splitlines()) == 3  # step 3 was not checkpointed
    with history.open("a") as file:
        file.write('{"step": 4, "re')  # a line that died
    policy = Policy(7)
    _, again = run(policy=policy, steps=5, folder=tmp_path / "b")
    assert all(map(torch.equal, whole.parameters(), policy.parameters()))
    assert plain(again.history) == plain(done.history)


def test_how_often_a_run_is_evaluated_does_not_change_it():
    def evaluate():
        torch.rand(5)
        return {"pass@1": 0.0}

    a, _ = run(steps=4)
    b, _ = run(steps=4, evaluate=evaluate, every=1)
    assert torch.equal(a.first, b.first)


def test_costs_are_counted():
    _, done = run(steps=2, micro=3, changes={"entropy": 0.01})
    drawn = [r["length"] * 8 + 8 for r in done.history]
    assert done.costs["rollouts"] == 16
    assert done.costs["forward_tokens"] == 2 * sum(drawn)
    assert done.costs["backward_tokens"] == sum(drawn)
    assert done.costs["cpu_s"] > 0 and done.costs["peak_bytes"] > 1e7


def test_remax_pays_for_its_greedy_answers():
    policy = Policy()
    _, done = run("remax", policy=policy, greedy=greedy_of(policy), steps=2)
    assert done.costs["rollouts"] == 2 * (8 + 2)
    with pytest.raises(RolloutError, match="greedy is None"):
        run("remax", steps=1)


def test_metrics_of_a_known_rollout():
    def draw(cursor, generator):
        group = torch.tensor([0, 0, 1, 1])
        part = rollout_of([(1, 0), (2,), (1, 1), (1, 1)], group)
        return replace(part, entropy=part.mask * 0.5)

    _, done = run(draw=draw, steps=1)
    row = done.history[0]
    wanted = {
        "reward": (1 + 0 + 0.3 + 0.3) / 4,
        "zero_std": 0.5,
        "entropy": 0.5,
        "length": 7 / 4,
        "length_max": 2,
        "truncated": 3 / 4,
        "unscored": 0,
    }
    assert {k: row[k] for k in wanted} == pytest.approx(wanted)
    assert math.isfinite(row["grad_norm"]) and row["grad_norm"] > 0


def test_wrong_names_are_refused_before_anything_runs():
    with pytest.raises(ValueError, match="no recipe is called 'ppo'; there are"):
        recipe("ppo")
    with pytest.raises(ValueError, match="no loss is called 'hinge'"):
        recipe("grpo", loss="hinge")
    with pytest.raises(ValueError, match="wants length="):
        recipe("dr_grpo")
    assert recipe("grpo", loss=partial(dpo, beta=0.5)).paired
