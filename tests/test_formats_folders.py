"""Folders that other programs quantized: NF4, GPTQ and AWQ, by the published layout."""

import importlib.util
import json
import math
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

import zolab
from zolab.assets import AssetError
from zolab.errors import StoreError
from zolab.storage.codecs import NF4
from zolab.storage.packed import values

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = {
    "vocab_size": 96,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 192,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
IDS = torch.arange(16).view(2, 8) * 5 % 96
LINEAR = "model.layers.{}.mlp.down_proj"
STATE = ".quant_state.bitsandbytes__nf4"


# What other programs write, one number after another.


def nf4(w, *, nested):
    """Blocks of 64 of the flat tensor; the first code of a byte is the high one."""
    flat, table = w.reshape(-1, 64), torch.tensor(NF4)
    absmax = flat.abs().amax(1)
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32"}
    state["shape"] = list(w.shape)
    parts = {}
    if nested:
        offset, line = float(absmax.mean()), torch.linspace(-1, 1, 256)
        rest = (absmax - offset).split(256)
        second = torch.stack([r.abs().max() for r in rest])
        first = [
            (line[None] - (r / s)[:, None]).abs().argmin(1)
            for r, s in zip(rest, second, strict=True)
        ]
        parts[".absmax"] = torch.cat(first).to(torch.uint8)
        parts |= {".nested_absmax": second, ".nested_quant_map": line}
        state |= {"nested_blocksize": 256, "nested_dtype": "float32"}
        state["nested_offset"] = offset
        absmax = torch.cat(
            [line[f] * s for f, s in zip(first, second, strict=True)]
        ) + torch.tensor(offset)
    else:
        parts[".absmax"] = absmax
    codes = (flat[..., None] / absmax[:, None, None] - table).abs().argmin(-1)
    decoded = (table[codes] * absmax[:, None]).view(w.shape)
    pairs = codes.reshape(-1, 2).to(torch.uint8)
    parts[""] = (pairs[:, 0] * 16 + pairs[:, 1])[:, None]
    parts[".quant_map"] = table
    text = json.dumps(state).encode()
    parts[STATE] = torch.tensor(list(text), dtype=torch.uint8)
    return {f".weight{k}": v for k, v in parts.items()}, decoded


def words(codes, bits, order=None):
    """(n, count) to (n, count * bits / 32) int32, number `order[i]` in bits i."""
    each = 32 // bits
    out = torch.zeros(len(codes), codes.shape[1] // each, dtype=torch.int64)
    for c in range(out.shape[1]):
        for i in range(each):
            at = c * each + (order[i] if order else i)
            out[:, c] |= codes[:, at].long() << (bits * i)
    return torch.where(out >= 2**31, out - 2**32, out).int()


def grid(w, bits, group, *, sym=False):
    """Codes (in, out), scales fp16 and zero points (groups, out)."""
    x = w.T
    count = math.ceil(len(x) / group)
    codes, scales, zeros = torch.empty(x.shape).long(), [], []
    top = 2**bits - 1
    decoded = torch.empty(x.shape)
    for g in range(count):
        rows = slice(g * group, (g + 1) * group)
        low, high = x[rows].amin(0).clamp(max=0), x[rows].amax(0).clamp(min=0)
        if sym:
            scale = (x[rows].abs().amax(0) / (2 ** (bits - 1) - 0.5)).half()
            zero = torch.full_like(low, 2 ** (bits - 1))
        else:
            scale = ((high - low) / top).half()
            zero = (-low / scale.float()).round().clamp(1, top)
        codes[rows] = (x[rows] / scale.float() + zero).round().clamp(0, top).long()
        decoded[rows] = scale.float() * (codes[rows] - zero)
        scales.append(scale)
        zeros.append(zero.long())
    return codes, torch.stack(scales), torch.stack(zeros), decoded.T.contiguous()


def gptq(w, bits=4, group=32, *, sym=False, less=1):
    codes, scales, zeros, decoded = grid(w, bits, group, sym=sym)
    parts = {
        ".qweight": words(codes.T, bits).T.contiguous(),
        ".qzeros": words(zeros - less, bits),
        ".scales": scales,
        ".g_idx": torch.arange(len(codes), dtype=torch.int32) // group,
    }
    return parts, decoded


def awq(w, group=32):
    codes, scales, zeros, decoded = grid(w, 4, group)
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    parts = {
        ".qweight": words(codes, 4, order),
        ".qzeros": words(zeros, 4, order),
        ".scales": scales,
    }
    return parts, decoded


def settings(method, **more):
    base = {
        "bitsandbytes": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        "gptq": {"bits": 4, "group_size": 32, "desc_act": False, "sym": False},
        "awq": {"bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"},
    }
    return {"quant_method": method, **base[method], **more}


KINDS = {
    "nf4": (settings("bitsandbytes"), lambda w: nf4(w, nested=False)),
    "nf4-nested": (settings("bitsandbytes"), lambda w: nf4(w, nested=True)),
    "gptq": (settings("gptq"), gptq),
    "gptq-8": (settings("gptq", bits=8), lambda w: gptq(w, 8)),
    "gptq-2": (settings("gptq", bits=2), lambda w: gptq(w, 2)),
    "gptq-rows": (
        settings("gptq", group_size=-1),
        lambda w: gptq(w, group=w.shape[1]),
    ),
    "gptq-2nd": (
        settings("gptq", checkpoint_format="gptq_v2"),
        lambda w: gptq(w, less=0),
    ),
    "gptq-sym": (settings("gptq", sym=True), lambda w: gptq(w, sym=True)),
    "gptq-says-1-means-2": (
        settings("gptq", sym=True),
        lambda w: gptq(w, sym=True, less=0),
    ),
    "awq": (settings("awq"), awq),
}


def write(folder, name, shards=2, **sizes):
    """A folder as that program leaves it; returns the model of decoded weights."""
    said, quantize = KINDS[name]
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES | sizes)).eval()
    tensors = {}
    with torch.no_grad():
        for n, p in model.named_parameters():
            p += 0.05 * torch.randn(p.shape)
            base = n.removesuffix(".weight")
            if "layers" in n and p.ndim == 2:
                parts, decoded = quantize(p)
                p.copy_(decoded)
                tensors |= {base + end: t for end, t in parts.items()}
            else:
                p.copy_(p.half())
                tensors[n] = p.half()
    folder.mkdir(exist_ok=True)
    config = model.config.to_dict() | {"quantization_config": said}
    (folder / "config.json").write_text(json.dumps(config))
    names = sorted(tensors)
    for i in range(shards):
        part = {n: tensors[n].clone() for n in names[i::shards]}
        save_file(part, folder / f"model-{i}.safetensors")
    return model


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


@pytest.fixture(scope="module", params=KINDS)
def written(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("folder") / request.param
    return request.param, folder, write(folder, request.param)


def bytes_in(folder):
    return {f.name: f.read_bytes() for f in sorted(folder.iterdir())}


def test_a_folder_is_the_model_of_its_decoded_weights(written):
    name, folder, reference = written
    model, tokenizer = zolab.load_model(str(folder), packed=True)
    assert tokenizer is None and not model.training
    held = zolab.packed_weights(model)
    assert len(held) == 14
    for n, p in held.items():
        assert torch.equal(values(p), reference.get_parameter(n)), n
    assert model.lm_head.weight is model.model.embed_tokens.weight
    want = logits(reference)
    assert (logits(model) - want).abs().max() <= 1e-5 * want.abs().max()


def test_what_did_not_move_is_the_same_folder(written, tmp_path):
    _, folder, _ = written
    model, _ = zolab.load_model(str(folder), packed=True)
    report = zolab.save_as_read(model, tmp_path / "again")
    assert report.moved == () and bytes_in(tmp_path / "again") == bytes_in(folder)
    half, _ = zolab.load_model(str(folder), packed=True, dtype=torch.bfloat16)
    assert zolab.save_as_read(half, tmp_path / "again").moved == ()
    assert bytes_in(tmp_path / "again") == bytes_in(folder)
    model.zolab_note = None
    assert zolab.save_as_read(model, tmp_path / "again", like=folder).moved == ()


def test_moved_codes_go_back_and_lose_nothing(written, tmp_path):
    _, folder, _ = written
    model, _ = zolab.load_model(str(folder), packed=True)
    p = zolab.packed_weights(model)[LINEAR.format(1) + ".weight"]
    p.codes ^= torch.arange(len(p.codes)).to(torch.uint8)
    with torch.no_grad():
        model.model.norm.weight += 0.5
    report = zolab.save_as_read(model, tmp_path / "moved")
    assert report.moved == (LINEAR.format(1) + ".weight", "model.norm.weight")
    assert set(report.rounded) <= {"model.norm.weight"}  # fp16
    again, _ = zolab.load_model(str(tmp_path / "moved"), packed=True)
    for n, q in zolab.packed_weights(again).items():
        mine = zolab.packed_weights(model)[n]
        assert torch.equal(q.codes, mine.codes) and torch.equal(q.scale, mine.scale)


def test_moved_scales_are_rounded_and_the_report_says_so(written, tmp_path):
    name, folder, _ = written
    model, _ = zolab.load_model(str(folder), packed=True)
    p = zolab.packed_weights(model)[LINEAR.format(1) + ".weight"]
    p.scale.data *= 1 + 0.01 * zolab.direction(1, "s", tuple(p.scale.shape))
    report = zolab.save_as_read(model, tmp_path / "moved")
    again, _ = zolab.load_model(str(tmp_path / "moved"), packed=True)
    q = zolab.packed_weights(again)[LINEAR.format(1) + ".weight"]
    assert report.moved == (LINEAR.format(1) + ".weight",)
    steps = (values(q) - values(p)).abs().reshape(*p.scale.shape, -1).amax(-1) / p.scale
    if name == "nf4":
        assert not report.rounded and torch.equal(p.scale, q.scale)
        return
    lost = report.rounded[LINEAR.format(1) + ".weight"]
    # A 255th of two nests' width beside scales of a third of it; half a step of fp16.
    limit = 0.02 if name == "nf4-nested" else 2.0**-11 * 256
    assert 0 < float(steps.max()) <= lost * 1.01 < limit


def test_gradient_free_training_reaches_such_weights(written):
    _, folder, _ = written
    model, _ = zolab.load_model(str(folder), packed=True)
    before = {n: p.codes.clone() for n, p in zolab.packed_weights(model).items()}
    for p in model.parameters():
        p.requires_grad_(hasattr(p, "packed"))
    opt = zolab.MeZO(model, lr=1e-3, eps=1e-2)
    opt.step(lambda: model(IDS, labels=IDS).loss)
    after = zolab.packed_weights(model)
    assert any(not torch.equal(after[n].codes, c) for n, c in before.items())


# What is refused.


def change(folder, edit, file="model-0.safetensors"):
    tensors = load_file(folder / file)
    edit(tensors)
    save_file(tensors, folder / file)


def said(folder, **more):
    text = json.loads((folder / "config.json").read_text())
    text["quantization_config"] |= more
    (folder / "config.json").write_text(json.dumps(text))


def refused(folder, match):
    with pytest.raises(AssetError, match=match) as why:
        zolab.load_model(str(folder), packed=True)
    assert str(folder) in str(why.value)


def test_gptq_that_is_not_ours_is_named(tmp_path):
    name, key = LINEAR.format(0), LINEAR.format(0) + ".g_idx"

    def fresh():
        write(tmp_path, "gptq", shards=1)

    fresh()
    change(tmp_path, lambda t: t.update({key: t[key].flip(0).clone()}))
    refused(tmp_path, "down_proj.weight: its inputs were sorted")
    fresh()
    change(tmp_path, lambda t: t.pop(name + ".scales"))
    refused(tmp_path, "down_proj.weight has no scales")
    fresh()
    change(tmp_path, lambda t: t.update({name + ".qweight": torch.zeros(3, 4).int()}))
    refused(tmp_path, r"qweight is torch.int32 \(3, 4\), expected .*\(24, 128\)")
    fresh()
    change(tmp_path, lambda t: t.update({"model.lora.qweight": torch.zeros(1).int()}))
    refused(tmp_path, "model.lora.weight have no place in a LlamaForCausalLM")
    fresh()
    change(tmp_path, lambda t: t.pop("model.norm.weight"))
    refused(tmp_path, "no tensor for model.norm.weight")
    fresh()
    change(tmp_path, lambda t: t.update({"model.norm.weight": torch.ones(3)}))
    refused(tmp_path, r"model.norm.weight is \(3,\), the model wants \(128,\)")
    said(tmp_path, bits=3)
    refused(tmp_path, "codes of 3 bits in groups of 32")
    said(tmp_path, quant_method="hqq")
    refused(tmp_path, "quantized by 'hqq', expected one of bitsandbytes, gptq, awq")
    said(tmp_path, quant_method="awq", bits=4, version="gemv")
    refused(tmp_path, "version gemv, expected 4 and gemm")
    data = (tmp_path / "model-0.safetensors").read_bytes()
    said(tmp_path, quant_method="gptq")
    (tmp_path / "model-0.safetensors").write_bytes(data[:-100])
    refused(tmp_path, "truncated")
    (tmp_path / "model-0.safetensors").unlink()
    refused(tmp_path, "no safetensors")


def test_nf4_that_is_not_ours_is_named(tmp_path):
    base = LINEAR.format(0) + ".weight"

    def edited(match, edit):
        write(tmp_path, "nf4-nested", shards=1)
        change(tmp_path, edit)
        refused(tmp_path, match)

    def state(**more):
        def edit(t):
            text = json.loads(bytes(t[base + STATE].tolist())) | more
            data = list(json.dumps(text).encode())
            t[base + STATE] = torch.tensor(data, dtype=torch.uint8)

        return edit

    edited("is fp4 of shape", state(quant_type="fp4"))
    edited(r"shape \[3, 4\], expected", state(shape=[3, 4]))
    edited("blocks of 80 cross rows of 192", state(blocksize=80))
    edited("quant_state does not say", state(blocksize=-64))
    edited("quant_state does not say", state(nested_offset=None))
    edited("another layout", state(nested_blocksize=7))
    edited(
        "quant_state does not say",
        lambda t: t.update({base + STATE: torch.zeros(5, dtype=torch.uint8)}),
    )
    edited("no quant_map", lambda t: t.pop(base + ".quant_map"))
    edited("levels of its own", lambda t: t[base + ".quant_map"].mul_(0.9))
    edited(
        "3 bytes of codes",
        lambda t: t.update({base: torch.zeros(3, 1, dtype=torch.uint8)}),
    )
    write(tmp_path, "nf4")
    said(tmp_path, load_in_4bit=False)
    refused(tmp_path, "in 8 bits, expected 4")


def test_only_what_was_read_goes_back(tmp_path):
    folder, to = tmp_path / "folder", tmp_path / "to"
    model = write(folder, "gptq")
    with pytest.raises(StoreError, match="down_proj.weight packed, the model plain"):
        zolab.save_as_read(model, to, like=folder)
    with pytest.raises(StoreError, match="in uint4, group 32; the model's is .*int4"):
        zolab.save_as_read(zolab.pack(model, "int4", skip=["*embed*"]), to, like=folder)
    packed, _ = zolab.load_model(str(folder), packed=True)
    p = zolab.packed_weights(packed)[LINEAR.format(0) + ".weight"]
    p.zero += 0.5
    with pytest.raises(StoreError, match="a zero point moved"):
        zolab.save_as_read(packed, to)
    p.zero -= 0.5
    p.scale.data *= 1e9
    with pytest.raises(StoreError, match="a scale of .* is too large"):
        zolab.save_as_read(packed, to)
    assert not list(to.glob("*.part")) and not list(to.glob("*.safetensors"))
    p.scale.data /= 1e9
    zolab.save_as_read(packed, folder)  # over itself
    assert not list(folder.glob("*.part"))


PEAK = """
import json, sys
import zolab
from zolab.bench.memory import _cpu_meter

reset, high = _cpu_meter()
zolab.load_model(sys.argv[1], packed=True)
reset()
before = high()
model, _ = zolab.load_model(sys.argv[2], packed=True)
held = 0
for p in model.parameters():
    if hasattr(p, "packed"):
        held += p.packed.nbytes
    elif p.dim() != 2 or p.shape[1] >= 1024:  # scales are counted already
        held += p.numel() * p.element_size()
print(json.dumps({"mb": high() - before, "held": held / 1e6}))
"""
BESIDE = 24  # MB beside the weights: pieces of a file, modules


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux forgets an earlier peak"
)
def test_loading_never_holds_a_decoded_copy(tmp_path, monkeypatch):
    def random(w):  # the nearest codes would take a minute
        parts, _ = nf4(torch.randn(1, 64), nested=True)
        count = w.numel() // 64
        state = json.loads(bytes(parts[".weight" + STATE].tolist()))
        text = json.dumps(state | {"shape": list(w.shape)}).encode()
        parts[".weight" + STATE] = torch.tensor(list(text), dtype=torch.uint8)
        parts[".weight"] = torch.randint(0, 256, (w.numel() // 2, 1)).to(torch.uint8)
        parts[".weight.absmax"] = torch.randint(0, 256, (count,)).to(torch.uint8)
        parts[".weight.nested_absmax"] = torch.rand(-(-count // 256))
        return parts, w

    monkeypatch.setitem(KINDS, "random", (settings("bitsandbytes"), random))
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 2}
    write(tmp_path / "small", "nf4-nested")
    model = write(tmp_path / "big", "random", **sizes)
    words = [sys.executable, "-c", PEAK, str(tmp_path / "small"), str(tmp_path / "big")]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    decoded = sum(p.numel() for p in model.parameters()) * 4e-6
    assert found["held"] > 15 and found["mb"] < found["held"] + BESIDE < decoded


# Beside bitsandbytes itself.

BNB = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes"
)


@BNB
@pytest.mark.parametrize("nested", (False, True))
def test_bitsandbytes_reads_and_writes_the_same(nested, tmp_path, monkeypatch):
    """Its tensors decode to its bits, and what we write it reads as we do."""
    import bitsandbytes.functional as bnb

    def theirs(w):
        codes, state = bnb.quantize_4bit(
            w.detach(), quant_type="nf4", compress_statistics=nested
        )
        parts = {f".weight.{k}": v for k, v in state.as_dict(packed=True).items()}
        return {".weight": codes, **parts}, bnb.dequantize_4bit(codes, state).float()

    monkeypatch.setitem(KINDS, "theirs", (settings("bitsandbytes"), theirs))
    reference = write(tmp_path / "a", "theirs", shards=1)
    model, _ = zolab.load_model(str(tmp_path / "a"), packed=True)
    for n, p in zolab.packed_weights(model).items():
        torch.testing.assert_close(
            values(p), reference.get_parameter(n).detach(), rtol=1e-6, atol=0
        )
    assert zolab.save_as_read(model, tmp_path / "b").moved == ()
    assert bytes_in(tmp_path / "a") == bytes_in(tmp_path / "b")
    name = LINEAR.format(1) + ".weight"
    p = zolab.packed_weights(model)[name]
    p.scale.data *= 1.03
    p.codes += 16
    zolab.save_as_read(model, tmp_path / "b")
    tensors = load_file(tmp_path / "b" / "model-0.safetensors")
    parts = {n: t for n, t in tensors.items() if n.startswith(name + ".")}
    state = bnb.QuantState.from_dict(parts, torch.device("cpu"))
    got = bnb.dequantize_4bit(tensors[name], state).float()
    limit = 0.02 if nested else 1e-6
    assert ((got - values(p)).abs().max() / p.scale.max()) < limit
