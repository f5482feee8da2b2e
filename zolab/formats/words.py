"""GPTQ's and AWQ's tensors: codes in int32 words, scales and zero points a group.

    w[o, i] = scales[g, o] (code[i, o] - zero[g, o]),     g = i // group

    GPTQ   a word holds 32 / bits inputs of one output, low bits first; its transpose is
           our order of bytes. Version 1 stores zero points minus one. (Some files
           say version 1 and do not; that symmetric codes have theirs in the middle
           gives them away.)
    AWQ    a word holds eight outputs of one input, in the order 0 2 4 6 1 3 5 7

E. Frantar et al., GPTQ, arXiv:2210.17323. J. Lin et al., AWQ, arXiv:2306.00978.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zolab.assets import AssetError
from zolab.errors import StoreError
from zolab.formats.safe import Entry
from zolab.storage.codecs import Codec
from zolab.storage.codecs import codec as codec_of
from zolab.storage.packed import Packed

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # nibble i of an AWQ word is output ORDER[i] of eight
ENDS = (".qweight", ".qzeros", ".scales", ".g_idx")
Parts = dict[str, Entry]


@dataclass(frozen=True)
class Words:
    """What both have: names, scales, zero points; and in what their words differ.

    `bytes_of` makes rows of qweight (inputs) to bytes (outputs, bytes), `words_of` the
    words of all bytes, `zeros` (groups, outputs) zero points of qzeros. `each` is how
    many inputs and outputs a word of qweight has.
    """

    codec: Codec
    each: tuple[int, int]
    bytes_of: Callable[[Tensor], Tensor]
    words_of: Callable[[Tensor], Tensor]
    zeros: Callable[[Tensor], Tensor]

    def parts(self, names: Mapping[str, Entry]) -> dict[str, Parts]:
        """Weight name -> its tensors by ending."""
        bases = [n.removesuffix(".qweight") for n in names if n.endswith(".qweight")]
        return {
            f"{b}.weight": {e: names[b + e] for e in ENDS if b + e in names}
            for b in bases
        }

    def read(self, name: str, parts: Parts, shape: torch.Size) -> Packed:
        """Codes row after row of the output, scales fp32, zero points as they are."""
        outputs, inputs = shape
        if missing := [e for e in ENDS[:3] if e not in parts]:
            raise AssetError(f"{name} has no {missing[0].lstrip('.')}")
        _, groups = self.codec.groups(shape)
        deep, wide = self.each
        bits = self.codec.bits
        wanted = {
            ".qweight": (torch.int32, (inputs // deep, outputs // wide)),
            ".qzeros": (torch.int32, (groups, outputs * bits // 32)),
            ".scales": (parts[".scales"].dtype, (groups, outputs)),
        }
        for end, (dtype, size) in wanted.items():
            found = parts[end].dtype, tuple(parts[end].shape)
            if found != (dtype, size) or outputs * bits % 32 or inputs * bits % 32:
                raise AssetError(
                    f"{name}: {end[1:]} is {found[0]} {found[1]}, expected {dtype} "
                    f"{size} for a weight of {tuple(shape)}"
                )
        group = self.codec.layout(shape)[2]
        if ".g_idx" in parts:
            plain = torch.arange(inputs) // group
            if not torch.equal(parts[".g_idx"].read().long(), plain):
                raise AssetError(
                    f"{name}: its inputs were sorted before grouping (desc_act), so "
                    "groups are not neighbours; not read"
                )
        codes = torch.empty(outputs, inputs * bits // 8, dtype=torch.uint8)
        for a, piece in parts[".qweight"].pieces():
            part = self.bytes_of(piece)
            first = a * deep * bits // 8
            codes[:, first : first + part.shape[1]] = part
        scale = parts[".scales"].read().float().T.contiguous()
        zero = self.zeros(parts[".qzeros"].read()).float().T.contiguous()
        owned = nn.Parameter(scale, requires_grad=False)
        return Packed(self.codec, shape, codes.view(-1), owned, zero)

    def encode(
        self, name: str, parts: Parts, packed: Packed
    ) -> tuple[dict[str, Tensor], float]:
        """The tensors that may have moved, and the largest rounding of a scale."""
        zero = self.zeros(parts[".qzeros"].read()).float().T
        if packed.zero is None or not torch.equal(packed.zero.cpu(), zero):
            raise StoreError(
                f"{name}: a zero point moved, which is stored in whole bits"
            )
        scale = packed.scales().cpu()
        now = scale.to(parts[".scales"].dtype)
        if not bool(now.isfinite().all()):
            raise StoreError(
                f"{name}: a scale of {float(scale.max()):.3g} is too large"
            )
        levels = zero.maximum(2**self.codec.bits - 1 - zero)
        lost = ((now.float() - scale).abs() / scale.abs()).nan_to_num() * levels.amax()
        codes = packed.codes.cpu().view(packed.shape[0], -1)
        moved = {".qweight": self.words_of(codes), ".scales": now.T.contiguous()}
        return moved, float(lost.max())


def gptq(settings: Mapping[str, Any]) -> Words:
    """GPTQ's words by its quantization_config."""
    bits, group = _numbers(settings)
    first = settings.get("checkpoint_format", "gptq") != "gptq_v2"
    middle = 2 ** (bits - 1)

    def zeros(words: Tensor) -> Tensor:
        stored = _loose(words, bits).int()
        if settings.get("sym") and bool((stored == middle).all()):
            return stored
        return stored + first

    return Words(
        codec_of(f"uint{bits}", group=max(group, 0)),
        (32 // bits, 1),
        lambda words: words.T.contiguous().view(torch.uint8),
        lambda codes: codes.view(torch.int32).T.contiguous(),
        zeros,
    )


def awq(settings: Mapping[str, Any]) -> Words:
    """AWQ's words by its quantization_config."""
    bits, group = _numbers(settings)
    version = str(settings.get("version", "gemm")).lower()
    if bits != 4 or version != "gemm":
        raise AssetError(f"AWQ of {bits} bits, version {version}, expected 4 and gemm")
    back = torch.tensor([ORDER.index(i) for i in range(8)])

    def outputs(words: Tensor) -> Tensor:
        return _loose(words, 4).view(len(words), -1, 8)[..., back].flatten(1)

    def words_of(codes: Tensor) -> Tensor:
        loose = torch.stack([codes & 15, codes >> 4], -1).flatten(1)
        apart = loose.T.reshape(loose.shape[1], -1, 8)[..., torch.tensor(ORDER)]
        pairs = apart[..., ::2] | apart[..., 1::2] << 4
        return pairs.contiguous().view(torch.int32).flatten(1)

    def bytes_of(words: Tensor) -> Tensor:
        loose = outputs(words).to(torch.uint8).T
        return loose[:, ::2] | loose[:, 1::2] << 4

    codec = codec_of("uint4", group=max(group, 0))
    return Words(codec, (1, 8), bytes_of, words_of, outputs)


def _numbers(settings: Mapping[str, Any]) -> tuple[int, int]:
    bits, group = settings.get("bits"), settings.get("group_size")
    if bits not in (2, 4, 8) or not isinstance(group, int) or group < -1 or not group:
        raise AssetError(
            f"codes of {bits} bits in groups of {group}, expected 2, 4 or 8 bits and a "
            "number of inputs, or -1 for all"
        )
    return bits, group


def _loose(words: Tensor, bits: int) -> Tensor:
    """(rows, words) int32 to (rows, codes), low bits first."""
    data = words.contiguous().view(torch.uint8)
    shift = torch.arange(0, 8, bits, dtype=torch.uint8)
    return (data[..., None] >> shift & (2**bits - 1)).flatten(1)
