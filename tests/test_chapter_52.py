"""Chapter 52: its claims' controls fail."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from policy import EVERY, Policy, exact, gradient
from transformers import GPT2Config, GPT2LMHeadModel

from zolab import lab, rl
from zolab.lab import claims
from zolab.rl.rollout import rollout
from zolab.rl.surrogate import surrogate
from zolab.tasks.bases import load_base
from zolab.tasks.sorting import Sorting, sorted_exactly

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.usefixtures("one_thread")


def judge(name: str, measured: float, se: float | None = None) -> str:
    return claims.ledger()[name].judge(measured, se)


def drawn(seed: int = 1, digits: tuple[int, ...] = (6, 9)):
    model, tokenizer = load_base("sorting")
    prompts = [p for n in digits for p in Sorting(digits=n).prompts(4, seed=seed)]
    found = rollout(
        model,
        tokenizer,
        prompts,
        group_size=8,
        max_new_tokens=7,
        temperature=0.7,
        generator=seed,
    )
    return model, found


@torch.no_grad()
def off(model, now, d):
    """|ratio - 1| of a trainer that scores `now`, the sampler having drawn `d`."""
    return ((rl.token_logps(model, now).logps - d.logps).exp() - 1)[d.mask].abs()


def test_the_samplers_own_numbers_see_a_temperature():
    model, d = drawn()
    hot = replace(d, temperature=1.0)
    own = hot.scored(rl.token_logps(model, hot).logps.detach())
    assert judge("52-recomputed", float(off(model, own, own).max())) == claims.HOLDS
    assert judge("52-recomputed", float(off(model, hot, d).max())) == claims.NOT_SEEN


def test_the_right_temperature_moves_no_ratio():
    model, d = drawn()
    for temperature, verdict in ((1.0, claims.SAME), (0.7, claims.NOT_SEEN)):
        now = replace(d, temperature=temperature)
        with torch.no_grad():
            gone = (rl.token_logps(model, now).logps - d.logps).exp() - 1
        # by the margin: what rounding moves has a spread that is small beside it, too
        assert judge("52-temperature", float(gone[d.mask].abs().mean())) == verdict


def test_a_bug_is_above_the_tolerance_and_a_correct_trainer_below():
    model, d = drawn()
    right = float(off(model, d, d).max())
    wrong = float(off(model, replace(d, temperature=1.0), d).max())
    assert judge("52-correct", right) == claims.HOLDS
    assert judge("52-correct", wrong) == claims.NOT_SEEN
    assert judge("52-nine-seen", wrong) == claims.HOLDS
    assert judge("52-nine-seen", right) != claims.HOLDS


def positions_matter(model) -> float:
    """The largest |ratio - 1| when positions are counted from the padding on."""
    ids = torch.tensor([[0, 0, 0, 1, 2, 1, 2]])
    real = torch.tensor([[0, 0, 0, 1, 1, 1, 1]])
    found = []
    for place in ((real.cumsum(1) - 1).clamp(min=0), torch.arange(7)[None]):
        with torch.no_grad():
            z = model(input_ids=ids, attention_mask=real, position_ids=place).logits
        found.append(z.log_softmax(-1)[0, 3:-1].gather(1, ids[0, 4:, None]))
    return float(((found[1] - found[0]).exp() - 1).abs().max())


def test_learned_positions_do_not_forgive():
    torch.manual_seed(0)
    learned = GPT2LMHeadModel(
        GPT2Config(vocab_size=14, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    )
    learned.transformer.wpe.weight.data.normal_()
    assert judge("52-positions", positions_matter(load_base("sorting")[0])) == (
        claims.HOLDS
    )
    assert judge("52-positions", positions_matter(learned.eval())) == claims.NOT_SEEN


def test_a_detached_ratio_has_a_gradient():
    """On a policy whose gradient is a sum: alive it is nabla J, dead it is 0."""
    policy, rewards = Policy(), [1.0, 0.0, 0.1, 0.0, 2.0, 0.0, 0.1]
    now = rl.token_logps(policy, EVERY).logps
    p = now.detach().sum(1).exp()
    weight = (p * torch.tensor(rewards))[:, None] * EVERY.mask
    found = []
    for old in (now, now.detach()):
        total = ((now - old).exp() * weight).sum()
        assert float(total.detach()) == pytest.approx(float(weight.sum()))
        found.append(gradient(total, policy))
    assert torch.allclose(found[1], exact(policy, rewards), atol=1e-6)
    assert judge("52-dead-gradient", float(found[0].norm())) == claims.HOLDS
    assert judge("52-dead-gradient", float(found[1].norm())) == claims.NOT_SEEN


def test_weights_that_stay_show_no_gain():
    """Five seeds of a trainer without a gradient: its curve is luck."""
    gains = []
    for seed in range(5):
        shares = []
        for step in range(4):
            _, d = drawn(1000 * seed + step, (6,))
            r = sorted_exactly(d.prompts, d.texts, stop=d.stop)
            shares.append(sum(r) / len(r))
        gains.append(sum(shares[1:]) / 3 - shares[0])
    for name in ("52-eos-learns", "52-groups-learn"):
        assert judge(name, *lab.mean_se(gains)) != claims.SAME
        better = [g + 0.6 for g in gains]
        assert judge(name, *lab.mean_se(better)) == claims.SAME


def far(a, b) -> float:
    return float((a - b).norm() / b.norm())


def gradients(model, d, how, micro, *, local=False):
    """The summed gradient of micro-batches; `local` divides by their own tokens."""
    dice = torch.rand(len(d), generator=torch.Generator().manual_seed(0)).tolist()
    batch = rl.prepare(d, dice, how)
    model.zero_grad()
    for rows in torch.arange(len(d)).split(micro):
        own = rl.Totals.of(batch.mask[rows])
        part = replace(batch, totals=own) if local else batch
        scale = len(rows) / len(d) if local else 1.0
        (scale * surrogate(model, part, how, rows)).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def test_micro_batches_of_unequal_lengths_see_a_local_mean():
    how = rl.recipe("grpo", aggregation="token-mean")
    model, d = drawn()
    whole = gradients(model, d, how, len(d))
    assert far(gradients(model, d, how, 4), whole) < 1e-5
    assert far(gradients(model, d, how, 4, local=True), whole) > 1e-3


def test_and_equal_lengths_hide_it():
    """The bug sleeps where all answers have one length: data decide what is seen."""
    how = rl.recipe("grpo", aggregation="token-mean")
    model, d = drawn(digits=(6,))
    assert len(set(d.lengths.tolist())) == 1
    whole = gradients(model, d, how, len(d))
    assert far(gradients(model, d, how, 4, local=True), whole) < 1e-5


CELLS = ["01", "03", "04", "06", "07", "08", "09", "18", "19", "21", "22"]
SEEN = {  # by first ratio, length, 1 x B, pads, groups, oracle
    "": "......",
    "temperature": "x....x",
    "off by one": "x....x",
    "pads attended": "x..x.x",
    "positions": "......",
    "dropout": "x.xx.x",
    "bf16": "x.x..x",
    "EOS lost": ".x...x",
    "local mean": "..x...",
    "not detached": ".....x",
    "wrong groups": "....x.",
    "ddof 0": "......",
}


@pytest.fixture(scope="module")
def chapter():
    """What the chapter's own cells define: its trainer, its bugs and its checks."""
    book = json.loads((ROOT / "notebooks/52_break_it.ipynb").read_text("utf-8"))
    source = {c["id"]: "".join(c["source"]) for c in book["cells"]}
    names: dict = {}
    for cell in CELLS:
        exec(source[f"c52-{cell}"].replace('lab.begin("52")', ""), names)
    return names


@pytest.mark.parametrize("bug", SEEN)
def test_every_trap_is_seen_by_the_checks_that_the_page_names(chapter, bug):
    torch.manual_seed(0)
    assert set(SEEN) == {"", *chapter["BUGS"]}
    found = [check(bug) > 1e-4 for check in chapter["CHECKS"].values()]
    assert "".join(".x"[f] for f in found) == SEEN[bug]
