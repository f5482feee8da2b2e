"""bitsandbytes' NF4 tensors: blocks of 64 with an absolute maximum, perhaps in 8 bits.

    w = table[code] absmax                       absmax one number a block
    absmax = map[byte] nested_absmax + offset    "double quantization", 256 a nest

A byte holds the first code in its high bits. The blocks run through the flat tensor; we
read those that do not cross rows. T. Dettmers et al., QLoRA, arXiv:2305.14314.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zolab.assets import AssetError
from zolab.formats.safe import Entry
from zolab.storage.codecs import NF4
from zolab.storage.codecs import codec as codec_of
from zolab.storage.packed import Packed

STATE = ".quant_state.bitsandbytes__"
Parts = dict[str, Entry]


class Bnb:
    """Reads and writes the tensors of a weight: "" (codes), ".absmax", and so on."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        if not settings.get("load_in_4bit", settings.get("_load_in_4bit")):
            raise AssetError("bitsandbytes in 8 bits, expected 4 (NF4)")

    def parts(self, names: Mapping[str, Entry]) -> dict[str, Parts]:
        """Weight name -> its tensors by ending."""
        weights = [n.partition(STATE)[0] for n in names if STATE in n]
        return {
            w: {
                n[len(w) :]: e
                for n, e in names.items()
                if (n + ".").startswith(w + ".")
            }
            for w in weights
        }

    def read(self, name: str, parts: Parts, shape: torch.Size) -> Packed:
        """Codes with their halves swapped, and fp32 scales."""
        state = _state(name, parts)
        size = state["blocksize"]
        if state["quant_type"] != "nf4" or state["shape"] != list(shape):
            raise AssetError(
                f"{name} is {state['quant_type']} of shape {state['shape']}, expected "
                f"nf4 of shape {list(shape)}"
            )
        if shape[-1] % size:
            raise AssetError(f"{name}: blocks of {size} cross rows of {shape[-1]}")
        table = _part(name, parts, ".quant_map").read()
        if not torch.allclose(table, torch.tensor(NF4), rtol=0, atol=1e-6):
            raise AssetError(f"{name} has levels of its own, expected those of NF4")
        codes = torch.empty(shape.numel() // 2, dtype=torch.uint8)
        if parts[""].nbytes != len(codes):
            raise AssetError(
                f"{name} has {parts[''].nbytes} bytes of codes, expected {len(codes)}"
            )
        at = 0
        for _, piece in parts[""].pieces():
            data = piece.reshape(-1).view(torch.uint8)
            codes[at : at + len(data)] = _swapped(data)
            at += len(data)
        codec = codec_of("nf4", group=size)
        rows, groups = codec.groups(shape)
        scale = _absmax(name, parts, state)
        if scale.numel() != rows * groups:
            raise AssetError(
                f"{name} has {scale.numel()} absmax, expected {rows * groups}"
            )
        owned = nn.Parameter(scale.view(rows, groups), requires_grad=False)
        return Packed(codec, shape, codes, owned)

    def encode(
        self, name: str, parts: Parts, packed: Packed
    ) -> tuple[dict[str, Tensor], float]:
        """The tensors that may have moved, and the largest rounding of a scale.

        Single numbers are stored as they are. Nested ones that moved are fitted anew,
        a nest at a time: its largest distance from the offset, and the nearest bytes.
        """
        state, scale = _state(name, parts), packed.scales().cpu().reshape(-1)
        entry = parts[""]
        codes = _swapped(packed.codes.cpu()).view(entry.dtype).view(entry.shape)
        was = _absmax(name, parts, state)
        if torch.equal(scale, was):
            return {"": codes}, 0.0
        absmax = _part(name, parts, ".absmax")
        if "nested_offset" not in state:
            now = scale.to(absmax.dtype)
            return {"": codes, ".absmax": now.view(absmax.shape)}, _lost(now, scale)
        table, size = parts[".nested_quant_map"].read(), state["nested_blocksize"]
        second, first = parts[".nested_absmax"].read(), absmax.read().reshape(-1)
        for i in range(len(second)):
            nest = slice(i * size, (i + 1) * size)
            if not torch.equal(scale[nest], was[nest]):
                rest = scale[nest] - state["nested_offset"]
                second[i] = rest.abs().max().clamp(min=1e-30)
                away = (table[None] - (rest / second[i])[:, None]).abs()
                first[nest] = away.argmin(1).to(torch.uint8)
        now = _unnested(first, table, second, size, state["nested_offset"])
        moved = {".absmax": first.view(absmax.shape), ".nested_absmax": second}
        return {"": codes, **moved}, _lost(now, scale)


def _state(name: str, parts: Parts) -> dict[str, Any]:
    """What the weight's JSON says, its keys and their types looked at."""
    (key,) = (n for n in parts if n.startswith(STATE))
    wanted: dict[str, type] = {"quant_type": str, "blocksize": int, "shape": list}
    try:
        state = json.loads(parts[key].read().numpy().tobytes())
        if ".nested_absmax" in parts:
            wanted |= {"nested_blocksize": int, "nested_offset": float}
        sizes = [v for k, v in state.items() if k.endswith("blocksize")]
        if all(isinstance(state[k], t) for k, t in wanted.items()) and min(sizes) > 0:
            return state
    except (ValueError, KeyError, TypeError):
        pass
    raise AssetError(f"{name}: its quant_state does not say {', '.join(wanted)}")


def _absmax(name: str, parts: Parts, state: dict[str, Any]) -> Tensor:
    """The scales, fp32, flat."""
    first = _part(name, parts, ".absmax").read().reshape(-1)
    if "nested_offset" not in state:
        return first.float()
    table = _part(name, parts, ".nested_quant_map").read()
    second, size = parts[".nested_absmax"].read(), state["nested_blocksize"]
    if len(table) != 256 or len(second) != -(-len(first) // size):
        raise AssetError(f"{name} has nested scales of another layout than its state's")
    return _unnested(first, table, second, size, state["nested_offset"])


def _unnested(
    first: Tensor, table: Tensor, second: Tensor, size: int, offset: float
) -> Tensor:
    per = second.repeat_interleave(size)[: len(first)]
    return table[first.long()] * per + torch.tensor(offset)


def _part(name: str, parts: Parts, end: str) -> Entry:
    if end not in parts:
        raise AssetError(f"{name} has no {end.lstrip('.')}")
    return parts[end]


def _swapped(codes: Tensor) -> Tensor:
    return codes >> 4 | codes << 4


def _lost(now: Tensor, wanted: Tensor) -> float:
    return float(((now.float() - wanted).abs() / wanted.abs().clamp(min=1e-30)).max())
