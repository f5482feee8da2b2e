"""Tasks of reasoning-gym with its three traps closed. Optional: pip install zolab[gym]

Its item i of seed s is drawn with Random(s + i), so that seeds 0 and 1 share 999 of
1,000 questions; here held-out items begin after the last training item, and a question
that came before is left out. Its scorers pay in part (the answer's share of a longer
text, 0.01 for anything in countdown); here 1 is right and the rest is 0. A scorer that
raises is none of a row's fault: `zolab.rl.rewards` makes it None and counts it, and so
is a score that is no number.

Z. Stojanovski et al., Reasoning Gym, arXiv:2505.24760 (Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from zolab.errors import ZolabError

WHOLE = 1 - 1e-9  # a score that is right; some scorers divide


@dataclass(frozen=True)
class Item:
    """A question, its maker's answer (None: there is only a verifier), its entry."""

    question: str
    answer: str | None
    entry: dict[str, Any]


@dataclass(frozen=True)
class Gym:
    """Training and held-out items of one task; `dropped` questions came twice."""

    name: str
    train: tuple[Item, ...]
    held_out: tuple[Item, ...]
    dropped: int
    scorer: Any

    def right(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        *,
        entry: Sequence[dict[str, Any]],
        **columns: object,
    ) -> list[float | None]:
        """The reward, 0 or 1; pass the items' `entry` as a column."""
        found: list[float | None] = []
        for text, e in zip(completions, entry, strict=True):
            score = self.scorer(text, e)
            found.append(None if score is None else float(score >= WHOLE))
        return found


def load_gym(
    name: str, *, train: int, held_out: int, seed: int = 0, **config: Any
) -> Gym:
    """`train` and `held_out` different questions of task `name`, drawn from `seed` on.

    `config` goes to reasoning-gym. Raises ZolabError where the package is missing, or
    where the task has too few different questions.
    """
    try:
        import reasoning_gym
    except ImportError as why:
        raise ZolabError(
            "reasoning-gym is not installed: pip install 'zolab[gym]'"
        ) from why
    if train < 1 or held_out < 1:
        raise ZolabError(f"train {train} and held_out {held_out} must be at least 1")
    room = 4 * (train + held_out)
    data = reasoning_gym.create_dataset(name, seed=seed, size=room, **config)
    seen: set[str] = set()
    dropped = 0

    def fresh(wanted: int, entries: Iterator[dict[str, Any]]) -> tuple[Item, ...]:
        nonlocal dropped
        items: list[Item] = []
        while len(items) < wanted:
            entry = next(entries, None)
            if entry is None:
                raise ZolabError(
                    f"{name} has only {len(seen)} different questions among {room}, "
                    f"expected {train + held_out}: ask for fewer, or for harder ones"
                )
            if entry["question"] in seen:
                dropped += 1
                continue
            seen.add(entry["question"])
            items.append(Item(entry["question"], entry["answer"], entry))
        return tuple(items)

    entries = (data[i] for i in range(room))
    first = fresh(train, entries)
    return Gym(name, first, fresh(held_out, entries), dropped, data.score_answer)
