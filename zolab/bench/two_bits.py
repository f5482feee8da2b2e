"""Perplexity against bits: rounding after training, and training with the rounding in.

    python -m zolab.bench two_bits [--only NAME ...] [--passes 180] [--seeds 5]

The embedded model's 28 linears, groups of 64; embedding and head stay. What is fitted
sees the same 250 texts, what is chosen 50 others, every number is of 200 more. A pass
is a forward pass of 8 texts; a backward pass counts as 2: a step of ZeroQAT is 2 and
one of back-propagation 3. GPTQ takes 32, the others that do not train none. Who trains
has four lr to choose from, with one seed; then come other seeds.

The rows that train: ZeroQAT light and of everything, from the clip search; the light
parameters by AdamW, from the clip search and from GPTQ's codes; and AdamW on all
weights of a model that nothing rounds: how much of a gain may be fine-tuning. So may
what the light parameters gain at eight bits, which cost nothing. Then ZeroQAT light
with six times the passes, at the lr that it chose; all three light rows with weights
and activations in four bits; and, where torchao is installed, its QAT: all weights of
the same linears, by AdamW, its own rounding.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import zolab
from zolab.bench.gptq import GPTQ
from zolab.bench.record import RESULTS, machine
from zolab.bench.shapes import Setting
from zolab.errors import NonFiniteLossError
from zolab.quantized import clip_search
from zolab.quantized.convert import fake_quantize, lighten, unsigned
from zolab.quantized.hqq import hqq
from zolab.quantized.zeroqat import groups
from zolab.tasks import splits
from zolab.tasks.perplexity import Texts, nats, some, texts, worse

PATH = "bench-two-bits-cpu-tiny.json"
SKIP = ("*embed*", "lm_head*")
AFTER = ("nearest", "clip", "hqq", "gptq", "gptq clip")
CALIBRATE, VALIDATE, HELD = slice(0, 250), slice(250, 300), slice(300, 500)
EPS = 1e-2


@dataclass(frozen=True)
class Row:
    """What trains: by forward passes or not, from which start, which lr are tried.

    `ratio` is the weights' lr over that of thresholds, scale and shift; `times` as many
    passes as the others have; `activations` their bits.
    """

    name: str
    forward: bool
    start: str
    lrs: tuple[float, ...]
    ratio: float = 1.0
    bits: int | None = 2
    times: int = 1
    activations: int | None = None


LRS = (1e-3, 3e-3, 1e-2, 3e-2)
LOWER = (3e-4, 1e-3, 3e-3, 1e-2)  # the lowest of LRS had been its best
FOUR = {"bits": 4, "activations": 4}
ROWS = (
    Row("qat light", False, "light", LRS),
    Row("zeroqat light", True, "light", LRS),
    Row("not rounded", False, "all", LRS, 3e-2, None),
    Row("qat light on gptq", False, "gptq", LRS),
    Row("zeroqat", True, "all", LRS, 1e-2),
    Row("zeroqat light, six times", True, "light", (1e-2,), times=6),
    Row("qat light, eight bits", False, "light", LRS, bits=8),
    Row("zeroqat light, w4a4", True, "light", LOWER, **FOUR),
    Row("zeroqat light, w4a4, six times", True, "light", (1e-3,), times=6, **FOUR),
    Row("qat light, w4a4", False, "light", LRS, **FOUR),
    Row("torchao qat", False, "torchao", LRS, 3e-2),
)


@dataclass(frozen=True)
class Data:
    """The three parts, and what the unrounded model costs on two of them."""

    calibrate: Texts
    validate: Texts
    held: Texts
    base: dict[str, Any]

    @classmethod
    def load(cls) -> Data:
        model, tokenizer = zolab.load_model("tiny")
        whole = texts(tokenizer, [s.text for s in splits(test=1).transfer])
        calibrate, validate, held = (
            some(whole, part) for part in (CALIBRATE, VALIDATE, HELD)
        )
        base = {"v": nats(model, validate), "h": nats(model, held)}
        return cls(calibrate, validate, held, base)

    def batch(self, seed: int, step: int, size: int = 8) -> Texts:
        g = torch.Generator().manual_seed(1_000_003 * seed + step)
        return some(self.calibrate, torch.randint(250, (size,), generator=g))

    def gap(self, model: Any, part: str) -> tuple[float, float]:
        """Nats a token above the unrounded model on "v" or "h", and the error."""
        batch = self.validate if part == "v" else self.held
        return worse(nats(model, batch), self.base[part], batch)


def after(name: str, bits: int, data: Data) -> Any:
    """The model, rounded by a method that does not train."""
    model = zolab.load_model("tiny")[0]
    by: Any = {"nearest": None, "clip": clip_search, "hqq": hqq}.get(name)
    if name.startswith("gptq"):
        by = GPTQ(model, partial(nats, model, data.calibrate), clip="clip" in name)
    return zolab.pack(model, unsigned(bits), skip=SKIP, by=by)


def train(row: Row, lr: float, seed: int, passes: int, data: Data) -> Any:
    """The model after its passes; None when its loss was not finite."""
    steps = passes // (2 if row.forward else 3)
    if row.start == "gptq":
        model = lighten(after("gptq", row.bits or 2, data))
    elif row.start == "torchao":
        model = _torchao()
    else:
        model = fake_quantize(
            zolab.load_model("tiny")[0],
            row.bits,
            activation_bits=row.activations,
            clip="search",
            transform=row.bits is not None,
        )
        if row.start == "light":
            lighten(model)
    step = (_forward if row.forward else _backward)(model, row, lr, seed)
    for k in range(steps):
        if not math.isfinite(step(data.batch(seed, k), 1 - k / steps)):
            return None
    return model


def _torchao() -> Any:
    """The model with torchao's fake quantization of the same weights to two bits."""
    from torchao.quantization import quantize_
    from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig

    model = zolab.load_model("tiny")[0]
    head = model.get_output_embeddings()
    two = torch.int2  # type: ignore[attr-defined]  # torch's stubs do not list it
    kind = IntxFakeQuantizeConfig(two, group_size=64, is_symmetric=False)
    quantize_(
        model,
        QATConfig(weight_config=kind, step="prepare"),
        lambda m, _: isinstance(m, torch.nn.Linear) and m is not head,
    )
    return model


def _forward(model: Any, row: Row, lr: float, seed: int) -> Callable[..., float]:
    opt = zolab.ZeroQAT(model, lr=row.ratio * lr, clip_lr=lr, eps=EPS, seed=seed)
    rates = [g["lr"] for g in opt.param_groups]

    def step(batch: Texts, share: float) -> float:
        for group, rate in zip(opt.param_groups, rates, strict=True):
            group["lr"] = share * rate
        try:
            return opt.step(lambda: zolab.lm_loss(model, batch))
        except NonFiniteLossError:
            return math.nan

    return step


def _backward(model: Any, row: Row, lr: float, seed: int) -> Callable[..., float]:
    opt = torch.optim.AdamW(groups(model, row.ratio * lr, lr))
    rates = [g["lr"] for g in opt.param_groups]

    def step(batch: Texts, share: float) -> float:
        for group, rate in zip(opt.param_groups, rates, strict=True):
            group["lr"] = share * rate
        opt.zero_grad()
        loss = zolab.lm_loss(model, batch)
        loss.backward()
        opt.step()
        return float(loss.detach())

    return step


def run(row: Row, seeds: int, passes: int, data: Data) -> dict[str, Any]:
    """Tune on the validation texts with seed 100, then the other seeds, held out."""
    tried, passes = [], row.times * passes
    for lr in row.lrs if len(row.lrs) > 1 else ():
        model = train(row, lr, 100, passes, data)
        tried.append(math.inf if model is None else data.gap(model, "v")[0])
    lr = row.lrs[tried.index(min(tried)) if tried else 0]
    gaps, start = [], data.gap(train(row, lr, 0, 0, data), "h")
    for seed in range(seeds):
        model = train(row, lr, seed, passes, data)
        gaps.append((math.inf, 0.0) if model is None else data.gap(model, "h"))
    found = {"lr": lr, "tried": tried, "passes": passes, "began": start, "gaps": gaps}
    return asdict(row) | found


def main(argv: Sequence[str] | None = None) -> int:
    """Fill the record row by row; what it has is not measured again."""
    names = ("after", *(r.name for r in ROWS))
    parser = argparse.ArgumentParser(prog="python -m zolab.bench two_bits")
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--passes", type=int, default=180)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    a = parser.parse_args(argv)
    torch.set_num_threads(1)
    a.out.mkdir(parents=True, exist_ok=True)
    path, data = a.out / PATH, Data.load()
    record: dict[str, Any] = {"after": {}, "trained": {}}
    if path.exists():
        record = json.loads(path.read_text("utf-8"))
    record |= machine("two_bits", Setting.of("cpu", None, [1], 1))
    by = {k: record[k] for k in ("commit", "changed", "date", "versions")}
    record["command"] = f"python -m zolab.bench two_bits --passes {a.passes}"
    record["perplexity"] = math.exp(
        float(data.base["h"].sum()) / int((data.held["labels"][:, 1:] >= 0).sum())
    )
    here = [n for n in AFTER if n != "hqq" or find_spec("hqq")]
    if "after" in a.only and len(here) < len(AFTER):
        print("hqq: hqq is not installed")
    for name in here if "after" in a.only else ():
        if name in record["after"]:
            continue
        for bits in (2, 3, 4):
            found = data.gap(after(name, bits, data), "h")
            record["after"].setdefault(name, {})[str(bits)] = found
            print(f"{name} {bits} bits: {found[0]:+.4f} +- {found[1]:.4f}", flush=True)
        path.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    for row in ROWS:
        if row.start == "torchao" and not find_spec("torchao"):
            print(f"{row.name}: torchao is not installed")
        elif row.name in a.only and row.name not in record["trained"]:
            got = run(row, a.seeds, a.passes, data) | {"by": by}
            record["trained"][row.name] = got
            print(row.name, got["lr"], got["tried"], got["gaps"], flush=True)
            path.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    path.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    return 0
