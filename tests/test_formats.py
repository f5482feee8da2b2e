"""Quantized files: their codes become ours, and go back byte for byte."""

import copy
import io
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, dequantize, quantize
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

import zolab
from zolab.assets import AssetError, cached, check
from zolab.errors import SpaceError, StoreError
from zolab.formats import safe
from zolab.formats.blocks import KINDS, TINY
from zolab.formats.gguf import Gguf
from zolab.formats.llama import name_in_model
from zolab.storage.packed import unpack_bits, values

pytestmark = pytest.mark.usefixtures("one_thread")

TYPES = {k.name: k for k in KINDS.values()}
EXACT = ("Q4_0", "Q8_0", "Q6_K")  # no offset, so no rounding beside the package's
IDS = torch.arange(24).view(2, 12) * 7 % 300


def blocks(kind, n=64, seed=0):
    """Random blocks: of weights, or of bytes where the package does not quantize."""
    rng = np.random.default_rng(seed)
    if not kind.name.endswith("_K"):
        w = (rng.standard_normal((n, kind.size)) * 0.05).astype(np.float32)
        w[3], w[4], w[5] = 0, 0.3, -0.25  # one number: d is 0
        return quantize(w, GGMLQuantizationType(kind.number)).reshape(n, -1)
    raw = rng.integers(0, 256, (n, kind.nbytes), dtype=np.uint8)
    d = (rng.random((n, 2)) * 1e-3 + 1e-4).astype("<f2")
    if kind.name == "Q4_K":
        raw[:, :4] = d.view(np.uint8)
        raw[3, :2], raw[4, :4] = 0, 0
    else:
        d[::3] *= -1
        raw[:, 208:] = d[:, :1].copy().view(np.uint8)
        raw[3, 208:] = 0
    return raw


@pytest.mark.parametrize("name", TYPES)
def test_blocks_decode_as_the_gguf_package_does(name):
    kind = TYPES[name]
    raw = blocks(kind)
    want = dequantize(raw, GGMLQuantizationType(kind.number))
    got = kind.decode(*kind.grid(raw))
    if name in EXACT:  # but for blocks of d = 0
        assert (got == want).mean() == 1
    else:
        low = np.abs(want).max(1, keepdims=True)
        assert (np.abs(got - want) <= 2.0**-22 * low + 1e-8).all()
    assert (kind.grid(raw)[1] > 0).all()


@pytest.mark.parametrize("name", TYPES)
def test_blocks_that_did_not_move_are_the_same_bytes(name):
    kind = TYPES[name]
    raw = blocks(kind)
    again = raw.copy()
    kind.write(again, *kind.grid(raw))
    assert np.array_equal(raw, again)


@pytest.mark.parametrize("name", TYPES)
def test_moved_codes_keep_a_blocks_head(name):
    kind = TYPES[name]
    raw = blocks(kind)
    codes, scale, zero = kind.grid(raw)
    live = (scale > TINY).all(1)
    if zero is not None:  # an offset without a step: such a head must change
        live &= (np.abs(zero) != 1).all(1)
    codes = ((codes.astype(int) + 1) % len(kind.codec.table)).astype(np.uint8)
    after = raw.copy()
    kind.write(after, codes, scale, zero)
    assert np.array_equal(raw[live][:, kind.head], after[live][:, kind.head])
    assert np.array_equal(kind.grid(after)[0][live], codes[live])
    want = kind.decode(codes, scale, zero)
    assert live.sum() > 10
    assert np.array_equal(kind.decode(*kind.grid(after))[live], want[live])
    assert np.abs(kind.decode(*kind.grid(after)) - want).max() < 0.01 * want.max()


@pytest.mark.parametrize("name", TYPES)
def test_moved_scales_are_rounded_to_what_the_block_has(name):
    """Half a step of fp16, and of the 63rd (127th) part of the block's largest."""
    kind = TYPES[name]
    raw = blocks(kind)
    codes, scale, zero = kind.grid(raw)
    moved = scale * np.float32(1.1)
    after = raw.copy()
    kind.write(after, codes, moved, zero)
    found = kind.grid(after)[1]
    unit = {"Q4_K": 63, "Q6_K": 127}.get(name)
    # Below 6e-5 fp16 is subnormal: its step is 2^-24.
    step = np.maximum(moved * 2.0**-10, 2.0**-24)
    if unit:
        most = moved.max(1, keepdims=True)
        step = moved * 2.0**-9 + most / unit + 63 * 2.0**-24
    ordinary = scale > TINY
    assert (np.abs(found - moved) <= 0.5001 * step)[ordinary].all()
    assert (found != scale)[ordinary].mean() > 0.9


def test_scales_that_do_not_fit_are_refused():
    kind = TYPES["Q8_0"]
    raw = blocks(kind)
    codes, scale, _ = kind.grid(raw)
    with pytest.raises(StoreError, match="does not fit into fp16"):
        kind.write(raw.copy(), codes, scale * np.float32(1e9), None)
    kind = TYPES["Q4_K"]
    raw = blocks(kind)
    codes, scale, zero = kind.grid(raw)
    with pytest.raises(StoreError, match="a scale is -.*none below 0"):
        kind.write(raw.copy(), codes, -scale, zero)
    with pytest.raises(StoreError, match="a zero point is -.*none below 0"):
        kind.write(raw.copy(), codes, scale, -zero - 1)
    raw[0, :2] = np.array([np.nan], "<f2").view(np.uint8)
    with pytest.raises(AssetError, match="NaN"):
        kind.grid(raw)
    raw[0, :2] = np.array([-1], "<f2").view(np.uint8)
    with pytest.raises(AssetError, match="at least 0"):
        kind.grid(raw)


# A model, written by the gguf package's own writer.

WIDTH, HEADS, FEW, INNER, VOCABULARY = 256, 4, 2, 512, 300
PLACES = {
    "attn_q": ("self_attn.q_proj", "Q4_1"),
    "attn_k": ("self_attn.k_proj", "Q4_0"),
    "attn_v": ("self_attn.v_proj", "Q6_K"),
    "attn_output": ("self_attn.o_proj", "Q4_K"),
    "ffn_gate": ("mlp.gate_proj", "Q8_0"),
    "ffn_up": ("mlp.up_proj", "F16"),
    "ffn_down": ("mlp.down_proj", "Q4_1"),
    "attn_norm": ("input_layernorm", "F32"),
    "ffn_norm": ("post_attention_layernorm", "F32"),
}


def config(layers=2, **more):
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": FEW,
        "intermediate_size": INNER,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e4,
        "tie_word_embeddings": True,
    }
    return LlamaConfig(**sizes | more)


def llama(**more):
    torch.manual_seed(0)
    model = LlamaForCausalLM(config(**more)).eval()
    for p in model.parameters():
        p.data += 0.05 * torch.randn(p.shape)
    return model


def interleave(w, heads):
    """Row by row: rotary halves side by side, as llama.cpp has them."""
    half = len(w) // heads // 2
    rows = [
        w[h * 2 * half + t * half + j]
        for h in range(heads)
        for j in range(half)
        for t in (0, 1)
    ]
    return torch.stack(rows)


def undo(w, heads):
    half = len(w) // heads // 2
    out = torch.empty_like(w)
    for h in range(heads):
        for j in range(half):
            for t in (0, 1):
                out[h * 2 * half + t * half + j] = w[h * 2 * half + 2 * j + t]
    return out


def write_gguf(path, model, types=None, *, arch="llama", drop=(), extra=(), fields=()):
    """A Llama by the package's writer; returns the model of the decoded file."""
    c = model.config
    kinds = {k: v[1] for k, v in PLACES.items()} | {"token_embd": "Q8_0"}
    kinds |= {"output_norm": "F32"} | (types or {})
    w = GGUFWriter(path, arch)
    w.add_block_count(c.num_hidden_layers)
    w.add_context_length(c.max_position_embeddings)
    w.add_embedding_length(c.hidden_size)
    w.add_feed_forward_length(c.intermediate_size)
    w.add_head_count(c.num_attention_heads)
    w.add_head_count_kv(c.num_key_value_heads)
    w.add_rope_freq_base(c.rope_theta if hasattr(c, "rope_theta") else 1e4)
    w.add_layer_norm_rms_eps(c.rms_norm_eps)
    for name, value in fields:
        w.add_string(name, value)
    pairs = [("token_embd.weight", "model.embed_tokens.weight")]
    for i in range(c.num_hidden_layers):
        for leaf, (inner, _) in PLACES.items():
            pairs.append((f"blk.{i}.{leaf}.weight", f"model.layers.{i}.{inner}.weight"))
    pairs.append(("output_norm.weight", "model.norm.weight"))
    state = dict(model.named_parameters())
    with torch.no_grad():
        for name, inner in pairs:
            if name in drop:
                continue
            leaf = name.split(".")[-2]
            heads = {"attn_q": c.num_attention_heads, "attn_k": c.num_key_value_heads}
            value = state[inner].float()
            if leaf in heads:
                value = interleave(value, heads[leaf])
            kind = GGMLQuantizationType[kinds[leaf]]
            raw = coded(value.numpy(), kind)
            w.add_tensor(name, raw, raw_dtype=kind)
            decoded = torch.from_numpy(dequantize(raw, kind).copy()).view(value.shape)
            if leaf in heads:
                decoded = undo(decoded, heads[leaf])
            state[inner].copy_(decoded)
        for name, shape in extra:
            w.add_tensor(name, np.zeros(shape, np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return model


def coded(value, kind):
    if kind.name not in ("Q4_K", "Q6_K", "Q5_K"):
        return quantize(value, kind)
    if kind.name == "Q5_K":
        raw = np.zeros((len(value), value.shape[1] // 256 * 176), np.uint8)
        return raw
    count = value.size // 256
    raw = blocks(TYPES[kind.name], count)
    return raw.reshape(len(value), -1)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return path, write_gguf(path, llama())


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def test_a_file_is_the_same_model_packed_decoded_and_by_the_package(written):
    path, reference = written
    plain, tokenizer = zolab.load_model(str(path))
    packed, _ = zolab.load_model(str(path), packed=True)
    assert tokenizer is None
    for name, p in plain.named_parameters():
        assert torch.equal(p, reference.get_parameter(name)), name
    held = zolab.packed_weights(packed)
    assert len(held) == 1 + 2 * 6  # not the norms, not F16
    assert packed.lm_head.weight is packed.model.embed_tokens.weight
    for name, p in held.items():
        want = reference.get_parameter(name)
        torch.testing.assert_close(
            values(p),
            want.detach(),
            rtol=0,
            atol=2e-6 * float(want.detach().abs().max()),
        )
    want = logits(reference)
    assert torch.equal(logits(plain), want)
    assert (logits(packed) - want).abs().max() <= 1e-5 * want.abs().max()
    assert not any(p.requires_grad for p in packed.parameters())


def test_what_did_not_move_is_the_same_file(written, tmp_path):
    path, _ = written
    packed, _ = zolab.load_model(str(path), packed=True)
    report = zolab.save_as_read(packed, tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == path.read_bytes()
    assert report.moved == () and "byte for byte" in str(report)
    half, _ = zolab.load_model(str(path), packed=True, dtype=torch.bfloat16)
    zolab.save_as_read(half, tmp_path / "half.gguf")  # rounded norms are not moved ones
    assert (tmp_path / "half.gguf").read_bytes() == path.read_bytes()


def by_the_package(path):
    return {t.name: dequantize(t.data, t.tensor_type) for t in GGUFReader(path).tensors}


def train_codes(model, steps=1, **more):
    for p in model.parameters():
        p.requires_grad_(hasattr(p, "packed"))
    opt = zolab.MeZO(model, lr=1e-3, eps=1e-2, **more)
    for _ in range(steps):
        opt.step(lambda: model(IDS, labels=IDS).loss)
    return opt


def test_moved_codes_go_back_and_lose_nothing(written, tmp_path):
    path, _ = written
    packed, _ = zolab.load_model(str(path), packed=True)
    before = logits(packed)
    train_codes(packed)
    assert (logits(packed) - before).abs().max() > 1e-3
    report = zolab.save_as_read(packed, tmp_path / "moved.gguf")
    again, _ = zolab.load_model(str(tmp_path / "moved.gguf"), packed=True)
    held, now = zolab.packed_weights(packed), zolab.packed_weights(again)
    exact = [n for n in held if "o_proj" not in n and "v_proj" not in n]
    for name in exact:  # random scales of Q4_K and Q6_K have blocks of one number
        a, b = held[name], now[name]
        live = a.scale > 1e-7
        codes = [unpack_bits(p.codes, p.codec.bits, p.shape.numel()) for p in (a, b)]
        groups = [c.view(*a.scale.shape, -1)[live] for c in codes]
        assert torch.equal(*groups) and torch.equal(a.scale[live], b.scale[live])
    assert not set(report.rounded) & {"token_embd.weight"}
    found = by_the_package(tmp_path / "moved.gguf")
    want = values(held["model.embed_tokens.weight"]).numpy()
    np.testing.assert_array_equal(found["token_embd.weight"], want)


def test_moved_scales_are_rounded_and_the_report_says_so(written, tmp_path):
    path, _ = written
    packed, _ = zolab.load_model(str(path), packed=True)
    for name, p in zolab.packed_weights(packed).items():
        z = zolab.direction(1, name, tuple(p.scale.shape))
        p.scale.data *= 1 + 0.01 * z
    report = zolab.save_as_read(packed, tmp_path / "moved.gguf")
    assert set(report.rounded) == set(report.moved) and len(report.moved) == 13
    assert "13 had to be rounded" in str(report)
    again, _ = zolab.load_model(str(tmp_path / "moved.gguf"), packed=True)
    now = zolab.packed_weights(again)
    for name, p in zolab.packed_weights(packed).items():
        inside = next(n for n in report.rounded if name_in_model(n) == name)
        change = (values(p) - values(now[name])).abs().view(*p.scale.shape, -1)
        steps = float((change.amax(-1) / p.scale)[p.scale > 1e-7].max())
        assert steps == pytest.approx(report.rounded[inside], rel=0.02)
        sixes = (
            "o_proj" in name or "v_proj" in name
        )  # 64 multiples of a block's largest
        assert 0 < steps < (16 if sixes else 0.1)


def test_other_shapes_of_the_header_are_refused(tmp_path):
    path = tmp_path / "x.gguf"

    def refuses(match, **how):
        write_gguf(path, llama(layers=1), **how)
        with pytest.raises(AssetError, match=match):
            zolab.load_model(str(path), packed=True)

    refuses("holds a 'gpt2'", arch="gpt2")
    refuses("no tensor for model.layers.0.mlp.up", drop=["blk.0.ffn_up.weight"])
    refuses("attn_q.bias has no place", extra=[("blk.0.attn_q.bias", (WIDTH,))])
    refuses("rope_freqs.weight has no place", extra=[("rope_freqs.weight", (32,))])
    refuses("Q5_K; what zolab keeps packed is Q4_0", types={"ffn_down": "Q5_K"})
    refuses("scaled rotations", fields=[("llama.rope.scaling.type", "yarn")])
    write_gguf(path, llama(layers=1), types={"ffn_down": "Q5_K"})
    zolab.load_model(str(path))  # what is not kept packed is still decoded


def test_a_file_cut_anywhere_or_flipped_is_one_clear_error(written, tmp_path):
    """Each cut of the header and of the data; each damaged byte loads or is refused."""
    path, _ = written
    data = path.read_bytes()
    first = min(e.start for e in Gguf(path).tensors.values())
    bad = tmp_path / "bad.gguf"
    for cut in (0, 3, 7, 20, *range(24, first, 37), first, len(data) - 1):
        bad.write_bytes(data[:cut])
        with pytest.raises(AssetError, match="truncated|not a GGUF"):
            Gguf(bad)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        damaged = bytearray(data[: first + 4096])
        damaged[rng.integers(0, first)] ^= 1 << rng.integers(0, 8)
        bad.write_bytes(damaged.ljust(len(data), b"\0"))
        try:
            Gguf(bad)
        except AssetError as why:
            assert str(bad) in str(why)
            refused += 1
    assert refused > 50


def test_foreign_files_are_named(tmp_path):
    bad = tmp_path / "x.gguf"
    with pytest.raises(AssetError, match="No such file"):
        zolab.load_model(str(bad))
    bad.write_bytes(b"GGUF" + b"\0\0\0\3" + bytes(64))
    with pytest.raises(AssetError, match="version 0x3000000, expected 2 or 3"):
        zolab.load_model(str(bad))
    bad.write_bytes(b"PK\3\4" + bytes(64))
    with pytest.raises(AssetError, match="not a GGUF file"):
        zolab.load_model(str(bad))
    with pytest.raises(AssetError, match="no packed weights to keep"):
        zolab.load_model("tiny", packed=True)


def test_only_what_was_read_goes_back(written, tmp_path):
    path, _ = written
    packed, _ = zolab.load_model(str(path), packed=True)
    to = tmp_path / "out.gguf"
    with pytest.raises(StoreError, match="no file: say which"):
        zolab.save_as_read(zolab.load_model("tiny")[0], to)
    with pytest.raises(StoreError, match="not packed"):
        zolab.save_as_read(llama(), to, like=path)
    packed.model.register_parameter("lora_A", torch.nn.Parameter(torch.ones(2)))
    with pytest.raises(StoreError, match="no place for model.lora_A"):
        zolab.save_as_read(packed, to)
    del packed.model.lora_A
    other = zolab.pack(llama(), "int4", group=32)
    with pytest.raises(StoreError, match="the model's is PackedWeight.*int4"):
        zolab.save_as_read(other, to, like=path)
    with pytest.raises(StoreError, match="was not written"):
        zolab.save_as_read(packed, tmp_path / "nowhere" / "out.gguf")
    assert not to.exists() and not list(tmp_path.glob("*.part"))
    assert zolab.save_as_read(packed, to).moved == ()
    assert zolab.save_as_read(packed, to, like=to).moved == ()  # over itself


# zolab's own folder, and state dicts.


def tiny(codec="int4", group=48):
    return zolab.pack(zolab.load_model("tiny")[0], codec, group=group)


def same_packed(a, b):
    for (n, x), (m, y) in zip(a.named_parameters(), b.named_parameters(), strict=True):
        assert n == m and torch.equal(x, y), n
        assert hasattr(x, "packed") == hasattr(y, "packed")
        if hasattr(x, "packed"):
            assert torch.equal(x.packed.codes, y.packed.codes)
            assert x.packed.codec == y.packed.codec and x.packed.snap == y.packed.snap
            assert y.packed.scale is b.get_parameter(f"{n}_scale")


@pytest.mark.parametrize("codec", ("int4", "uint2", "nf4", "e4m3"))
def test_our_folder_gives_the_model_back(codec, tmp_path):
    model, tok = zolab.load_model("tiny")
    zolab.pack(model, codec, group=48, skip=["*layers.0.mlp.down*"])
    some = zolab.packed_weights(model)["model.layers.1.mlp.up_proj.weight"]
    some.snap, some.unit = True, some.scale.detach().clone()
    folder = zolab.save_packed(model, tmp_path / "mine", tokenizer=tok)
    again, tok2 = zolab.load_model(str(folder))
    same_packed(model, again)
    unit = zolab.packed_weights(again)["model.layers.1.mlp.up_proj.weight"].unit
    assert torch.equal(unit, some.unit)
    assert again.lm_head.weight is again.model.embed_tokens.weight
    assert torch.equal(logits(model), logits(again)) and not again.training
    assert tok2("It was great .")["input_ids"] == tok("It was great .")["input_ids"]
    half, _ = zolab.load_model(str(folder), dtype=torch.bfloat16, packed=True)
    assert logits(half).dtype == torch.bfloat16
    assert {p.scale.dtype for p in zolab.packed_weights(half).values()} == {
        torch.float32
    }


def test_any_module_goes_through_a_folder(tmp_path):
    def make():
        torch.manual_seed(1)
        inner = torch.nn.Linear(8, 6)
        return torch.nn.ModuleDict(
            {
                "a": torch.nn.Sequential(inner, torch.nn.BatchNorm1d(6)),
                "b": inner,
                "c": torch.nn.MultiheadAttention(8, 2),
            }
        )

    model = zolab.pack(make(), "int8")
    model["a"][1].running_mean += 3
    zolab.save_packed(model, tmp_path)
    again = zolab.load_packed(make(), tmp_path)
    same_packed(model, again)
    assert again["b"].weight is again["a"][0].weight
    assert torch.equal(again["a"][1].running_mean, model["a"][1].running_mean)
    same_packed(model, zolab.load_packed(zolab.pack(make(), "int2"), tmp_path))
    with pytest.raises(AssetError, match="another model.*in one of the two only"):
        zolab.load_packed(torch.nn.Linear(2, 2), tmp_path)


def test_a_damaged_folder_is_one_clear_error(tmp_path):
    folder = zolab.save_packed(tiny(), tmp_path / "mine")
    file, card = folder / "model.safetensors", folder / "packed.json"
    data, text = file.read_bytes(), card.read_text()
    file.write_bytes(data[:-1])
    with pytest.raises(AssetError, match="sha256"):
        zolab.load_model(str(folder))
    file.write_bytes(data)
    card.write_text(text.replace("zolab packed 1", "zolab packed 7"))
    with pytest.raises(AssetError, match="'zolab packed 7', expected 'zolab packed 1'"):
        zolab.load_model(str(folder))
    card.write_text(text.replace('"bits": 4', '"bits": 8'))
    with pytest.raises(AssetError, match="codes, scales and zero points"):
        zolab.load_model(str(folder))
    card.write_text("{")
    with pytest.raises(AssetError, match="no folder of save_packed"):
        zolab.load_model(str(folder))
    card.write_text(text)
    (folder / "config.json").unlink()
    with pytest.raises(AssetError, match="no readable config.json"):
        zolab.load_model(str(folder))


def test_safetensors_are_read_and_written_as_the_package_does(tmp_path):
    tensors = {
        "a": torch.randn(24, 90_000),
        "b": torch.randn(5).bfloat16(),
        "c": torch.arange(7),
        "d": torch.zeros(0, 4),
        "e": torch.tensor(3.0),
    }
    path = tmp_path / "x.safetensors"
    digest = safe.write(path, tensors)
    check(path, digest)
    theirs = load_file(path)
    for name, entry in safe.read_header(path).items():
        assert torch.equal(theirs[name], tensors[name])
        assert torch.equal(entry.read(), tensors[name])
        parts = [t.reshape(-1) for _, t in entry.pieces()]
        assert torch.equal(
            torch.cat([theirs[name].reshape(-1)[:0], *parts]), theirs[name].reshape(-1)
        )
    assert len(list(safe.read_header(path)["a"].pieces())) == 3
    data = path.read_bytes()
    bad = tmp_path / "bad.safetensors"
    for cut in (*range(0, 300, 7), len(data) - 1):
        bad.write_bytes(data[:cut])
        with pytest.raises(AssetError, match="truncated|no safetensors"):
            safe.read_header(bad)
    rng = np.random.default_rng(0)
    length = 8 + int.from_bytes(data[:8], "little")
    for _ in range(300):
        damaged = bytearray(data[:length])
        damaged[rng.integers(0, length)] ^= 1 << rng.integers(0, 8)
        bad.write_bytes(damaged.ljust(len(data), b"\0"))
        try:
            safe.read_header(bad)
        except AssetError as why:
            assert str(bad) in str(why)


def test_state_dicts_of_packed_models():
    model = tiny()
    kept = copy.deepcopy(model.state_dict())
    before = copy.deepcopy(model)
    train_codes(model)
    moved = zolab.packed_weights(model)["model.embed_tokens.weight"].codes
    first = zolab.packed_weights(before)["model.embed_tokens.weight"].codes
    assert not torch.equal(moved, first)
    model.load_state_dict(kept)
    same_packed(before, model)
    other = tiny()
    zolab.packed_weights(other)["model.embed_tokens.weight"].codes.zero_()
    other.load_state_dict(kept, assign=True)
    other.tie_weights()  # torch's assign=True unties, whatever the weights are
    assert torch.equal(
        other.model.embed_tokens.weight, before.model.embed_tokens.weight
    )
    for name, p in zolab.packed_weights(other).items():
        assert p.scale is other.get_parameter(f"{name}_scale")
    with pytest.raises(RuntimeError, match="packed alike"):
        model.load_state_dict(tiny("nf4").state_dict())
    plainly = {
        n: t.clone() if hasattr(t, "packed") else t
        for n, t in model.state_dict().items()
    }
    assert type(plainly["model.embed_tokens.weight"]) is torch.Tensor
    with pytest.raises(RuntimeError, match="by values.*unpack"):
        model.load_state_dict(plainly)
    with pytest.raises(SpaceError, match="save_packed"):
        torch.save(model.state_dict(), io.BytesIO())
    values_only = torch.zeros(4096, 128)
    values_only.copy_(model.model.embed_tokens.weight)  # reads it
    assert torch.equal(values_only, values(first_of(model)))


def first_of(model):
    return zolab.packed_weights(model)["model.embed_tokens.weight"]


def test_save_pretrained_stores_the_values(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path)
    found = load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(found, values(first_of(model)))


def test_a_snapshot_stores_codes_and_a_replay_starts_there(tmp_path):
    model = tiny()
    base = copy.deepcopy(model)
    opt = train_codes(model, steps=2, journal=tmp_path / "log", seed=3)
    path = opt.snapshot()
    stored = load_file(path)["model.embed_tokens.weight"]
    assert torch.equal(stored, first_of(model).codes) and stored.dtype == torch.uint8
    opt.step(lambda: model(IDS, labels=IDS).loss)
    first_of(base).codes.zero_()  # the snapshot, not the base, is where it starts
    zolab.replay(base, tmp_path / "log")
    same_packed(model, base)


# Peak: loading in a process of its own, after everything is imported and warm.

PEAK = """
import json, sys
import zolab
from zolab.bench.memory import _cpu_meter

reset, high = _cpu_meter()
small, name = sys.argv[1:]
zolab.load_model(small, packed=True)
reset()
before = high()
model, _ = zolab.load_model(name, packed=True)
found = {"mb": high() - before, "held": 0, "decoded": 0}
for p in zolab.packed_weights(model).values():
    found["held"] += p.nbytes / 1e6
    found["decoded"] += p.shape.numel() * 4 / 1e6
print(json.dumps(found))
"""
BESIDE = 24  # MB beside the weights: pieces of a file, modules, the reader's strings
needs_linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux forgets an earlier peak"
)


def peak(small, name):
    words = [sys.executable, "-c", PEAK, str(small), str(name)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


@needs_linux
def test_loading_never_holds_a_decoded_copy(written, tmp_path):
    """The peak is the packed bytes and a constant; decoded it is four times that."""
    big = tmp_path / "big.gguf"
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "layers": 1}
    kinds = {n: "Q4_1" for n, (_, k) in PLACES.items() if k != "F32"}
    write_gguf(big, llama(**sizes, vocab_size=6000), types=kinds)
    found = peak(written[0], big)
    assert found["held"] > 12 and found["mb"] < found["held"] + BESIDE
    assert found["held"] + BESIDE < found["decoded"]  # a copy would be seen


SMOLLM2 = pytest.mark.skipif(cached("smollm2-135m") is None, reason="not cached")


@SMOLLM2
def test_smollm2_packed_is_smollm2_and_goes_back_byte_for_byte(tmp_path):
    plain, tokenizer = zolab.load_model("smollm2-135m")
    packed, _ = zolab.load_model("smollm2-135m", packed=True)
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        a, b = plain(ids).logits, packed(ids).logits
    assert (a - b).abs().max() <= 1e-5 * a.abs().max()
    assert tokenizer.decode(b[0, -1].argmax()) == " Paris"
    report = zolab.save_as_read(packed, tmp_path / "again.gguf")
    assert report.moved == ()
    assert (tmp_path / "again.gguf").read_bytes() == packed.read_from.read_bytes()


@SMOLLM2
@needs_linux
def test_smollm2_is_loaded_in_its_packed_bytes(written):
    found = peak(written[0], cached("smollm2-135m"))
    assert found["mb"] < found["held"] + BESIDE + 64  # tokenizers' 49,152 words
    assert found["mb"] < found["decoded"] / 2
