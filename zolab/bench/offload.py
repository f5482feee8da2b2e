"""Who else runs a model that is not on its device: accelerate, and the published ZO2.

    accelerate   `cpu_offload`: every weight comes up for each forward pass; two of them
    ZO2          its nanoGPT program, one step (arXiv:2503.12668), on a GPU alone, where
                 ZOLAB_PEERS names a folder with a checkout of it

The same shape, batch and type as our step. accelerate only answers; ZO2 steps along
normal z. ZO2's blocks are GPT-2's: the same matrices, GELU for ReLU.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from zolab.bench.record import Line
from zolab.bench.shapes import SHAPES, Setting, build
from zolab.bench.step import timed

Run = Callable[[], Any]
LR, EPS = 1e-9, 1e-3


def beside(step: Run, setting: Setting) -> list[Line]:
    """Our step over each peer that is here, taken in turn."""
    lines = []
    for name, make in peers(setting).items():
        theirs = make(setting)
        theirs(), step()
        pairs = []
        for i in range(setting.repeats):
            order = (theirs, step) if i % 2 else (step, theirs)
            found = {job: timed(job, setting.device)[0] for job in order}
            pairs.append((found[step], found[theirs]))
        lines += [
            Line(f"streamed step / {name}", tuple(a / b for a, b in pairs)),
            Line(f"  {name}", tuple(b for _, b in pairs), unit="s"),
        ]
    return lines


def peers(setting: Setting) -> dict[str, Callable[[Setting], Run]]:
    """Those that this machine can run, by what their row is called."""
    found: dict[str, Callable[[Setting], Run]] = {}
    if importlib.util.find_spec("accelerate"):
        found["accelerate cpu_offload, two forward passes"] = accelerate
    if setting.device == "cuda" and checkout().is_dir():
        found["ZO2, a step"] = zo2
    return found


def accelerate(setting: Setting) -> Run:
    """Two forward passes of a model in RAM, module by module through the device."""
    from accelerate import cpu_offload

    model, closure = build(replace(setting, device="cpu"))
    cpu_offload(model, execution_device=torch.device(setting.device))

    @torch.no_grad()
    def twice() -> tuple[float, float]:
        return float(closure()), float(closure())

    return twice


def checkout() -> Path:
    """Where ZO2's program would be."""
    return Path(os.environ.get("ZOLAB_PEERS", "/nowhere")) / "zo2" / "zo2"


def zo2(setting: Setting) -> Run:
    """Its step on its own model of this shape."""
    program = _program()
    shape = SHAPES[setting.shape]
    config = program.GPTConfig(
        block_size=shape.tokens,
        vocab_size=shape.vocabulary,
        n_layer=shape.layers,
        n_head=shape.heads,
        n_embd=shape.width,
    )
    how = program.MeZOSGDConfig(lr=LR, eps=EPS, weight_decay=0.0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(shape.dtype)
    try:
        model = program.GPT_MeZO2SGD(config, how)
    finally:
        torch.set_default_dtype(before)
    size = shape.batch, shape.tokens
    ids = torch.randint(5, shape.vocabulary, size, device=setting.device)
    place = torch.arange(shape.tokens, device=setting.device)[None]
    model.zo_train()
    return lambda: model(ids, place, ids)


def _program() -> Any:
    """The nanoGPT part, without the package's own start: that wants an old library."""
    package = types.ModuleType("zo2")
    package.__path__ = [str(checkout())]
    sys.modules.setdefault("zo2", package)
    return importlib.import_module("zo2.model.nanogpt.mezo_sgd")
