"""A population that answers in one batched pass; RL streamed and on packed weights."""

import random

import pytest
import torch
from test_rl_logps import EOS, VOCABULARY, gpt2, llama, sampled

import zolab
from zolab import SPSA, EvolutionStrategy, LowRank, Population, Resident, Streamed
from zolab.rl import recipe, train
from zolab.rl.together import exactly, together
from zolab.space import Space

pytestmark = pytest.mark.usefixtures("one_thread")
T = 4


def ask(cursor):
    """Four left-padded prompts."""
    rng = random.Random(cursor)
    ids = torch.tensor([rng.choices(range(2, VOCABULARY), k=5) for _ in range(4)])
    mask = torch.ones(4, 5, dtype=torch.bool)
    mask[0, :2] = mask[2, 0] = False
    return ids, mask


def seeded(n=0):
    return torch.Generator().manual_seed(n)


@pytest.mark.parametrize("build", [llama, gpt2])
def test_the_likeliest_answer_is_the_teacher_forced_argmax(build):
    """A cache, left padding and positions change no token."""
    model = build().eval()
    said = together(model, ask, max_new_tokens=T, eos=(EOS,), temperature=0)(
        0, seeded()
    )
    ids, mask = ask(0)
    for i in range(len(said)):
        row = ids[i][mask[i]]
        for t in range(T):
            with torch.no_grad():
                y = int(model(row[None]).logits[0, -1].argmax())
            assert y == said.ids[i, t]
            row = torch.cat([row, torch.tensor([y])])


def test_the_mask_ends_with_the_first_eos_which_it_includes():
    model = llama().eval()
    said = together(model, ask, max_new_tokens=12, eos=(EOS, 3))(0, seeded())
    for ids, mask in zip(said.ids.tolist(), said.mask.tolist(), strict=True):
        at = [t for t, y in enumerate(ids) if y in (EOS, 3)]
        assert sum(mask) == (at[0] + 1 if at else 12) and mask == sorted(mask)[::-1]


def test_draws_have_the_models_frequencies():
    model = llama().eval()
    ids, mask = (x[1:2].expand(4000, -1) for x in ask(0))
    draw = together(
        model, lambda c: (ids, mask), max_new_tokens=1, eos=(EOS,), temperature=2.0
    )
    found = torch.bincount(draw(0, seeded()).ids[:, 0], minlength=VOCABULARY) / 4000
    with torch.no_grad():
        p = (model(ids[:1]).logits[0, -1] / 2).softmax(-1)
    assert (found - p).abs().max() < 4 * (0.25 / 4000) ** 0.5


def test_exactly_wants_every_token_and_the_eos():
    targets = torch.tensor([[5, 6, EOS], [5, EOS, 0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()

    def of(ids):
        from zolab.rl.together import Answers

        ids = torch.tensor(ids)
        return exactly(Answers(mask, ids, ids > -1), targets, mask).tolist()

    assert of([[5, 6, EOS, 9], [5, EOS, 8, 9]]) == [1, 1]
    assert of([[5, 6, 7, EOS], [6, EOS, 8, 9]]) == [0, 0]
    assert of([[5, 6], [5, EOS]]) == [0, 1]  # no room for the first one


def likes(token):
    """The share of a token among what was said: a reward that is a tensor."""
    return lambda a: ((a.ids == token) & a.mask).float().mean(-1)


def run(engine, *, steps=2, model=None, members=8, **kw):
    model = model or llama()
    draw = together(model, ask, max_new_tokens=T, eos=(EOS,))
    es = EvolutionStrategy(eps=0.05, num_queries=members, family=LowRank(1, 1))
    opt = zolab.ZOOptimizer(model, estimator=es, engine=engine, lr=0.05, **kw)
    done = train(model, draw, likes(4), "es", optimizer=opt, steps=steps, bar=False)
    return model, done, opt


def test_a_population_answers_as_its_members_do_one_after_another():
    alone, one, a = run(Resident(scratch="all"), steps=1)
    both, two, b = run(Population(members=6), steps=1)
    assert a.last.losses == b.last.losses and len(set(a.last.losses)) > 4
    assert all(map(torch.equal, alone.parameters(), both.parameters()))
    keys = ("rollouts", "forward_tokens", "backward_tokens")
    assert [one.costs[k] for k in keys] == [two.costs[k] for k in keys]
    assert one.costs["rollouts"] == 16 * 4
    assert one.costs["forward_tokens"] == 16 * (17 + 4 * T)


def test_a_population_learns_to_say_what_is_liked():
    _, done, _ = run(Population(), steps=12)
    rewards = [r["reward"] for r in done.history]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.1


SMALL = {
    "es": EvolutionStrategy(eps=0.05, num_queries=2),
    "rloo": SPSA(eps=1e-2, num_queries=2),
}


def streamed(name, engine, folder, steps=2):
    """Rollouts of the slow sampler, through the model as the engine keeps it."""
    model = llama()
    opt = zolab.ZOOptimizer(
        model, estimator=SMALL[name], engine=engine, lr=0.01, journal=folder
    )

    def draw(cursor, generator):
        return sampled(model, n=4, t=3, seed=cursor)

    def reward(rollout):
        return (rollout.completion_ids == 4).float().sum(1).tolist()

    done = train(model, draw, reward, name, optimizer=opt, steps=steps, bar=False)
    opt.engine.flush()
    opt.journal.close()
    return model, done


@pytest.mark.parametrize("name", SMALL)
def test_streamed_and_resident_runs_have_the_same_bits(name, tmp_path):
    a, one = streamed(name, Resident(scratch="one"), tmp_path / "a")
    b, two = streamed(name, Streamed(store="ram", device="cpu"), tmp_path / "b")
    losses = [[r["loss"] for r in x.history] for x in (one, two)]
    assert losses[0] == losses[1]
    assert all(map(torch.equal, a.parameters(), b.parameters()))
    assert not torch.equal(a.lm_head.weight, llama().lm_head.weight)


@pytest.mark.parametrize("name", SMALL)
def test_four_bit_weights_learn_by_their_scales(name, tmp_path):
    from zolab.quantized import pack, packed_weights

    def packed():
        model = pack(llama(), "int4", group=16)
        for n, p in model.named_parameters():
            p.requires_grad_(n.endswith("_scale"))
        return model

    def learn(model, steps):
        opt = zolab.ZOOptimizer(
            model, estimator=SMALL[name], lr=0.01, journal=tmp_path / "run.zolab"
        )

        def draw(cursor, generator):
            return sampled(model, n=4, t=3, seed=cursor)

        def reward(rollout):
            return (rollout.completion_ids == 4).float().sum(1).tolist()

        train(
            model,
            draw,
            reward,
            recipe(name),
            optimizer=opt,
            steps=steps,
            bar=False,
            folder=tmp_path,
            evaluate=lambda: {"pass@1": 0.0},
        )
        opt.journal.close()
        return model

    base, model = packed(), learn(packed(), 3)
    scales = [n for n, p in model.named_parameters() if p.requires_grad]
    assert len(Space.of(model)) == len(scales) > 4
    codes = zip(
        packed_weights(base).values(), packed_weights(model).values(), strict=True
    )
    assert all(torch.equal(a.codes, b.codes) for a, b in codes)
    moved = dict(base.named_parameters())
    assert any(not torch.equal(moved[n], model.get_parameter(n)) for n in scales)
    again = learn(packed(), 3)  # nothing left to do: the journal has it all
    assert all(
        torch.equal(again.get_parameter(n), model.get_parameter(n)) for n in scales
    )
