"""Packed and streamed: codes from RAM or a file, the resident engine's bits."""

import copy

import pytest
import torch

import zolab
from zolab.engines.footprint import footprint
from zolab.storage.packed import unpack_bits
from zolab.storage.ram import Ram

IDS = torch.arange(24).view(2, 12) * 7 % 4096


def tiny(moving, codec="int4"):
    model = zolab.pack(zolab.load_model("tiny")[0], codec)
    for name, p in model.named_parameters():
        p.requires_grad_(name.endswith("_scale") == (moving == "scales"))
        if moving == "codes" and not hasattr(p, "packed"):
            p.requires_grad_(False)
    return model


def engine(kind, tmp_path, **more):
    if kind == "resident":
        return zolab.Resident(scratch="one")
    path = tmp_path / "blocks" if kind == "disk" else None
    return zolab.Streamed(store=kind, path=path, device="cpu", **more)


def trained(moving, kind, tmp_path, *, codec="int4", steps=2, **more):
    model = tiny(moving, codec)
    opt = zolab.MeZO(model, lr=1e-3, eps=1e-3, engine=engine(kind, tmp_path, **more))
    losses = []
    for _ in range(steps):
        opt.step(lambda: model(IDS, labels=IDS).loss)
        losses += opt.last.losses
    opt.engine.flush()
    return opt, model, losses


def bits(model):
    out = {}
    for name, p in model.named_parameters():
        parts = (p.packed.codes, p.packed.zero) if hasattr(p, "packed") else (p,)
        out[name] = [t.detach().clone() for t in parts if t is not None]
    return out


@pytest.mark.parametrize("moving", ("scales", "codes"))
@pytest.mark.parametrize(
    ("kind", "codec"), (("ram", "int4"), ("disk", "int4"), ("ram", "uint2"))
)
def test_resident_is_streamed(moving, kind, codec, tmp_path):
    """Every loss of every probe, and every code and scale after two steps."""
    _, here, losses = trained(moving, "resident", tmp_path, codec=codec)
    opt, there, streamed = trained(moving, kind, tmp_path, codec=codec)
    assert losses == streamed
    opt.engine.release()
    a, b = bits(here), bits(there)
    assert a.keys() == b.keys()
    for name in a:
        assert all(map(torch.equal, a[name], b[name])), name


class Counted(Ram):
    """A store that counts the bytes that come back."""

    down = 0

    def write(self, block, data, mark):
        self.down += self.sizes[block].moving
        super().write(block, data, mark)


def test_scales_stay_on_the_device_and_nothing_travels_back(tmp_path):
    model, store = tiny("scales"), Counted()
    opt = zolab.MeZO(model, engine=zolab.Streamed(store=store, device="cpu"))
    for _ in range(3):
        opt.step(lambda: model(IDS, labels=IDS).loss)
    opt.engine.flush()
    assert store.down == 0
    assert sum(size.moving for size in store.sizes) == 0
    names = {s.name for s in opt.engine.rest}
    assert names == {s.name for s in opt.space}


def test_a_replay_of_the_log_gives_the_streamed_codes(tmp_path):
    model = tiny("codes")
    again = copy.deepcopy(model)
    opt = zolab.MeZO(
        model,
        lr=1e-3,
        eps=1e-3,
        journal=tmp_path / "log",
        engine=engine("ram", tmp_path, write_back=2),
    )
    for _ in range(5):
        opt.step(lambda: model(IDS, labels=IDS).loss)
    opt.engine.release()
    zolab.replay(again, tmp_path / "log")
    for name, p in again.named_parameters():
        if hasattr(p, "packed"):
            theirs = dict(model.named_parameters())[name].packed.codes
            assert torch.equal(p.packed.codes, theirs), name


def test_a_packed_model_need_not_be_anywhere_whole():
    """Described, packed, then filled block by block with random codes; one step."""
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        hidden_size=32,
        word_embed_proj_dim=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        ffn_dim=64,
        vocab_size=96,
        max_position_embeddings=64,
    )
    model = zolab.empty_weights(lambda: OPTForCausalLM(config))
    zolab.pack(model, "int4", group=32)
    assert all(p.away for p in zolab.packed_weights(model).values())
    for name, p in model.named_parameters():
        p.requires_grad_(name.endswith("_scale"))
    fill = zolab.random_codes(seed=1)
    opt = zolab.MeZO(model, engine=zolab.Streamed(device="cpu", fill=fill))
    ids = torch.arange(10)[None] % 96
    loss = opt.step(lambda: zolab.lm_loss(model, {"input_ids": ids, "labels": ids}))
    assert 3 < loss < 8
    opt.engine.release()
    for packed in zolab.packed_weights(model).values():
        codes = unpack_bits(packed.codes, 4, packed.shape.numel())
        assert int(codes.max()) <= 14
        w = packed.decode()
        n = w.numel() ** 0.5
        assert abs(float(w.detach().mean())) < 4 * 0.02 / n
        assert abs(float(w.detach().std()) - 0.02) < 4 * 0.02 / n


def test_described_weights_take_ordinary_values_too():
    model = tiny("scales")
    plain = zolab.load_model("tiny")[0]
    values = {n: p.detach() for n, p in plain.named_parameters()}
    from transformers import AutoModelForCausalLM

    away = zolab.empty_weights(lambda: AutoModelForCausalLM.from_config(plain.config))
    away.tie_weights()
    zolab.pack(away, "int4")
    for name, p in away.named_parameters():
        p.requires_grad_(name.endswith("_scale"))
    fill = lambda name, shape, dtype: values[name]  # noqa: E731
    engine = zolab.Streamed(device="cpu", fill=fill)
    opt = zolab.MeZO(away, lr=0.0, engine=engine)
    opt.step(lambda: away(IDS, labels=IDS).loss)
    opt.engine.release()
    for name, packed in zolab.packed_weights(model).items():
        assert torch.equal(packed.codes, zolab.packed_weights(away)[name].codes)


@pytest.mark.parametrize("moving", ("scales", "codes"))
def test_the_footprint_counts_codes_and_not_what_they_claim(moving):
    model = tiny(moving)
    opt = zolab.MeZO(model, engine=zolab.Streamed(device="cpu"))
    mark = opt.engine.footprint
    biggest = max(
        sum(p.packed.nbytes for p in block.parameters() if hasattr(p, "packed"))
        for block in model.model.layers
    )
    assert mark.window < 2.2 * biggest
    opt.engine.release()
    same = footprint(model, opt.space, opt.engine.blocks, slots=2, probes=8)
    assert same == mark


def test_the_bench_of_giants_at_small_size():
    """The command that runs OPT-175B's shape on a GPU: nothing travels back."""
    from zolab.bench import giant
    from zolab.bench.shapes import Setting

    lines = {x.name: x for x in giant.run(Setting("cpu", "tiny", (1,), 1))}
    assert lines["bytes down a step"].median == 0
    assert lines["seconds a step"].median > 0
    packed = lines["packed weights, scales included"].median
    assert packed < 0.6 * lines["parameters"].median  # 4 bits, and 32 for 128 codes
