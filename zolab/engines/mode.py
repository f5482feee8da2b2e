"""The one mechanism that materialises: a TorchFunctionMode.

Every torch call that receives a parameter of the space (found by identity) gets its
value at the probe instead, so no model is rewritten and the stored weights are never
touched. What reads metadata passes through; what writes to a parameter is refused.

Memory: a matrix that an op consumes (linear, convolution, ...) is written into one
scratch buffer that the next op reuses; an embedding fills only the looked-up rows; a
tall matrix (a head) goes through the scratch in tiles of rows. Any other op gets a
tensor of its own, since its result may be a view. Vectors are kept for the probe.

Precision: in bf16 a probe of 1e-3 leaves most norm gains where they are. So vectors
of low precision are materialised in fp32, and an op whose only slots are vectors runs
in fp32 and is cast to the dtype it would have had. In a matrix product the vector (a
bias) is rounded to the storage type: next to a rounded product more cannot be seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from zolab import storage
from zolab.engines.calls import map_leaves, result_dtype, target_of
from zolab.engines.scratch import Pool, empty, padded
from zolab.errors import InPlaceEditError
from zolab.gradient import Term
from zolab.metadata import METADATA
from zolab.space import Slot, Space

TILE = 3072  # rows; smaller tiles slow the matrix product by 1.05 to 1.6
BLOCK = 16
LOW = (torch.bfloat16, torch.float16)

# Ops that consume their weights: no result is a view of an argument, so a pooled
# scratch may be overwritten by the next op.
CONSUMERS: set[Any] = {
    *(F.linear, F.bilinear, F.layer_norm, F.group_norm, F.batch_norm, F.rms_norm),
    *(F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d),
    *(F.multi_head_attention_forward, torch.addmm, torch.mm, torch.matmul, torch.bmm),
    *(torch.baddbmm, torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu),
    *(Tensor.matmul, Tensor.mm, Tensor.__matmul__, Tensor.addmm, torch.layer_norm),
}


class Materialise(TorchFunctionMode):
    """While active, the space's parameters read as their values at `terms`."""

    fused = True  # embeddings by rows, heads by tiles
    tall = 2 * TILE  # rows of a matrix that goes by tiles

    def __init__(
        self, space: Space, terms: Sequence[Term], *, keep: bool, seen: set[str]
    ) -> None:
        super().__init__()
        self.slots = {id(p): s for s in (*space, *space.still) for p in s.params}
        self.terms, self.keep, self.seen = terms, keep, seen
        self.moves = {
            s.name: s.delta is not None or any(d.moves(s.name) for d, _ in terms)
            for s in space
        }
        self.moves |= {s.name: False for s in space.still}
        self.kept: dict[str, Tensor] = {}
        self.pool = Pool()
        # In one buffer: each by itself, small and long-lived amid the activations, they
        # keep the C library from reusing what is freed (OPT-125M: 160 MB at the peak).
        self.vectors = Pool(sum(padded(s.numel) for s in space if is_vector(s)))

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        used = self._slots_in(args) if not kwargs else self._slots_in((args, kwargs))
        if not used or func in METADATA:
            return func(*args, **kwargs)
        self._refuse_writes(func, args, kwargs)
        self.see(used)
        self.pool.reset()
        # view is left out because view(dtype) must see the storage type's bytes.
        if all(map(is_vector, used)) and func is not Tensor.view:
            return self._vectors(func, args, kwargs)
        weight = self._slot(args[1]) if len(args) > 1 and not self.keep else None
        if weight and self.fused and (weight.packed or self.moves[weight.name]):
            if func is F.embedding and kwargs.get("max_norm") is None:
                return self._embedding(weight, args[0])
            tall = len(weight.shape) == 2 and weight.shape[0] >= self.tall
            if func is F.linear and tall:
                return self._tiled(weight, *args, **kwargs)
        pooled = func in CONSUMERS
        return func(*self._swap(args, pooled), **self._swap(kwargs, pooled))

    def see(self, used: Sequence[Slot]) -> None:
        """Told which slots a call reads, before it reads them."""
        self.seen.update(s.name for s in used)

    def _slot(self, x: Any) -> Slot | None:
        return self.slots.get(id(x)) if isinstance(x, Tensor) else None

    def _slots_in(self, x: Any) -> list[Slot]:
        if isinstance(x, Tensor):
            slot = self.slots.get(id(x))
            return [slot] if slot else []
        if isinstance(x, tuple | list):
            return [s for y in x for s in self._slots_in(y)]
        return self._slots_in(tuple(x.values())) if isinstance(x, dict) else []

    def _swap(self, x: Any, pooled: bool) -> Any:
        """x with every slot replaced by its value in the storage type."""

        def swap(y: Any) -> Any:
            slot = self._slot(y)
            return self.value(slot, slot.dtype, pooled=pooled) if slot else y

        return map_leaves(swap, x)

    def value(self, slot: Slot, dtype: torch.dtype, *, pooled: bool = False) -> Tensor:
        """The slot at the probe, in `dtype` (its storage type or fp32)."""
        vector, still = is_vector(slot), not self.moves[slot.name]
        if still and not slot.packed and (not vector or slot.dtype == torch.float32):
            return slot.base.to(dtype)
        if not (vector or self.keep):
            if pooled:
                out = self.pool.take(slot)
            else:
                out = torch.empty(slot.shape, dtype=slot.dtype, device=slot.device)
            return self._fill(slot, out)
        if slot.name not in self.kept:
            if vector:
                out = self.vectors.take(slot, dtype=torch.float32)
            else:
                out = empty(slot.shape, slot.dtype, slot.device)
            self.kept[slot.name] = self._fill(slot, out)
        return self.kept[slot.name].to(dtype)

    def _fill(self, slot: Slot, out: Tensor, start: int = 0) -> Tensor:
        """The slot's elements from `start` at the probe, written into `out`."""
        terms = self.terms if self.moves[slot.name] else ()
        scale = None
        if (own := self._moving_scale(slot)) and (packed := slot.packed):
            lo, hi = packed.span(start, out.numel())
            scale = torch.empty(hi - lo, device=own.device)
            storage.materialise(own, self.terms, scale, start=lo)
        return storage.materialise(slot, terms, out, start=start, scale=scale)

    def _fill_rows(self, slot: Slot, index: Tensor, out: Tensor) -> Tensor:
        """The slot's rows `index` at the probe, written into `out`."""
        terms = self.terms if self.moves[slot.name] else ()
        scale = None
        if (own := self._moving_scale(slot)) and (packed := slot.packed):
            scale = torch.empty(len(index), own.shape[1], device=own.device)
            storage.rows(own, self.terms, packed.row(index), scale)
        return storage.rows(slot, terms, index, out, scale=scale)

    def _moving_scale(self, slot: Slot) -> Slot | None:
        """The slot of a packed weight's scales, if they move."""
        own = self.slots.get(id(slot.packed.scale)) if slot.packed else None
        if own is None or not self.moves[own.name]:
            return None
        self.see([own])
        return own

    def _embedding(self, slot: Slot, index: Tensor) -> Tensor:
        """Only the looked-up rows (an embedding that renorms takes the general way)."""
        flat, columns = index.reshape(-1), slot.shape[1]
        if flat.device.type == "cpu" and flat.numel() and flat.min() < 0:
            raise IndexError(f"embedding {slot.name} got the index {int(flat.min())}")
        out = torch.empty(flat.numel(), columns, dtype=slot.dtype, device=slot.device)
        return self._fill_rows(slot, flat, out).view(*index.shape, columns)

    def _tiled(self, slot: Slot, x: Tensor, _: Any, bias: Any = None) -> Tensor:
        """A linear whose weight passes through the scratch in tiles of rows."""
        height, columns = slot.shape
        x, bias = self._swap((x, bias), False)
        out: Tensor | None = None
        rows = tile_rows(height)
        for a in range(0, height, rows):
            b = min(a + rows, height)
            self.pool.reset()
            tile = self.pool.take(slot, rows=b - a)
            self._fill(slot, tile, a * columns)
            y = F.linear(x, tile, None if bias is None else bias[a:b])
            if out is None:
                out = y.new_empty(*y.shape[:-1], height)
            out[..., a:b] = y
        assert out is not None
        return out

    def _vectors(self, func: Any, args: Any, kwargs: Any) -> Any:
        """An op whose only slots are vectors: fp32 inside, the usual dtype outside."""
        low = any(s.dtype in LOW for s in self._slots_in((args, kwargs)))
        target = target_of(func, args, kwargs)
        if not low or isinstance(target, tuple | list):
            return func(*self._swap(args, False), **self._swap(kwargs, False))

        def wide(x: Any) -> Any:
            return x.float() if isinstance(x, Tensor) and x.dtype in LOW else x

        copy = wide(target)

        def widen(x: Any) -> Any:
            if x is target:
                return copy
            slot = self._slot(x)
            return self.value(slot, torch.float32) if slot else wide(x)

        if target is not None:  # x += bias: copied back, or x would stay as it was
            func(*map_leaves(widen, args), **map_leaves(widen, kwargs))
            return target if copy is target else target.copy_(copy)
        usual = result_dtype(func, args, kwargs)

        def narrow(x: Any) -> Any:
            ran_wide = isinstance(x, Tensor) and x.dtype == torch.float32
            return x.to(usual) if ran_wide and usual is not None else x

        return map_leaves(
            narrow, func(*map_leaves(widen, args), **map_leaves(widen, kwargs))
        )

    def _refuse_writes(self, func: Any, args: Any, kwargs: Any) -> None:
        target = self._slots_in(target_of(func, args, kwargs))
        if target:
            raise InPlaceEditError(
                f"the closure calls {getattr(func, '__name__', func)} on parameter "
                f"{target[0].name}; a probe only reads weights. Move the edit out of "
                "the closure."
            )


def tile_rows(height: int) -> int:
    """Rows of a tall matrix that pass through the scratch at once.

    Even tiles of whole blocks: a product treats the last rows of a matrix, and a matrix
    of one row, in another way, with other bits.
    """
    return -(-height // -(-height // TILE) // BLOCK) * BLOCK


def is_vector(slot: Slot) -> bool:
    """Whether all of the slot lies along one axis: a gain, a bias, a scale."""
    return slot.numel == max(slot.shape, default=1)
