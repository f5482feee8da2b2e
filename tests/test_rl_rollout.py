"""The rollout: every trap that once cost somebody a run, set again on purpose.

`truth` is the slow, plain way: one forward pass over all tokens of one row, no padding,
no cache. Each trap is a change of it that a test shows to be seen.
"""

import copy

import pytest
import torch
from helpers import same_bits
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import zolab
from zolab.engines import Resident
from zolab.gradient import Direction, Probe
from zolab.noise import make_key
from zolab.rl import RolloutError, sampler
from zolab.rl.fused import Fused, unfit
from zolab.rl.rollout import baseline, encode, greedy, rollout
from zolab.tasks.characters import tokenizer
from zolab.tasks.pretraining import blank

pytestmark = pytest.mark.usefixtures("one_thread")
TOK = tokenizer("0123456789=")
PROMPTS = ["31=", "9=", "205817=", "4406="]
BACKENDS = ("own", "generate")


def peaked(model, scale=6.0):
    """Random weights whose next token depends on what came before."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.normal_(0, scale / 10 / p.shape[1] ** 0.25)
            else:  # gains and biases that are not 1 and 0
                p.add_(torch.randn_like(p), alpha=0.05)
    return model.eval()


def llama():
    return peaked(blank(TOK, hidden=32, heads=2, inner=48))


def gpt2():
    """Learnt positions: counted from the padding they would be others."""
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
    ids = {"bos_token_id": 1, "eos_token_id": 2}
    return peaked(GPT2LMHeadModel(GPT2Config(vocab_size=len(TOK), **shape, **ids)))


SMALL = {
    "vocab_size": len(TOK),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HEADS = {"num_key_value_heads": 1, "intermediate_size": 48}
FAMILIES = {
    "llama": llama,
    "gpt2": gpt2,
    "opt": lambda: peaked(
        OPTForCausalLM(OPTConfig(**SMALL, ffn_dim=48, word_embed_proj_dim=32))
    ),
    "qwen2": lambda: peaked(Qwen2ForCausalLM(Qwen2Config(**SMALL, **HEADS))),
    "qwen3": lambda: peaked(
        Qwen3ForCausalLM(Qwen3Config(**SMALL, **HEADS, head_dim=16))
    ),
    "mistral": lambda: peaked(
        MistralForCausalLM(MistralConfig(**SMALL, **HEADS, sliding_window=5))
    ),
}


def draw(model, prompts=PROMPTS, **options):
    usual = {"group_size": 4, "max_new_tokens": 9, "generator": 0}
    return rollout(model, TOK, prompts, **usual | options)


@torch.no_grad()
def truth(model, r, temperature):
    """(N, T) log-probabilities and entropies of the completions, row by row."""
    logps, entropy = torch.zeros_like(r.logps), torch.zeros_like(r.logps)
    for i, n in enumerate(r.lengths.tolist()):
        prompt = r.prompt_ids[i][r.prompt_mask[i]]
        said = r.completion_ids[i, :n]
        logits = model(input_ids=torch.cat([prompt, said])[None]).logits[0].double()
        p = (logits[len(prompt) - 1 : -1] / temperature).log_softmax(-1)
        logps[i, :n] = p.gather(1, said[:, None])[:, 0].float()
        entropy[i, :n] = -(p.exp() * p).sum(-1).float()
    return logps, entropy


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_those_of_generate(family):
    model = FAMILIES[family]()
    ours, theirs = (
        greedy(model, TOK, PROMPTS * 3, max_new_tokens=12, backend=b) for b in BACKENDS
    )
    assert torch.equal(ours.mask, theirs.mask) and ours.stop == theirs.stop
    assert torch.equal(ours.completion_ids[ours.mask], theirs.completion_ids[ours.mask])
    assert ours.texts == theirs.texts and len(set(ours.texts)) > 2


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_are_the_teacher_forced_ones(family, backend):
    model = FAMILIES[family]()
    for temperature in (0.5, 1.0, 1.7):
        r = draw(model, temperature=temperature, backend=backend)
        logps, entropy = truth(model, r, temperature)
        assert (logps - r.logps).abs().max() < 1e-5
        assert (entropy - r.entropy).abs().max() < 1e-5


def test_a_forgotten_temperature_is_seen():
    model = llama()
    r = draw(model, temperature=0.7)
    assert (truth(model, r, 1.0)[0] - r.logps).abs().max() > 0.1


def test_logits_one_place_late_are_seen():
    model = llama()
    r = draw(model, ["31=", "42="], temperature=1.0)
    logits = model(input_ids=r.input_ids).logits.log_softmax(-1)
    start = r.prompt_ids.shape[1]
    late = logits[:, start:].gather(2, r.completion_ids[..., None])[..., 0]
    assert ((late - r.logps) * r.mask).abs().max() > 0.1


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_missing_mask_on_the_left_padding_is_seen(family, monkeypatch):
    model = FAMILIES[family]()
    right = draw(model)

    def all_real(*args, **kwargs):
        ids, mask = encode(*args, **kwargs)
        return ids, torch.ones_like(mask)

    monkeypatch.setattr("zolab.rl.rollout.encode", all_real)
    wrong = draw(model)
    assert wrong.texts[8:12] == right.texts[8:12]  # the longest prompt has no padding
    assert wrong.texts != right.texts


def test_positions_that_count_the_padding_are_seen_where_positions_are_learnt(
    monkeypatch,
):
    """With rotary positions the same slip changes nothing: only distances count."""
    learnt, rotary = gpt2(), llama()
    right = [draw(m) for m in (learnt, rotary)]

    class Counting(sampler.Ahead):
        def __init__(self, model, ids, mask, steps):
            super().__init__(model, ids, mask, steps)
            self.places = False  # GPT-2 then counts from the first column

    monkeypatch.setattr(sampler, "Ahead", Counting)
    monkeypatch.setattr(sampler, "unfit", lambda model: "through the modules")
    wrong = [draw(m) for m in (learnt, rotary)]
    assert wrong[0].texts != right[0].texts
    assert wrong[1].texts == right[1].texts


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_is_off_while_sampling_and_the_flags_come_back(backend):
    model = gpt2().train()
    model.transformer.h[0].eval()
    flags = [m.training for m in model.modules()]
    r = draw(model, backend=backend)
    assert [m.training for m in model.modules()] == flags
    assert (truth(model.eval(), r, 1.0)[0] - r.logps).abs().max() < 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_sampling_settings_saved_with_a_model_are_not_used(backend):
    """Temperature 0.01 made all answers of a group equal: no advantage, for ever."""
    plain, saved = llama(), llama()
    saved.generation_config.update(
        do_sample=True, temperature=0.01, top_p=0.001, top_k=1, repetition_penalty=3.0
    )
    a, b = (draw(m, backend=backend) for m in (plain, saved))
    assert a.texts == b.texts and len(set(b.texts)) > 8
    assert saved.generation_config.top_k == 1


def ends_after(logits_of):
    """A stand-in model that says what `logits_of(step)` makes likely."""

    class Said(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.config = llama(), llama().config
            self.device, self.steps = torch.device("cpu"), 0

        def forward(self, input_ids, attention_mask, past_key_values, use_cache):
            out = self.inner(
                input_ids=input_ids,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                use_cache=True,
            )
            out.logits = torch.full_like(out.logits, -50.0)
            for row in range(len(input_ids)):
                out.logits[row, -1, logits_of(row, self.steps)] = 0.0
            self.steps += 1
            return out

    return Said()


def test_the_mask_ends_with_the_first_eos_by_its_place_not_by_a_token_value():
    """pad is EOS: comparing ids with pad would cut the EOS, or count the padding."""
    said = [[3, 4, 2, 9], [2, 9, 9, 9], [3, 3, 3, 3]]
    model = ends_after(lambda row, step: said[row][step])
    tok = copy.deepcopy(TOK)
    tok.pad_token = tok.eos_token
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "LEAVE", 2.0)  # rows keep their places
        r = greedy(model, tok, ["1=", "2=", "3="], max_new_tokens=4)
    assert r.lengths.tolist() == [3, 1, 4]
    assert r.completion_ids.tolist() == [[3, 4, 2, 2], [2, 2, 2, 2], [3, 3, 3, 3]]
    assert r.stop == ("eos", "eos", "length")
    assert r.texts == ("01", "", "0000")
    by_value = (r.completion_ids != tok.pad_token_id).sum(1).tolist()
    assert by_value == [2, 0, 4]  # no EOS is learnt


def test_every_eos_id_of_a_model_ends_an_answer():
    said = [[3, 9, 4, 5], [3, 2, 4, 5], [3, 4, 5, 6]]
    rows = {"eos_token_id": [2, 9]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "LEAVE", 2.0)
        one = ends_after(lambda row, step: said[row][step])
        two = ends_after(lambda row, step: said[row][step])
        two.config.update(rows)
        few = greedy(one, TOK, ["1=", "2=", "3="], max_new_tokens=4)
        all_ = greedy(two, TOK, ["1=", "2=", "3="], max_new_tokens=4)
    assert few.lengths.tolist() == [4, 2, 4]
    assert all_.lengths.tolist() == [2, 2, 4]
    assert all_.stop == ("eos", "eos", "length")


def test_both_backends_know_several_eos_ids():
    model = llama()
    model.generation_config.eos_token_id = [2, 5, 7]
    ours, theirs = (
        greedy(model, TOK, PROMPTS, max_new_tokens=12, backend=b) for b in BACKENDS
    )
    assert torch.equal(ours.mask, theirs.mask) and ours.stop == theirs.stop
    last = ours.completion_ids.gather(1, ours.lengths[:, None] - 1)[:, 0]
    assert {5, 7} & set(last.tolist())


def test_what_the_padding_holds_and_how_long_it_is_changes_no_answer():
    model = gpt2()
    eos = [2]
    options = {"max_new_tokens": 6, "temperature": 1.0, "eos": eos, "pad": 0}
    ids, mask = encode(TOK, PROMPTS, pad=0)

    def texts(ids, mask):
        g = torch.Generator().manual_seed(0)
        return sampler.sample(model, ids, mask, generator=g, **options)

    usual = texts(ids, mask)
    other = texts(torch.where(mask, ids, 7), mask)
    more = torch.zeros(len(ids), 5, dtype=torch.long)
    longer = texts(torch.cat([more, ids], 1), torch.cat([more.bool(), mask], 1))
    for found in (other, longer):
        assert torch.equal(found.ids, usual.ids)
        assert (found.logps - usual.logps).abs().max() < 1e-5


def test_a_row_does_not_depend_on_the_other_rows():
    """Also not by when they end: the uniforms of a row are its own."""
    model = llama()
    alone = draw(model, ["31=", "9=", "4406="])
    other = draw(model, ["31=", "205817=", "4406="])
    assert alone.texts[:4] == other.texts[:4] and alone.texts[8:] == other.texts[8:]
    assert alone.texts[4:8] != other.texts[4:8]


def test_around_the_modules_a_token_has_the_logits_of_the_model():
    """Left padding, groups, and rows that leave; biases and norms of queries too."""
    ids, mask = encode(TOK, PROMPTS, pad=0)
    options = {"group_size": 3, "max_new_tokens": 30, "eos": [2, 3], "pad": 0}
    for family in ("llama", "qwen2", "qwen3"):
        model = FAMILIES[family]()
        found = []
        for fuse in (False, True, None):
            g = torch.Generator().manual_seed(0)
            found.append(
                sampler.sample(
                    model, ids, mask, temperature=1.5, generator=g, fuse=fuse, **options
                )
            )
        slow, fast, usual = found
        assert len(set(slow.mask.sum(1).tolist())) > 4
        assert torch.equal(slow.ids, fast.ids) and torch.equal(fast.logps, usual.logps)
        assert (slow.logps - fast.logps).abs().max() < 1e-5
        assert not torch.equal(slow.logps, fast.logps)


def hooked(model):
    model.model.layers[0].mlp.register_forward_hook(lambda m, a, o: o)


def foreign(model):
    class Mine(torch.nn.Linear):
        pass

    model.model.layers[0].mlp.up_proj.__class__ = Mine


@pytest.mark.parametrize(
    "change, says",
    [
        (hooked, "hooked"),
        (foreign, "a Mine"),
        (lambda m: m.bfloat16(), "not fp32"),
        (lambda m: m.config.update({"hidden_act": "gelu"}), "activated"),
    ],
)
def test_a_model_that_is_not_plain_goes_through_its_modules(change, says):
    model = llama()
    change(model)
    assert says in unfit(model)
    assert len(draw(model).texts) == 16
    ids, mask = encode(TOK, PROMPTS, pad=0)
    with pytest.raises(RolloutError, match=says):
        sampler.sample(
            model, ids, mask, max_new_tokens=2, temperature=0, generator=None,
            eos=[2], pad=0, fuse=True,
        )  # fmt: skip
    assert unfit(gpt2())


@pytest.mark.parametrize("leave", [0.0, 2.0])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_rows_that_leave_change_nothing(family, leave, monkeypatch):
    """0: every idle row leaves at once. 2: none ever does."""
    model = FAMILIES[family]()
    model.generation_config.eos_token_id = [2, 3, 4]
    usual = draw(model, group_size=16)
    assert 0.2 < usual.mask.float().mean() < 0.9
    sizes = []
    monkeypatch.setattr(sampler, "LEAVE", leave)
    for kind in (sampler.Ahead, Fused):
        keep = kind.keep
        monkeypatch.setattr(
            kind, "keep", lambda s, rows, keep=keep: (sizes.append(1), keep(s, rows))
        )
    found = draw(model, group_size=16)
    assert bool(sizes) == (leave == 0)
    assert torch.equal(found.completion_ids, usual.completion_ids)
    assert (found.logps - usual.logps).abs().max() < 1e-5


def test_a_prompt_that_comes_twice_makes_two_groups():
    """Groups inferred from the text would be one, of another size than the rest."""
    r = draw(llama(), ["31=", "9=", "31="], group_size=2)
    assert r.group.tolist() == [0, 0, 1, 1, 2, 2]
    assert r.prompts == ("31=", "31=", "9=", "9=", "31=", "31=")
    assert r.texts[:2] != r.texts[4:]


def test_a_baseline_answers_every_group_once_and_keeps_its_id():
    model = llama()
    drawn = draw(model, ["31=", "9=", "31="], group_size=2).rows(slice(2, 6))
    found = baseline(model, TOK, drawn, max_new_tokens=9)
    assert found.group.tolist() == [1, 2] and found.prompts == ("9=", "31=")
    assert found.texts == greedy(model, TOK, ["9=", "31="], max_new_tokens=9).texts


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_generator_alone_decides_and_global_ones_stay(backend):
    model = llama()
    before = torch.get_rng_state()
    g = torch.Generator().manual_seed(5)
    first, second = (draw(model, generator=g, backend=backend) for _ in range(2))
    again = draw(model, generator=5, backend=backend)
    assert first.texts == again.texts != second.texts
    assert torch.equal(before, torch.get_rng_state())


def test_the_generator_moves_on_by_as_much_whatever_is_said():
    """So that two policies meet the same draws at the next step."""
    states = []
    for model in (llama(), gpt2()):
        g = torch.Generator().manual_seed(5)
        draw(model, generator=g)
        states.append(g.get_state())
    assert torch.equal(*states)


@pytest.mark.parametrize("backend", BACKENDS)
def test_answers_come_as_often_as_the_distribution_says(backend):
    """Two-token answers of 4,000 rows against their probabilities, by chi-square."""
    model, temperature, n = llama(), 1.4, 4000
    r = draw(
        model, ["31="], group_size=n, max_new_tokens=2, temperature=temperature,
        backend=backend,
    )  # fmt: skip
    seen = torch.zeros(len(TOK), len(TOK))
    second = torch.where(r.mask[:, 1], r.completion_ids[:, 1], 0)
    seen.index_put_((r.completion_ids[:, 0], second), torch.ones(n), accumulate=True)
    prompt = r.prompt_ids[:1]
    with torch.no_grad():
        first = (model(input_ids=prompt).logits[0, -1] / temperature).softmax(-1)
        every = torch.cat(
            [prompt.expand(len(TOK), -1), torch.arange(len(TOK))[:, None]], 1
        )
        then = (model(input_ids=every).logits[:, -1] / temperature).softmax(-1)
    then[2] = torch.eye(len(TOK))[0]  # after EOS nothing
    expected = n * first[:, None] * then
    often = expected > 5
    chi = ((seen - expected) ** 2 / expected)[often].sum()
    cells = int(often.sum())
    assert cells > 10
    assert chi < cells + 5 * (2 * cells) ** 0.5


def test_a_token_of_no_probability_is_never_drawn():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    edges = torch.tensor([0.0, 0.25, 0.5, 1 - 2**-53], dtype=torch.float64)
    token, logp, entropy = sampler.draw(logits.expand(4, -1), 1.0, edges)
    assert token.tolist() == [1, 1, 3, 3]
    assert torch.allclose(logp, torch.full((4,), 0.5).log())
    assert torch.allclose(entropy, torch.full((4,), 2.0).log())


def test_nothing_is_ever_cut():
    model, tok = llama(), copy.deepcopy(TOK)
    tok.backend_tokenizer.enable_truncation(3)
    assert encode(tok, ["205817="], pad=0)[0].shape == (1, 8)
    with pytest.raises(
        RolloutError, match="61 tokens and 4 new ones need 65 .* has 64"
    ):
        greedy(model, TOK, ["1" * 60], max_new_tokens=4)


@pytest.mark.parametrize(
    "options, says",
    [
        ({"prompts": []}, "list of strings"),
        ({"prompts": [["31="]]}, "list of strings"),
        ({"backend": "vllm"}, "expected one of"),
        ({"group_size": 0}, "must be >= 1"),
        ({"temperature": 0.0}, "greedy"),
    ],
)
def test_bad_input_gets_one_clear_error(options, says):
    with pytest.raises(RolloutError, match=says):
        draw(llama(), **options)


def probe_of(model, scale=0.3):
    return Probe(((Direction(make_key(0, 0, 0)), scale),))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scratch", ["one", "all"])
def test_at_a_probe_answers_are_those_of_a_perturbed_copy(scratch, backend):
    model = llama()
    opt = zolab.MeZO(model, engine=Resident(scratch=scratch))
    probe = probe_of(model)
    before = copy.deepcopy(model)
    with opt.engine.at(probe):
        found = draw(model, backend=backend)
    assert same_bits(model, before)
    moved = copy.deepcopy(model)
    for slot, p in zip(opt.space, moved.parameters(), strict=True):
        z = zolab.direction(make_key(0, 0, 0), slot.name, slot.shape)
        p.data += 0.3 * z
    wanted = draw(moved, backend=backend)
    assert found.texts == wanted.texts != draw(model, backend=backend).texts
    assert (found.logps - wanted.logps).abs().max() < 1e-4


def test_a_closure_that_samples_has_one_answer_on_every_engine():
    """Streamed: the probes' threads take turns in the middle of their answers."""

    def losses(**engine):
        model = llama()
        opt = zolab.MeZO(
            model, lr=1e-3, eps=0.2, num_queries=2, engine=make_engine(**engine)
        )

        def loss():
            r = draw(model, group_size=2, generator=opt.steps)
            return -(r.logps * r.mask).sum() / r.mask.sum() + r.lengths.double().mean()

        return [opt.step(loss) for _ in range(2)], [*opt.last.losses]

    first = losses(kind="one")
    assert losses(kind="streamed") == first
    assert losses(kind="all")[1] == pytest.approx(first[1], abs=1e-4)
    assert len(set(first[1])) == 4


def make_engine(kind):
    if kind == "streamed":
        return zolab.Streamed(store="ram", device="cpu")
    return Resident(scratch=kind)
