"""HQQ's codes and scales, by its own package, for `zolab.pack(model, by=hqq)`.

HQQ minimises |W - Q(W)|_p, p < 1, over zero points by half-quadratic splitting: no
data, no pass. Its zero points are no integers, which our packed weights take.

H. Badri, A. Shaji, Half-quadratic quantization of large machine learning models,
https://dropbox.github.io/hqq_blog (2023); package hqq (`pip install zolab[peers]`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zolab.storage.codecs import Codec
from zolab.storage.packed import Packed, pack_bits


def hqq(name: str, w: Tensor, codec: Codec) -> Packed:
    """A quantizer for uint8, uint4, uint2 and 3 bits; groups must divide the rows.

    Raises ImportError without the package, ValueError on another codec or a remainder.
    """
    from hqq.core.quantize import Quantizer

    rows, columns, group = codec.layout(w.shape)
    if not codec.zeros or codec.step is None:
        raise ValueError(f"{name}: HQQ has zero points, {codec.name} has none")
    if columns % group:
        raise ValueError(f"{name}: {columns} columns are no whole groups of {group}")
    code, found = Quantizer.quantize(
        w.detach().reshape(rows, columns),
        nbits=len(codec.table).bit_length() - 1,
        group_size=group,
        axis=1,
        bitpack=False,
        compute_dtype=torch.float32,
        device=str(w.device),
    )
    scale, zero = (found[k].float().view(rows, -1) for k in ("scale", "zero"))
    codes = pack_bits(code.to(torch.uint8).reshape(w.shape), codec.bits)
    own = nn.Parameter(scale.contiguous(), requires_grad=False)
    return Packed(codec, w.shape, codes, own, zero.contiguous())
