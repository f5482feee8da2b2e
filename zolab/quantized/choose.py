"""Which tensors of a packed model move: its codes, its scales, what is not packed."""

from __future__ import annotations

from torch import nn

from zolab.errors import SpaceError
from zolab.quantized.pack import packed_weights


def choose(
    model: nn.Module,
    *,
    codes: bool = False,
    scales: bool = False,
    rest: bool = False,
    snap: bool = False,
) -> None:
    """Set requires_grad on every floating parameter of a packed model.

    `rest` is every floating tensor that is neither packed nor a scale. With `snap`
    packed weights move by whole levels. Raises SpaceError on a model without any.
    """
    packed = packed_weights(model)
    if not packed:
        raise SpaceError(
            'no weight of the model is packed: zolab.pack(model, "int4") comes first'
        )
    own = {id(p.scale) for p in packed.values()}
    for p in model.parameters():
        if p.is_floating_point():
            moves = codes if hasattr(p, "packed") else scales if id(p) in own else rest
            p.requires_grad_(moves)
    for q in packed.values():
        q.snap = snap
