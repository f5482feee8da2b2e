"""From a model to fake-quantised linears, and from those to packed weights.

fake_quantize(model, 2)     ordinary parameters, rounded in the forward pass
lighten(model)              most of them packed; thresholds, scale and shift move
finish(model)               all packed: the same answers
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from zolab.errors import SpaceError
from zolab.quantized.fake import FakeLinear
from zolab.quantized.pack import put
from zolab.space import canonical
from zolab.storage.codecs import Codec
from zolab.storage.codecs import codec as codec_of
from zolab.storage.packed import Packed, pack_tensor

HEADS = ("*lm_head.weight", "*embed_out.weight", "*score.weight")


def unsigned(bits: int, group: int = 64) -> Codec:
    """Levels 0 .. 2^bits - 1 with a zero point; 3 bits are stored in 4, 5 to 7 in 8."""
    if not 2 <= bits <= 8:
        raise ValueError(f"bits is {bits}, expected 2 to 8")
    if bits in (2, 4, 8):
        return codec_of(f"uint{bits}", group=group)
    table = tuple(map(float, range(2**bits)))
    return Codec(f"uint{bits}", 4 if bits == 3 else 8, table, group, zeros=True)


def fake_quantize(
    model: nn.Module,
    bits: int | None = 2,
    *,
    group: int = 64,
    activation_bits: int | None = None,
    skip: Sequence[str] = HEADS,
    transform: bool = True,
    clip: float | str = 0.98,
    unit: float = 1.0,
) -> nn.Module:
    """Replace the linears of `model` by `FakeLinear`s on the same weights, in place.

    `bits` None rounds no weight. `skip` are globs of canonical names; a weight tied to
    another module (an embedding) stays too. `transform` adds t and delta. `clip` is the
    share of each group's range that is kept at first, or "search": the least square
    error's. Raises SpaceError where no linear is left.
    """
    codec = None if bits is None else unsigned(bits, group)
    if activation_bits is not None and not 2 <= activation_bits <= 16:
        raise ValueError(f"activation_bits is {activation_bits}, expected 2 to 16")
    found = list(_linears(model, skip))
    if not found:
        raise SpaceError("no linear to quantise: all are skipped, tied or packed")
    for parent, leaf, linear in found:
        fake = FakeLinear(
            linear,
            codec,
            activation_bits=activation_bits,
            transform=transform,
            clip=clip,
            unit=unit,
        )
        setattr(parent, leaf, fake.train(linear.training))
    return model


def fakes(model: nn.Module) -> dict[str, FakeLinear]:
    """The fake linears by canonical name."""
    named = model.named_modules()
    return {canonical(n): m for n, m in named if isinstance(m, FakeLinear)}


def lighten(
    model: nn.Module,
    keep: Sequence[str] = (),
    *,
    skip: Sequence[str] = HEADS,
    unit: float = 1.0,
) -> nn.Module:
    """Pack the fake linears but `keep` (globs of weights' names); freeze the rest.

    A linear that is packed already, by whatever quantizer, gets t and delta (in units
    of `unit`) and keeps its codes; `skip` as in `fake_quantize`.
    """
    for parent, leaf, linear in list(_linears(model, skip, packed=True)):
        setattr(parent, leaf, _around(linear, unit))
    model.requires_grad_(False)
    for name, fake in fakes(model).items():
        if any(fnmatch.fnmatchcase(f"{name}.weight", glob) for glob in keep):
            fake.requires_grad_(True)
            continue
        if not fake.coded:
            code(fake)
        for p in fake.learned:
            p.requires_grad_(True)
    return model


def finish(model: nn.Module) -> nn.Module:
    """Pack every fake linear, in place: what it computes stays, rounding apart.

    B + W delta becomes the bias. One that has neither t and delta nor activation bits
    becomes an ordinary linear over a packed weight; the others keep (X - delta) / t,
    a multiplication and a subtraction an activation. Nothing requires grad any more.
    """
    for parent in list(model.modules()):
        for leaf, fake in list(parent.named_children()):
            if not isinstance(fake, FakeLinear):
                continue
            if not fake.coded:
                code(fake)
            if fake.activation_bits is None and not fake.transform:
                setattr(parent, leaf, _plain(fake))
    return model.requires_grad_(False)


@torch.no_grad()
def code(fake: FakeLinear) -> None:
    """Pack the weight of one fake linear with its clipped scales, in place."""
    if fake.codec is None:
        raise ValueError("bits is None: there is nothing to pack")
    w = fake.weight.float()
    bias, scaled = fake.shifted(w, fake.bias), fake.scaled(w)
    scale, zero = fake.scales(scaled)
    packed = pack_tensor(scaled, fake.codec, scale=scale, zero=zero)
    put(fake, "weight", _factored(packed, fake.unit), fake.weight.dtype)
    del fake.gamma_high, fake.gamma_low
    fake.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)


def _factored(packed: Packed, unit: float) -> Packed:
    """With a factor 1 / unit as its scale: an eps moves it by a share unit * eps."""
    packed.unit = packed.scales() * unit
    factor = torch.full_like(packed.unit, 1 / unit)
    packed.scale = nn.Parameter(factor, requires_grad=False)
    return packed


def _around(linear: nn.Linear, unit: float) -> FakeLinear:
    """A linear over a packed weight, with t and delta."""
    fake = FakeLinear(linear, None, unit=unit)
    weight: Any = linear.weight
    put(fake, "weight", _factored(weight.packed, unit), weight.dtype)
    fake.codec = weight.packed.codec
    return fake.train(linear.training)


def _plain(fake: FakeLinear) -> nn.Linear:
    rows, columns = fake.weight.shape
    out = nn.Linear(columns, rows, bias=False, device="meta")
    kept = ("weight", "bias", "weight_scale")
    out._parameters.update((k, fake._parameters[k]) for k in kept)
    return out.train(fake.training)


def _linears(
    model: nn.Module, skip: Sequence[str], *, packed: bool = False
) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """(parent, leaf, linear) of each linear to quantise, or that is packed already."""
    users: dict[int, set[int]] = {}
    for module in model.modules():
        for p in module._parameters.values():
            users.setdefault(id(p), set()).add(id(module))
    for prefix, parent in model.named_modules():
        for leaf, child in parent.named_children():
            name = canonical(f"{prefix}.{leaf}.weight".lstrip("."))
            if type(child) is not nn.Linear:
                continue
            if hasattr(child.weight, "packed") != packed:
                continue
            if len(users[id(child.weight)]) > 1:
                continue
            if not any(fnmatch.fnmatchcase(name, glob) for glob in skip):
                yield parent, leaf, child
