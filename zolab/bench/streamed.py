"""A streamed step over what physics allows: the slower of transfer and compute.

Compute is the resident step of the same model, interleaved. On a CPU the link is a
throttled copy whose rate follows from it, so that a step's transfer takes a half, one
and two times its compute. On a GPU the link is the bus, and its rate is measured.

The disk's lines are for a file that the system has in memory already: what is measured
is what the store adds to the reads. Beside the step stand those of others who keep a
model elsewhere (`zolab.bench.offload`); on a CPU they show that they run, no more.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import zolab
from zolab.bench.offload import beside
from zolab.bench.record import Line
from zolab.bench.shapes import SHAPES, Setting, build, config_of
from zolab.bench.step import timed
from zolab.engines.streamed import Streamed
from zolab.storage.disk import Disk
from zolab.storage.ram import Ram
from zolab.storage.throttled import Throttled

FACTORS = (0.5, 1.0, 2.0)  # transfer over compute
DEFAULT = {"cpu": "opt-125m-2k", "cuda": "opt-1.3b"}


def run(setting: Setting) -> list[Line]:
    """Lines for the first thread count."""
    setting = setting.on(setting.threads[0])
    if setting.device == "cuda":
        return on_gpu(setting)
    lines = []
    for factor in FACTORS:
        lines += throttled(setting, factor)
    with tempfile.TemporaryDirectory() as folder:
        lines += on_disk(setting, Path(folder) / "blocks")
    step, engine = streamed(setting, Ram(pinned=False))
    step()
    lines += beside(step, setting)
    engine.release()
    return lines


def idle(engine: Streamed) -> None:
    """Wait for both lanes. A step ends with a load under way, which counts or not."""
    for lane in engine.window.lanes.values():
        lane.submit(int).result()


def throttled(setting: Setting, factor: float) -> list[Line]:
    """The step where the link needs `factor` times what the step computes."""
    compute = resident(setting)
    compute()
    seconds = min(timed(compute, "cpu")[0] for _ in range(3))
    store = Throttled(Ram(pinned=False), rate=1.0)
    step, engine = streamed(setting, store)
    size = sum(s.nbytes for s in engine.sizes)
    store.rate = size / (factor * seconds)
    step()
    idle(engine)
    before = dict(store.sent)
    pairs = []
    for i in range(setting.repeats):
        order = (compute, step) if i % 2 else (step, compute)
        found = {job: timed(job, "cpu")[0] for job in order}
        pairs.append((found[step], found[compute]))
    idle(engine)
    transfer = size / store.rate
    up = (store.sent["up"] - before["up"]) / (size * setting.repeats)
    where = f", transfer {factor:g} x compute"
    limit = tuple(s / max(transfer, c) for s, c in pairs)
    return [
        Line(f"step / max(transfer, compute){where}", limit, 1.10, 1.0, 1.1),
        Line(
            f"  step / sum of both{where}", tuple(s / (transfer + c) for s, c in pairs)
        ),
        Line(f"  bytes up / bytes of the blocks{where}", (up,), 1.0, 1.0, 1.0),
    ]


def on_disk(setting: Setting, path: Path) -> list[Line]:
    """The step from a file, and the store's reads beside plain reads of the file."""
    compute = resident(setting)
    store = Disk(path)
    step, engine = streamed(setting, store)
    step(), compute()
    ratios = []
    for i in range(setting.repeats):
        order = (compute, step) if i % 2 else (step, compute)
        found = {job: timed(job, "cpu")[0] for job in order}
        ratios.append(found[step] / found[compute])
    idle(engine)
    out = torch.empty(max(s.nbytes for s in engine.sizes), dtype=torch.uint8)
    view = memoryview(out.numpy())  # type: ignore[arg-type]

    def ours() -> None:
        for i in range(len(engine.sizes)):
            store.read(i, out)

    def raw() -> None:
        for i, size in enumerate(engine.sizes):
            os.preadv(store.fd, [view[: size.nbytes]], store._at(i))

    ours()
    raw()
    reads = [(timed(raw, "cpu")[0], timed(ours, "cpu")[0]) for _ in range(9)]
    share = tuple(a / b for a, b in reads)
    return [
        Line("step from a file / resident step", tuple(ratios), expected=1.1),
        Line("rate of the store's reads / raw reads", share, 0.9, 1.0, 1.0, True),
    ]


def on_gpu(setting: Setting) -> list[Line]:
    """Time, peak memory and link; the resident step beside it where that fits."""
    spec = SHAPES[setting.shape]
    fill = zolab.random_weights()
    store = Ram()
    step, engine = streamed(setting, store, fill=fill)
    step()
    torch.cuda.reset_peak_memory_stats()
    times = tuple(timed(step, "cuda")[0] for _ in range(setting.repeats))
    peak = torch.cuda.max_memory_allocated()
    size = sum(s.nbytes for s in engine.sizes)
    rate = bandwidth(engine)
    hidden = spec.batch * spec.tokens * spec.width * spec.dtype.itemsize
    want = engine.footprint.total + 15 * hidden  # a block's, a waiting probe's
    lines = [
        Line("peak device memory", (peak / 1e9,), unit="GB"),
        Line("  peak / (window, rest, scratch, activations)", (peak / want,), 1.03),
        Line("pinned copy to the device", (rate / 1e9,), unit="GB/s"),
        Line("streamed step", times, unit="s"),
    ]
    lines += beside(step, setting)
    engine.release()
    del step, engine
    torch.cuda.empty_cache()
    needed = 2.5 * size
    if needed < torch.cuda.mem_get_info()[0]:
        compute = resident(setting)
        compute()
        plain = statistics.median(
            timed(compute, "cuda")[0] for _ in range(setting.repeats)
        )
        bound = max(plain, size / rate)
        ratio = tuple(t / bound for t in times)
        lines.append(Line("step / max(transfer, compute)", ratio, 1.05, 1.0, 1.03))
        lines.append(Line("  transfer / compute", (size / rate / plain,)))
    return lines


def resident(setting: Setting) -> Callable[[], Any]:
    """The step of a model that stays."""
    model, closure = build(setting)
    opt = zolab.MeZO(model, lr=1e-9, engine=zolab.Resident(scratch="one"))
    return lambda: opt.step(closure)


def streamed(
    setting: Setting, store: Any, **kwargs: Any
) -> tuple[Callable[[], Any], Streamed]:
    """The same step of the same shape through a window, waiting for its transfers."""
    from transformers import OPTForCausalLM

    spec = SHAPES[setting.shape]
    engine = Streamed(store=store, device=setting.device, **kwargs)
    if kwargs:
        model = zolab.empty_weights(
            lambda: OPTForCausalLM(config_of(spec)), dtype=spec.dtype
        )
        shape = spec.batch, spec.tokens
        ids = torch.randint(5, spec.vocabulary, shape, device=setting.device)

        def closure() -> Any:
            return zolab.lm_loss(model, {"input_ids": ids})
    else:
        model, closure = build(setting)
    opt = zolab.MeZO(model, lr=1e-9, engine=engine)
    return lambda: opt.step(closure), engine


def bandwidth(engine: Streamed) -> float:
    """Bytes a second of plain copies of the largest block from pinned memory."""
    slot = engine.window.slots[0].data
    host = torch.empty_like(slot, device="cpu").pin_memory()
    slot.copy_(host, non_blocking=True)
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(10):
        slot.copy_(host, non_blocking=True)
    torch.cuda.synchronize()
    return 10 * slot.numel() / (time.perf_counter() - began)
