"""A model whose blocks live in a store: who is where, and how they got there.

Outside of a visit a parameter is a view of the store (of the arena in RAM, of a memory
map of the file), so that state dicts, snapshots and hashes need not know of streaming.
During a visit it is a view of a slot on the device. What does not stream, the rest,
lies on the device all the time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zolab.empty import Fill
from zolab.engines.blocks import Block, Piece, blocks_of, packed_of, parts_of
from zolab.engines.tables import tables
from zolab.errors import StoreError
from zolab.space import Slot, Space, canonical, is_away
from zolab.storage.blocks import Size, Store, bytes_of
from zolab.storage.packed import pack_tensor


class Housed:
    """`blocks` in `store`, their slots by block in `of`, all other slots in `rest`.

    `absent` are the names of slots whose block is not on the device; `tables` the
    embeddings that stay in RAM.
    """

    def __init__(
        self,
        model: nn.Module,
        space: Space,
        store: Store,
        device: torch.device,
        *,
        names: Sequence[str] | None,
        fill: Fill | None,
        by_rows: bool = False,
    ) -> None:
        self.model, self.store, self.device, self.fill = model, store, device, fill
        moves = {id(p) for s in space for p in s.params}
        every = [p.packed for p in model.parameters() if hasattr(p, "packed")]
        # Scales that learn (QZO) stay on the device: then nothing travels back.
        stay = moves & {id(packed.scale) for packed in every}
        written = space
        if any(s.delta is not None for s in space):  # a store that is only read
            stay |= {id(p) for s in space if s.delta is None for p in s.params}
            written = Space(())
        self.blocks = blocks_of(model, written, names, stay=stay)
        self.sizes = [Size(b.nbytes, b.moving) for b in self.blocks]
        self.tables = tables(model, space, self.blocks) if by_rows else []
        self.where = {
            id(p): b.index for b in self.blocks for x in b.pieces for p in x.params
        }
        self.of: list[list[Slot]] = [[] for _ in self.blocks]
        self.rest: list[Slot] = []
        for slot in space:
            b = self.where.get(id(slot.params[0]))
            (self.rest if b is None else self.of[b]).append(slot)
        self.names: list[list[str]] = [[s.name for s in slots] for slots in self.of]
        for slot in space.still:
            if (b := self.where.get(id(slot.params[0]))) is not None:
                self.names[b].append(slot.name)
        self.absent = {n for names in self.names for n in names}
        self.coded: dict[int, dict[str, Any]] = {}
        self.hooks: list[Any] = []

    def move_in(self, space: Space) -> None:
        """Fill the store block by block, unless it goes on; the rest to the device."""
        goes_on = self.store.open(self.sizes, self.layout())
        for block in self.blocks:
            if not goes_on:
                data = bytes_of(block.nbytes)
                for piece, view in block.views(*cut(data, block)):
                    value = self._value(piece.params[0], piece.name, piece.part)
                    view.copy_(value.view(view.shape))
                self.coded.clear()
                self.store.fill(block.index, data)
            block.point(*self.store.home(block.index))
            for piece in block.pieces:
                for p in piece.params:
                    p.__dict__.pop("zolab_away", None)
        rest = self._move_rest()
        if not goes_on:
            self.store.seal(f"{space.digest()}:{rest}")
        elif (self.store.base or "").partition(":")[2] != rest:
            raise StoreError(
                "what does not stream (embeddings, norms, head) is not what the run in "
                "the store started from: load the same base weights"
            )

    def hook(
        self,
        *,
        before: Callable[[Block], None],
        after: Callable[[Block], None],
        saved: Callable[[], None],
    ) -> None:
        """Call these around each block's forward pass, and before a state dict."""
        for b in self.blocks:
            self.hooks += [
                b.module.register_forward_pre_hook(lambda m, a, b=b: before(b)),
                b.module.register_forward_hook(lambda m, a, o, b=b: after(b)),
            ]
        self.hooks.append(self.model.register_state_dict_pre_hook(lambda *a: saved()))

    def arrive(self, block: Block, data: Tensor) -> None:
        """The block's parameters are views of a slot's bytes."""
        block.point(*cut(data, block))

    def leave(self, i: int) -> None:
        """The block's parameters are views of its store again."""
        self.blocks[i].point(*self.store.home(i))
        self.absent.update(self.names[i])

    def rewrite(self, values: Mapping[str, Tensor], step: int) -> None:
        """Put slots' values (by name) into the store, as those after `step` steps."""
        for block in self.blocks:
            data = bytes_of(block.nbytes)
            self.store.read(block.index, data)
            names = {id(s.params[0]): s.name for s in self.of[block.index]}
            for piece, view in block.views(*cut(data, block)):
                if id(piece.params[0]) in names and piece.part in ("", "codes"):
                    view.copy_(values[names[id(piece.params[0])]])
            self.store.write(block.index, data, step)

    def move_out(self) -> None:
        """Leave the model as an ordinary one, its values in host memory."""
        for hook in self.hooks:
            hook.remove()
        for block in self.blocks:
            block.point(*(x.clone() for x in self.store.home(block.index)))

    def layout(self) -> str:
        """What a file of blocks must agree with: every tensor's name, place, type."""
        h = hashlib.blake2b(digest_size=8)
        for b in self.blocks:
            for x in b.pieces:
                what = f"{x.name}{x.part} {tuple(x.shape)} {x.dtype} {x.start}\n"
                h.update(what.encode())
            h.update(f"{b.moving}\n".encode())
        return h.hexdigest()

    def _move_rest(self) -> str:
        """What does not stream goes to the device; returns its hash."""
        h = hashlib.blake2b(digest_size=8)
        here = {id(m.weight) for m in self.tables}
        for name, p in self.model.named_parameters():
            if id(p) in self.where:
                continue
            device = torch.device("cpu") if id(p) in here else self.device
            for part, shape, dtype in parts_of(p):
                value = self._value(p, canonical(name), part)
                h.update(value.contiguous().view(torch.uint8).cpu().numpy().data)
                piece = Piece(name, (p,), 0, shape, dtype, part)
                piece.point(value.to(device))
            p.__dict__.pop("zolab_away", None)
        for module in self.model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = buffer.to(self.device)
        return h.hexdigest()

    def _value(self, p: nn.Parameter, name: str, part: str = "") -> Tensor:
        if not is_away(p):
            return getattr(packed_of(p), part) if part else p.detach()
        if self.fill is None:
            raise StoreError(
                f"{name} has no values: pass fill=zolab.weights_in(folder) or "
                "fill=zolab.random_weights() to Streamed"
            )
        return self._coded(p, name)[part] if part else self._filled(p, name)

    def _filled(self, p: nn.Parameter, name: str) -> Tensor:
        assert self.fill is not None
        value = self.fill(name, p.shape, p.dtype)
        if value.shape != p.shape:
            raise StoreError(
                f"fill gave {name} {tuple(value.shape)}, not {tuple(p.shape)}"
            )
        return value.to(p.dtype)

    def _coded(self, p: nn.Parameter, name: str) -> dict[str, Any]:
        """Codes and zeros of a packed weight that is filled; its scales are set."""
        if id(p) not in self.coded:
            packed, own = packed_of(p), getattr(self.fill, "packed", None)
            if own is not None:
                codes, scale, zero = own(name, packed)
            else:
                found = pack_tensor(self._filled(p, name), packed.codec)
                codes, scale, zero = found.codes, found.scale.detach(), found.zero
            packed.scale.data = scale
            packed.scale.__dict__.pop("zolab_away", None)
            self.coded[id(p)] = {"codes": codes, "zero": zero}
        return self.coded[id(p)]


def cut(data: Tensor, block: Block) -> tuple[Tensor, Tensor]:
    """A block's moving bytes, and its others."""
    return data[: block.moving], data[block.moving : block.nbytes]
