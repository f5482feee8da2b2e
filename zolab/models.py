"""Models by name: embedded, a checked download, a folder, a hub, or random."""

from __future__ import annotations

import difflib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from zolab.assets import AssetError, check, fetch
from zolab.empty import empty_weights
from zolab.formats.folder import load_folder, settings_in
from zolab.formats.llama import load_gguf
from zolab.formats.own import CARD, load_packed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DATA = Path(__file__).parent / "data"
HUB = {"smollm2-135m": "HuggingFaceTB/SmolLM2-135M"}
# Width, layers, heads, feed-forward of the OPT decoders (arXiv:2205.01068, table 1).
OPT = {
    "opt-125m": (768, 12, 12, 3072),
    "opt-1.3b": (2048, 24, 32, 8192),
}
SOURCES = ("auto", "hub")


def load_model(
    name: str = "tiny",
    *,
    dtype: torch.dtype = torch.float32,
    source: str = "auto",
    seed: int = 0,
    packed: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """The model in eval mode, and its tokenizer.

    name: "tiny", embedded, 1.2M parameters; "smollm2-135m", SmolLM2-135M after Q4_1
    (the weights carry four-bit error; 98 MB, fetched once); a folder with safetensors;
    or of `save_packed`; a GGUF file of a Llama, "x.gguf" (no tokenizer but SmolLM's:
    None); a hub's name,
    "owner/name"; "random:opt-125m", "random:opt-1.3b" or "random:tiny", a published
    shape with random weights from `seed` (no tokenizer for the OPT shapes: None).
    packed=True keeps the codes of a quantized file (GGUF, or a folder of bitsandbytes'
    NF4, GPTQ or AWQ), computes in `dtype`, and never holds a decoded copy.
    source="hub" asks for the hub's own weights.  Raises AssetError, which says what was
    tried; without a network nothing waits longer than ten seconds a try.
    """
    if source not in SOURCES:
        raise AssetError(f"source={source!r}, expected one of {', '.join(SOURCES)}")
    quantized = name == "smollm2-135m" or name.endswith(".gguf")
    quantized |= (Path(name) / CARD).is_file() or settings_in(Path(name)) is not None
    if packed and (source == "hub" or not quantized):
        raise AssetError(
            f"{name} has no packed weights to keep: zolab.pack(model, ...) makes them"
        )
    if name.startswith("random:"):
        return _random(name.removeprefix("random:"), dtype, seed)
    if source == "hub":
        return _hub(HUB.get(name, name), dtype)
    if name == "tiny":
        card = json.loads((DATA / "tiny" / "card.json").read_text("utf-8"))
        check(DATA / "tiny" / "model.safetensors", card["sha256"])
        return _folder(DATA / "tiny", dtype)
    if name == "smollm2-135m":
        return load_gguf(fetch("smollm2-135m"), dtype, packed=packed)
    if name.endswith(".gguf"):
        return load_gguf(Path(name), dtype, packed=packed)
    if (Path(name) / CARD).is_file():
        return _packed_folder(Path(name), dtype)
    if packed:
        return load_folder(Path(name), dtype), _tokenizer(Path(name))
    if Path(name).is_dir():
        return _folder(Path(name), dtype)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _hub(name, dtype)
    known = ["tiny", "smollm2-135m", *(f"random:{a}" for a in ("tiny", *OPT))]
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.4)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise AssetError(
        f"no model is called {name!r} and no such folder exists.{hint} Known: "
        f"{', '.join(known)}, a folder, a .gguf file, or owner/name on a hub."
    )


def _folder(path: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # a second's load needs none
    safe: dict = {"local_files_only": True, "trust_remote_code": False}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, use_safetensors=True, **safe
        )
        return model.eval(), AutoTokenizer.from_pretrained(path, **safe)
    except Exception as why:  # one clear error, whatever a damaged file raised
        raise AssetError(
            f"{path} is not a model folder: {why} Expected config.json, "
            "*.safetensors and tokenizer.json."
        ) from why
    finally:
        if bar:
            logging.enable_progress_bar()


def _packed_folder(path: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """A folder of `save_packed`; its tokenizer, where it has one."""
    from transformers import AutoConfig, AutoModelForCausalLM

    safe: dict = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(path, **safe)
        model = empty_weights(lambda: AutoModelForCausalLM.from_config(config))
    except Exception as why:  # one clear error, whatever a damaged file raised
        raise AssetError(f"{path} has no readable config.json: {why}") from why
    return load_packed(model, path, dtype=dtype), _tokenizer(path)


def _tokenizer(path: Path) -> Any:
    """The folder's tokenizer, None where it has none."""
    from transformers import AutoTokenizer

    if not (path / "tokenizer_config.json").is_file():
        return None
    return AutoTokenizer.from_pretrained(
        path, local_files_only=True, trust_remote_code=False
    )


def _hub(name: str, dtype: torch.dtype) -> tuple[Any, Any]:
    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", "10")  # read at the first import
    os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", "10")
    from huggingface_hub import snapshot_download

    kinds = ["*.json", "*.safetensors", "*.txt", "*.model"]
    try:
        path = snapshot_download(name, allow_patterns=kinds)
    except Exception as why:
        raise AssetError(
            f"tried the hub's cache and the hub for {name!r}: no answer "
            f"({type(why).__name__}). `tiny` needs no network."
        ) from why
    return _folder(Path(path), dtype)


def _random(arch: str, dtype: torch.dtype, seed: int) -> tuple[Any, Any]:
    """Weights drawn by the architecture's own initialiser; global RNG left alone."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, OPTConfig

    tokenizer = None
    if arch == "tiny":
        config = AutoConfig.from_pretrained(DATA / "tiny", local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(DATA / "tiny", local_files_only=True)
    elif arch in OPT:
        width, layers, heads, inner = OPT[arch]
        config = OPTConfig(
            hidden_size=width,
            word_embed_proj_dim=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            ffn_dim=inner,
        )
    else:
        raise AssetError(
            f"no published shape is called {arch!r}, expected tiny, {', '.join(OPT)}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval(), tokenizer
