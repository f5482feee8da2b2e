"""The benches' records as Markdown for the recipes: tables, and sentences with numbers.

scripts/recipes.py puts what these functions return on the pages; a test compares.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from typing import Any

from zolab.bench.estimators import memory, ratio
from zolab.bench.methods import EPS
from zolab.bench.peers import PEERS
from zolab.bench.record import RESULTS
from zolab.bench.zoo import ROWS

METHODS = "bench-methods-cpu-smollm2-135m.json"
SUGGESTION = "bench-suggestion-cpu-tiny.json"
ESTIMATORS = "bench-estimators-cpu-opt-125m.json"

# Bytes a parameter, without activations: what each method keeps for the whole run.
BYTES = {
    "MeZO, bf16": (2.0, "the weights"),
    "LoRA on bf16": (2.0, "the weights; adapters and their states are below 1 %"),
    "QLoRA, NF4": (0.5 + 4 / 64, "4 bits, and a scale of 4 bytes for each 64"),
    "AdamW 8-bit, bf16": (6.0, "weights 2, gradient 2, two states of 1"),
    "AdamW, mixed precision": (16.0, "2 + 2, and fp32 copy, mean, variance"),
}
# arXiv:2205.01068 (OPT), arXiv:2302.13971 (LLaMA): billions of parameters.
SIZES = {"OPT-1.3B": 1.3, "LLaMA-7B": 6.7, "OPT-13B": 13.0, "OPT-66B": 66.0}


def load(name: str) -> dict[str, Any]:
    """A record of the package's own."""
    return json.loads((RESULTS / name).read_text("utf-8"))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; every column but the first is set to the right."""
    line = "|" + "|".join(["---", *["---:"] * (len(header) - 1)]) + "|"
    body = ["| " + " | ".join(row) + " |" for row in (header, *rows)]
    return "\n".join([body[0], line, *body[1:]])


def ends(row: dict[str, Any]) -> list[tuple[float, int, float, float]]:
    """Each seed's last point: seconds, steps, held-out loss, accuracy."""
    return [tuple(run["points"][-1]) for run in row["runs"]]


def peak(row: dict[str, Any]) -> float:
    """The median peak of a method's processes, MB."""
    return statistics.median(run["peak_mb"] for run in row["runs"])


def methods_table() -> str:
    """The record of `python -m zolab.bench methods`, a row a method."""
    record = load(METHODS)
    floor = peak(record["methods"]["inference"])
    rows = []
    for name, row in record["methods"].items():
        _, steps, nats, right = zip(*ends(row), strict=True)
        step = statistics.median(run["step_seconds"] for run in row["runs"])
        mb = peak(row)
        rows.append(
            [
                "before training" if name == "inference" else row["label"],
                f"{mb:,.0f}",
                f"{mb / floor:.2f}",
                f"{step:.1f}",
                "-" if name == "inference" else f"{statistics.mean(steps):.0f}",
                _span(nats),
                _span(right, 2),
                str(len(steps)),
            ]
        )
        if name == "inference" and (fitted := _fitted(row)):
            nats, right = zip(
                *((b["loss"], b["accuracy"]) for b in fitted), strict=True
            )
            numbers = [_span(nats), _span(right, 2), str(len(fitted))]
            rows.append(["one fitted scalar", "-", "-", "-", "-", *numbers])
    head = ["", "peak MB", "over inference", "s a step", "steps", "loss", "accuracy"]
    return table([*head, "seeds"], rows)


def methods_words() -> str:
    """What the table says, in sentences."""
    record = load(METHODS)
    m, s = record["methods"], record["setting"]
    start, mezo, adamw, lora = (
        [statistics.mean(x[i] for x in ends(m[k])) for i in (2, 3)]
        for k in ("inference", "mezo", "adamw", "lora")
    )
    floor = peak(m["inference"])
    scalar = "; how much of it one scalar would reach was not measured"
    if fitted := _fitted(m["inference"]):
        mean = statistics.mean(b["accuracy"] for b in fitted)
        least = statistics.mean(b["loss"] for b in fitted)
        more = "less" if mezo[0] > least else "more"
        scalar = f"; one scalar, fitted on {fitted[0]['fitted_on']} sentences, reaches "
        scalar += (
            f"{least:.2f} and {mean:.0%}, so in this time MeZO learned {more} than "
        )
        scalar += "a scalar"
    advice = record["suggestion"]
    return (
        f"After {s['seconds']:.0f} seconds of training AdamW stands at a held-out loss "
        f"of {adamw[0]:.2f} and LoRA at {lora[0]:.2f}; MeZO went from {start[0]:.2f} "
        f"to {mezo[0]:.2f}. The accuracies are {adamw[1]:.0%}, {lora[1]:.0%} and "
        f"{mezo[1]:.0%}, from {start[1]:.0%}{scalar}. For this AdamW took "
        f"{peak(m['adamw']) / floor:.1f} times the memory of inference, LoRA "
        f"{peak(m['lora']) / floor:.2f} and MeZO {peak(m['mezo']) / floor:.2f} times. "
        f"MeZO's lr, {advice['lr']:.1e}, is what `zolab.suggest` said after "
        f"{advice['forwards']} forward passes ({advice['seconds']:.0f} s, not counted "
        "above)."
    )


def methods_setting() -> str:
    """Where and how it was measured."""
    r = load(METHODS)
    s, v = r["setting"], r["versions"]
    return (
        f"*Measured on {r['date'][:10]}: SmolLM2-135M (the file named in "
        f"`zolab.load_model`), fp32, batches of {s['batch']} of 1,000 sentences, "
        f"{s['held_out']} held-out sentences a seed, one thread of a CPU ({r['cpu']}), "
        f"torch {v['torch']}, bitsandbytes {v['bitsandbytes']}, peft {v['peft']}. Mean "
        "(lowest to highest seed); evaluations are off the clock; the machine was "
        f"shared, so seconds are rough{_by_cpu(r)}. Peak memory is that of the process"
        ", Python and torch included. No lr was tuned: "
        + "; ".join(
            f"{row['label']} {row['runs'][0]['lr']:.1e} ({row['lr_from']})"
            for name, row in r["methods"].items()
            if name != "inference"
        )
        + f"; MeZO's eps is {EPS:g}. `{r['command']}`*"
    )


def shapes_table() -> str:
    """Arithmetic, not a measurement: bytes a parameter times published sizes, in GB."""
    rows = [
        [name, f"{b:.2g}", *(f"{b * n:.1f}" for n in SIZES.values()), why]
        for name, (b, why) in BYTES.items()
    ]
    return table(["", "bytes a weight", *SIZES, "what is kept"], rows)


def suggestion_table() -> str:
    """The record of `python -m zolab.bench suggestion`, a row a case."""
    r = load(SUGGESTION)
    rows = []
    for name, c in r["cases"].items():
        at = [_median(e) for e in c["ends"]]
        rows.append(
            [
                name,
                f"{c['eps']:.1e}",
                f"{c['lr']:.1e}",
                f"{c['best']:.1e}",
                f"{c['best'] / c['lr']:.2g}",
                f"{c['start']:.3f}",
                *(_loss(x) for x in at),
                str(c["forwards"]),
            ]
        )
    n = len(r["factors"])
    head = ["case", "eps", "lr", f"best of {n}", "best / ours", "loss before"]
    head += [f"{_times(f)} lr" for f in r["factors"]]
    return table([*head, "passes"], rows)


def suggestion_words() -> str:
    """How far off it was, and where."""
    r = load(SUGGESTION)
    off = {n: c["best"] / c["lr"] for n, c in r["cases"].items()}
    worst = max(off, key=lambda n: abs(math.log(off[n])))
    runs = sum(len(c["ends"][0]) for c in r["cases"].values())
    blown = {
        f: sum(
            x is None or x > 2 * c["start"]
            for c in r["cases"].values()
            for x in c["ends"][i]
        )
        for i, f in enumerate(r["factors"])
    }
    return (
        f"The best of {len(blown)} learning rates was {min(off.values()):.2g} to "
        f"{max(off.values()):.2g} times the suggested one; it is farthest off on "
        f"*{worst}*. Of {runs} runs at the suggested lr {blown[1]} blew up (ended "
        f"above twice the loss at the start), at twice it, the best first step, "
        f"{blown[2]}, at three times {blown[3]}, at nine times {blown[9]}."
    )


def suggestion_setting() -> str:
    """Where and how it was measured."""
    r = load(SUGGESTION)
    seeds = len(next(iter(r["cases"].values()))["ends"][0])
    return (
        f"*Measured on {r['date'][:10]}: the embedded model of 1.2 million weights, "
        f"chapter 11's task with down and up, {r['steps']} steps, the median held-out "
        f"loss of {seeds} seeds at each lr, one thread of a CPU, torch "
        f"{r['versions']['torch']}. `{r['command']}`*"
    )


def estimators_table() -> str:
    """The record of `python -m zolab.bench estimators`, a row an estimator."""
    found = load(ESTIMATORS)["rows"]
    rows = [_cost(r.label, found[n]) for n, r in ROWS.items() if n in found]
    return table(["", "passes", "time", "memory", "bytes"], rows)


def peers_table() -> str:
    """The peers of the same record, each above our row that asks as much."""
    found = load(ESTIMATORS)["rows"]
    rows = []
    for name, label in {n: r.label.strip() for n, r in ROWS.items()}.items():
        theirs = [n for n, p in PEERS.items() if p.beside == name and n in found]
        for n in theirs:
            of = f"{PEERS[n].label} ({found[n]['version']})"
            rows.append(_cost(of, found[n])[:-1])
        if theirs:
            rows.append(_cost(f"**zolab {label}**", found[name])[:-1])
    return table(["", "passes", "time", "memory"], rows)


def estimators_words() -> str:
    """How many rows are recorded, and between what they lie."""
    found = load(ESTIMATORS)["rows"]
    ours = {n: r for n, r in found.items() if n in ROWS}
    time = [ratio(r) for r in ours.values()]
    size = [memory(r) for r in ours.values()]
    missing = [r.label.strip() for n, r in ROWS.items() if n not in found]
    also = [PEERS[n].label for n in PEERS if n not in found]
    late = f" Not recorded yet: {', '.join([*missing, *also])}." if missing else ""
    return (
        f"{len(ours)} of {len(ROWS)} estimators are recorded: a step takes "
        f"{min(time):.2f} to {max(time):.2f} times the seconds of the forward passes "
        f"that it asks for, and its peak is {min(size):.2f} to {max(size):.2f} times "
        f"that of inference.{late}"
    )


def estimators_setting() -> str:
    """Where and how it was measured."""
    r = load(ESTIMATORS)
    pairs = [len(row["pairs"]) for row in r["rows"].values()]
    loads = [row["load"] for row in r["rows"].values()]
    return (
        f"*Measured on {r['date'][:10]}: {r['setting'].split(', cpu')[0]}, random "
        f"weights, one thread of a CPU ({r['cpu']}), torch {r['versions']['torch']}. "
        f"Time: the median of {min(pairs)} to {max(pairs)} pairs of a step and as many "
        "forward passes, in turn, in CPU seconds of the thread; the machine had other "
        f"work (load {min(loads):.0f} to {max(loads):.0f} on {r['cores']} cores), so a "
        "tenth is no difference. Memory: the peak of a process, Python and torch "
        f"included, over the peak of inference in it. `{r['command']}`*"
    )


def _cost(label: str, row: dict[str, Any]) -> list[str]:
    each = [a / b for a, b in row["pairs"]]
    bytes_a_step = "-" if row["bytes"] is None else f"{row['bytes']:.0f}"
    time = f"{ratio(row):.2f} ({min(each):.2f} to {max(each):.2f})"
    return [label, str(row["passes"]), time, f"{memory(row):.2f}", bytes_a_step]


def _by_cpu(record: dict[str, Any]) -> str:
    """Which rows' seconds are not the wall's, and how busy the machine was."""
    by_cpu = {
        row["label"]: row["runs"]
        for row in record["methods"].values()
        if row["runs"][0].get("clock") == "cpu"
    }
    if not by_cpu:
        return ""
    loads = [run["load"] for runs in by_cpu.values() for run in runs]
    names = sorted({run["cpu"] for runs in by_cpu.values() for run in runs})
    return (
        f" (of {', '.join(by_cpu)} they are CPU seconds of the thread, recorded later "
        f"on {' and '.join(names)} at a load of {min(loads):.0f} to {max(loads):.0f})"
    )


def _fitted(row: dict[str, Any]) -> list[dict[str, float]]:
    """The bias-only row of each seed; empty when it was not measured."""
    return [run["bias_only"] for run in row["runs"] if "bias_only" in run]


def _span(x: Sequence[float], digits: int = 2) -> str:
    mean = statistics.mean(x)
    if len(x) == 1:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ({min(x):.{digits}f} to {max(x):.{digits}f})"


def _median(x: Sequence[float | None]) -> float:
    return statistics.median(math.inf if y is None else y for y in x)


def _loss(x: float) -> str:
    return f"{x:.3f}" if x < 10 else "blew up"


def _times(f: float) -> str:
    return f"{f:g} x" if f >= 1 else f"1/{1 / f:.0f} x"
