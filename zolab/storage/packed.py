"""A weight in a few bits, that any torch call may read: codes, scales, zero points.

    zolab.pack(model, "int4", group=64)        every matrix of the model becomes one

To the model it is a parameter like any other: it has a shape, a dtype (what it computes
in) and a device. A torch call that receives it gets its decoded values; inside a probe
the engine's mode decodes instead, into its scratch, and moves what the probe moves. The
scales are a parameter of their own beside it, `weight_scale`, so that they can be what
moves (QZO).

Element e of the row-major tensor has its code in bits b e .. b e + b - 1 of the bytes,
low bits first: the byte of four-bit codes 2i and 2i + 1 is code | next << 4. The last
byte of an odd size is half empty.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from zolab.errors import SpaceError
from zolab.metadata import METADATA
from zolab.storage.codecs import Codec, by_group, fit, nearest


@dataclass(eq=False)
class Packed:
    """codes uint8, scale (rows, groups) floating, zero alike or None, unit alike.

    `unit`, where there is one, multiplies the scale: the scale is then a factor that
    starts at 1. With `snap`, a probe or an update moves a code by whole levels, at
    least one (ZOQO).
    """

    codec: Codec
    shape: torch.Size
    codes: Tensor
    scale: nn.Parameter
    zero: Tensor | None = None
    unit: Tensor | None = None
    snap: bool = False

    @property
    def away(self) -> bool:
        """Whether it is only described: no codes yet (a model that is never whole)."""
        return self.shape.numel() > 0 == self.codes.numel()

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales, zero points and units."""
        rest = [t for t in (self.scale, self.zero, self.unit) if t is not None]
        return self.codes.numel() + sum(t.numel() * t.element_size() for t in rest)

    def scales(self, moved: Tensor | None = None) -> Tensor:
        """What multiplies the levels, fp32, detached; `moved` stands for the scale."""
        s = self.scale.detach() if moved is None else moved
        return s.float() if self.unit is None else s.float() * self.unit.float()

    def relative(self) -> None:
        """The scale becomes a factor that starts at 1, if it is not one yet."""
        if self.unit is None:
            if self.away:
                raise SpaceError("a described packed weight has no scales to divide by")
            self.unit = self.scale.detach().clone()
            self.scale.data.fill_(1.0)

    def span(self, start: int, n: int) -> tuple[int, int]:
        """The groups, first and last + 1, of the elements start .. start + n - 1."""
        _, columns, group = self.codec.layout(self.shape)
        each, last = -(-columns // group), start + n - 1
        first, last = (
            e // columns * each + e % columns // group for e in (start, last)
        )
        return first, last + 1

    def row(self, index: Tensor) -> Tensor:
        """The rows of scales that serve these rows of a matrix: one may serve all."""
        return index if len(self.scale) > 1 else torch.zeros_like(index)

    def decode(self) -> Tensor:
        """All values, fp32, differentiable in the scale where that requires grad."""
        rows, columns, group = self.codec.layout(self.shape)
        element = torch.arange(rows * columns, device=self.codes.device)
        level = self.codec.levels(self.codes.device)[
            unpack_at(self.codes, element, self.codec.bits)
        ]
        place = where(element, columns, group)
        if self.zero is not None:
            level = level - self.zero.reshape(-1)[place]
        scale = (
            self.scale if self.unit is None else self.scale.float() * self.unit.float()
        )
        return (scale.float().reshape(-1)[place] * level).view(self.shape)


def pack_tensor(
    w: Tensor, codec: Codec, *, scale: Tensor | None = None, zero: Tensor | None = None
) -> Packed:
    """w rounded to the nearest level; `scale` and `zero` are fitted if not given."""
    if scale is None:
        scale, zero = fit(w, codec)
    codes = pack_bits(nearest(w, codec, scale, zero), codec.bits)
    return Packed(codec, w.shape, codes, nn.Parameter(scale, requires_grad=False), zero)


def where(element: Tensor, columns: int, group: int) -> Tensor:
    """The index of the scale that belongs to a row-major element."""
    per_row = math.ceil(columns / group)
    return element // columns * per_row + element % columns // group


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """One code a byte (uint8, any shape) to dense bytes, low bits first."""
    flat, each = codes.reshape(-1), 8 // bits
    if flat.numel() and int(flat.max()) >= 1 << bits:
        raise ValueError(f"code {int(flat.max())} does not fit into {bits} bits")
    flat = torch.nn.functional.pad(flat, (0, -flat.numel() % each)).view(-1, each)
    out = torch.zeros(len(flat), dtype=torch.uint8, device=codes.device)
    for i in range(each):
        out |= flat[:, i] << (bits * i)
    return out


def unpack_at(codes: Tensor, element: Tensor, bits: int) -> Tensor:
    """The codes at int64 indices `element`, as int64."""
    each = 8 // bits
    byte = codes[element // each].long()
    return (byte >> (element % each * bits)) & ((1 << bits) - 1)


def unpack_bits(codes: Tensor, bits: int, count: int) -> Tensor:
    """Dense bytes to `count` codes, one a byte."""
    shifts = torch.arange(0, 8, bits, device=codes.device, dtype=torch.uint8)
    return ((codes[:, None] >> shifts) & ((1 << bits) - 1)).reshape(-1)[:count]


class PackedWeight(Tensor):
    """The parameter that stands for a `Packed`: it claims shape and dtype, has no data.

    Reads decode; what would write to it is refused (SpaceError).
    """

    packed: Packed

    @staticmethod
    def of(packed: Packed, dtype: torch.dtype = torch.float32) -> PackedWeight:
        one = torch.full((), math.nan, dtype=dtype, device=packed.codes.device)
        out = Tensor._make_subclass(PackedWeight, one.expand(packed.shape))
        out.packed = packed
        return out

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise SpaceError(
            "a packed weight is not pickled: zolab.save_packed(model, folder) stores it"
        )

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in METADATA:
            return super().__torch_function__(func, types, args, kwargs)
        if (special := _SPECIAL.get(func)) is not None:
            return special(*args, **kwargs)
        name = getattr(func, "__name__", str(func))
        if name.endswith("_") and not name.endswith("__") and _is(args[0]):
            raise SpaceError(f"{name} would write to a packed weight: unpack it first")
        with torch._C.DisableTorchFunctionSubclass():
            return func(*_decoded(args), **_decoded(kwargs))


def _is(x: Any) -> bool:
    return isinstance(x, PackedWeight)


def _decoded(x: Any) -> Any:
    if isinstance(x, PackedWeight):
        if torch.is_grad_enabled() and x.packed.scale.requires_grad:
            return _Decoded.apply(x.packed.scale, x.packed, x.dtype)
        return values(x.packed, x.dtype)
    if isinstance(x, tuple | list):
        return type(x)(_decoded(y) for y in x)
    return {k: _decoded(v) for k, v in x.items()} if isinstance(x, dict) else x


class _Decoded(torch.autograd.Function):
    """`Packed.decode` by the kernels; backward decodes again and keeps nothing."""

    @staticmethod
    def forward(ctx: Any, scale: Tensor, packed: Packed, dtype: torch.dtype) -> Tensor:
        ctx.packed, ctx.like = packed, scale
        return values(packed, dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        one = torch.ones(ctx.like.shape, device=grad.device)
        level = values(ctx.packed, scale=one)
        per_group = by_group(level.mul_(grad), ctx.packed.codec).sum(-1)
        return per_group.to(ctx.like.dtype), None, None


def values(
    packed: Packed, dtype: torch.dtype = torch.float32, scale: Tensor | None = None
) -> Tensor:
    """The decoded tensor, by the kernels of its device; `scale` instead of its own."""
    from zolab.storage import coded

    with torch.inference_mode(False):
        out = torch.empty(packed.shape, dtype=dtype, device=packed.codes.device)
    coded.materialise(packed, (), out, 0, scale)
    return out


def _alike(x: PackedWeight, packed: Packed, dtype: torch.dtype | None = None) -> Any:
    return PackedWeight.of(packed, dtype or x.dtype)


def _to(x: Any, *args: Any, **kwargs: Any) -> Any:
    """To a device, or to another dtype to compute in; the scale is moved by itself."""
    if not _is(x):
        raise SpaceError("to(other) does not take a packed weight")
    device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
    p = x.packed
    if device is not None and device != p.codes.device:
        rest: dict[str, Any] = {
            n: None if t is None else t.to(device) for n, t in _buffers(p).items()
        }
        p.scale.data = p.scale.data.to(device)
        p = replace(p, **rest)
    return _alike(x, p, dtype)


def _buffers(p: Packed) -> dict[str, Any]:
    return {"codes": p.codes, "zero": p.zero, "unit": p.unit}


def _deepcopy(x: PackedWeight, memo: dict[int, Any]) -> Any:
    if id(x) not in memo:
        rest: dict[str, Any] = {
            n: None if t is None else t.clone() for n, t in _buffers(x.packed).items()
        }
        packed = replace(x.packed, scale=copy.deepcopy(x.packed.scale, memo), **rest)
        memo[id(x)] = nn.Parameter(_alike(x, packed), requires_grad=x.requires_grad)
    return memo[id(x)]


def _set_data(x: PackedWeight, value: Tensor) -> None:
    if not _is(value):
        raise SpaceError("a packed weight's data can only become a packed weight")
    x.packed = value.packed  # type: ignore[attr-defined]


def _copy(x: Any, source: Any, *_: Any, **__: Any) -> Any:
    """Codes and scales from a weight of the same codec: what load_state_dict does."""
    if not _is(x):
        return Tensor.copy_(x, _decoded(source))
    a, b = x.packed, source.packed if _is(source) else None
    alike = (a.codec, a.shape, a.unit is None)
    if b is None or (b.codec, b.shape, b.unit is None) != alike:
        raise SpaceError(
            f"{x!r} was to be overwritten by {source if b else 'values'}: "
            "only what is packed alike can; zolab.unpack(model), or pack the other"
        )
    pairs = (a.codes, b.codes), (a.scale.data, b.scale.data), (a.zero, b.zero)
    for mine, other in (*pairs, (a.unit, b.unit)):
        if mine is not None and mine is not other:
            mine.copy_(other)
    return x


_SPECIAL: dict[Any, Any] = {
    Tensor.copy_: _copy,
    Tensor.detach: lambda x: _alike(x, x.packed),
    Tensor.data.__get__: lambda x: _alike(x, x.packed),  # type: ignore[attr-defined]
    Tensor.data.__set__: _set_data,  # type: ignore[attr-defined]
    Tensor.__deepcopy__: _deepcopy,
    Tensor.to: _to,
    Tensor.__repr__: lambda x, **_: (
        f"PackedWeight({tuple(x.shape)}, {x.packed.codec.name}, "
        f"group {x.packed.codec.group}, computes in {x.dtype})"
    ),
}
