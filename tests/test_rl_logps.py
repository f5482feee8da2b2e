"""Teacher-forced log-probabilities, and the traps that move the first ratio from 1."""

import pytest
import torch
from policy import ANSWERS, Policy, rollout_of
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from zolab.rl import Rollout, logps, token_logps

EOS, VOCABULARY = 1, 13
pytestmark = pytest.mark.usefixtures("one_thread")


def llama(seed=0):
    torch.manual_seed(seed)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=VOCABULARY, num_hidden_layers=2, **shape)
    return sharper(LlamaForCausalLM(config))


def gpt2(seed=0):
    torch.manual_seed(seed)
    shape = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 24}
    return sharper(GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, **shape)))


def sharper(model):
    """Far from uniform, so that a wrong context is seen."""
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4)
    return model


def sampled(model, *, temperature=0.7, pad=0, left=3, n=6, t=5, seed=0):
    """A slow sampler: every row and every step alone, without cache or padding."""
    g = torch.Generator().manual_seed(seed)
    rows = []
    model.eval()
    for i in range(n):
        prompt = torch.randint(2, VOCABULARY, (2 + i % 3,), generator=g)
        ids, found = prompt, []
        while len(found) < t and (not found or found[-1][0] != EOS):
            with torch.no_grad():
                z = model(ids[None]).logits[0, -1] / temperature
            logp = z.log_softmax(-1)
            y = int(torch.multinomial(logp.exp(), 1, generator=g))
            entropy = -(logp.exp() * logp).sum()
            found.append((y, float(logp[y]), float(entropy)))
            ids = torch.cat([ids, torch.tensor([y])])
        rows.append((prompt, found))
    width, long = 4 + left, max(len(f) for _, f in rows)

    def padded(values, fill):
        return torch.tensor([v + [fill] * (long - len(v)) for v in values])

    prompts = [[pad] * (width - len(p)) + p.tolist() for p, _ in rows]
    real = [[0] * (width - len(p)) + [1] * len(p) for p, _ in rows]
    return Rollout(
        prompt_ids=torch.tensor(prompts),
        prompt_mask=torch.tensor(real).bool(),
        completion_ids=padded([[y for y, _, _ in f] for _, f in rows], pad),
        mask=padded([[1] * len(f) for _, f in rows], 0).bool(),
        logps=padded([[x for _, x, _ in f] for _, f in rows], 0.0),
        entropy=padded([[h for _, _, h in f] for _, f in rows], 0.0),
        stop=tuple("eos" if f[-1][0] == EOS else "length" for _, f in rows),
        group=torch.arange(n) // 2,
        texts=("",) * n,
        prompts=("",) * n,
        temperature=temperature,
    )


def ratio_error(model, rollout, **kw):
    """max |ratio - 1| over the completion's tokens: 0 before the first step."""
    with torch.no_grad():
        now = token_logps(model, rollout, **kw).logps
    return float(((now - rollout.logps)[rollout.mask].exp() - 1).abs().max())


@pytest.mark.parametrize("build", [llama, gpt2])
def test_the_first_steps_ratio_is_1(build):
    model = build()
    assert ratio_error(model, sampled(model)) < 1e-5


@pytest.mark.parametrize("build", [llama, gpt2])
def test_the_entropy_is_the_samplers(build):
    model = build()
    rollout = sampled(model)
    found = token_logps(model, rollout).entropy
    assert torch.allclose(found, rollout.entropy, atol=2e-5)


@pytest.mark.parametrize("pad", [0, EOS, 5])
@pytest.mark.parametrize("left", [0, 1, 9])
def test_neither_the_pad_id_nor_the_amount_of_padding_matters(pad, left):
    model = llama()
    assert ratio_error(model, sampled(model, pad=pad, left=left)) < 1e-5


def test_a_batch_in_another_order_has_the_same_numbers():
    model, order = llama(), torch.tensor([3, 1, 5, 0, 2, 4])
    rollout = sampled(model)
    there = token_logps(model, rollout.rows(order)).logps
    assert torch.allclose(there, token_logps(model, rollout).logps[order], atol=1e-6)


def test_chunks_and_checkpoints_change_neither_value_nor_gradient():
    model = llama()
    rollout = sampled(model)
    found = []
    for chunk in (1024, 7, 1):
        model.zero_grad()
        out = token_logps(model, rollout, chunk=chunk)
        (out.logps.sum() + 0.3 * out.entropy.sum()).backward()
        grads = torch.cat([p.grad.flatten() for p in model.parameters()])
        found.append((out.logps.detach(), out.entropy.detach(), grads.clone()))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert torch.allclose(a, b, atol=2e-5, rtol=1e-4)
    assert found[0][2].abs().max() > 0.1


def test_the_head_never_sees_more_than_a_chunk(monkeypatch):
    model, seen = llama(), []
    honest = logps.numbers
    monkeypatch.setattr(
        logps, "numbers", lambda z, y, m: seen.append(len(z)) or honest(z, y, m)
    )
    token_logps(model, sampled(model), chunk=4)
    assert max(seen) == 4


def test_without_grad_mode_there_is_no_graph():
    model = llama()
    with torch.no_grad():
        assert not token_logps(model, sampled(model)).logps.requires_grad


def test_the_table_policys_numbers_in_closed_form():
    policy = Policy()
    out = token_logps(policy, rollout_of(ANSWERS), moments=True)
    first, second = policy.first.softmax(0), policy.second.softmax(1)
    for i, a in enumerate(ANSWERS):
        assert out.logps[i, 0].exp().item() == pytest.approx(first[a[0]].item())
        if len(a) == 2:
            p = second[a[0]]
            assert out.logps[i, 1].exp().item() == pytest.approx(p[a[1]].item())
            assert out.entropy[i, 1].item() == pytest.approx(
                -(p * p.log()).sum().item()
            )
            assert out.moments[i, 1].tolist() == pytest.approx(
                [p.square().sum().item(), p.pow(3).sum().item()]
            )
    assert out.logps[0, 1] == out.entropy[0, 1] == 0


def test_an_entropy_is_not_the_samples_negative_log_probability():
    """The trap: right on average, wrong a token, and its gradient pulls nowhere."""
    policy = Policy()
    out = token_logps(policy, rollout_of(ANSWERS))
    p = out.logps.sum(1).exp()
    total, sampled = (p * out.entropy.sum(1)).sum(), (p * -out.logps.sum(1)).sum()
    assert total.item() == pytest.approx(sampled.item(), rel=1e-5)
    assert (out.entropy + out.logps)[:, 0].abs().min() > 0.05


def test_a_barred_token_does_not_spoil_the_entropy():
    z = torch.tensor([[0.0, 0.0, -torch.inf]])
    found = logps.numbers(z, torch.tensor([1]), True)
    wanted = [0.5, torch.tensor(2.0).log().item(), 0.5, 0.25]
    assert found[0, 0].exp().item() == wanted[0]
    assert found[0, 1:].tolist() == pytest.approx(wanted[1:])


# The traps, made on purpose: what the first ratio sees, and what it cannot.


def test_trap_a_forgotten_temperature_is_seen():
    from dataclasses import replace

    model = llama()
    assert ratio_error(model, replace(sampled(model), temperature=1.0)) > 0.1


def test_trap_logits_at_t_are_seen(monkeypatch):
    model, honest = llama(), logps.before_head

    def late(model, rollout):
        hidden, head = honest(model, rollout)
        return hidden.roll(-1, 1), head

    monkeypatch.setattr(logps, "before_head", late)
    assert ratio_error(model, sampled(model)) > 1


def test_trap_a_missing_attention_mask_is_seen():
    class Everything(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, input_ids, attention_mask, position_ids, use_cache):
            return self.inner(input_ids=input_ids, position_ids=position_ids)

    model = llama()
    assert ratio_error(Everything(model), sampled(model)) > 0.01


@pytest.mark.parametrize("build", [llama, gpt2])
def test_trap_unshifted_positions_are_seen_only_where_positions_are_learnt(build):
    class Unshifted(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, input_ids, attention_mask, position_ids, use_cache):
            where = torch.arange(input_ids.shape[1]).expand_as(input_ids)
            return self.inner(
                input_ids=input_ids, attention_mask=attention_mask, position_ids=where
            )

    model = build()
    error = ratio_error(Unshifted(model), sampled(model))
    assert (error > 0.01) == (build is gpt2)
    assert error < 1e-4 or build is gpt2


def test_trap_dropout_is_off_even_in_train_mode():
    model = gpt2().train()
    assert model.transformer.h[0].attn.attn_dropout.p == 0.1
    rollout = sampled(model)
    model.train()
    assert ratio_error(model, rollout) < 1e-5 and model.training

    class Trains(torch.nn.Module):
        def forward(self, **kwargs):
            model.train()
            return model(**kwargs)

    assert ratio_error(Trains(), rollout) > 0.1


def test_trap_a_bf16_trainer_is_seen_at_1e_5():
    model = llama()
    rollout = sampled(model)
    assert ratio_error(model.bfloat16(), rollout) > 1e-4


def test_an_adapter_is_part_of_the_policy():
    peft = pytest.importorskip("peft")
    model = llama()
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, config)
    rollout = sampled(adapted)
    assert ratio_error(adapted, rollout) < 1e-5
    with adapted.disable_adapter():
        assert ratio_error(adapted, rollout) > 1e-3
