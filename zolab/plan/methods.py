"""What a method keeps for every parameter: the sixteen bytes, and how to avoid them.

    AdamW in fp32        4 weight + 4 gradient + 4 + 4 moments              = 16
    AdamW, mixed         2 weight + 2 gradient + 4 copy + 4 + 4 moments     = 16

The second sum is ZeRO's (arXiv:1910.02054, section 3.1). 8-bit Adam: arXiv:2110.02861;
LoRA: arXiv:2106.09685; QLoRA's NF4 with its scales quantised too: arXiv:2305.14314;
MeZO: arXiv:2305.17333.
"""

from __future__ import annotations

from dataclasses import dataclass

from zolab.plan.units import PlanError

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
SCALED = 2 * (1 + 4 / 256)  # two moments of a byte, and a scale for 256 of each
NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)  # a scale for 64 weights, a scale for 256 scales


@dataclass(frozen=True)
class Method:
    """Bytes a parameter. None: as many as the type that the weights are stored in.

    `moments` counts numbers beside each weight that are stored like it; `state` bytes
    that are not. `adapters`: only LoRA's factors move, and all but `weight` is theirs.
    """

    label: str
    backward: bool = True
    adapters: bool = False
    low: bool = False  # needs a 16-bit type to make sense
    weight: float | None = None
    moments: int = 0
    state: float = 0.0


METHODS = {
    "inference": Method("inference", backward=False),
    "mezo": Method("MeZO", backward=False),
    "sgd": Method("SGD"),
    "adamw": Method("AdamW", moments=2),
    "adamw-mixed": Method("AdamW, fp32 copy", low=True, state=12.0),
    "adam8": Method("8-bit Adam", state=SCALED),
    "lora": Method("LoRA", adapters=True, moments=2),
    "qlora": Method("QLoRA", adapters=True, weight=NF4, moments=2),
}


@dataclass(frozen=True)
class Rate:
    """Bytes a parameter: weights, gradients, and what the optimizer remembers."""

    weights: float
    gradients: float
    state: float

    @property
    def total(self) -> float:
        """The three together."""
        return self.weights + self.gradients + self.state


def rate(method: str, dtype: str = "bf16") -> Rate:
    """Bytes a parameter that moves, stored in `dtype`; activations come on top.

    LoRA's and QLoRA's is that of a frozen weight: nothing but itself.
    """
    m, b = method_of(method), width(dtype)
    if m.low and b == 4:
        raise PlanError(f"{method} keeps an fp32 copy of 16-bit weights; dtype is fp32")
    weight = b if m.weight is None else m.weight
    if not m.backward or m.adapters:
        return Rate(weight, 0.0, 0.0)
    return Rate(weight, b, m.moments * b + m.state)


def method_of(name: str) -> Method:
    """The method's row; raises PlanError on an unknown name."""
    if name not in METHODS:
        raise PlanError(f"no method {name!r}; there are {', '.join(METHODS)}")
    return METHODS[name]


def width(dtype: str) -> int:
    """Bytes of a number of this type; raises PlanError on an unknown one."""
    if dtype not in BYTES:
        raise PlanError(f"dtype is {dtype!r}; it can be {', '.join(BYTES)}")
    return BYTES[dtype]
