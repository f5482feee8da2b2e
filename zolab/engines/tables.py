"""Embedding tables that stay in host memory: a pass brings the rows that it looks up.

    model = zolab.MeZO(model, engine=zolab.Streamed(embeddings="ram"))

A table of 128,256 x 4,096 numbers is 1.05 GB in bf16, and a batch of 8,192 tokens
reads at most 67 MB of it. The rows are picked where the table lies and perturbed on the
device, with the bits of the whole table. Its updates are made in place by the host's
kernels, at each step and over all rows, as an update moves all of them: some 30 ns an
element and thread in bf16, 1.5 in fp32. With `write_back="never"` there are none.

Only tables that embeddings alone read: a head that is tied to one needs it whole. Those
stay on the device, as frozen tables do, packed ones and masked ones.
"""

from __future__ import annotations

from torch import nn

from zolab.engines.blocks import Block
from zolab.errors import StoreError
from zolab.space import Space


def tables(model: nn.Module, space: Space, blocks: list[Block]) -> list[nn.Embedding]:
    """The modules whose tables stay in RAM; StoreError where there is none."""
    inside = {id(p) for b in blocks for x in b.pieces for p in x.params}
    moving = {
        id(p)
        for s in space
        if s.mask is None and s.packed is None and len(s.shape) == 2
        for p in s.params
    }
    readers: dict[int, list[nn.Module]] = {}
    for m in model.modules():
        for p in m.parameters(recurse=False):
            readers.setdefault(p.data_ptr() or id(p), []).append(m)
    found = [
        m
        for m in model.modules()
        if isinstance(m, nn.Embedding)
        and m.max_norm is None
        and id(m.weight) in moving - inside
        and all(
            isinstance(x, nn.Embedding)
            for x in readers[m.weight.data_ptr() or id(m.weight)]
        )
    ]
    if not found:
        raise StoreError(
            'embeddings="ram", but no embedding table moves that embeddings alone '
            "read: a head that is tied to one needs all of it on the device"
        )
    return found
