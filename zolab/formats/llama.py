"""A Llama in a GGUF file: configuration, names, the order of rows, the tokenizer.

GGUF interleaves the two rotary halves of every query and key head on the rows,
(h, 2, r/2) -> (h, r/2, 2). A row is whole blocks, so it is undone on packed rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from zolab.assets import AssetError
from zolab.empty import empty_weights
from zolab.formats.gguf import Entry, Gguf
from zolab.formats.tensors import Order, read_packed, read_plain
from zolab.quantized.pack import put
from zolab.space import is_away

INNER = {
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
    "output": "lm_head",
}


def load_gguf(path: Path, dtype: torch.dtype, *, packed: bool) -> tuple[Any, Any]:
    """The model and its tokenizer (None where it is not SmolLM's).

    Packed, its matrices keep the file's codes and compute in `dtype`; else all are
    decoded to `dtype`. Raises AssetError on anything but a sound Llama.
    """
    from transformers import LlamaForCausalLM

    file = Gguf(path)
    config = config_of(file)
    model: Any = empty_weights(lambda: LlamaForCausalLM(config), dtype=dtype)
    for entry in file.tensors.values():
        module, leaf = _place(model, file, entry)
        wanted = tuple(module._parameters[leaf].shape)
        if wanted != entry.shape:
            raise AssetError(
                f"{path}: {entry.name} is {entry.shape}, by its header's sizes it is "
                f"{wanted}"
            )
        order = order_of(file, entry)
        if packed and len(entry.shape) == 2 and entry.kind not in (0, 1, 30):
            put(module, leaf, read_packed(file, entry, order), dtype)
        else:
            value = read_plain(file, entry, dtype, order)
            module._parameters[leaf] = nn.Parameter(value, requires_grad=not packed)
    if config.tie_word_embeddings:
        model.lm_head._parameters["weight"] = model.model.embed_tokens.weight
    if missing := [n for n, p in model.named_parameters() if is_away(p)]:
        raise AssetError(f"{path} has no tensor for {', '.join(missing[:4])}")
    model.read_from = path
    return model.eval(), _tokenizer(file)


def config_of(file: Gguf) -> Any:
    """What the header says of the shape, as a LlamaConfig."""
    from transformers import LlamaConfig

    kind = _field(file, "general.architecture")
    if kind != "llama":
        raise AssetError(f"{file.path} holds a {kind!r}, expected 'llama'")
    if scaling := [k for k in file.fields if k.startswith("llama.rope.scaling")]:
        raise AssetError(f"{file.path}: {scaling[0]}: scaled rotations are not read")
    if "token_embd.weight" not in file.tensors:
        raise AssetError(f"{file.path} has no tensor token_embd.weight")
    width = _field(file, "llama.embedding_length")
    heads = _field(file, "llama.attention.head_count")
    epsilon = _field(file, "llama.attention.layer_norm_rms_epsilon")
    return LlamaConfig(
        vocab_size=file.tensors["token_embd.weight"].shape[0],
        hidden_size=width,
        num_hidden_layers=_field(file, "llama.block_count"),
        num_attention_heads=heads,
        num_key_value_heads=file.fields.get("llama.attention.head_count_kv", heads),
        head_dim=file.fields.get("llama.attention.key_length", width // heads),
        intermediate_size=_field(file, "llama.feed_forward_length"),
        max_position_embeddings=_field(file, "llama.context_length"),
        rms_norm_eps=float(f"{epsilon:.7g}"),  # stored in fp32
        rope_theta=file.fields.get("llama.rope.freq_base", 1e4),
        tie_word_embeddings="output.weight" not in file.tensors,
        bos_token_id=file.fields.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=file.fields.get("tokenizer.ggml.eos_token_id"),
    )


def order_of(file: Gguf, entry: Entry) -> Order:
    """The model's row of each of the file's rows; None where they agree."""
    heads = {"attn_q": "head_count", "attn_k": "head_count_kv"}
    part = entry.name.split(".")[-2:][0]
    if part not in heads:
        return None
    default = _field(file, "llama.attention.head_count")
    count = file.fields.get(f"llama.attention.{heads[part]}", default)
    rows = np.arange(entry.rows).reshape(count, 2, -1)
    return rows.transpose(0, 2, 1).reshape(-1)


def name_in_model(name: str) -> str | None:
    """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight, and so on."""
    *block, leaf, suffix = name.split(".")
    if leaf not in INNER or len(block) not in (0, 2):
        return None
    layer = f"model.layers.{block[1]}." if block else ""
    return f"{layer}{INNER[leaf]}.{suffix}"


def _place(model: nn.Module, file: Gguf, entry: Entry) -> tuple[Any, str]:
    """The module and the name of its parameter that the tensor is."""
    path, _, leaf = (name_in_model(entry.name) or "").rpartition(".")
    try:
        module = model.get_submodule(path)
        if module._parameters.get(leaf) is not None:
            return module, leaf
    except AttributeError:
        pass
    raise AssetError(f"{file.path}: {entry.name} has no place in a Llama")


def _field(file: Gguf, key: str) -> Any:
    if key not in file.fields:
        raise AssetError(f"{file.path} does not say {key}")
    return file.fields[key]


def _tokenizer(file: Gguf) -> Any:
    """The byte-level BPE inside the file; its control tokens are marked special."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    if file.fields.get("tokenizer.ggml.pre") != "smollm":
        return None
    keys = ("tokens", "merges", "token_type")
    field = {k: _field(file, f"tokenizer.ggml.{k}") for k in keys}
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
