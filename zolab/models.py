"""Models by name: embedded, a checked download, a folder, a hub, or random."""

from __future__ import annotations

import difflib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from zolab.assets import AssetError, check, fetch

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
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """The model in eval mode, and its tokenizer.

    name: "tiny", embedded, 1.2M parameters; "smollm2-135m", SmolLM2-135M after Q4_1
    (the weights carry four-bit error; 98 MB, fetched once); a folder with safetensors;
    a hub's name, "owner/name"; "random:opt-125m", "random:opt-1.3b" or "random:tiny",
    a published shape with random weights from `seed` (no tokenizer for the OPT shapes:
    None).  source="hub" asks for the hub's own weights.  Raises AssetError, which says
    what was tried; without a network nothing waits longer than ten seconds a try.
    """
    if source not in SOURCES:
        raise AssetError(f"source={source!r}, expected one of {', '.join(SOURCES)}")
    if name.startswith("random:"):
        return _random(name.removeprefix("random:"), dtype, seed)
    if source == "hub":
        return _hub(HUB.get(name, name), dtype)
    if name == "tiny":
        card = json.loads((DATA / "tiny" / "card.json").read_text("utf-8"))
        check(DATA / "tiny" / "model.safetensors", card["sha256"])
        return _folder(DATA / "tiny", dtype)
    if name == "smollm2-135m":
        return _smollm2(dtype)
    if Path(name).is_dir():
        return _folder(Path(name), dtype)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _hub(name, dtype)
    known = ["tiny", "smollm2-135m", *(f"random:{a}" for a in ("tiny", *OPT))]
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.4)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise AssetError(
        f"no model is called {name!r} and no such folder exists.{hint} Known: "
        f"{', '.join(known)}, a folder, or owner/name on a hub."
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


def _smollm2(dtype: torch.dtype) -> tuple[Any, Any]:
    """The Q4_1 file dequantised into an ordinary LlamaForCausalLM.

    GGUF interleaves the two rotary halves of every query and key head:
    (h, 2, r/2) -> (h, r/2, 2) on the rows; here it is undone.
    """
    path = fetch("smollm2-135m")
    try:
        from gguf import GGUFReader, dequantize
    except ImportError as why:
        raise AssetError("reading this model needs the package `gguf`.") from why
    from transformers import LlamaConfig, LlamaForCausalLM

    reader = GGUFReader(path)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        intermediate_size=1536,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_theta=1e5,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    weights = {}
    for tensor in reader.tensors:
        w = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        if heads := {"attn_q": 9, "attn_k": 3}.get(tensor.name.split(".")[-2]):
            rows, cols = w.shape
            w = w.reshape(heads, rows // heads // 2, 2, cols).transpose(1, 2)
            w = w.reshape(rows, cols)
        weights[_hf_name(tensor.name)] = w.to(dtype)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights, strict=True, assign=True)
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # was on meta
    return model.eval(), _gguf_tokenizer(reader)


def _hf_name(name: str) -> str:
    """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight, and so on."""
    inner = {
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "token_embd": "model.embed_tokens",
        "output_norm": "model.norm",
    }
    *block, leaf, suffix = name.split(".")
    layer = f"model.layers.{block[1]}." if block else ""
    return f"{layer}{inner[leaf]}.{suffix}"


def _gguf_tokenizer(reader: Any) -> Any:
    """The byte-level BPE inside the file; its control tokens are marked special."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    field = {
        k: reader.fields[f"tokenizer.ggml.{k}"].contents()
        for k in ("tokens", "merges", "token_type")
    }
    vocabulary = {t: i for i, t in enumerate(field["tokens"])}
    merges = [tuple(m.split(" ")) for m in field["merges"]]
    tok = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tok.decoder = decoders.ByteLevel()
    control = [
        t for t, k in zip(field["tokens"], field["token_type"], strict=True) if k == 3
    ]
    tok.add_special_tokens([AddedToken(t, special=True) for t in control])
    return PreTrainedTokenizerFast(
        tokenizer_object=tok,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        model_max_length=8192,
    )
