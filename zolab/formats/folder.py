"""Folders of transformers whose weights another program quantized: NF4, GPTQ, AWQ.

config.json says which, under quantization_config. The packed weights go into the model
that the rest of config.json describes; what is not packed is read as it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from zolab.assets import AssetError
from zolab.empty import empty_weights
from zolab.formats.bnb import Bnb
from zolab.formats.own import places, set_tensor
from zolab.formats.safe import Entry, read_header
from zolab.formats.words import awq, gptq
from zolab.quantized.pack import put
from zolab.space import is_away
from zolab.storage.packed import Packed

Parts = dict[str, Entry]


class Scheme(Protocol):
    """How a program lays out a packed weight: which tensors, and what they mean."""

    def parts(self, names: Mapping[str, Entry]) -> dict[str, Parts]:
        """Weight name -> its tensors by ending."""

    def read(self, name: str, parts: Parts, shape: torch.Size) -> Packed:
        """The weight of this shape; AssetError where the tensors are not its."""

    def encode(
        self, name: str, parts: Parts, packed: Packed
    ) -> tuple[dict[str, Tensor], float]:
        """The tensors that may have moved, and the most that rounding changed."""


SCHEMES: dict[str, Callable[[Mapping[str, Any]], Scheme]]
SCHEMES = {"bitsandbytes": Bnb, "gptq": gptq, "awq": awq}


def settings_in(path: Path) -> dict[str, Any] | None:
    """What config.json says of quantization; None where it says nothing."""
    try:
        return json.loads((path / "config.json").read_text("utf-8")).get(
            "quantization_config"
        )
    except (OSError, ValueError, AttributeError):
        return None


def scheme_of(path: Path) -> Scheme:
    """The scheme that config.json names."""
    settings = settings_in(path) or {}
    method = settings.get("quant_method")
    if method not in SCHEMES:
        raise AssetError(
            f"{path} is quantized by {method!r}, expected one of {', '.join(SCHEMES)}"
        )
    try:
        return SCHEMES[method](settings)
    except AssetError as why:
        raise AssetError(f"{path}: {why}") from None


def entries_in(path: Path) -> dict[str, Entry]:
    """The tensors of all of a folder's safetensors."""
    found: dict[str, Entry] = {}
    for file in sorted(path.glob("*.safetensors")):
        mine = read_header(file)
        if twice := found.keys() & mine.keys():
            raise AssetError(f"{path} has {min(twice)} in two files")
        found |= mine
    if not found:
        raise AssetError(f"{path} has no safetensors")
    return found


def load_folder(path: Path, dtype: torch.dtype) -> Any:
    """The model with the folder's codes; nothing is ever decoded."""
    from transformers import AutoConfig, AutoModelForCausalLM

    scheme, entries = scheme_of(path), entries_in(path)
    try:
        config = AutoConfig.from_pretrained(
            path, local_files_only=True, trust_remote_code=False
        )
        del config.quantization_config  # ours is no module of its program
        model: Any = empty_weights(
            lambda: AutoModelForCausalLM.from_config(config), dtype=dtype
        )
    except Exception as why:  # one clear error, whatever a damaged file raised
        raise AssetError(f"{path} has no readable config.json: {why}") from why
    where = places(model)
    twins = _twins(model, where)
    weights = scheme.parts(entries)
    used = {id(e) for parts in weights.values() for e in parts.values()}
    plain = {n: e for n, e in entries.items() if id(e) not in used}
    if strangers := (weights.keys() | plain.keys()) - where.keys():
        few = ", ".join(sorted(strangers)[:4])
        raise AssetError(f"{path}: {few} have no place in a {type(model).__name__}")
    for name, parts in weights.items():
        module, leaf = where[name]
        shape = module._parameters[leaf].shape  # type: ignore[union-attr]
        try:
            put(module, leaf, scheme.read(name, parts, shape), dtype)
        except AssetError as why:
            raise AssetError(f"{path}: {why}") from None
        _follow(where, name, twins)
    for name, entry in plain.items():
        _plain(path, where, name, entry, dtype)
        _follow(where, name, twins)
    if missing := [n for n, p in model.named_parameters() if is_away(p)]:
        raise AssetError(f"{path} has no tensor for {', '.join(missing[:4])}")
    model.read_from = path
    return model.requires_grad_(False).eval()


def _plain(
    path: Path,
    where: dict[str, tuple[nn.Module, str]],
    name: str,
    entry: Entry,
    dtype: torch.dtype,
) -> None:
    module, leaf = where[name]
    old = module._parameters.get(leaf, module._buffers.get(leaf))
    if old is None or old.shape != entry.shape:
        raise AssetError(
            f"{path}: {name} is {tuple(entry.shape)}, the model wants "
            f"{None if old is None else tuple(old.shape)}"
        )
    value = entry.read()
    set_tensor(module, leaf, value.to(dtype) if value.is_floating_point() else value)


def _twins(
    model: nn.Module, where: dict[str, tuple[nn.Module, str]]
) -> dict[str, list[str]]:
    """Tied parameters: each name's others."""
    same: dict[int, list[str]] = {}
    for name, (module, leaf) in where.items():
        same.setdefault(id(module._parameters.get(leaf, name)), []).append(name)
    return {n: [m for m in group if m != n] for group in same.values() for n in group}


def _follow(
    where: dict[str, tuple[nn.Module, str]], name: str, twins: dict[str, list[str]]
) -> None:
    module, leaf = where[name]
    for other in twins[name]:
        owner, its = where[other]
        owner._parameters[its] = module._parameters[leaf]
