"""Real rows of SmolLM2 without a download: what the file holds, bit for bit."""

import json

import pytest
import torch

from zolab import assets
from zolab.errors import ZolabError
from zolab.lab import weights
from zolab.lab.weights import smollm2_rows
from zolab.storage.codecs import codec
from zolab.storage.packed import pack_tensor, values


def test_the_embedding_is_on_the_files_grid_of_eight_bits():
    """Q8_0 is our int8 in groups of 32: packed again, every value comes back."""
    w = smollm2_rows().embedding
    assert w.shape == (102, 576)
    again = values(pack_tensor(w, codec("int8", group=32)))
    assert float((again - w).abs().max()) <= 1e-6 * float(w.abs().max())
    other = values(pack_tensor(w, codec("int8", group=64)))
    assert float((other - w).abs().max()) > 1e-4 * float(w.abs().max())


def test_the_layer_is_on_the_files_grid_of_four_bits():
    real = smollm2_rows(1)
    ruler = {"scale": real.scale, "zero": -real.low / real.scale}
    kind = codec("uint4", group=32)
    again = values(pack_tensor(real.layer, kind, **ruler))
    assert float((again - real.layer).abs().max()) <= 1e-6 * float(real.layer.max())
    ruler["zero"] = ruler["zero"] + 0.5
    other = values(pack_tensor(real.layer, kind, **ruler))
    assert float((other - real.layer).abs().max()) > 0.1 * float(real.scale.min())


def test_rows_are_those_of_the_file():
    if assets.cached("smollm2-135m") is None:
        pytest.skip("smollm2-135m was never fetched here")
    from gguf import dequantize

    held = weights._tensors(assets.fetch("smollm2-135m"))

    def rows(name, cut):
        data, kind = held[name].data[cut], held[name].tensor_type
        return torch.from_numpy(dequantize(data, kind).copy())

    real = smollm2_rows()
    assert torch.equal(real.embedding, rows("token_embd.weight", slice(0, None, 482)))
    assert torch.equal(real.layer, rows("blk.15.ffn_down.weight", slice(0, 4)))
    more = smollm2_rows(1000).embedding
    assert torch.equal(more, rows("token_embd.weight", slice(0, 49_000, 49)))


def test_without_the_file_there_are_102(monkeypatch):
    monkeypatch.setattr(weights, "cached", lambda name: None)
    assert smollm2_rows(5000).embedding.shape == (102, 576)
    assert smollm2_rows(7).embedding.shape == (7, 576)
    with pytest.raises(ZolabError, match="count is 0"):
        smollm2_rows(0)


def test_a_damaged_file_is_refused(tmp_path, monkeypatch):
    card = json.loads((weights.ROWS / "card.json").read_text("utf-8"))
    assert card["licence"] == "Apache-2.0" and "embed_smollm2" in card["made_by"]
    for name in ("card.json", "rows.safetensors"):
        data = bytearray((weights.ROWS / name).read_bytes())
        if name != "card.json":
            data[-1] ^= 1
        (tmp_path / name).write_bytes(data)
    monkeypatch.setattr(weights, "ROWS", tmp_path)
    with pytest.raises(assets.AssetError, match="sha256"):
        smollm2_rows()
