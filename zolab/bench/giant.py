"""Honest steps of a model that is far larger than its device: packed and streamed.

    python -m zolab.bench giant --device cuda [--shape opt-175b]

The weights are random int4 codes (what a step costs does not depend on their values)
that lie in host memory and pass through the device block by block. What learns are the
scales, one for 128 codes (QZO): they stay on the device, so nothing travels back. The
floor is physics: the blocks' bytes over the link's rate. On a CPU the link is a copy
that is throttled to what the same packed model computes when it stays; on a GPU it is
the bus, and its rate is measured.

Expected of OPT-175B on a bus of 50 GB/s: 88 GB in 1.8 s, if all else hides behind it,
through some 9.5 GB of device memory, of which the scales are 5.5 GB.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import zolab
from zolab.bench.record import Line
from zolab.bench.shapes import SHAPES, Setting, config_of
from zolab.bench.step import timed
from zolab.bench.streamed import bandwidth
from zolab.engines.base import Engine
from zolab.engines.streamed import Streamed
from zolab.storage.ram import Ram
from zolab.storage.throttled import Throttled

DEFAULT = {"cpu": "small", "cuda": "opt-175b"}
CODEC, GROUP = "int4", 128
LIMIT = 10e9  # bytes of device memory


def run(setting: Setting) -> list[Line]:
    """Bytes that lie here and there, bytes that travel, seconds over the floor."""
    setting = setting.on(setting.threads[0])
    cuda = setting.device == "cuda"
    ram = Ram(pinned=cuda)
    store: Any = ram if cuda else Throttled(ram, rate=1e12)
    engine = Streamed(store=store, device=setting.device, fill=zolab.random_codes())
    model = described(setting)
    step = job(setting, engine, model)
    size = sum(s.nbytes for s in engine.sizes)
    if not cuda:
        store.rate = size / resident(setting)
    step()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    times = tuple(timed(step, setting.device)[0] for _ in range(setting.repeats))
    rate = bandwidth(engine) if cuda else store.rate
    down = sum(s.moving for s in engine.sizes)
    held = sum(p.nbytes for p in zolab.packed_weights(model).values())
    floor = tuple(t * rate / size for t in times)
    found = [
        Line("parameters", (parameters(model) / 1e9,), unit="1e9"),
        Line("packed weights, scales included", (held / 1e9,), unit="GB"),
        Line("  of them the blocks' codes in host memory", (size / 1e9,), unit="GB"),
        Line("device, by formula", (engine.footprint.total / 1e9,), unit="GB"),
        Line("bytes down a step", (float(down),), 0.0, 0.0, 0.0),
        Line("seconds a step", times, unit="s"),
        Line("step / (blocks' bytes / bandwidth)", floor, 1.2, 1.0, 1.1),
    ]
    if cuda:
        peak = torch.cuda.max_memory_allocated()
        found.append(Line("peak device memory", (peak / 1e9,), LIMIT / 1e9, unit="GB"))
        found.append(Line("link, pinned copies", (rate / 1e9,), unit="GB/s"))
    engine.release()
    return found


def job(setting: Setting, engine: Engine, model: nn.Module) -> Callable[[], Any]:
    """One QZO step of `model` on `engine`."""
    spec = SHAPES[setting.shape]
    ids = torch.randint(5, spec.vocabulary, (spec.batch, spec.tokens))
    batch = {"input_ids": ids.to(setting.device)}
    opt = zolab.MeZO(model, lr=1e-9, eps=1e-4, engine=engine)
    return lambda: opt.step(lambda: zolab.lm_loss(model, batch))


def described(setting: Setting) -> nn.Module:
    """The shape with packed weights that have no values yet; its scales learn."""
    from transformers import OPTForCausalLM

    spec = SHAPES[setting.shape]
    model = zolab.empty_weights(
        lambda: OPTForCausalLM(config_of(spec)), dtype=spec.dtype
    )
    zolab.pack(model, CODEC, group=GROUP)
    for name, p in model.named_parameters():
        p.requires_grad_(name.endswith("_scale"))
    return model


def resident(setting: Setting) -> float:
    """Seconds of the same step where nothing travels: the best of three."""
    model = described(setting)
    engine = Streamed(device=setting.device, fill=zolab.random_codes())
    job(setting, engine, model)
    engine.release()  # it leaves a model with values
    step = job(setting, zolab.Resident(scratch="one"), model)
    step()
    return min(timed(step, setting.device)[0] for _ in range(3))


def parameters(model: nn.Module) -> int:
    """Numbers that the model has, tied ones once, scales left out."""
    return sum(
        p.numel() for n, p in model.named_parameters() if not n.endswith("_scale")
    )
