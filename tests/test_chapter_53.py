"""Chapter 53: its claims' controls fail."""

import math

import pytest
import torch

from zolab import lab, rl
from zolab.lab import claims
from zolab.rl.evaluate import evaluate
from zolab.rl.rollout import rollout
from zolab.tasks import countdown
from zolab.tasks.bases import load_base
from zolab.tasks.characters import tokenizer as characters
from zolab.tasks.pretraining import blank
from zolab.tasks.sorting import Sorting, sorted_exactly

pytestmark = pytest.mark.usefixtures("one_thread")
TASK = Sorting()


def judge(name: str, measured: float, se: float | None = None) -> str:
    return claims.ledger()[name].judge(measured, se)


def pull(name: str, s: float, size: int) -> float:
    """The length of the mean step along the gradient of s, by enumeration."""
    total = 0.0
    for c in range(size + 1):
        r = (torch.arange(size) < c).double()
        ok = torch.ones(size).bool()
        scores = rl.Scores(r, ok, torch.zeros(size).long(), ok[:, None])
        a = rl.advantage(name, scores)[:, 0].double()
        # E[score | right] is grad s / s, E[score | wrong] is -grad s / (1 - s)
        along = torch.where(r > 0, 1 / s, -1 / (1 - s))
        chance = math.comb(size, c) * s**c * (1 - s) ** (size - c)
        total += chance * float((a * along).mean())
    return total


def uneven(name: str, size: int) -> float:
    return pull(name, 0.1, size) / pull(name, 0.5, size)


def test_without_the_std_and_in_small_groups_the_pull_is_even():
    assert pull("rloo", 0.3, 8) == pytest.approx(1, abs=1e-6)
    assert pull("dr_grpo", 0.3, 8) == pytest.approx(7 / 8, abs=1e-6)
    for name, size, bias, pairs in (
        ("grpo", 64, claims.HOLDS, claims.NOT_SEEN),
        ("grpo", 2, claims.NOT_SEEN, claims.HOLDS),
        ("dr_grpo", 64, claims.NOT_SEEN, claims.HOLDS),
    ):
        assert judge("53-std-bias", uneven(name, size)) == bias
        assert judge("53-pairs", uneven(name, size)) == pairs


def ask(model, tokenizer, prompts, generator):
    return rollout(
        model,
        tokenizer,
        prompts,
        group_size=8,
        max_new_tokens=7,
        generator=generator,
    )


def exact(r):
    return sorted_exactly(r.prompts, r.texts, stop=r.stop)


def test_other_seeds_of_one_name_do_not_differ():
    """Two updates of RLOO, five seeds against five others; 30 points would be seen."""

    def trained(seed: int) -> float:
        model, tokenizer = load_base("sorting")
        rl.train(
            model,
            lambda cursor, g: ask(
                model, tokenizer, TASK.prompts(4, seed=100 * seed + cursor), g
            ),
            exact,
            "rloo",
            optimizer=torch.optim.AdamW(model.parameters(), lr=3e-4),
            steps=2,
            seed=seed,
            bar=False,
        )
        held = TASK.prompts(30, seed=seed % 5, held_out=True)
        e = evaluate(model, tokenizer, held, sorted_exactly, max_new_tokens=7)
        return e.pass1

    gaps = [trained(s) - trained(s + 5) for s in range(5)]
    for name in ("53-std-helps", "53-baseline-helps"):
        assert judge(name, *lab.mean_se(gaps)) == claims.NOT_SEEN
        assert judge(name, *lab.mean_se([g + 0.3 for g in gaps])) == claims.SAME
        assert judge(name, *lab.mean_se([g - 0.3 for g in gaps])) == claims.OPPOSITE


def test_the_plug_in_is_biased():
    def worst(estimate) -> float:
        found = []
        for s in (0.02, 0.1, 0.3):
            chance = [math.comb(16, c) * s**c * (1 - s) ** (16 - c) for c in range(17)]
            mean = sum(p * estimate(16, c, 8) for c, p in enumerate(chance))
            found.append(mean - (1 - (1 - s) ** 8))
        return max(found, key=abs)

    assert judge("53-passk", worst(rl.pass_at_k)) == claims.HOLDS
    plug_in = worst(lambda n, c, k: 1 - (1 - c / n) ** k)
    assert plug_in < 0
    assert judge("53-passk", plug_in) == claims.NOT_SEEN


def test_a_hair_cooler_changes_nothing():
    model, tokenizer = load_base("sorting")

    def pass8(temperature: float, seed: int) -> float:
        found = evaluate(
            model,
            tokenizer,
            TASK.prompts(40, seed=seed, held_out=True),
            sorted_exactly,
            max_new_tokens=7,
            temperature=temperature,
            generator=round(1000 * temperature),
        )
        return found.passes[8]

    hair = [pass8(0.98, s) - pass8(1.0, s) for s in range(5)]
    cold = [pass8(0.03, s) - pass8(1.0, s) for s in range(5)]
    for name in ("53-cooling", "53-training-narrows"):
        assert judge(name, *lab.mean_se(hair)) == claims.NOT_SEEN
        assert judge(name, *lab.mean_se(cold)) == claims.SAME


def climbed(clip_high: float) -> float:
    """How many times likelier a right token gets in 80 steps on one rollout."""
    z = torch.log(torch.tensor([0.01] + [0.11] * 9)).double()
    old, one = z.log_softmax(0)[:1, None], torch.ones(1, 1)
    for _ in range(80):
        z = z.detach().requires_grad_(True)
        t = rl.Tokens(z.log_softmax(0)[:1, None], old, one, one.bool())
        rl.LOSSES["ppo_clip"](t, clip_high=clip_high).sum().backward()
        z = z - 0.005 * z.grad
    return float(z.detach().softmax(0)[0] / 0.01)


def test_the_usual_clip_rises_less():
    assert judge("53-clip-higher", climbed(0.28)) == claims.HOLDS
    assert judge("53-clip-higher", climbed(0.2)) == claims.NOT_SEEN
    assert climbed(0.2) == pytest.approx(1.2, abs=0.01)


def test_one_draw_is_not_full():
    model, tokenizer = load_base("sorting")

    def again(i):
        r = ask(model, tokenizer, TASK.prompts(16, seed=i), i)
        return r, exact(r)

    def useful(r, rewards) -> float:
        return float(rl.informative(rewards, r.group).sum()) / 128

    full, rewards, drawn = rl.dynamic_sampling(again, tries=10)
    assert judge("53-dynamic", useful(full, rewards)) == claims.HOLDS
    assert drawn > 128
    assert judge("53-dynamic", useful(*again(0))) == claims.NOT_SEEN


def test_a_mean_of_rows_pulls_long_ones_less():
    tokenizer = characters(countdown.ALPHABET)
    babble = rollout(
        blank(tokenizer),
        tokenizer,
        countdown.Countdown().prompts(8, seed=0),
        group_size=8,
        max_new_tokens=40,
        generator=0,
    )
    mask, long = babble.mask, babble.lengths >= 30
    for how, verdict in (
        ("token-mean", claims.HOLDS),
        ("seq-mean-token-mean", claims.NOT_SEEN),
    ):
        x = torch.zeros(mask.shape, requires_grad=True)
        rl.aggregate(x, mask, how, rl.Totals.of(mask)).backward()
        share = float(x.grad[long].sum() / x.grad.sum())
        tokens = float(mask[long].sum() / mask.sum())
        assert judge("53-token-level", share / tokens) == verdict
