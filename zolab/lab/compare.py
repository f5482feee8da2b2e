"""Training runs side by side: equal steps, several seeds, the same data for each."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from zolab.optimizers import MeZO

Loss = Callable[[nn.Module, Any], Tensor]
Method = Mapping[str, Any]


def train(
    model: nn.Module,
    loss: Loss,
    batch: Callable[[int], Any],
    *,
    steps: int,
    seed: int = 0,
    method: str = "mezo",
    lr: float,
    eps: float = 1e-3,
    score: Callable[[nn.Module], float] | None = None,
    every: int = 10,
) -> list[tuple[int, float]]:
    """Train in place; [(step, score)] before the first step and after each `every`.

    `batch(step)` gives the data of a step; "adamw" back-propagates the same loss.
    """
    curve = [(0, score(model))] if score else []
    mezo = MeZO(model, lr=lr, eps=eps, seed=seed) if method == "mezo" else None
    adam = torch.optim.AdamW(model.parameters(), lr=lr) if mezo is None else None
    for step in range(steps):
        data = batch(step)
        if mezo is not None:
            mezo.step(partial(loss, model, data))
        elif adam is not None:
            adam.zero_grad()
            loss(model, data).backward()
            adam.step()
        if score and ((step + 1) % every == 0 or step + 1 == steps):
            curve.append((step + 1, score(model)))
    return curve


def compare(
    make: Callable[[int], nn.Module],
    loss: Loss,
    batch: Callable[[int, int], Any],
    score: Callable[[nn.Module], float],
    *,
    methods: Mapping[str, Method],
    seeds: Sequence[int],
    every: int = 10,
    kept: Path | None = None,
) -> dict[str, Any]:
    """{method: {"steps": [...], "scores": one list a seed}}, for `record`.

    `methods` maps a label to `train`'s options; `batch(seed, step)` gives every method
    the same data. Finished curves go to the file `kept`, from which a run that was
    interrupted goes on; with other options or seeds a curve is made anew.
    """
    done = json.loads(kept.read_text("utf-8")) if kept and kept.exists() else {}
    out: dict[str, Any] = {}
    total = sum(options["steps"] for options in methods.values()) * len(seeds)
    bar = tqdm(total=total, unit="step", disable=None)
    for label, options in methods.items():
        curves = []
        for seed in seeds:
            name = json.dumps([label, dict(options), seed, every])
            if name not in done:
                bar.set_description(f"{label}, seed {seed}")
                data = _counted(partial(batch, seed), bar)
                done[name] = train(
                    make(seed), loss, data, seed=seed, score=score, every=every,
                    **options,
                )  # fmt: skip
                if kept:
                    kept.parent.mkdir(parents=True, exist_ok=True)
                    kept.write_text(json.dumps(done), "utf-8")
            else:
                bar.update(options["steps"])
            curves.append(done[name])
        out[label] = {
            "steps": [k for k, _ in curves[0]],
            "scores": [[s for _, s in curve] for curve in curves],
            "options": dict(options),
        }
    bar.close()
    return out


def _counted(batch: Callable[[int], Any], bar: Any) -> Callable[[int], Any]:
    def next_batch(step: int) -> Any:
        bar.update()
        return batch(step)

    return next_batch


def within(step: Callable[[int], float], *, steps: int, seconds: float) -> list[float]:
    """step(0), step(1), ... until `steps` are done or `seconds` are over."""
    out: list[float] = []
    end = time.monotonic() + seconds
    while len(out) < steps and time.monotonic() < end:
        out.append(step(len(out)))
    return out


def sharpest(
    loss: Callable[[], Tensor], model: nn.Module, *, rounds: int = 6, eps: float = 1e-2
) -> float:
    """The largest curvature of the loss, by back-propagation; weights are put back.

    Power iteration; H v = (grad(theta + eps v) - grad(theta - eps v)) / (2 eps). From
    below: too few rounds report less. The closure must use the same batch each time.
    """
    weights = [p for p in model.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in weights]

    def slope(v: Sequence[Tensor], scale: float) -> list[Tensor]:
        for p, w, a in zip(weights, start, v, strict=True):
            p.data = w + scale * a
        found = torch.autograd.grad(loss(), weights)
        for p, w in zip(weights, start, strict=True):
            p.data = w
        return list(found)

    v, top = slope(start, 0.0), 0.0
    for _ in range(rounds):
        length = math.sqrt(sum(float(a.square().sum()) for a in v))
        v = [a / length for a in v]
        ends = zip(slope(v, eps), slope(v, -eps), strict=True)
        hv = [(up - down) / (2 * eps) for up, down in ends]
        top = sum(float((a * b).sum()) for a, b in zip(v, hv, strict=True))
        v = hv
    return top


def mean_se(seeds: Sequence[float], held: int = 0) -> tuple[float, float]:
    """Mean over seeds and its standard error.

    With `held` it is a difference of two accuracies on that many sentences, which are a
    sample too: their binomial error at 0.5, taken twice, is added (pairing is ignored).
    """
    x = torch.tensor(list(seeds), dtype=torch.float64)
    spread = x.var() / len(x) if len(x) > 1 else torch.tensor(0.0)
    sample = 2 * 0.25 / held if held else 0.0
    return float(x.mean()), float((spread + sample).sqrt())
