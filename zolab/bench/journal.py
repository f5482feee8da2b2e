"""What a logged step costs: bytes in the log, and time to play it again."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch

import zolab
from zolab.bench.record import Line
from zolab.bench.shapes import Setting, build

RECORDS = 64


def run(setting: Setting) -> list[Line]:
    """Bytes a step of one direction, and replay time a step over a live step's."""
    one = setting.on(setting.threads[0])
    model, closure = build(one)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.zolab"
        base = {name: p.detach().clone() for name, p in model.named_parameters()}
        opt = zolab.MeZO(model, lr=1e-9, journal=path)
        opt.step(closure)
        live = []
        for _ in range(min(3, setting.repeats)):
            opt.step(closure)
            live.append(opt.last.seconds if opt.last else 0.0)
        assert opt.journal is not None
        size, done = path.stat().st_size - opt.journal.start, opt.steps
        for step in range(done, RECORDS):  # records like those before them
            opt.journal.append(step, (1e-9,), (0.5,))
        opt.journal.close()
        again = []
        for _ in range(min(3, setting.repeats)):
            with torch.no_grad():
                for name, p in model.named_parameters():
                    p.copy_(base[name])
            again.append(_replay_seconds(model, path, one.device) / RECORDS)
    ratios = tuple(a / b for a, b in zip(again, live, strict=True))
    return [
        Line("bytes a step", (size / done,), 16, 16, 16, unit="bytes"),
        Line("replay of a step / the step", ratios, 0.1, expected=0.03),
        Line("  replay of a step", tuple(again), unit="s"),
    ]


def _replay_seconds(model: torch.nn.Module, path: Path, device: str) -> float:
    began = time.perf_counter()
    zolab.replay(model, path)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began
