"""The evaluation: held-out prompts, greedy, and pass@k by the unbiased estimator."""

import math
from itertools import combinations

import pytest
import torch

from zolab.errors import ZolabError
from zolab.rl import evaluate as module
from zolab.rl.evaluate import evaluate
from zolab.rl.rollout import greedy, rollout
from zolab.tasks.bases import load_base
from zolab.tasks.sorting import Sorting, sorted_exactly

pytestmark = pytest.mark.usefixtures("one_thread")
PROMPTS = Sorting().prompts(24, seed=0, held_out=True)


@pytest.fixture(scope="module")
def base():
    return load_base("sorting")


def score(base, **options):
    usual = {"max_new_tokens": 7, "samples": 6, "ks": (1, 3, 6)}
    return evaluate(*base, PROMPTS, sorted_exactly, **usual | options)


def test_pass_at_k_is_the_share_of_subsets_that_hold_a_right_answer(base):
    found = score(base)
    g = torch.Generator().manual_seed(0)
    r = rollout(*base, PROMPTS, group_size=6, max_new_tokens=7, generator=g)
    flags = sorted_exactly(r.prompts, r.texts, stop=r.stop)
    rows = [flags[i : i + 6] for i in range(0, len(flags), 6)]
    for k in (1, 3, 6):
        shares = [sum(map(any, combinations(row, k))) / math.comb(6, k) for row in rows]
        assert found.passes[k] == pytest.approx(sum(shares) / len(shares))
    assert found.pass1 == pytest.approx(sum(flags) / len(flags))
    assert found.tokens == pytest.approx(float(r.lengths.float().mean()))
    plug_in = sum(1 - (1 - sum(row) / 6) ** 6 for row in rows) / len(rows)
    assert plug_in < found.passes[6] - 0.02  # the biased one


def test_greedy_is_one_likeliest_answer_a_prompt(base):
    r = greedy(*base, PROMPTS, max_new_tokens=7)
    flags = sorted_exactly(r.prompts, r.texts, stop=r.stop)
    found = score(base)
    assert found.greedy == sum(flags) / len(flags)
    p = found.greedy
    assert found.errors[0] == pytest.approx(math.sqrt(p * (1 - p) / 23), rel=1e-6)


def test_the_size_of_a_batch_changes_nothing(base, monkeypatch):
    """Beyond the draws: a batch takes its own from the generator."""
    monkeypatch.setattr(module, "ROWS", 6)
    small = score(base)
    assert small.greedy == score(base, samples=6).greedy
    assert small.prompts == 24 and small.samples == 6


def test_two_evaluations_differ_by_the_policy_alone(base):
    before = torch.get_rng_state()
    assert score(base) == score(base)
    assert score(base, generator=1) != score(base)
    assert torch.equal(before, torch.get_rng_state())


def test_columns_and_unjudged_rows(base):
    def judge(prompts, completions, *, wanted, **columns):
        return [
            None if w is None else float(c == w)
            for c, w in zip(completions, wanted, strict=True)
        ]

    wanted = ["".join(sorted(p[:-1])) for p in PROMPTS]
    options = {"max_new_tokens": 7, "samples": 6}
    whole = evaluate(
        *base, PROMPTS, judge, columns={"wanted": wanted}, ks=(1,), **options
    )
    half = [w if i % 2 else None for i, w in enumerate(wanted)]
    less = evaluate(*base, PROMPTS, judge, columns={"wanted": half}, ks=(1,), **options)
    assert 0 < less.pass1 < whole.pass1  # what nobody can judge is not right


def test_more_k_than_samples_is_refused(base):
    with pytest.raises(ZolabError, match="pass@8 needs 8 samples"):
        score(base, ks=(8,))
