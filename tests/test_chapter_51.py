"""Chapter 51: its claims' controls fail."""

import pytest
import torch

from zolab import lab, rl
from zolab.lab import claims
from zolab.rl.evaluate import evaluate
from zolab.rl.rollout import rollout
from zolab.tasks.bases import load_base
from zolab.tasks.sorting import Sorting, sorted_exactly

pytestmark = pytest.mark.usefixtures("one_thread")
TASK = Sorting()


def judge(name: str, measured: float, se: float | None = None) -> str:
    return claims.ledger()[name].judge(measured, se)


def estimates(kind: str, add: float = 0.0, size: int = 2):
    """(exact gradient, each group's estimate, its chance) for 3 answers, 3 logits."""
    p = torch.tensor([0.2, 0.5, 0.3]).double()
    rewards = torch.tensor([1.0, 0.0, 2.0]).double()
    score = torch.eye(3).double() - p
    exact = (p * rewards) @ score
    draws = torch.cartesian_prod(*[torch.arange(3)] * size)
    found = []
    for y in draws:
        scores = rl.Scores(
            rewards[y] + add,
            torch.ones(size).bool(),
            torch.zeros(size).long(),
            torch.ones(size, 1).bool(),
        )
        found.append((rl.advantage(kind, scores).double() * score[y]).mean(0))
    return exact, torch.stack(found), p[draws].prod(1)


def share(kind: str, size: int = 2) -> float:
    exact, found, chance = estimates(kind, size=size)
    return float((chance @ found) @ exact / (exact @ exact))


def test_other_baselines_have_other_factors():
    assert judge("51-own-sample", share("dr_grpo")) == claims.HOLDS
    assert judge("51-own-sample", share("rloo")) == claims.NOT_SEEN
    assert judge("51-own-sample", share("dr_grpo", size=3)) == claims.NOT_SEEN
    assert judge("51-rloo-unbiased", share("rloo", size=3)) == claims.HOLDS
    assert judge("51-rloo-unbiased", share("grpo")) == claims.NOT_SEEN


def noise(kind: str, add: float) -> float:
    _, found, chance = estimates(kind, add)
    return float((chance @ (found - chance @ found).square().sum(1)).sqrt())


def test_raw_rewards_see_a_constant():
    for kind, verdict in (("rloo", claims.HOLDS), ("plain", claims.NOT_SEEN)):
        assert judge("51-constant", noise(kind, 3.0) / noise(kind, 0.0)) == verdict


def test_another_temperature_leaves_the_ratio():
    model, tokenizer = load_base("sorting")
    drawn = rollout(
        model,
        tokenizer,
        TASK.prompts(8, seed=1),
        group_size=4,
        max_new_tokens=7,
        generator=1,
    )
    for temperature, verdict in ((1.0, claims.HOLDS), (0.9, claims.NOT_SEEN)):
        from dataclasses import replace

        with torch.no_grad():
            now = rl.token_logps(model, replace(drawn, temperature=temperature)).logps
        off = float(((now - drawn.logps).exp() - 1)[drawn.mask].abs().max())
        assert judge("51-first-ratio", off) == verdict


def test_a_coin_selects_nothing():
    """Two updates on a coin, five seeds; and a gain of 30 points would be seen."""
    held, gains = TASK.prompts(60, seed=0, held_out=True), []

    def pass1(model, tokenizer):
        return evaluate(model, tokenizer, held, sorted_exactly, max_new_tokens=7).pass1

    before = pass1(*load_base("sorting"))
    for seed in range(5):
        model, tokenizer = load_base("sorting")
        coin = torch.Generator().manual_seed(seed)
        rl.train(
            model,
            lambda cursor, generator, m=model, t=tokenizer: rollout(
                m,
                t,
                TASK.prompts(16, seed=cursor),
                group_size=8,
                max_new_tokens=7,
                generator=generator,
            ),
            lambda r, c=coin: (torch.rand(len(r), generator=c) < 0.25).float().tolist(),
            "rloo",
            optimizer=torch.optim.AdamW(model.parameters(), lr=3e-5),
            steps=2,
            bar=False,
        )
        gains.append(pass1(model, tokenizer) - before)
    name = "51-reward-selects"
    assert judge(name, *lab.mean_se(gains, len(held))) != claims.SAME
    better = lab.mean_se([g + 0.3 for g in gains], 60)
    assert judge(name, *better) == claims.SAME
    assert judge("51-coin", *better) == claims.OPPOSITE


@pytest.fixture(scope="module")
def sums():
    """What (updates, greedy, pass@1, pass@8) grew by, a seed a row, of each way."""
    rows = lab.recorded("bench-gym-cpu-smollm2-135m")["rows"]
    points = {k: [r["points"] for r in v.values()] for k, v in rows.items()}
    return {
        k: torch.tensor([[b - a for a, b in zip(p[0], p[-1], strict=True)] for p in v])
        for k, v in points.items()
    }


def test_neither_coins_nor_nothing_learn_sums(sums):
    coins, stood = sums["luck"][:, 2].tolist(), sums["published"][:, 1].tolist()
    assert judge("51-sums", *lab.mean_se(coins, 90)) != claims.SAME
    assert judge("51-sums-coin", *lab.mean_se([0.0], 90)) == claims.NOT_SEEN
    assert judge("51-sums-es", *lab.mean_se(stood, 90)) == claims.NOT_SEEN
    assert judge("51-sums-es", *lab.mean_se([0.3], 90)) == claims.SAME


def test_the_record_of_sums_is_whole(sums):
    record = lab.recorded("bench-gym-cpu-smollm2-135m")
    assert record["asked"] == {
        "updates": 30,
        "prompts": 8,
        "digits": 1,
        "held_out": 90,
    }
    assert not record["changed"] and len(sums["grpo"]) == 3
    for row in record["rows"].values():
        for run in row.values():
            assert [p[0] for p in run["points"]] == [0, 10, 20, 30]
            assert len(run["rewards"]) == 30
    eighths = [8 * x for x in record["rows"]["published"]["0"]["rewards"]]
    alike = [x for x in eighths if abs(x - round(x)) < 1e-9]
    assert len(alike) == 21  # updates whose mean is a whole number of sums
