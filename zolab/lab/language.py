"""The long runs of chapter 11: one model on sentiment, live or for the record."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from zolab.assets import cache_dir
from zolab.errors import ZolabError
from zolab.lab.compare import compare, within
from zolab.lab.records import commit
from zolab.lab.show import say
from zolab.models import load_model
from zolab.optimizers import MeZO
from zolab.tasks import Sentiment, evaluate, loss


def live(name: str, sentences: Any, *, steps: int, seconds: float) -> list[float]:
    """Losses of up to `steps` MeZO steps, as many as `seconds` allow.

    Empty, and a line that says why, when the model cannot be had.
    """
    try:
        model, tokenizer = load_model(name)
    except ZolabError as why:
        say(f"{name} cannot be had here, so nothing runs live: {why}")
        return []
    model.to(device())
    batches = Sentiment(tokenizer).batches(sentences, 8)
    opt = MeZO(model, lr=1e-5, eps=1e-3)

    def step(_: int) -> float:
        batch = next(batches).to(device())
        return opt.step(lambda: loss(model, batch))

    return within(step, steps=steps, seconds=seconds)


def sentiment_runs(
    name: str,
    data: Any,
    *,
    words: tuple[str, str],
    methods: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int],
    batch_size: int = 16,
    every: int = 50,
) -> dict[str, Any]:
    """Held-out accuracy of each method and seed, beside bias only and majority.

    `methods` maps a label to the options of `train` ("mezo" or "adamw", lr, steps).
    Shows a progress bar; interrupted and called again, it goes on with the next curve.
    """
    tokenizer = load_model(name)[1]
    task = Sentiment(tokenizer, words=words)
    model = load_model(name)[0].to(device())
    floor = evaluate(model, task, data.test, train=data.train)

    def score(model: nn.Module) -> float:
        found = evaluate(model, task, data.test, train=data.train[:16])
        return found.model.accuracy

    # Curves of another commit, task or split must not be taken for these.
    setting = (name, words, batch_size, len(data.train), len(data.test), commit())
    kept = cache_dir() / "runs" / f"{zlib.crc32(repr(setting).encode()):08x}.json"

    def batches(seed: int, step: int) -> Any:
        g = torch.Generator().manual_seed(1_000_003 * seed + step)
        rows = torch.randint(len(data.train), (batch_size,), generator=g).tolist()
        return task.batch([data.train[i] for i in rows]).to(device())

    curves = compare(
        lambda seed: load_model(name)[0].to(device()),
        loss,
        batches,
        score,
        methods=methods,
        seeds=seeds,
        every=every,
        kept=kept,
    )
    kept.unlink(missing_ok=True)
    return {
        "model": name,
        "words": list(words),
        "batch_size": batch_size,
        "held_out": len(data.test),
        "start": floor.model.accuracy,
        "bias_only": floor.bias_only.accuracy,
        "majority": floor.majority.accuracy,
        "curves": curves,
    }


def device() -> torch.device:
    """The GPU where torch sees one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
