"""Does it hold up on language? Eleven ways to answer, beside one another.

    python -m zolab.bench table [--model smollm2-135m] [--device cuda] [--minutes 25]
        [--seeds 5] [--steps N] [--only mezo adamw] [--workers 8] [--out DIR]

Each way that has a knob gets three values of it, is chosen on 500 validation sentences
and judged on held-out snippets with five other seeds. A record of the same setting is
added to: what is in it is not run again. On a GPU the steps are cut to what the minutes
allow, and the record says to how many.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from zolab.bench.fill import Table
from zolab.bench.fits import right_ones
from zolab.bench.record import RESULTS
from zolab.bench.rows import ROWS, Job, Row, plan_of


def recorded(
    model: str,
    *,
    folder: Path = RESULTS,
    device: str | None = None,
    item: str = "table",
) -> dict[str, Any] | None:
    """The model's record, from a GPU if there is one; None when nobody made it."""
    for where in (device,) if device else ("cuda", "cpu"):
        path = folder / f"bench-{item}-{where}-{model}.json"
        if path.exists():
            return json.loads(path.read_text("utf-8"))
    return None


def judged(record: dict[str, Any], row: str) -> list[dict[str, Any]]:
    """The judged runs of a row, by seed."""
    if row not in record["chosen"]:
        return []
    value = record["chosen"][row]
    found, seed = [], 0
    while (name := f"{row} {value:g} seed {seed}") in record["runs"]:
        found.append(record["runs"][name])
        seed += 1
    return found


def seconds(record: dict[str, Any], row: str) -> float:
    """Of training, or before the first answer, from what was measured alone."""
    cost = record["costs"][row]
    if "seconds" in cost:
        return cost["seconds"]
    return cost["step_seconds"] * judged(record, row)[0]["steps"]


def mean(record: dict[str, Any], row: str) -> tuple[float, float]:
    """Accuracy and its standard error: of seeds and of held-out sentences together.

    Var = var over seeds / seeds + p (1 - p) / sentences
    """
    scores = [run["score"] for run in judged(record, row)]
    x = torch.tensor([s["accuracy"] for s in scores], dtype=torch.float64)
    p, n = float(x.mean()), scores[0]["n"]
    seeds = float(x.var()) / len(x) if len(x) > 1 else 0.0
    return p, math.sqrt(seeds + p * (1 - p) / n)


def said(record: dict[str, Any], row: str) -> str:
    """A row's accuracy and three standard errors, or "-": costs alone were measured."""
    if row not in record["chosen"]:
        return "-"
    p, se = mean(record, row)
    return f"{p:.3f} ± {3 * se:.3f}"


def ahead(record: dict[str, Any], row: str, other: str) -> tuple[float, float]:
    """By how much a row's accuracy is above another's, and the standard error.

    Both answer the same sentences, so the sentences' part is of the differences, a
    sentence at a time: what is hard for both drops out.
    """
    a, b = (
        torch.stack([right_ones(run["score"]) for run in judged(record, name)]).double()
        for name in (row, other)
    )
    seeds = sum(float(x.mean(1).var()) / len(x) if len(x) > 1 else 0.0 for x in (a, b))
    gap = a.mean(0) - b.mean(0)
    return float(gap.mean()), math.sqrt(seeds + float(gap.var()) / len(gap))


def main(argv: list[str] | None = None) -> int:
    """Fill the table, print its rows."""
    return command(argv, "table", ROWS, "mezo")


def command(
    argv: list[str] | None, item: str, rows: Mapping[str, Row], timer: str
) -> int:
    """The command of a table of these rows."""
    parser = argparse.ArgumentParser(prog=f"python -m zolab.bench {item}")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--minutes", type=float, help="cut the steps to fit (workers)")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="of MeZO; default: the model's")
    parser.add_argument("--train", type=int, default=1000, help="sentences")
    parser.add_argument("--held-out", type=int, default=1000, help="snippets")
    parser.add_argument("--only", nargs="+", choices=list(rows), default=[*rows])
    parser.add_argument("--costs", action="store_true", help="measure, fit nothing")
    parser.add_argument("--workers", type=int, help="default: 8 on a GPU, else 1")
    parser.add_argument("--out", type=Path, default=RESULTS)
    a = parser.parse_args(argv)
    cuda = a.device == "cuda"
    base = Job(
        "",
        a.model,
        steps=a.steps or plan_of(a.model).steps,
        train=a.train,
        held_out=a.held_out,
        device=a.device,
    )
    table = Table(
        a.out / f"bench-{item}-{a.device}-{a.model}.json",
        base,
        a.seeds,
        workers=a.workers or (8 if cuda else 1),
        item=item,
        rows=rows,
        timer=timer,
    )
    minutes = a.minutes or (25.0 if cuda else None)
    record = table.fill(a.only, minutes, fit=not a.costs)
    for name, error in record["failed"].items():
        print(f"  failed: {name}: {error}")
    for row in [row for row in a.only if row in record["costs"] and a.costs]:
        print(f"  {rows[row].label:21} {record['costs'][row]['peak_mb']:6.0f} MB")
    for row in [row for row in a.only if judged(record, row) and not a.costs]:
        scores = [run["score"]["accuracy"] for run in judged(record, row)]
        print(
            f"  {rows[row].label:21} {min(scores):.3f} to {max(scores):.3f}, "
            f"{record['costs'][row]['peak_mb']:6.0f} MB, {seconds(record, row):6.1f} s"
        )
    return 1 if record["failed"] else 0
