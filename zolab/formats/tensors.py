"""A GGUF tensor becomes a packed or a plain weight, row after row, and goes back.

The file may have a matrix's rows in another order than the model (Llama's rotary
halves): `order[i]` is the model's row of the file's row i.
"""

from __future__ import annotations

from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor, nn

from zolab.assets import AssetError
from zolab.errors import StoreError
from zolab.formats.blocks import KINDS, TINY, Array
from zolab.formats.gguf import PLAIN, Entry, Gguf, name_of
from zolab.storage.packed import Packed

Order = np.ndarray[Any, Any] | None


def read_packed(file: Gguf, entry: Entry, order: Order = None) -> Packed:
    """Codes, scales and zero points; never more than a piece of anything else."""
    kind = KINDS.get(entry.kind)
    if kind is None:
        known = ", ".join(k.name for k in KINDS.values())
        raise AssetError(
            f"{file.path}: {entry.name} is {name_of(entry.kind)}; what zolab keeps "
            f"packed is {known}. Without packed=True it is decoded."
        )
    shape = torch.Size(entry.shape)
    rows, groups = kind.codec.groups(shape)
    codes = np.empty((rows, shape.numel() * kind.codec.bits // 8 // rows), np.uint8)
    scale = np.empty((rows, groups), np.float32)
    zero = np.empty_like(scale) if kind.codec.zeros else None
    for a, raw in file.pieces(entry):
        at = _rows(a, len(raw), order)
        c, s, z = kind.grid(raw.reshape(-1, kind.nbytes))
        codes[at] = dense(c.reshape(len(raw), -1), kind.codec.bits)
        scale[at] = s.reshape(len(raw), -1)
        if zero is not None and z is not None:
            zero[at] = z.reshape(len(raw), -1)
    return Packed(
        kind.codec,
        shape,
        torch.from_numpy(codes.reshape(-1)),
        nn.Parameter(torch.from_numpy(scale), requires_grad=False),
        None if zero is None else torch.from_numpy(zero),
    )


def read_plain(
    file: Gguf, entry: Entry, dtype: torch.dtype, order: Order = None
) -> Tensor:
    """The values, of any type that the package `gguf` decodes, cast to `dtype`."""
    out = torch.empty(entry.rows, entry.shape[-1], dtype=dtype)
    for a, raw in file.pieces(entry):
        out[_rows(a, len(raw), order)] = torch.from_numpy(_values(entry, raw)).to(dtype)
    return out.view(entry.shape)


def rewrite(
    out: BinaryIO, file: Gguf, entry: Entry, p: Tensor, order: Order = None
) -> tuple[bool, float]:
    """Put a parameter's rows over those in `out`, a copy of `file`, where they differ.

    Returns whether any did, and the largest change of a weight by rounding, in steps of
    its grid.
    """
    if tuple(p.shape) != entry.shape:
        raise StoreError(
            f"{file.path} has {entry.name} as {entry.shape}, the model {tuple(p.shape)}"
        )
    packed: Packed | None = getattr(p, "packed", None)
    kind = KINDS.get(entry.kind)
    if (None if packed is None else packed.codec) != (kind and kind.codec):
        what = "not packed" if packed is None else str(p)
        raise StoreError(
            f"{file.path} has {entry.name} as {name_of(entry.kind)}, the model's is "
            f"{what}: only what was read packed goes back"
        )
    moved, lost = False, 0.0
    for a, raw in file.pieces(entry):
        at, was = _rows(a, len(raw), order), raw.copy()
        if packed is not None:
            change = _packed_piece(raw, packed, entry, at)
        else:
            change = _plain_piece(raw, p, entry, at)
        lost = max(lost, change)
        if not np.array_equal(raw, was):
            moved = True
            out.seek(entry.start + a * raw.shape[1])
            out.write(raw.data)
    return moved, lost


def _packed_piece(raw: Array, packed: Packed, entry: Entry, at: Any) -> float:
    """The model's rows over a piece's bytes; the most that rounding changed."""
    kind, rows = KINDS[entry.kind], entry.rows
    codes = packed.codes.cpu().view(rows, -1).numpy()[at]
    apart = loose(codes, kind.codec.bits).reshape(-1, kind.size)
    scale = packed.scales().cpu().numpy()[at].reshape(-1, kind.groups)
    zero = packed.zero
    z = None if zero is None else zero.cpu().numpy()[at].reshape(-1, kind.groups)
    blocks = raw.reshape(-1, kind.nbytes)
    kind.write(blocks, apart, scale, z)
    now = kind.grid(blocks)
    if all(map(_same, now, (apart, scale, z))):
        return 0.0
    change = np.abs(kind.decode(*now) - kind.decode(apart, scale, z))
    steps = change.reshape(*scale.shape, -1).max(-1) / np.maximum(scale, TINY)
    return float(steps[scale > TINY].max(initial=0))


def _plain_piece(raw: Array, p: Tensor, entry: Entry, at: Any) -> float:
    """The same; bytes stay where they read as what the model has, a cast of them."""
    want = p.detach().view(entry.rows, -1)[at].cpu()
    differs = (torch.from_numpy(_values(entry, raw)).to(p.dtype) != want).numpy()
    if not differs.any():
        return 0.0
    name, width = PLAIN[entry.kind]
    kind = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[name]
    fresh = want.to(kind)
    parts = raw.reshape(*want.shape, width)
    new = fresh.contiguous().view(torch.uint8).numpy().reshape(parts.shape)
    parts[differs] = new[differs]
    return 0.0 if torch.equal(fresh.to(p.dtype), want) else 0.5


def _same(a: Array | None, b: Array | None) -> bool:
    return b is None if a is None else b is not None and np.array_equal(a, b)


def _values(entry: Entry, raw: Array) -> Array:
    """Rows of bytes as fp32."""
    if entry.kind == 0:
        return raw.view("<f4").astype(np.float32)
    if entry.kind == 1:
        return raw.view("<f2").astype(np.float32)
    if entry.kind == 30:
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    from gguf import GGMLQuantizationType, dequantize

    try:
        return dequantize(raw, GGMLQuantizationType(entry.kind))
    except NotImplementedError as why:
        raise AssetError(f"{entry.name} is {name_of(entry.kind)}: {why}") from None


def dense(codes: Array, bits: int) -> Array:
    """(rows, columns) codes, one a byte, to bytes: low bits first."""
    each = 8 // bits
    parts = codes.reshape(len(codes), -1, each)
    out = parts[..., 0].copy()
    for i in range(1, each):
        out |= parts[..., i] << (bits * i)
    return out


def loose(codes: Array, bits: int) -> Array:
    """(rows, bytes) to (rows, columns), one code a byte."""
    shift = np.arange(0, 8, bits, dtype=np.uint8)
    return (codes[..., None] >> shift & (2**bits - 1)).reshape(len(codes), -1)


def _rows(a: int, count: int, order: Order) -> Any:
    return slice(a, a + count) if order is None else order[a : a + count]
