"""The rows of the table: what is fitted, what may be tuned, and with which model.

Nothing, one scalar, examples in the prompt, a linear probe, MeZO on all weights, on
LoRA and on a prefix, MeZO on accuracy and on F1, AdamW. After table 1 of MeZO
(arXiv:2305.17333). `zolab.bench.table` runs them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """What a row is called, how it is fitted, and what may be tuned (`knob`).

    wide: so many times the sentences a step, and as many times fewer steps.
    """

    label: str
    how: str
    moves: str = "all"
    objective: str = "loss"
    eps: float = 1e-3
    knob: str = ""
    wide: int = 1


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
        share = 10 if row == "adamw" else ROWS[row].wide
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
