"""Sorting by a model that knows several skills: rewards select one that is there.

    prompt  d_1 ... d_n =      answer  the digits in ascending order, then EOS

The corpus of its pretraining sorts with probability `wanted`; else it copies, reverses
or sorts downwards, each as often. A model that has seen it for a while can sort, and
does so one time in four; a reward of 1 for an exact answer, 0 for any other, is enough
to select that. This is the small image of what rewards do to a language model whose
pretraining holds the skill already. (Pretrained for longer its likeliest answer would
always be the sorted one: a third is more than each other skill has.)

Every eighth string (by its checksum) is held out: neither pretraining nor rewards ever
see it, whatever the seeds. Its digits in another order may well have been seen.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from zolab.errors import ZolabError

ALPHABET = "0123456789="
DIGITS = "0123456789"
SKILLS: dict[str, Callable[[str], str]] = {
    "sort": lambda s: "".join(sorted(s)),
    "copy": lambda s: s,
    "reverse": lambda s: s[::-1],
    "descend": lambda s: "".join(sorted(s, reverse=True)),
}
HELD_OUT = 8  # one string in so many


@dataclass(frozen=True)
class Sorting:
    """Strings of `digits` digits; `wanted` of the demonstrations sort them."""

    digits: int = 6
    wanted: float = 0.35

    def __post_init__(self) -> None:
        if self.digits < 2 or not 0 <= self.wanted <= 1:
            raise ZolabError(
                f"{self} makes no task: expected 2 digits or more, wanted from 0 to 1"
            )

    @property
    def max_new_tokens(self) -> int:
        """The longest answer: the digits and EOS."""
        return self.digits + 1

    def prompts(self, count: int, *, seed: int, held_out: bool = False) -> list[str]:
        """`count` prompts drawn with `seed`, from one side of the split."""
        rng = random.Random(f"sorting/{seed}/{held_out}")
        return [self._draw(rng, held_out) + "=" for _ in range(count)]

    def demonstrations(self, count: int, *, seed: int) -> list[tuple[str, str]]:
        """(prompt, answer) pairs of the pretraining's corpus; none is held out."""
        rng = random.Random(f"sorting/demonstrations/{seed}")
        others = [name for name in SKILLS if name != "sort"]
        found = []
        for _ in range(count):
            string = self._draw(rng, False)
            sort = rng.random() < self.wanted
            skill = "sort" if sort else rng.choice(others)
            found.append((string + "=", SKILLS[skill](string)))
        return found

    def _draw(self, rng: random.Random, held_out: bool) -> str:
        while True:
            string = "".join(rng.choices(DIGITS, k=self.digits))
            if is_held_out(string) == held_out:
                return string


def is_held_out(string: str) -> bool:
    """Whether these digits (the "=" may follow) are kept for evaluation alone."""
    return zlib.crc32(string.removesuffix("=").encode()) % HELD_OUT == 0


def sorted_exactly(
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    stop: Sequence[str] | None = None,
    **columns: object,
) -> list[float | None]:
    """The reward: 1 for the digits in ascending order and EOS, else 0.

    `stop` says "eos" or "length" of each row; without it the text alone decides.
    """
    ends = stop if stop is not None else ["eos"] * len(completions)
    return [
        float(c == SKILLS["sort"](p.removesuffix("=")) and s == "eos")
        for p, c, s in zip(prompts, completions, ends, strict=True)
    ]
