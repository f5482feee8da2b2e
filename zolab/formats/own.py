"""zolab's own folder for a packed model: a card, safetensors, and no decoded copy.

    zolab.save_packed(model, "mine", tokenizer=tok)
    model, tok = zolab.load_model("mine")

    model.safetensors   NAME.codes, NAME.zero, NAME.unit of a packed weight; scales and
                        whatever is not packed under their own names
    packed.json         codecs (with their levels), shapes, dtypes, ties, the checksum
    config.json, ...    of transformers, where the model has one

Any module can be saved; `load_packed` fills another of the same names.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zolab.assets import AssetError, check
from zolab.errors import StoreError
from zolab.formats.safe import Entry, read_header, write
from zolab.quantized.pack import put
from zolab.space import canonical, is_away
from zolab.storage.codecs import Codec
from zolab.storage.packed import Packed

CARD, FILE, VERSION = "packed.json", "model.safetensors", "zolab packed 1"
PARTS = (".codes", "_scale", ".zero", ".unit")


def save_packed(model: nn.Module, folder: str | Path, *, tokenizer: Any = None) -> Path:
    """Write the model as it lies in memory; returns the folder.

    Raises StoreError where a weight has no values or the folder cannot be written.
    """
    folder = Path(folder)
    tensors: dict[str, Tensor] = {}
    codecs: list[Codec] = []
    weights: dict[str, Any] = {}
    first: dict[int, str] = {}
    tied: dict[str, str] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        name = canonical(name)
        if is_away(p):
            raise StoreError(f"{name} has no values: load the model first")
        if id(p) in first:
            if first[id(p)] not in {f"{n}_scale" for n in weights}:  # it comes along
                tied[name] = first[id(p)]
            continue
        first[id(p)] = name
        packed: Packed | None = getattr(p, "packed", None)
        if packed is None:
            tensors[name] = p.detach()
            continue
        if packed.codec not in codecs:
            codecs.append(packed.codec)
        weights[name] = {
            "codec": codecs.index(packed.codec),
            "shape": list(packed.shape),
            "dtype": str(p.dtype).removeprefix("torch."),
            "snap": packed.snap,
        }
        parts = {"codes": packed.codes, "zero": packed.zero, "unit": packed.unit}
        tensors |= {f"{name}.{k}": t for k, t in parts.items() if t is not None}
    state = model.state_dict(keep_vars=True)
    names = {canonical(n) for n, _ in model.named_buffers()}
    tensors |= {canonical(n): t for n, t in state.items() if canonical(n) in names}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as why:
        raise StoreError(f"{folder} was not made: {why.strerror or why}") from why
    config: Any = getattr(model, "config", None)
    if hasattr(config, "save_pretrained"):
        config.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    card = {
        "format": VERSION,
        "sha256": write(folder / FILE, tensors),
        "codecs": [_words(c) for c in codecs],
        "weights": weights,
        "tied": tied,
    }
    (folder / CARD).write_text(json.dumps(card, indent=1) + "\n", "utf-8")
    return folder


def load_packed(
    model: nn.Module, folder: str | Path, *, dtype: torch.dtype | None = None
) -> nn.Module:
    """Give `model` the weights of such a folder, in place; returns it.

    What `model` holds is dropped, tensor by tensor (`zolab.empty_weights` holds
    nothing). With `dtype`, weights compute in it and what is not packed is cast to it,
    but scales keep their type. Raises AssetError on a folder that is none, damaged, or
    another model's.
    """
    folder = Path(folder)
    card = _card(folder)
    check(folder / FILE, card["sha256"])
    there = read_header(folder / FILE)
    weights, tied = card["weights"], card["tied"]
    parts = {f"{n}{end}" for n in weights for end in PARTS}
    plain = {n: e for n, e in there.items() if n not in parts}
    where = places(model)
    wanted = {n for n in where if not _is_scale(n, where)}
    if wanted != (given := weights.keys() | plain.keys() | tied.keys()):
        few = sorted(wanted ^ given)[:4]
        raise AssetError(
            f"{folder} holds another model: {', '.join(few)} "
            f"{'are' if len(few) > 1 else 'is'} in one of the two only"
        )
    for name, words in weights.items():
        module, leaf = where[name]
        kind = dtype or getattr(torch, words["dtype"])
        put(module, leaf, _read(folder, name, words, card["codecs"], there), kind)
    for name, entry in plain.items():
        value = entry.read()
        if dtype is not None and value.is_floating_point():
            value = value.to(dtype)
        set_tensor(*where[name], value)
    for name, first in tied.items():
        (module, leaf), (owner, its) = where[name], where[first]
        if module is not owner:
            set_tensor(module, leaf, owner._parameters[its])
    return model.requires_grad_(False)


def _read(
    folder: Path, name: str, words: Any, codecs: Any, there: dict[str, Entry]
) -> Packed:
    """One packed weight, its parts held against its codec."""
    if f"{name}.codes" not in there or f"{name}_scale" not in there:
        raise AssetError(f"{folder} has no codes or no scales of {name}")
    codec, shape = _codec(codecs[words["codec"]]), torch.Size(words["shape"])
    parts = {n: there[f"{name}{n}"].read() for n in PARTS if f"{name}{n}" in there}
    codes, scale, zero = parts[".codes"], parts["_scale"], parts.get(".zero")
    size, grid = -(-shape.numel() * codec.bits // 8), codec.groups(shape)
    found = (codes.dtype, codes.numel(), tuple(scale.shape), zero is not None)
    if found != (torch.uint8, size, grid, codec.zeros):
        raise AssetError(
            f"{folder}: {name} has codes, scales and zero points {found}, expected "
            f"{(torch.uint8, size, grid, codec.zeros)}"
        )
    owned = nn.Parameter(scale, requires_grad=False)
    return Packed(codec, shape, codes, owned, zero, parts.get(".unit"), words["snap"])


def _card(folder: Path) -> dict[str, Any]:
    try:
        card = json.loads((folder / CARD).read_text("utf-8"))
    except (OSError, ValueError) as why:
        raise AssetError(f"{folder} is no folder of save_packed: {why}") from why
    if not isinstance(card, dict) or card.get("format") != VERSION:
        found = card.get("format") if isinstance(card, dict) else card
        raise AssetError(f"{folder / CARD} is {found!r}, expected {VERSION!r}")
    return card


def _words(codec: Codec) -> dict[str, Any]:
    return {**asdict(codec), "table": list(codec.table)}


def _codec(words: dict[str, Any]) -> Codec:
    return Codec(**{**words, "table": tuple(words["table"])})


def places(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """The module and the leaf of everything that a state dict has."""
    kept = {canonical(n) for n in model.state_dict(keep_vars=True)}
    found = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for leaf in (*module._parameters, *module._buffers):
            name = canonical(f"{prefix}.{leaf}".lstrip("."))
            if name in kept:
                found[name] = module, leaf
    return found


def _is_scale(name: str, where: dict[str, tuple[nn.Module, str]]) -> bool:
    """Whether it belongs to a packed weight of the model."""
    module, leaf = where.get(name.removesuffix("_scale"), (None, ""))
    return module is not None and name.endswith("_scale") and _is_packed(module, leaf)


def _is_packed(module: nn.Module, leaf: str) -> bool:
    return hasattr(module._parameters.get(leaf), "packed")


def set_tensor(module: nn.Module, leaf: str, value: Any) -> None:
    """`module.leaf` becomes this buffer, this parameter, or a parameter of it."""
    if leaf in module._buffers:
        module._buffers[leaf] = value
        return
    if _is_packed(module, leaf):
        module._parameters.pop(f"{leaf}_scale", None)
    tied = isinstance(value, nn.Parameter)
    module._parameters[leaf] = (
        value if tied else nn.Parameter(value, requires_grad=False)
    )
