"""A model's matrices in a few bits, in place; and back.

    zolab.pack(model, "int4", group=64)

After it the model answers as before, from rounded weights: its `weight` claims the old
shape and dtype, its codes, zero points and scales are what lies in memory. Nothing
requires grad any more; a method (QZO, QuZO, ZOQO, or LoRA beside) says what moves.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from zolab.empty import away
from zolab.errors import SpaceError
from zolab.space import canonical, is_away
from zolab.storage.codecs import Codec
from zolab.storage.codecs import codec as codec_of
from zolab.storage.packed import Packed, PackedWeight, pack_tensor, values

Quantizer = Callable[[str, Tensor, Codec], Packed]
"""(name, weight, codec) -> codes and scales: rounding to nearest, HQQ, GPTQ, ..."""


def pack(
    model: nn.Module,
    codec: str | Codec = "int4",
    *,
    group: int | None = None,
    skip: Sequence[str] = (),
    by: Quantizer | None = None,
) -> nn.Module:
    """Code every floating matrix (two axes or more) of `model`, in place; returns it.

    `skip` are globs of canonical names that stay as they are ("*embed*"). `by` chooses
    codes and scales, by default the nearest levels of scales that just hold each group.
    One matrix at a time is in memory twice. Of a model from `zolab.empty_weights` the
    packed weights stay descriptions until a streamed engine's `fill` is asked. Raises
    ValueError on an unknown codec, SpaceError where nothing is left to pack.
    """
    kind = codec_of(codec, group=group)
    done: dict[int, nn.Parameter] = {}
    skipped: set[int] = set()
    for module, leaf, name, p in _matrices(model):
        named = any(fnmatch.fnmatchcase(name, glob) for glob in skip)
        if id(p) in skipped or (named and id(p) not in done):
            skipped.add(id(p))  # a tied weight goes by its first name, and stays tied
            continue
        if id(p) not in done:
            if is_away(p):
                packed = described(p.shape, kind)
            else:
                packed = by(name, p.detach(), kind) if by else pack_tensor(p, kind)
            put(module, leaf, packed, p.dtype)
            done[id(p)] = module._parameters[leaf]  # type: ignore[assignment]
        module._parameters[leaf] = done[id(p)]
    if not done:
        raise SpaceError("no floating matrix to pack: all are skipped or packed")
    return model.requires_grad_(False)


def put(module: nn.Module, leaf: str, packed: Packed, dtype: torch.dtype) -> None:
    """`module.leaf` becomes this packed weight, its scales `module.leaf_scale`."""
    weight = nn.Parameter(PackedWeight.of(packed, dtype), requires_grad=False)
    if packed.away:
        weight.zolab_away = True  # type: ignore[attr-defined]
    module._parameters[leaf] = weight
    module.register_parameter(f"{leaf}_scale", packed.scale)
    if relink not in module._load_state_dict_post_hooks.values():
        module.register_load_state_dict_post_hook(relink)


def relink(module: nn.Module, keys: object) -> None:
    """load_state_dict(assign=True) replaces weights and scales one by one."""
    for leaf, p in module._parameters.items():
        scale = module._parameters.get(f"{leaf}_scale")
        if scale is not None and p is not None and hasattr(p, "packed"):
            p.packed = replace(p.packed, scale=scale)


def described(shape: torch.Size, codec: Codec) -> Packed:
    """A packed weight of this shape without its codes and scales."""
    scale = away(torch.Size(codec.groups(shape)), torch.float32, False)
    none = torch.empty(0, dtype=torch.uint8)
    return Packed(codec, shape, none, scale, torch.empty(0) if codec.zeros else None)


def unpack(model: nn.Module) -> nn.Module:
    """Every packed weight becomes an ordinary parameter of its values, in place."""
    done: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for leaf, p in list(module._parameters.items()):
            if p is None or not hasattr(p, "packed"):
                continue
            if id(p) not in done:
                plain = values(p.packed, p.dtype)
                done[id(p)] = nn.Parameter(plain, requires_grad=False)
            module._parameters[leaf] = done[id(p)]
            module._parameters.pop(f"{leaf}_scale", None)
    return model


def packed_weights(model: nn.Module) -> dict[str, Packed]:
    """The packed weights by canonical name, tied ones once."""
    named = model.named_parameters()
    return {canonical(n): p.packed for n, p in named if hasattr(p, "packed")}


def _matrices(
    model: nn.Module,
) -> Iterator[tuple[nn.Module, str, str, nn.Parameter]]:
    """(module, leaf, canonical name, parameter) of all floating matrices."""
    for prefix, module in list(model.named_modules()):
        for leaf, p in list(module._parameters.items()):
            if p is None or hasattr(p, "packed") or leaf.endswith("_scale"):
                continue
            name = canonical(f"{prefix}.{leaf}".lstrip("."))
            if p.is_floating_point() and p.numel() > max(p.shape, default=1):
                yield module, leaf, name, p
