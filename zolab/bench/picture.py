"""The book's pictures of the benches' records.

    python -m zolab.bench.picture        draws book/images/front.png, eps_curves.png

`ALT` is what front.png shows to somebody who cannot see it, with the record's numbers.
"""

from __future__ import annotations

import base64
import re
import statistics
from pathlib import Path
from typing import Any

from zolab.bench.tables import METHODS, SUGGESTION, load, peak

IMAGES = Path(__file__).parents[2] / "book" / "images"
# method, its name in the picture, its style, and by how many points the names move.
SHOWN = (
    ("adamw", "AdamW", 1, (0, 0)),
    ("lora", "LoRA", 2, (0, 0)),
    ("mezo", "MeZO", 0, (0, 0)),
)


def _points(row: dict[str, Any], start: list[float]) -> list[tuple[float, list[float]]]:
    """(mean seconds, each seed's loss) at the start and at each evaluation."""
    found: list[tuple[float, list[float]]] = [(0.0, start)]
    for at in zip(*(run["points"] for run in row["runs"]), strict=True):
        found.append((statistics.mean(p[0] for p in at), [p[2] for p in at]))
    return found


def _curves(record: dict[str, Any]) -> dict[str, list[tuple[float, list[float]]]]:
    m = record["methods"]
    start = [run["points"][0][2] for run in m["inference"]["runs"]]
    return {name: _points(m[name], start) for name, *_ in SHOWN}


def alt_text(record: dict[str, Any]) -> str:
    """The finding, in words."""
    m, curves = record["methods"], _curves(record)
    floor = peak(m["inference"])
    said = [
        f"{label} ends at {statistics.mean(curves[name][-1][1]):.2f} with "
        f"{peak(m[name]) / 1000:.1f} GB"
        for name, label, *_ in SHOWN
    ]
    start = statistics.mean(curves["mezo"][0][1])
    least = min(SHOWN, key=lambda x: peak(m[x[0]]))[1]
    last = max(SHOWN, key=lambda x: statistics.mean(curves[x[0]][-1][1]))[1]
    scalar = _scalar(m)
    said.append(f"one fitted scalar, with no training at all, reaches {scalar:.2f}")
    end = f"{least} needs the least memory, {last} learns slowest."
    if least == last:
        end = f"{least} needs the least memory and learns slowest."
    seconds = record["setting"]["seconds"]
    return (
        f"Held-out loss of SmolLM2-135M, {start:.2f} before training, after "
        f"{seconds:.0f} seconds of it: {', '.join(said)}; inference alone takes "
        f"{floor / 1000:.1f} GB. {end}"
    )


def _scalar(methods: dict[str, Any]) -> float:
    """The loss that one fitted scalar reaches, mean over seeds."""
    runs = methods["inference"]["runs"]
    return statistics.mean(run["bias_only"]["loss"] for run in runs)


def draw(path: Path = IMAGES / "front.png") -> Path:
    """Loss against peak memory, and against seconds, from the record."""
    from zolab.lab.figures import canvas, line, mark, tag

    record = load(METHODS)
    m, curves = record["methods"], _curves(record)
    floor = peak(m["inference"]) / 1000
    with canvas(ALT, "SmolLM2-135M: loss and peak memory", 440, 360, 2) as (
        axes,
        image,
    ):
        memory, seconds = axes
        for name, label, style, (dy, dt) in SHOWN:
            losses = curves[name][-1][1]
            mean, gb = statistics.mean(losses), peak(m[name]) / 1000
            spread = [[mean - min(losses)], [max(losses) - mean]]
            color, _, marker = _style(style)
            memory.errorbar([gb], [mean], yerr=spread, color=color, marker=marker, ms=7)
            tag(memory, gb, mean, f" {label}", style=style, dy=dy)
            x = [t for t, _ in curves[name]]
            y = [statistics.mean(v) for _, v in curves[name]]
            band = [min(v) for _, v in curves[name]], [max(v) for _, v in curves[name]]
            line(seconds, x, y, label, style=style, band=band, dy=dt)
        memory.axvline(floor, color="#555555", ls=(0, (2, 2)), lw=1)
        memory.annotate(
            "inference alone", (floor, 0.03), xycoords=("data", "axes fraction"),
            xytext=(4, 0), textcoords="offset points", color="#555555",
        )  # fmt: skip
        for ax in axes:
            mark(ax, _scalar(m), "")
        memory.annotate(
            "one fitted scalar", (0.98, _scalar(m)), xytext=(0, 2), ha="right",
            xycoords=("axes fraction", "data"), textcoords="offset points",
            color="#555555",
        )  # fmt: skip
        memory.set(xlabel="peak memory of the process, GB", ylabel="held-out loss")
        memory.set_xlim(0, 1.25 * max(peak(m[name]) for name, *_ in SHOWN) / 1000)
        seconds.set_title("The same loss while it trains")
        seconds.set(xlabel="seconds of training, one CPU thread", ylabel="loss")
    return _write(path, image)


def draw_curves(path: Path = IMAGES / "eps_curves.png") -> Path:
    """The U curve of the tiny model in fp32 and in bf16."""
    from zolab.lab.figures import canvas, line

    title = "Do slopes at eps and 4 eps agree?"
    with canvas(curves_alt(), title, 440, 290) as (ax, image):
        for style, (label, case) in enumerate(_two_curves().items()):
            x, y = zip(*(p for p in case["curve"] if p[1] is not None), strict=True)
            line(ax, x, y, style=style)
            best = min(range(len(y)), key=y.__getitem__)
            ax.annotate(
                label, (x[best], y[best]), xytext=(0, -14), ha="center",
                textcoords="offset points", color=_style(style)[0],
            )  # fmt: skip
        ax.set(xscale="log", yscale="log", xlabel="eps")
        ax.set(ylabel="difference / size of slopes")
        ax.margins(y=0.15)
    return _write(path, image)


def _two_curves() -> dict[str, dict[str, Any]]:
    cases = load(SUGGESTION)["cases"]
    return {"fp32": cases["all weights"], "bf16": cases["all weights, bf16"]}


def curves_alt() -> str:
    """What the two U curves show."""
    said = []
    for label, c in _two_curves().items():
        low = min(y for _, y in c["curve"] if y is not None)
        said.append(
            f"in {label} the bottom lies at eps {c['eps']:.1g}, where slopes differ "
            f"by {low:.1g} of their size"
        )
    return f"Two U curves: {'; '.join(said)}."


def front_markdown() -> str:
    """front.png as the recipe shows it."""
    return f"![{ALT}](../images/front.png)"


def curves_markdown() -> str:
    """eps_curves.png as the recipe shows it."""
    return f"![{curves_alt()}](../images/eps_curves.png)"


def _style(i: int) -> Any:
    from zolab.lab.figures import STYLES

    return STYLES[i]


def _write(path: Path, image: list[str]) -> Path:
    """The canvas gives HTML with the picture inside; a page wants the file."""
    (data,) = re.findall(r"base64,([^\"]+)", image[0])
    path.write_bytes(base64.b64decode(data))
    return path


ALT = alt_text(load(METHODS))


if __name__ == "__main__":
    draw()
    draw_curves()
