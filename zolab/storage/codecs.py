"""How a weight is coded in a few bits: a table of levels, a scale, a zero point.

    w^ = scale * (table[code] - zero)

A codec says which levels there are and which elements share a scale. `zero` is a
number a scale where the codec is asymmetric, in units of the scale, else 0.

    int8, int4, int2      levels -(2^(b-1) - 1) .. 2^(b-1) - 1     scale = max|w| / top
    uint8, uint4, uint2   levels 0 .. 2^b - 1                scale = (max - min) / top
    nf4                   sixteen quantiles of a normal, one of them 0; scale = max|w|
    e4m3                  the finite values of an 8-bit float;   scale = max|w| / 448

Levels ascend with their codes, so that a neighbour of a code is a neighbour in value:
an fp8 number is stored as its rank. T. Dettmers et al., QLoRA, arXiv:2305.14314 (NF4).
P. Micikevicius et al., FP8 formats for deep learning, arXiv:2209.05433 (e4m3).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

WHOLE = -1  # the group size that means one scale for the whole tensor

# Normal quantiles of both halves, as published with QLoRA and read by bitsandbytes.
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634),
    *(0.33791524171829224, 0.44070982933044434, 0.5626170039176941),
    *(0.7229568362236023, 1.0),
)


@dataclass(frozen=True)
class Codec:
    """Levels (ascending), bits a code, and `group`: how many elements share a scale.

    `group` counts along a row (the last row group may be smaller); 0 is the whole row
    (an output channel), `WHOLE` the whole tensor. With `zeros` each scale has a zero
    point.
    """

    name: str
    bits: int
    table: tuple[float, ...]
    group: int = 64
    zeros: bool = False

    def __post_init__(self) -> None:
        if self.group < WHOLE:
            raise ValueError(
                f"group is {self.group}, expected a number of elements, 0 for a row "
                f"or {WHOLE} for the whole tensor"
            )

    @property
    def step(self) -> float | None:
        """The distance of neighbouring levels where it is one; None for nf4, e4m3."""
        uniform = all(b - a == 1 for a, b in zip(self.table, self.table[1:]))  # noqa: B905
        return 1.0 if uniform else None

    @property
    def top(self) -> float:
        return self.table[-1]

    def layout(self, shape: torch.Size) -> tuple[int, int, int]:
        """Rows, columns and group size of a tensor seen as a matrix of its codes."""
        n = shape.numel()
        if self.group == WHOLE:
            return 1, n, n
        rows = shape[0] if shape else 1
        columns = n // rows
        return rows, columns, min(self.group or columns, columns)

    def groups(self, shape: torch.Size) -> tuple[int, int]:
        """The shape of the scales: rows, and groups a row."""
        rows, columns, group = self.layout(shape)
        return rows, -(-columns // group)

    def levels(self, device: torch.device | str = "cpu") -> Tensor:
        """The table, fp32."""
        return torch.tensor(self.table, dtype=torch.float32, device=device)


@functools.cache
def _known() -> dict[str, Codec]:
    found = {}
    for bits in (8, 4, 2):
        most = 2 ** (bits - 1) - 1
        signed, plain = range(-most, most + 1), range(2**bits)
        found[f"int{bits}"] = Codec(f"int{bits}", bits, tuple(map(float, signed)))
        name = f"uint{bits}"
        found[name] = Codec(name, bits, tuple(map(float, plain)), zeros=True)
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
    finite = sorted(set(every[every.isfinite()].tolist()))
    found["e4m3"] = Codec("e4m3", 8, tuple(finite), group=0)
    found["nf4"] = Codec("nf4", 4, NF4)
    return found


def codec(name: str | Codec, *, group: int | None = None) -> Codec:
    """The codec of this name, with another group size if one is given.

    Raises ValueError on an unknown name.
    """
    if isinstance(name, str) and name not in _known():
        raise ValueError(f"unknown codec {name!r}, expected one of {(*_known(),)}")
    found = _known()[name] if isinstance(name, str) else name
    return found if group is None else replace(found, group=group)


def fit(
    w: Tensor, codec: Codec, *, high: float = 1.0, low: float = 1.0
) -> tuple[Tensor, Tensor | None]:
    """Scales (rows, groups), fp32, that just hold every element; and zero points.

    A symmetric scale is high max|w| / top; an asymmetric one is `span`'s. A group of
    zeros gets 1e-8. Raises ValueError on a non-finite w.
    """
    x = by_group(w.detach().float(), codec)  # (rows, groups, size), padded with 0
    if not bool(torch.isfinite(x).all()):
        raise ValueError("the tensor holds NaN or infinity, expected finite weights")
    if codec.zeros:
        return span(x, codec.top, high, low)
    scale = high * x.abs().amax(-1) / max(codec.top, -codec.table[0])
    return torch.where(scale == 0, 1e-8, scale), None


def span(
    x: Tensor, top: float, high: Tensor | float = 1.0, low: Tensor | float = 1.0
) -> tuple[Tensor, Tensor]:
    """Scale and zero point of the last axis: from low * min x to high * max x.

    Both span 0, which then is a level. All zeros get the scale 1e-8.
    """
    most, least = high * x.amax(-1).clamp(min=0), low * x.amin(-1).clamp(max=0)
    scale = (most - least) / top
    scale = torch.where(scale == 0, 1e-8, scale)
    return scale, straight(-least / scale)


def straight(x: Tensor) -> Tensor:
    """round(x), exactly; its derivative is taken as 1 (straight through)."""
    return x.detach().round() + (x - x.detach())


def by_group(x: Tensor, codec: Codec) -> Tensor:
    """(rows, groups, size): the last group of a row is filled up with zeros."""
    rows, columns, group = codec.layout(x.shape)
    count = math.ceil(columns / group)
    padded = torch.nn.functional.pad(
        x.reshape(rows, columns), (0, count * group - columns)
    )
    return padded.view(rows, count, group)


def nearest(w: Tensor, codec: Codec, scale: Tensor, zero: Tensor | None) -> Tensor:
    """Codes (uint8, of w's shape) of the nearest levels; ties go to even codes."""
    code = grouped_codes(by_group(w.detach().float(), codec), codec, scale, zero)
    rows, columns, _ = codec.layout(w.shape)
    flat = code.to(torch.uint8).view(rows, -1)[:, :columns]
    return flat.reshape(w.shape)


def grouped_codes(
    x: Tensor, codec: Codec, scale: Tensor, zero: Tensor | None
) -> Tensor:
    """Codes, as floats, of (rows, groups, size) with scales (rows, groups)."""
    x = x / scale[..., None]
    if zero is not None:
        x = x + zero[..., None]
    levels = codec.levels(x.device)
    if codec.step is not None:
        return (x - levels[0]).round().clamp(0, len(codec.table) - 1)
    return torch.bucketize(x, (levels[1:] + levels[:-1]) / 2).float()
