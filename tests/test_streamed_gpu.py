"""The streamed engine on a GPU: the resident engine's bits, and memory as predicted."""

import copy

import families
import pytest
import torch

import zolab
from zolab import MeZO, Streamed

pytestmark = pytest.mark.gpu


def losses(model, engine, loss, steps=3):
    opt = MeZO(model, lr=1e-2, eps=2.0**-3, num_queries=2, engine=engine)
    found = []
    for _ in range(steps):
        opt.step(lambda: loss(model))
        found.append(opt.last.losses)
    opt.engine.flush()
    return found


@pytest.mark.parametrize("store", ["ram", "disk"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["opt", "llama", "gpt2", "mixtral", "lora"])
def test_the_bits_are_the_resident_engine_s(tmp_path, name, dtype, store):
    f = families.make(name, dtype)
    f.batch.update({k: v.cuda() for k, v in f.batch.items()})

    def loss(model):
        logits = f.logits(model).float().flatten(0, -2)
        target = torch.arange(len(logits), device="cuda") % logits.shape[-1]
        return torch.nn.functional.cross_entropy(logits, target)

    a, b = copy.deepcopy(f.model).cuda(), copy.deepcopy(f.model)
    where = {"path": tmp_path / "blocks"} if store == "disk" else {}
    plain = zolab.Resident(scratch="one", unseen="ignore")
    engine = Streamed(store=store, device="cuda", unseen="ignore", **where)
    assert losses(a, plain, loss) == losses(b, engine, loss)
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(p.cpu(), q.cpu())


def test_peak_memory_is_the_formula_s():
    """Window, rest and scratch, with few tokens, so that activations are small."""
    from zolab.bench.shapes import SHAPES, config_of

    def make():
        from transformers import OPTForCausalLM

        return OPTForCausalLM(config_of(SHAPES["opt-1.3b"]))

    model = zolab.empty_weights(make, dtype=torch.bfloat16)
    engine = Streamed(device="cuda", fill=zolab.random_weights())
    opt = MeZO(model, lr=1e-6, engine=engine)
    batch = {"input_ids": torch.ones(1, 8, dtype=torch.long, device="cuda")}
    before = torch.cuda.memory_allocated()
    opt.step(lambda: zolab.lm_loss(model, batch))
    torch.cuda.reset_peak_memory_stats()
    opt.step(lambda: zolab.lm_loss(model, batch))
    assert before < engine.footprint.total
    assert torch.cuda.max_memory_allocated() < 1.03 * engine.footprint.total
