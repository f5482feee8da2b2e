"""What one rollout leaves behind: tokens, masks, log-probabilities, groups.

    row i:   [pad ... pad  prompt | completion  EOS  pad ... pad]
    prompt_mask            1 1 1                                      real tokens
    mask                              1 ... 1    1   0 ...  0         what is learnt

N = P prompts x G samples; the rows of a group lie together and `group` says so: it is
never inferred from the text. `mask` ends with the first EOS, which it includes; it is
made from the EOS's position, since padding may well be EOS too.

`logps` are those of the distribution that was sampled from (softmax of logits /
temperature), so that the trainer's ratio is 1 before its first step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zolab.errors import ZolabError

SHAPES = {
    "prompt_ids": ("N", "P"),
    "prompt_mask": ("N", "P"),
    "completion_ids": ("N", "T"),
    "mask": ("N", "T"),
    "logps": ("N", "T"),
    "entropy": ("N", "T"),
    "group": ("N",),
}
REASONS = ("eos", "length")


class RolloutError(ZolabError):
    """A rollout whose parts do not fit together, or rewards that do not fit it."""


@dataclass(frozen=True)
class Rollout:
    """N rows of completions, drawn at `temperature`, with what was known then.

    `prompt_ids` (N, P) int64 left-padded, `completion_ids` (N, T) int64 right-padded;
    `prompt_mask` (N, P), `mask` (N, T) bool; `logps`, `entropy` (N, T) fp32 in nats,
    of the tempered distribution, 0 where the mask is; `stop` says "eos" or "length";
    `group` (N,) int64. RolloutError where shapes or lengths disagree.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    completion_ids: Tensor
    mask: Tensor
    logps: Tensor
    entropy: Tensor
    stop: tuple[str, ...]
    group: Tensor
    texts: tuple[str, ...]
    prompts: tuple[str, ...]
    temperature: float

    def __post_init__(self) -> None:
        sizes: dict[str, int] = {"N": len(self.stop)}
        for name, wanted in SHAPES.items():
            found = tuple(getattr(self, name).shape)
            if len(found) != len(wanted) or any(
                sizes.setdefault(a, n) != n for a, n in zip(wanted, found, strict=True)
            ):
                raise RolloutError(
                    f"{name} is {found}, expected ({', '.join(wanted)}) with {sizes}"
                )
        for name in ("texts", "prompts"):
            if len(getattr(self, name)) != sizes["N"]:
                raise RolloutError(
                    f"{len(getattr(self, name))} {name}, expected {sizes['N']}"
                )
        if odd := set(self.stop) - set(REASONS):
            raise RolloutError(f"stop is {sorted(odd)[0]!r}, expected one of {REASONS}")
        if not self.temperature > 0:
            raise RolloutError(
                f"temperature is {self.temperature}, expected a positive number: a "
                "greedy answer has no distribution to learn from"
            )

    def __len__(self) -> int:
        return len(self.stop)

    @property
    def lengths(self) -> Tensor:
        """(N,) int64: tokens that count, the EOS among them."""
        return self.mask.sum(1)

    @property
    def tokens(self) -> int:
        """Real tokens of prompts and answers: what a pass over the rows costs."""
        return int(self.prompt_mask.sum() + self.mask.sum())

    @property
    def truncated(self) -> Tensor:
        """(N,) bool: rows that ran out of room before they said EOS."""
        return torch.tensor([s == "length" for s in self.stop], device=self.mask.device)

    @property
    def input_ids(self) -> Tensor:
        """(N, P + T): what a teacher-forced forward pass reads."""
        return torch.cat([self.prompt_ids, self.completion_ids], 1)

    @property
    def attention_mask(self) -> Tensor:
        """(N, P + T) bool: neither the left padding nor what follows the EOS."""
        return torch.cat([self.prompt_mask, self.mask], 1)

    def rows(self, index: Tensor | slice) -> Rollout:
        """The rollout of some rows, in that order; group ids stay as they are."""
        index = index.cpu() if isinstance(index, Tensor) else index
        at = torch.arange(len(self))[index].tolist()
        parts: dict[str, Any] = {}
        for f in fields(self):
            x = getattr(self, f.name)
            if isinstance(x, Tensor):
                parts[f.name] = x[torch.tensor(at, dtype=torch.long, device=x.device)]
            elif isinstance(x, tuple):
                parts[f.name] = tuple(x[i] for i in at)
        return replace(self, **parts)

    def scored(self, logps: Tensor) -> Rollout:
        """The same rows with other old log-probabilities (N, T)."""
        return replace(self, logps=logps)

    def regrouped(self, group: Tensor) -> Rollout:
        """The same rows with other group ids (N,)."""
        return replace(self, group=group)


def concatenate(parts: Sequence[Rollout]) -> Rollout:
    """The rows of several rollouts, one after another; ids must not clash already.

    Shorter prompts are padded on the left and completions on the right, with the id 0,
    which the masks hide.
    """
    if not parts or len({p.temperature for p in parts}) > 1:
        found = sorted({p.temperature for p in parts})
        raise RolloutError(f"temperatures {found}, expected rollouts of one")
    joined: dict[str, Any] = {}
    for f in fields(Rollout):
        values = [getattr(p, f.name) for p in parts]
        if isinstance(values[0], tuple):
            joined[f.name] = tuple(x for v in values for x in v)
        elif isinstance(values[0], Tensor) and values[0].ndim == 2:
            width, left = max(v.shape[1] for v in values), "prompt" in f.name
            space = [width - v.shape[1] for v in values]
            sides = [(n, 0) if left else (0, n) for n in space]
            padded = [F.pad(v, s) for v, s in zip(values, sides, strict=True)]
            joined[f.name] = torch.cat(padded)
        elif isinstance(values[0], Tensor):
            joined[f.name] = torch.cat(values)
        else:
            joined[f.name] = values[0]
    return Rollout(**joined)
