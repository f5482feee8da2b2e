"""The pieces together on the sorting task: sampler, rewards, loop, evaluation."""

import pytest
import torch

import zolab
from zolab import EvolutionStrategy
from zolab.rl import recipe, train
from zolab.rl.evaluate import evaluate
from zolab.rl.rewards import Rewards
from zolab.rl.rollout import baseline, greedy, rollout
from zolab.tasks.characters import tokenizer
from zolab.tasks.pretraining import blank, pretrain
from zolab.tasks.sorting import ALPHABET, Sorting, sorted_exactly

pytestmark = pytest.mark.usefixtures("one_thread")
TASK, WORDS = Sorting(digits=2, wanted=0.35), tokenizer(ALPHABET)
ROOM = TASK.max_new_tokens


@pytest.fixture(scope="module")
def weights():
    """A base that sorts now and then: a few hundred demonstrations."""
    model = blank(WORDS, hidden=32, layers=1, heads=2, inner=64)
    for _ in pretrain(model, WORDS, TASK, steps=60, batch=64, lr=1e-2, warmup=5):
        pass
    return model.state_dict()


def policy(weights):
    model = blank(WORDS, hidden=32, layers=1, heads=2, inner=64)
    model.load_state_dict(weights)
    return model


def learn(model, how, optimizer, steps, **kw):
    def draw(cursor, generator):
        return rollout(
            model,
            WORDS,
            TASK.prompts(8, seed=cursor),
            group_size=8,
            max_new_tokens=ROOM,
            generator=generator,
        )

    held = TASK.prompts(32, seed=0, held_out=True)

    def score():
        found = evaluate(model, WORDS, held, sorted_exactly, max_new_tokens=ROOM)
        return found.metrics()

    reward = Rewards({"exact": sorted_exactly})
    return train(
        model,
        kw.pop("draw", draw),
        reward,
        how,
        optimizer=optimizer,
        steps=steps,
        evaluate=score,
        every=steps,
        bar=False,
        **kw,
    )


def adam(model, lr=3e-3):
    return torch.optim.AdamW(model.parameters(), lr, weight_decay=0.0)


def scores(done):
    return [r["eval/pass@1"] for r in done.history if "eval/pass@1" in r]


def test_rewards_select_the_skill_that_pretraining_holds(weights):
    model = policy(weights)
    done = learn(model, recipe("grpo"), adam(model), 12, micro=16)
    first, last = scores(done)
    assert 0.1 < first < 0.7 and last > first + 0.12
    row = next(r for r in done.history if "loss" in r)
    assert row["ratio_error"] < 1e-5 and 0 < row["reward/exact"] < 1
    assert done.costs["rollouts"] == 12 * 64


def test_remax_takes_the_samplers_greedy_answers(weights):
    model = policy(weights)
    done = learn(
        model,
        "remax",
        adam(model),
        2,
        greedy=lambda drawn: baseline(model, WORDS, drawn, max_new_tokens=ROOM),
    )
    assert done.costs["rollouts"] == 2 * (64 + 8)


def test_evolution_asks_for_greedy_answers_at_every_probe(weights):
    model = policy(weights)
    es = EvolutionStrategy(eps=0.01, num_queries=4)

    def draw(cursor, generator):
        return greedy(model, WORDS, TASK.prompts(16, seed=cursor), max_new_tokens=ROOM)

    opt = zolab.ZOOptimizer(model, estimator=es, lr=0.01)
    done = learn(model, "es", opt, 2, draw=draw)
    assert done.costs["rollouts"] == 2 * 8 * 16
    assert done.costs["backward_tokens"] == 0
