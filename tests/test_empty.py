"""A model that never is in one place whole, and a loss that never builds its logits."""

import copy

import families
import pytest
import torch
from helpers import same_bits
from safetensors.torch import save_file
from test_streamed import Net, resident, run
from torch import nn

import zolab
from zolab import MeZO, Streamed
from zolab.errors import LossError, SpaceError, StoreError
from zolab.space import Space, is_away

pytestmark = pytest.mark.usefixtures("one_thread")


def test_an_empty_model_has_names_shapes_ties_and_no_values():
    model = zolab.empty_weights(Net, dtype=torch.bfloat16)
    assert model.head.weight is model.embed.weight
    assert all(is_away(p) and p.dtype == torch.bfloat16 for p in model.parameters())
    assert sum(p.untyped_storage().nbytes() for p in model.parameters()) < 100
    full = Net()
    shapes = {n: p.shape for n, p in full.named_parameters()}
    assert {n: p.shape for n, p in model.named_parameters()} == shapes
    names = [s.name for s in Space.of(model)]
    assert names == [s.name for s in Space.of(full)]
    assert not any(p.is_meta for p in nn.Linear(2, 2).parameters())  # undone


def test_only_a_streamed_engine_takes_it():
    with pytest.raises(SpaceError, match="has no values"):
        MeZO(zolab.empty_weights(Net))
    with pytest.raises(StoreError, match="pass fill="):
        MeZO(zolab.empty_weights(Net), engine=Streamed())


@pytest.mark.parametrize("store", ["ram", "disk"])
def test_filled_from_a_checkpoint_it_is_the_loaded_model(tmp_path, store):
    full, model = Net(), zolab.empty_weights(Net)
    state = {n: p.detach().clone() for n, p in full.named_parameters()}
    save_file(state, tmp_path / "model.safetensors")
    where = {"path": tmp_path / "blocks"} if store == "disk" else {}
    fill = zolab.weights_in(tmp_path)
    run(model, Streamed(store=store, fill=fill, **where), 3)
    run(full, resident(), 3)
    assert same_bits(model, full)


def test_shards_of_a_saved_model(tmp_path):
    f = families.make("llama")
    f.model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    model = zolab.empty_weights(lambda: type(f.model)(f.model.config))
    opt = MeZO(model, lr=0.0, engine=Streamed(fill=zolab.weights_in(tmp_path)))
    opt.step(lambda: f.loss(model))
    opt.engine.flush()
    assert same_bits(model, f.model)


def test_random_weights_depend_on_name_and_seed_alone():
    fill = zolab.random_weights(3)
    shape = torch.Size((40, 30))
    a = fill("layers.0.weight", shape, torch.float32)
    assert torch.equal(a, fill("layers.0.weight", shape, torch.float32))
    assert not torch.equal(a, fill("layers.1.weight", shape, torch.float32))
    assert float(a.std()) == pytest.approx(0.02, rel=0.1)
    assert fill("norm.weight", torch.Size((4,)), torch.float32).tolist() == [1] * 4
    model = zolab.empty_weights(Net)
    losses = run(model, Streamed(fill=fill), 2)
    assert all(0 < x < 10 for step in losses for x in step)


@pytest.mark.parametrize("change", ["missing", "shape", "nothing"])
def test_what_is_wrong_with_a_checkpoint(tmp_path, change):
    state = {n: p.detach().clone() for n, p in Net().named_parameters()}
    if change == "missing":
        del state["norm.weight"]
    if change == "shape":
        state["norm.weight"] = torch.zeros(3)
    if change != "nothing":
        save_file(state, tmp_path / "model.safetensors")
    message = {
        "missing": r"has no tensor norm\.weight",
        "shape": r"is \(3,\), the model wants \(16,\)",
        "nothing": "no safetensors",
    }[change]
    with pytest.raises(StoreError, match=message):
        engine = Streamed(fill=zolab.weights_in(tmp_path))
        MeZO(zolab.empty_weights(Net), engine=engine)


CAUSAL = "opt gpt2 gpt_neox llama qwen3 gemma3 mixtral bloom falcon mamba lora"


@pytest.mark.parametrize("chunk", [1, 7, 1000])
@pytest.mark.parametrize("name", CAUSAL.split())
def test_lm_loss_is_the_model_s_own(name, chunk):
    f = families.make(name)
    batch = {**f.batch, "labels": f.batch["input_ids"].clone()}
    batch["labels"][0, 3:6] = -100
    with torch.no_grad():
        want = f.model(**batch).loss
        found = zolab.lm_loss(f.model, batch, chunk=chunk)
    assert float(found) == pytest.approx(float(want), rel=2e-6)


def test_lm_loss_counts_what_the_mask_shows():
    f = families.make("opt")
    batch = dict(f.batch)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    batch["attention_mask"][:, -4:] = 0
    short = {k: v[:, :-4] for k, v in batch.items()}
    with torch.no_grad():
        a, b = zolab.lm_loss(f.model, batch), zolab.lm_loss(f.model, short)
    assert float(a) == pytest.approx(float(b), rel=1e-5)


def test_lm_loss_never_builds_all_logits():
    f = families.make("opt")
    rows = []
    hook = f.model.lm_head.register_forward_hook(lambda m, a, o: rows.append(len(o)))
    with torch.no_grad():
        zolab.lm_loss(f.model, f.batch, chunk=5)
    hook.remove()
    assert rows == [5, 5, 5, 5, 2]  # 22 tokens that have a next one


def test_lm_loss_streams_like_any_closure():
    f = families.make("opt")
    a, b = copy.deepcopy(f.model), copy.deepcopy(f.model)

    def closure(model):
        return lambda: zolab.lm_loss(model, f.batch, chunk=8)

    want = run(a, resident(), 2, closure)
    assert run(b, Streamed(), 2, closure) == want
    assert same_bits(a, b)


@pytest.mark.parametrize("name", ["t5", "vit", "encoder"])
def test_lm_loss_says_what_it_cannot(name):
    f = families.make(name)
    with pytest.raises(LossError):
        zolab.lm_loss(f.model, f.batch)


def test_lm_loss_without_a_label():
    f = families.make("opt")
    labels = torch.full_like(f.batch["input_ids"], -100)
    with pytest.raises(LossError, match="no token counts"):
        zolab.lm_loss(f.model, {**f.batch, "labels": labels})
