"""Recipes: an algorithm is a choice of advantage, loss, denominator and a few weights.

    recipe("grpo", beta=0.04, updates=2)

No recipe has a loop of its own: what the field calls GRPO, Dr. GRPO or DAPO is a line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from zolab.rl.advantages import ADVANTAGES
from zolab.rl.aggregation import AGGREGATIONS
from zolab.rl.filters import DATA_FILTERS, TOKEN_FILTERS, capo
from zolab.rl.groups import GROUP_KEYS
from zolab.rl.kl import KLS
from zolab.rl.losses import LOSSES, dpo
from zolab.rl.registry import named

Named = str | Callable[..., Any]


@dataclass(frozen=True)
class Recipe:
    """Names out of the registries, or functions, and how much of what.

    `length`: the most tokens of an answer, which aggregation "constant" divides by.
    `beta`: of the KL estimate `kl`, put into the "loss" or the "reward" (`kl_in`).
    `entropy`, `llds`: weights of the bonus and of the displacement penalty.
    `tries` above 1: dynamic sampling, of at most so many draws a step.
    `updates`: gradient steps a rollout; from the second on, ratios leave 1.
    `recompute`: old log-probabilities from the trainer instead of the sampler's.
    `objective`: "surrogate", or "reward" for forward-only steps that see rewards alone.
    """

    advantage: Named = "grpo"
    loss: Named = "ppo_clip"
    aggregation: str = "seq-mean-token-mean"
    group_key: Named = "prompt"
    length: int | None = None
    beta: float = 0.0
    kl: Named = "k3"
    kl_in: str = "loss"
    entropy: float = 0.0
    llds: float = 0.0
    data_filters: tuple[Named, ...] = ()
    token_filters: tuple[Named, ...] = ()
    tries: int = 1
    updates: int = 1
    recompute: bool = False
    objective: str = "surrogate"

    def __post_init__(self) -> None:
        named(ADVANTAGES, self.advantage, "advantage")
        named(LOSSES, self.loss, "loss")
        named(AGGREGATIONS, self.aggregation, "aggregation")
        named(GROUP_KEYS, self.group_key, "group key")
        named(KLS, self.kl, "KL estimate")
        for name in self.data_filters:
            named(DATA_FILTERS, name, "data filter")
        for name in self.token_filters:
            named(TOKEN_FILTERS, name, "token filter")
        if self.kl_in not in ("loss", "reward"):
            raise ValueError(f"kl_in is {self.kl_in!r}, expected loss or reward")
        if self.objective not in ("surrogate", "reward"):
            raise ValueError(
                f"objective is {self.objective!r}, expected surrogate or reward"
            )
        if self.tries < 1 or self.updates < 1:
            raise ValueError(
                f"tries {self.tries} and updates {self.updates} must be at least 1"
            )
        if self.aggregation == "constant" and not self.length:
            raise ValueError(
                'aggregation "constant" wants length=, the most tokens of an answer'
            )

    @property
    def paired(self) -> bool:
        """Whether rows come as pairs, right and wrong."""
        return core(named(LOSSES, self.loss, "loss")) is dpo

    @property
    def moments(self) -> bool:
        """Whether a filter asks for the distributions' moments."""
        used = [named(TOKEN_FILTERS, f, "token filter") for f in self.token_filters]
        return any(core(f) is capo for f in used)

    @property
    def signal_only(self) -> bool:
        """Whether a row without advantage has no gradient at all."""
        in_loss = self.beta and self.kl_in == "loss"
        return not (in_loss or self.entropy or self.llds or self.paired)


def core(f: Any) -> Any:
    """The function under a `functools.partial`."""
    return getattr(f, "func", f)


RECIPES: dict[str, dict[str, Any]] = {
    "reinforce": {
        "advantage": "reinforce",
        "loss": "policy_gradient",
        "aggregation": "seq-mean-token-sum",
    },
    "plain": {
        "advantage": "plain",
        "loss": "policy_gradient",
        "aggregation": "seq-mean-token-sum",
    },
    "rloo": {
        "advantage": "rloo",
        "loss": "policy_gradient",
        "aggregation": "seq-mean-token-sum",
    },
    "remax": {
        "advantage": "remax",
        "loss": "policy_gradient",
        "aggregation": "seq-mean-token-sum",
    },
    "reinforce_pp": {"advantage": "reinforce_pp", "aggregation": "token-mean"},
    "grpo": {},
    "dr_grpo": {"advantage": "dr_grpo", "aggregation": "constant"},
    "dapo": {"loss": "dapo", "aggregation": "token-mean", "tries": 10},
    "gspo": {"loss": "gspo"},
    "cispo": {"loss": "cispo", "aggregation": "token-mean"},
    "online_dpo": {"loss": "dpo"},
    "es": {"objective": "reward"},
}


def recipe(name: str | Recipe, **changes: Any) -> Recipe:
    """A recipe by name, with changes; ValueError names what there is."""
    if isinstance(name, Recipe):
        return replace(name, **changes)
    if name not in RECIPES:
        raise ValueError(
            f"no recipe is called {name!r}; there are {', '.join(RECIPES)}"
        )
    return Recipe(**RECIPES[name] | changes)
