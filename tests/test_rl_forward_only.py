"""Forward-only RL: the same loop, task and accounting, through any engine and rule."""

import json

import pytest
import torch
from bandit import drawing, expected_reward, judge
from policy import ANSWERS, Policy, cosine, exact, gradient, rollout_of, token_logps

import zolab
from zolab import CGE, SPSA, Coordinates, EvolutionStrategy, RankSGD, Space
from zolab.rl import prepare, recipe, train
from zolab.rl.surrogate import surrogate

pytestmark = pytest.mark.usefixtures("one_thread")
TIMES = ("generate_s", "train_s", "cpu_s", "peak_bytes")


def zo(policy, estimator, lr, **kw):
    return zolab.ZOOptimizer(policy, estimator=estimator, lr=lr, **kw)


def run(name, estimator, lr, *, steps=5, policy=None, size=32, **kw):
    policy = policy or Policy()
    opened = {k: kw.pop(k) for k in ("journal", "engine", "seed") if k in kw}
    optimizer = zo(policy, estimator, lr, **opened)
    try:
        done = train(
            policy,
            kw.pop("draw", drawing(policy, size=size)),
            kw.pop("reward", judge),
            name,
            optimizer=optimizer,
            steps=steps,
            bar=False,
            **kw,
        )
    finally:
        if optimizer.journal is not None:
            optimizer.journal.close()
    return policy, done, optimizer


WAYS = {
    "es, z-score": ("es", EvolutionStrategy(eps=0.5, num_queries=8), 0.5),
    "es, ranks": (
        "es",
        EvolutionStrategy(eps=0.5, num_queries=8, shaping="ranks"),
        2.0,
    ),
    "preferences alone": ("es", RankSGD(eps=0.5, num_queries=16, best=8), 0.5),
    "policy gradient": ("rloo", SPSA(eps=1e-3, num_queries=8), 1.5),
}


@pytest.mark.parametrize("way", WAYS)
def test_it_learns_the_bandit(way):
    name, estimator, lr = WAYS[way]
    before = expected_reward(Policy())
    steps = 20 if name == "rloo" else 10
    policy, done, _ = run(name, estimator, lr, steps=steps, size=16)
    assert before < 0.3 and expected_reward(policy) > 0.7
    assert done.costs["backward_tokens"] == 0
    assert all(p.grad is None for p in policy.parameters())


@pytest.mark.parametrize("way", WAYS)
def test_random_rewards_teach_it_nothing(way):
    name, estimator, lr = WAYS[way]
    g = torch.Generator().manual_seed(0)

    def noise(rollout):
        return torch.rand(len(rollout), generator=g).round().tolist()

    policy, *_ = run(name, estimator, lr, steps=10, size=16, reward=noise)
    assert expected_reward(policy) < 0.55


def test_the_zeroth_order_policy_gradient_is_the_policy_gradient():
    """Coordinate by coordinate: central differences of the surrogate are its slope."""
    policy = Policy(dtype=torch.float32)
    rollout = drawing(policy, size=64)(0, torch.Generator().manual_seed(0))
    r = recipe("rloo")
    batch = prepare(rollout, judge(rollout), r)
    true = gradient(surrogate(policy, batch, r), policy)
    before = torch.cat([p.detach().flatten().clone() for p in policy.parameters()])
    cge = CGE(Coordinates.of(Space.of(policy)), eps=1e-2, central=True)
    zo(policy, cge, 1.0).step(lambda: surrogate(policy, batch, r))
    after = torch.cat([p.detach().flatten() for p in policy.parameters()])
    assert torch.allclose(before - after, true, atol=2e-4) and true.norm() > 0.05


def test_its_cosine_is_about_the_root_of_q_over_d():
    policy = Policy()
    rollout = drawing(policy, size=64)(0, torch.Generator().manual_seed(0))
    r = recipe("rloo")
    batch = prepare(rollout, judge(rollout), r)
    true = gradient(surrogate(policy, batch, r), policy)
    found = []
    for seed in range(30):
        one = Policy()
        before = torch.cat([p.detach().flatten().clone() for p in one.parameters()])
        opt = zo(one, SPSA(eps=1e-3, num_queries=3), 1.0, seed=seed)
        opt.step(lambda one=one: surrogate(one, batch, r))
        after = torch.cat([p.detach().flatten() for p in one.parameters()])
        found.append(cosine(before - after, true))
    c = torch.tensor(found)
    # d = 12, of which 9 have a gradient; the root of 3 / 12 is 0.5
    assert abs(c.square().mean().sqrt() - 0.5) < 0.1 and c.mean() > 0.3


def test_es_on_exact_rewards_points_where_the_policy_gradient_does():
    policy = Policy()
    rewards = [0.2, 1.0, 0.0, 0.5, -0.3, 0.7, 0.1]
    true = exact(policy, rewards)

    def value():
        p = token_logps(policy, rollout_of(ANSWERS)).logps.sum(1).exp()
        return -(p * torch.tensor(rewards)).sum()

    before = torch.cat([p.detach().flatten().clone() for p in policy.parameters()])
    es = EvolutionStrategy(eps=1e-2, num_queries=128, shaping="none")
    zo(policy, es, 1.0).step(value)
    after = torch.cat([p.detach().flatten() for p in policy.parameters()])
    assert cosine(after - before, true) > 0.9  # root of q / (q + d) is 0.96
    assert (after - before).norm() / true.norm() == pytest.approx(1, abs=0.25)


def plain(history):
    return [{k: v for k, v in r.items() if k not in TIMES} for r in history]


@pytest.mark.parametrize("way", WAYS)
def test_it_resumes_from_the_journal_with_the_same_bits(tmp_path, way):
    name, estimator, lr = WAYS[way]
    kw = {"evaluate": lambda: {"pass@1": 0.5}, "every": 2, "size": 8}
    whole, done, _ = run(name, estimator, lr, steps=5, **kw)
    places = {"journal": tmp_path / "run.zolab", "folder": tmp_path}
    run(name, estimator, lr, steps=3, **places, **kw)
    policy, again, opt = run(name, estimator, lr, steps=5, **places, **kw)
    assert opt.steps == 5
    assert all(map(torch.equal, whole.parameters(), policy.parameters()))
    rows = [r for r in plain(again.history) if "loss" in r]
    assert rows == [r for r in plain(done.history) if "loss" in r] and len(rows) == 5
    assert not (tmp_path / "latest.json").exists()
    replayed = Policy()
    zolab.replay(replayed, tmp_path / "run.zolab")
    assert torch.equal(replayed.first, policy.first)


def test_an_interrupted_step_is_finished_and_the_next_process_goes_on(tmp_path):
    import os
    import signal

    estimator = WAYS["policy gradient"][1]
    whole, *_ = run("grpo", estimator, 0.3, steps=4, size=8)
    policy = Policy()
    honest = drawing(policy, size=8)

    def draw(cursor, generator):
        if cursor == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return honest(cursor, generator)

    places = {"journal": tmp_path / "run.zolab", "folder": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        run("grpo", estimator, 0.3, steps=4, policy=policy, draw=draw, **places)
    policy, done, _ = run("grpo", estimator, 0.3, steps=4, size=8, **places)
    assert torch.equal(policy.first, whole.first)
    assert [r["step"] for r in done.history] == [1, 2, 3, 4]


def test_every_probe_of_a_step_draws_with_the_same_numbers():
    seen = []

    def draw_of(policy):
        honest = drawing(policy, size=8)

        def draw(cursor, generator):
            state = generator.get_state()
            seen.append(torch.rand(4, generator=generator).tolist())
            generator.set_state(state)
            return honest(cursor, generator)

        return draw

    policy = Policy()
    es = EvolutionStrategy(eps=0.1, num_queries=4)
    run("es", es, 0.1, steps=2, policy=policy, draw=draw_of(policy))
    first, second = seen[:8], seen[8:]
    assert len(second) == 8 and all(x == first[0] for x in first)
    assert all(x == second[0] for x in second) and first[0] != second[0]


def test_a_population_whose_rewards_are_equal_does_not_move():
    es = EvolutionStrategy(eps=0.1, num_queries=4)
    policy, done, _ = run("es", es, 1.0, steps=2, reward=lambda r: [0.1] * len(r))
    assert torch.equal(policy.first, Policy().first)
    assert done.history[0]["population_spread"] == 0


@pytest.mark.parametrize("loss", ["ppo_clip", "dpo"])
def test_a_rollout_without_signal_is_a_step_that_moves_nothing(tmp_path, loss):
    spsa = SPSA(eps=1e-3, num_queries=2)
    policy, _, opt = run(
        recipe("grpo", loss=loss),
        spsa,
        1.0,
        steps=2,
        reward=lambda r: [1.0] * len(r),
        journal=tmp_path / "run.zolab",
    )
    assert torch.equal(policy.first, Policy().first) and opt.steps == 2


def test_a_step_that_is_refused_is_reported_and_the_run_goes_on():
    calls = []

    def unjudged(rollout):
        calls.append(1)
        return [None] * len(rollout) if len(calls) == 3 else judge(rollout)

    es = EvolutionStrategy(eps=0.1, num_queries=2)
    _, done, opt = run("es", es, 0.1, steps=3, reward=unjudged)
    assert [r["refused"] for r in done.history] == [1, 0, 0] and opt.steps == 3


def test_costs_are_those_of_the_forward_passes():
    spsa = SPSA(eps=1e-3, num_queries=3)
    _, done, _ = run(recipe("grpo", entropy=0.01), spsa, 0.1, steps=1, size=8)
    tokens = done.history[0]["length"] * 16 + 16
    assert done.costs["rollouts"] == 16
    assert done.costs["forward_tokens"] == tokens * (1 + 6)
    es = EvolutionStrategy(eps=0.1, num_queries=3)
    _, done, _ = run("es", es, 0.1, steps=2, size=8)
    assert done.costs["rollouts"] == 2 * 6 * 16


def test_the_best_weights_are_kept_beside_the_journal(tmp_path):
    scores = iter([0.2, 0.9, 0.5])
    es = EvolutionStrategy(eps=0.1, num_queries=2)
    run(
        "es",
        es,
        0.5,
        steps=2,
        size=8,
        every=1,
        evaluate=lambda: {"pass@1": next(scores)},
        folder=tmp_path,
        journal=tmp_path / "run.zolab",
    )
    best = json.loads((tmp_path / "best.json").read_text())
    assert best == {"step": 1, "pass@1": 0.9}
    from safetensors.torch import load_file

    policy = Policy()
    zolab.replay(policy, tmp_path / "run.zolab", upto=1)
    assert torch.equal(load_file(tmp_path / "best.safetensors")["first"], policy.first)
