"""Which parts of a model stream: its blocks, found by their lists or named.

A block is a module whose weights are used between the start and the end of its own
forward pass: an item of the outermost ModuleLists (decoder layers, encoder layers), or
of a Sequential where a model has no list. What several blocks share, or a block shares
with the rest (a tied weight), stays on the device with the rest.

In a block's bytes the tensors that move stand first, so that only these travel back.
"""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zolab.errors import StoreError
from zolab.space import Space, canonical
from zolab.storage.packed import Packed

ALIGN = 256  # bytes: what a device's copy engine and its vector loads like


@dataclass(frozen=True)
class Piece:
    """A tensor of a block: its parameters (tied ones share one), where it lies.

    Of packed parameters it is one `part`: their codes, zero points or units.
    """

    name: str
    params: tuple[nn.Parameter, ...]
    start: int
    shape: torch.Size
    dtype: torch.dtype
    part: str = ""

    def point(self, view: Tensor) -> None:
        """Let the parameters' values be this tensor."""
        for p in self.params:
            if self.part:
                setattr(packed_of(p), self.part, view)
            else:
                p.data = view

    @property
    def nbytes(self) -> int:
        return self.shape.numel() * self.dtype.itemsize

    def view(self, data: Tensor, start: int) -> Tensor:
        """This tensor, seen in bytes (uint8) where it begins at `start`."""
        part = data[start : start + self.nbytes]
        return part.view(self.dtype).view(self.shape)


@dataclass(frozen=True, eq=False)
class Block:
    """A module that streams: `nbytes` bytes, of which the first `moving` change."""

    index: int
    name: str
    module: nn.Module
    pieces: tuple[Piece, ...]
    nbytes: int
    moving: int

    def point(self, moving: Tensor, still: Tensor) -> None:
        """Make the module's parameters views of these bytes."""
        for piece, view in self.views(moving, still):
            piece.point(view)

    def views(self, moving: Tensor, still: Tensor) -> Iterator[tuple[Piece, Tensor]]:
        """Each piece and what these bytes hold of it."""
        for piece in self.pieces:
            moves = piece.start < self.moving
            data, start = (moving, 0) if moves else (still, self.moving)
            yield piece, piece.view(data, piece.start - start)


def blocks_of(
    model: nn.Module,
    space: Space,
    names: Sequence[str] | None = None,
    *,
    stay: Container[int] = (),
) -> list[Block]:
    """The model's blocks in the order of its modules; `names` are names or globs.

    Parameters whose ids are in `stay` belong to no block.
    Raises StoreError where there is no list of modules, or a name is no module.
    """
    modules = _named(model, names) if names else _listed(model)
    moves = {id(p) for slot in space for p in slot.params}
    owners = Counter(x for _, m in modules for x in set(map(place, m.parameters())))
    outside = set(map(place, _outside(model, [m for _, m in modules])))
    blocks: list[Block] = []
    for name, module in modules:
        own = {
            f"{canonical(name)}.{n}": params
            for n, params in _tensors(module).items()
            if owners[place(params[0])] == 1
            and place(params[0]) not in outside
            and id(params[0]) not in stay
        }
        parts = [(n, ps, *part) for n, ps in own.items() for part in parts_of(ps[0])]
        order = sorted(parts, key=lambda x: not _moves(x[1][0], x[2], moves))
        pieces, end, moving = [], 0, 0
        for n, params, part, shape, dtype in order:
            pieces.append(Piece(n, tuple(params), end, shape, dtype, part))
            end += -(-pieces[-1].nbytes // ALIGN) * ALIGN
            moving = end if _moves(params[0], part, moves) else moving
        if pieces:
            block = Block(len(blocks), name, module, tuple(pieces), end, moving)
            blocks.append(block)
    if not blocks:
        raise StoreError("no block has weights of its own: nothing would stream")
    return blocks


def parts_of(p: nn.Parameter) -> list[tuple[str, torch.Size, torch.dtype]]:
    """(part, shape, dtype) of what of a parameter streams."""
    if not hasattr(p, "packed"):
        return [("", p.shape, p.dtype)]
    packed = packed_of(p)
    codec, groups = packed.codec, torch.Size(packed.codec.groups(packed.shape))
    size = torch.Size([-(-packed.shape.numel() * codec.bits // 8)])
    parts = [("codes", size, torch.uint8)]
    for part in ("zero", "unit"):
        if (t := getattr(packed, part)) is not None:
            parts.append((part, groups, t.dtype))
    return parts


def packed_of(p: nn.Parameter) -> Packed:
    """The codes behind a packed weight."""
    return p.packed  # type: ignore[attr-defined]


def _moves(p: nn.Parameter, part: str, moves: Container[int]) -> bool:
    return id(p) in moves and part in ("", "codes")


def place(p: nn.Parameter) -> int:
    """What parameters that share memory have in common."""
    return p.data_ptr() or id(p)


def _listed(model: nn.Module) -> list[tuple[str, nn.Module]]:
    for kind in (nn.ModuleList, nn.Sequential):
        lists = [
            (name, m)
            for name, m in model.named_modules()
            if isinstance(m, kind) and sum(1 for x in m if _has_weights(x)) > 1
        ]
        outer = [x for x in lists if not any(_within(x[0], y[0]) for y in lists)]
        if outer:
            return [
                (f"{name}.{i}".lstrip("."), item)
                for name, m in outer
                for i, item in enumerate(m)
                if _has_weights(item)
            ]
    raise StoreError(
        f"{type(model).__name__} has no ModuleList or Sequential of two modules "
        'with weights: name what streams, as in blocks=["encoder", "decoder"]'
    )


def _named(model: nn.Module, names: Sequence[str]) -> list[tuple[str, nn.Module]]:
    known = dict(model.named_modules())
    found: dict[str, nn.Module] = {}
    for pattern in names:
        hits = fnmatch.filter([n for n in known if n], pattern)
        if not hits:
            some = ", ".join(list(known)[1:6])
            raise StoreError(f"no module is called {pattern!r}; there are {some}, ...")
        found |= {n: known[n] for n in hits}
    for a in found:
        if inner := [b for b in found if _within(b, a)]:
            raise StoreError(f"block {inner[0]} lies within block {a}")
    return [(n, m) for n, m in known.items() if n in found]


def _outside(model: nn.Module, modules: list[nn.Module]) -> Iterator[nn.Parameter]:
    """Parameters that a module outside of all blocks holds."""
    within = {id(m) for block in modules for m in block.modules()}
    for m in model.modules():
        if id(m) not in within:
            yield from m.parameters(recurse=False)


def _tensors(module: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The module's tensors by name; parameters that share memory are one."""
    by_place: dict[int, tuple[str, list[nn.Parameter]]] = {}
    for name, p in module.named_parameters(remove_duplicate=False):
        _, params = by_place.setdefault(place(p), (canonical(name), []))
        if all(p is not q for q in params) and p.numel():
            params.append(p)
    return {name: params for name, params in by_place.values() if params}


def _within(inner: str, outer: str) -> bool:
    return inner != outer and (not outer or inner.startswith(outer + "."))


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None
