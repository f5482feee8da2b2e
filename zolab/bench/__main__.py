"""The command: `python -m zolab.bench --help`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from zolab.bench import (
    estimators,
    forward_rl,
    giant,
    grid,
    gym,
    journal,
    memory,
    methods,
    peak,
    precision,
    quantized,
    rl,
    step,
    streamed,
    suggestion,
    table,
    two_bits,
)
from zolab.bench.record import RESULTS, show, write
from zolab.bench.shapes import SHAPES, Setting

ITEMS: dict[str, Any] = {
    "step": step,
    "memory": memory,
    "precision": precision,
    "journal": journal,
    "streamed": streamed,
    "giant": giant,
}
LARGE = ("giant",)  # asked for by name only


def main(argv: list[str] | None = None) -> int:
    """Run the items, print their lines, write their records."""
    argv = sys.argv[1:] if argv is None else argv
    # with options of their own
    own = {"methods": methods, "suggestion": suggestion, "table": table, "grid": grid}
    own |= {"estimators": estimators, "peak": peak, "quantized": quantized, "rl": rl}
    own |= {"forward_rl": forward_rl, "two_bits": two_bits, "gym": gym}
    if argv and argv[0] in own:
        return own[argv[0]].main(argv[1:])
    parser = argparse.ArgumentParser(prog="python -m zolab.bench", description=__doc__)
    parser.add_argument("item", nargs="?", default="all", choices=[*ITEMS, "all"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--shape", choices=list(SHAPES), help="default by device")
    parser.add_argument("--threads", type=int, nargs="+", help="default: 1 2 on a CPU")
    parser.add_argument("--repeats", type=int, default=7, help="pairs of each ratio")
    parser.add_argument("--out", type=Path, default=RESULTS, help="records go here")
    a = parser.parse_args(argv)
    every = [name for name in ITEMS if name not in LARGE]
    for name in every if a.item == "all" else [a.item]:
        usual = getattr(ITEMS[name], "DEFAULT", {}).get(a.device)
        setting = Setting.of(a.device, a.shape or usual, a.threads, a.repeats)
        print(f"{name}: {setting}", flush=True)
        lines = ITEMS[name].run(setting)
        show(lines)
        print(f"  -> {write(name, setting, lines, a.out).name}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
