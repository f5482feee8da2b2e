"""Models that are described but not loaded: names and shapes, no values.

    model = zolab.empty_weights(lambda: AutoModelForCausalLM.from_config(config))
    engine = zolab.Streamed(fill=zolab.weights_in("opt-13b/"), store="disk", path=...)
    opt = zolab.MeZO(model, engine=engine)

A parameter that is away is one NaN that claims its full shape. A streamed engine fills
its store from `fill`, tensor by tensor, so that the model never is in one place whole.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from zolab.errors import StoreError
from zolab.noise import _hash, direction, make_key, slot_id, stream
from zolab.space import canonical

if TYPE_CHECKING:
    from zolab.storage.packed import Packed

Fill = Callable[[str, torch.Size, torch.dtype], Tensor]
"""(canonical name, shape, dtype) -> the tensor's values, on the CPU."""


def empty_weights(make: Callable[[], nn.Module], *, dtype: Any = None) -> nn.Module:
    """`make()`'s model without its weights; its buffers are real.

    Initialisers do no work meanwhile. `dtype` is what floating parameters claim to be.
    """
    with _on_meta():
        model = make()
    swapped: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, p in list(module._parameters.items()):
            if p is not None and p.is_meta:
                if id(p) not in swapped:
                    kind = dtype if dtype and p.is_floating_point() else p.dtype
                    swapped[id(p)] = away(p.shape, kind, p.requires_grad)
                module._parameters[name] = swapped[id(p)]
    model.eval()
    return model


def away(shape: torch.Size, dtype: torch.dtype, requires_grad: bool) -> nn.Parameter:
    """A parameter of this shape that has no values."""
    one = torch.full((), math.nan, dtype=dtype) if dtype.is_floating_point else None
    value = torch.zeros((), dtype=dtype) if one is None else one
    p = nn.Parameter(value.expand(shape), requires_grad=requires_grad)
    p.zolab_away = True  # type: ignore[attr-defined]
    return p


def weights_in(path: str | Path) -> Fill:
    """The tensors of a folder of safetensors (sharded or not), or of one such file.

    Each is read when it is asked for, through a memory map. Names are the checkpoint's,
    with or without the prefix that a head model adds ("model.", "transformer.").
    """
    from safetensors import safe_open

    where = _files(Path(path))

    def fill(name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        known = where.get(name) or where.get(name.partition(".")[2])
        if known is None:
            some = ", ".join(list(where)[:4])
            raise StoreError(f"{path} has no tensor {name}; it has {some}, ...")
        file, key = known
        with safe_open(file, "pt") as f:
            value = f.get_tensor(key)
        if value.shape != shape:
            raise StoreError(
                f"{key} in {file.name} is {tuple(value.shape)}, the model wants "
                f"{tuple(shape)}"
            )
        return value.to(dtype)

    return fill


def random_weights(seed: int = 0, *, std: float = 0.02) -> Fill:
    """Random values for a published shape: what a step costs does not depend on them.

    Matrices are near normal with standard deviation `std`, names that say norm are
    ones, other vectors zeros; a tensor's values depend on its name and `seed` alone.
    """

    def fill(name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        if shape.numel() == max(shape, default=1):
            one = name.endswith("weight")
            return torch.full(shape, float(one), dtype=dtype)
        z = direction(make_key(seed, 0), name, tuple(shape), family="near_normal")
        return z.mul_(std).to(dtype)

    return fill


def random_codes(seed: int = 0, *, std: float = 0.02) -> Fill:
    """The same for packed weights of symmetric codecs: codes at random, never floats.

    A code is the sum of two uniform halves, so levels are triangular around 0; all
    scales of a tensor are equal and give it the standard deviation `std`.
    """
    plainly = random_weights(seed, std=std)

    def fill(name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        return plainly(name, shape, dtype)

    def packed(name: str, like: Packed) -> tuple[Tensor, Tensor, None]:
        codec, half = like.codec, 2 ** (like.codec.bits - 1)
        if codec.zeros or len(codec.table) != 2 * half - 1:
            raise StoreError(f"random codes of {codec.name}: expected int8, int4, int2")
        count = -(-like.shape.numel() * codec.bits // 8)
        words, key = torch.arange(-(-count // 8)), make_key(seed, 0)
        field = sum((half - 1) << i for i in range(0, 8, codec.bits))
        mask = int.from_bytes(bytes([field]) * 8, "little", signed=True)
        a, b = (_hash(stream(key + i, slot_id(name)), words) & mask for i in (0, 1))
        codes = (a + b).view(torch.uint8)[:count]
        spread = math.sqrt((half**2 - 1) / 6)  # of two uniforms over 0 .. half - 1
        return codes, torch.full(codec.groups(like.shape), std / spread), None

    fill.packed = packed  # type: ignore[attr-defined]
    return fill


def _files(path: Path) -> Mapping[str, tuple[Path, str]]:
    """Canonical tensor name -> (file, its name there)."""
    from safetensors import safe_open

    index = path / "model.safetensors.index.json"
    if index.exists():
        shards = json.loads(index.read_text("utf-8"))["weight_map"]
        return {canonical(k): (path / f, k) for k, f in shards.items()}
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    if not files:
        raise StoreError(f"no safetensors at {path}")
    found: dict[str, tuple[Path, str]] = {}
    for file in files:
        with safe_open(file, "pt") as f:
            found |= {canonical(k): (file, k) for k in f.keys()}  # noqa: SIM118
    return found


@contextmanager
def _on_meta() -> Iterator[None]:
    """Parameters go to the meta device as they are registered; buffers stay."""
    register = nn.Module.register_parameter

    def meta(self: nn.Module, name: str, p: nn.Parameter | None) -> None:
        if p is not None and not p.is_meta:
            p = nn.Parameter(p.detach().to("meta"), requires_grad=p.requires_grad)
        register(self, name, p)

    nn.Module.register_parameter = meta  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
