"""A population in one forward: the losses of one after another, the same updates."""

import pytest
import torch
from helpers import closure as tokens
from helpers import mlp, same_bits
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import zolab
from zolab import EvolutionStrategy, LowRank, Population, Resident, noise
from zolab.engines import population
from zolab.errors import LossError

pytestmark = pytest.mark.usefixtures("one_thread")
IDS = torch.arange(24).reshape(2, 12) % 31


def gpt2(dtype=torch.float32):
    torch.manual_seed(1)
    config = GPT2Config(vocab_size=31, n_embd=24, n_layer=2, n_head=2, n_positions=16)
    return GPT2LMHeadModel(config).to(dtype)


def llama(dtype=torch.float32):
    torch.manual_seed(1)
    shape = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=31, num_hidden_layers=2, tie_word_embeddings=True, **shape
    )
    return LlamaForCausalLM(config).to(dtype)


def language(model):
    return lambda: model(input_ids=IDS, labels=IDS, use_cache=False).loss


MODELS = {"gpt2": (gpt2, language), "llama": (llama, language)}
MODELS["mlp"] = (lambda dtype=torch.float32: mlp(0, dtype), tokens)


def run(name, engine, steps=1, dtype=torch.float32, **kwargs):
    build, objective = MODELS[name]
    model = build(dtype)
    kwargs = {"lr": 1e-2, "family": LowRank(2, 1)} | kwargs
    family, shaping = kwargs.pop("family"), kwargs.pop("shaping", "none")
    es = EvolutionStrategy(eps=0.03, num_queries=4, family=family, shaping=shaping)
    opt = zolab.ZOOptimizer(model, estimator=es, engine=engine, **kwargs)
    losses = []
    for _ in range(steps):
        opt.step(objective(model))
        losses += opt.last.losses
    return model, torch.tensor(losses, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_its_losses_are_those_of_one_after_another(name, dtype):
    _, alone = run(name, Resident(), dtype=dtype)
    spread = alone.std()
    assert spread > 1e-4
    for members in (3, 8):
        _, together = run(name, Population(members=members), dtype=dtype)
        # bf16 rounds the product and what is added to it, not the weight.
        limit = 1e-3 if dtype == torch.float32 else 0.5
        assert (together - alone).abs().max() < limit * spread


def test_members_that_share_a_direction_are_seen(monkeypatch):
    honest = population.factors

    def first(slot, probes):
        return honest(slot, [probes[0]] * len(probes))

    monkeypatch.setattr(population, "factors", first)
    _, alone = run("llama", Resident())
    _, together = run("llama", Population())
    assert (together - alone).abs().max() > 0.1 * alone.std()


def test_the_factors_are_the_direction():
    a, b, shape = noise.stream(5, 7), noise.stream(6, 7), (6, 9)
    u, v = noise.signs(a, 6, 5), noise.signs(b, 9, 5)
    whole = noise.low_rank(a, b, 5, torch.arange(54).reshape(shape), 9)
    assert torch.equal(u @ v.T, whole)


@pytest.mark.parametrize("name", MODELS)
def test_the_log_needs_no_population(tmp_path, name):
    path = tmp_path / "run.zolab"
    live, _ = run(name, Population(members=3), steps=3, journal=path, shaping="ranks")
    again = MODELS[name][0]()
    zolab.replay(again, path)
    assert same_bits(live, again)


def test_two_terms_are_two_ranks_and_none_is_the_base():
    model = llama()
    space = zolab.Space.of(model)
    one, two = (LowRank(2, 1).direction(zolab.families.Keys(0, s), 0) for s in (1, 2))
    probes = [zolab.Probe(), zolab.Probe(((one, 0.25), (two, -0.5)))]
    answers = []
    for engine in (Resident(), Population()):
        engine.bind(model, space, seed=0, rounding="nearest")
        answers.append(
            [a.value for a in engine.evaluate(probes, {"loss": language(model)})]
        )
    assert answers[1] == pytest.approx(answers[0], abs=1e-5)
    assert abs(answers[0][0] - answers[0][1]) > 1e-2


def test_what_a_population_cannot_do_is_one_clear_error():
    with pytest.raises(ValueError, match="members is 0, expected at least 1"):
        Population(members=0)
    with pytest.raises(ValueError, match="rademacher, expected low_rank"):
        run("mlp", Population(), family="rademacher")
    model = mlp(0)
    masks = zolab.masks.random(zolab.Space.of(model), 0.5)
    with pytest.raises(ValueError, match="has a mask"):
        zolab.MeZO(model, family=LowRank(), engine=Population(), masks=masks)


@pytest.mark.parametrize(
    ("closure", "message"),
    [
        (lambda model, f: f().item(), "Use Resident"),
        (lambda model, f: 1.0, "returned float"),
        (lambda model, f: model(torch.ones(5, dtype=int)), "shape"),
        (lambda model, f: f().bfloat16(), "bfloat16"),
        (lambda model, f: f() * torch.rand(()), "draws at random"),
    ],
)
def test_a_closure_that_does_not_fit(closure, message):
    model = mlp(0)
    before, f = mlp(0), tokens(model)
    opt = zolab.MeZO(model, family=LowRank(), engine=Population())
    with pytest.raises(LossError, match=message):
        opt.step(lambda: closure(model, f))
    assert same_bits(model, before)
