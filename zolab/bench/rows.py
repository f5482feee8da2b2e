"""The rows of the table: what is fitted, what may be tuned, and with which model.

Nothing, one scalar, examples in the prompt, a linear probe, MeZO on all weights, on
LoRA and on a prefix, MeZO on accuracy and on F1, AdamW. After table 1 of MeZO
(arXiv:2305.17333). `zolab.bench.table` runs them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """What a row is called, how it is fitted, and what may be tuned (`knob`).

    wide: so many times the sentences a step, and as many times fewer steps. codec: the
    model is packed in it first. options: what the optimizer is told besides.
    """

    label: str
    how: str
    moves: str = "all"
    objective: str = "loss"
    eps: float = 1e-3
    knob: str = ""
    wide: int = 1
    codec: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


# eps: the paper's for all weights, LoRA and a prefix. A count of right answers stands
# still under a probe that turns none of them over, so there eps and batch are larger.
ROWS = {
    "majority": Row("majority", "majority"),
    "zero": Row("zero-shot", "zero"),
    "bias": Row("bias only", "bias"),
    "context": Row("in context", "context", knob="examples"),
    "probe": Row("linear probe", "probe", knob="l2"),
    "mezo": Row("MeZO", "mezo", knob="lr"),
    "mezo-lora": Row("MeZO, LoRA", "mezo", "lora", eps=1e-2, knob="lr"),
    "mezo-prefix": Row("MeZO, prefix", "mezo", "prefix", eps=1e-1, knob="lr"),
    "mezo-accuracy": Row("MeZO on accuracy", "mezo", "all", "accuracy", 3e-2, "lr", 4),
    "mezo-f1": Row("MeZO on F1", "mezo", "all", "f1", 3e-2, "lr", 4),
    "adamw": Row("AdamW", "adamw", knob="lr"),
}
FIRST_ORDER = ("adamw", "adam8", "adam4", "steps", "qlora")

# The methods of chapter 42, each beside its twin that differentiates. A probe holds one
# matrix decoded, a backward pass one block.
GRID = {
    "zero": ROWS["zero"],
    "bias": ROWS["bias"],
    "mezo-lean": Row("MeZO, fp32", "lean", knob="lr"),
    "quzo-8": Row("QuZO, int8", "quzo", knob="lr", codec="int8"),
    "quzo-4": Row("QuZO, int4", "quzo", knob="lr", codec="int4"),
    "zoqo-8": Row("ZOQO, int8", "zoqo", knob="eps", codec="int8"),
    "qzo": Row("QZO, int4", "qzo", knob="lr", codec="int4"),
    "qzo-factors": Row(
        "QZO, int4, relative", "qzo", knob="lr", codec="int4", eps=1e-2,
        options={"relative": True},
    ),
    "adam-lean": Row("AdamW, fp32", "adamw", knob="lr", options={"lean": True}),
    "adam8": Row("AdamW, 8-bit states", "adam8", knob="lr"),
    "adam4": Row("AdamW, 4-bit states", "adam4", knob="lr"),
    "steps": Row("AdamW on scales, int4", "steps", knob="lr", codec="int4"),
    "qlora": Row("QLoRA, nf4", "qlora", knob="lr", codec="nf4"),
}  # fmt: skip
ALL = ROWS | GRID
IN_FOUR_BITS = ("smollm2-135m",)  # models whose file is: "int4" is its codes as read
TRAINED = tuple(name for name, row in ROWS.items() if row.knob == "lr")
FREE: dict[str, tuple[float, ...]] = {"context": (2, 4, 8), "probe": (1e-3, 1e-2, 1e-1)}


@dataclass(frozen=True)
class Plan:
    """What suits one model: label words, lengths, steps, and three lr a method."""

    words: tuple[str, str]
    max_tokens: int
    batch: int
    steps: int  # of MeZO; AdamW takes a tenth
    rates: dict[str, tuple[float, float, float]]

    def grid(self, row: str) -> tuple[float, ...]:
        """The values that are tried on validation: three, or nothing to tune."""
        return FREE[row] if row in FREE else self.rates.get(row, (0.0,))

    def steps_of(self, row: str, steps: int) -> int:
        """Of this row, when MeZO takes `steps`."""
        how = ALL[row]
        share = 10 if how.how in FIRST_ORDER else how.wide
        return max(4, steps // share)


PLANS = {
    # down and up mean nothing to the tiny model: something is left to learn
    "tiny": Plan(
        ("down", "up"),
        24,
        16,
        300,
        {
            "mezo": (3e-4, 1e-3, 3e-3),
            "mezo-lora": (3e-2, 1e-1, 3e-1),
            "mezo-prefix": (3.0, 10.0, 30.0),
            "mezo-accuracy": (3e-4, 1e-3, 3e-3),
            "mezo-f1": (3e-4, 1e-3, 3e-3),
            "adamw": (1e-4, 3e-4, 1e-3),
            "mezo-lean": (3e-4, 1e-3, 3e-3),
            "quzo-8": (3e-4, 1e-3, 3e-3),
            "quzo-4": (1e-4, 3e-4, 1e-3),
            "zoqo-8": (4e-3, 1.6e-2, 6.4e-2),
            "qzo": (1e-6, 3e-6, 1e-5),
            "qzo-factors": (3e-3, 1e-2, 3e-2),
            "adam-lean": (3e-4, 1e-3, 3e-3),
            "adam8": (3e-4, 1e-3, 3e-3),
            "adam4": (3e-4, 1e-3, 3e-3),
            "steps": (3e-4, 1e-3, 3e-3),
            "qlora": (1e-3, 3e-3, 1e-2),
        },
    ),
    "smollm2-135m": Plan(
        ("terrible", "great"),
        64,
        16,
        2000,
        {
            "mezo": (1e-5, 3e-5, 1e-4),
            "mezo-lora": (3e-4, 3e-3, 3e-2),
            "mezo-prefix": (1e-1, 1.0, 10.0),
            "mezo-accuracy": (1e-5, 3e-5, 1e-4),
            "mezo-f1": (1e-5, 3e-5, 1e-4),
            "adamw": (1e-5, 3e-5, 1e-4),
            "mezo-lean": (1e-5, 3e-5, 1e-4),
            "quzo-8": (1e-5, 3e-5, 1e-4),
            "quzo-4": (1e-5, 3e-5, 1e-4),
            "zoqo-8": (1e-4, 4e-4, 1.6e-3),
            "qzo": (1e-7, 1e-6, 1e-5),
            "qzo-factors": (1e-4, 1e-3, 1e-2),
            "adam-lean": (1e-5, 3e-5, 1e-4),
            "adam8": (1e-5, 3e-5, 1e-4),
            "adam4": (1e-5, 3e-5, 1e-4),
            "steps": (1e-5, 1e-4, 1e-3),
            "qlora": (1e-4, 1e-3, 1e-2),
        },
    ),
}


@dataclass(frozen=True)
class Job:
    """One run: a row with a value of its knob and a seed. Travels as JSON."""

    row: str
    model: str
    value: float = 0.0
    seed: int = 0
    tune: bool = False  # judged on validation instead of the held-out snippets
    steps: int = 0  # of MeZO; 0: the plan's
    train: int = 1000
    dev: int = 500
    held_out: int = 1000
    device: str = "cpu"


def plan_of(model: str) -> Plan:
    """The model's plan; another model is planned like SmolLM2."""
    return PLANS.get(model, PLANS["smollm2-135m"])
