"""Rewards: plain functions of prompts and completions, weighted, and each one logged.

    f(prompts, completions, **columns) -> list[float | None]          (the form of TRL)
    total_i = sum of w_k r_ik over the scorers k that answered row i

None says "not mine to judge": a row that nobody judged has the total None, which the
advantages leave out of the baseline. A scorer that raises is asked again row by row;
rows on which it raises alone count as None, and are counted. An infinite or NaN reward
is an error: it would be noticed, if at all, as a policy that stopped learning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from zolab.errors import ZolabError
from zolab.rl.batch import Rollout

Reward = Callable[..., list[float | None]]


class RewardError(ZolabError):
    """A scorer's answer is no list of one finite number or None a row."""


@dataclass(frozen=True)
class Judged:
    """`totals`, one a row, None where no scorer answered; `raw`, each scorer's own
    values before any weight; `failed`, rows on which it raised, and `said` what first.
    """

    totals: list[float | None]
    raw: Mapping[str, list[float | None]]
    failed: Mapping[str, int]
    said: Mapping[str, str]

    def metrics(self) -> dict[str, float]:
        """Means over the rows that were judged, for a log."""
        unscored = sum(t is None for t in self.totals)
        found = {"reward": mean(self.totals), "unscored": float(unscored)}
        for name, values in self.raw.items():
            found[f"reward/{name}"] = mean(values)
            found[f"failed/{name}"] = float(self.failed[name])
        return found


@dataclass(frozen=True)
class Rewards:
    """Named scorers with their weights (1 where none is given).

    Rewards({"exact": exact, "short": short}, weights={"short": 0.1})
    """

    scorers: Mapping[str, Reward]
    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.scorers:
            raise RewardError("no scorer: expected at least one")
        if odd := self.weights.keys() - self.scorers.keys():
            raise RewardError(
                f"weights name {sorted(odd)[0]!r}; the scorers are "
                f"{', '.join(self.scorers)}"
            )

    def __call__(self, rollout: Rollout, **columns: Sequence[Any]) -> Judged:
        """Judge every row. `columns` have one value a row, or one a group.

        Scorers also get `stop` and `completion_ids` (a list of ids a row, with EOS).
        """
        given = {k: spread(k, v, rollout) for k, v in columns.items()}
        given["stop"] = list(rollout.stop)
        rows = zip(
            rollout.completion_ids.tolist(), rollout.lengths.tolist(), strict=True
        )
        given["completion_ids"] = [ids[:n] for ids, n in rows]
        given["prompts"], given["completions"] = [*rollout.prompts], [*rollout.texts]
        raw: dict[str, list[float | None]] = {}
        failed, said = {}, {}
        for name, scorer in self.scorers.items():
            raw[name], errors = judge(name, scorer, given)
            failed[name] = len(errors)
            if errors:
                said[name] = errors[0]
        weights = [self.weights.get(name, 1.0) for name in raw]
        totals: list[float | None] = []
        for values in zip(*raw.values(), strict=True):
            known = [
                w * v for w, v in zip(weights, values, strict=True) if v is not None
            ]
            totals.append(sum(known) if known else None)
        return Judged(totals, raw, failed, said)


def judge(
    name: str, scorer: Reward, columns: Mapping[str, list[Any]]
) -> tuple[list[float | None], list[str]]:
    """One value a row, and what the scorer raised on single rows."""
    count = len(columns["completions"])
    try:
        return checked(name, scorer(**columns), count), []
    except RewardError:
        raise
    except Exception:
        values: list[float | None] = []
        errors = []
        for i in range(count):
            one = {k: v[i : i + 1] for k, v in columns.items()}
            try:
                values += checked(name, scorer(**one), 1)
            except RewardError:
                raise
            except Exception as why:
                values.append(None)
                errors.append(f"{type(why).__name__}: {why}")
        return values, errors


def checked(name: str, values: Any, count: int) -> list[float | None]:
    """The values as floats; raises RewardError for what no reward may be."""
    if not isinstance(values, list | tuple) or len(values) != count:
        size = f"{len(values)} values" if isinstance(values, list | tuple) else values
        raise RewardError(
            f"scorer {name} returned {size!r:.40}, expected {count} values"
        )
    found: list[float | None] = []
    for i, v in enumerate(values):
        if v is not None:
            try:
                v = float(v)
            except (TypeError, ValueError):
                raise RewardError(
                    f"scorer {name} returned {v!r:.40} for row {i}, expected a number "
                    "or None"
                ) from None
            if not math.isfinite(v):
                raise RewardError(
                    f"scorer {name} returned {v} for row {i}: return None for a row "
                    "that cannot be judged"
                )
        found.append(v)
    return found


def spread(name: str, values: Sequence[Any], rollout: Rollout) -> list[Any]:
    """A column with one value a row; one value a group goes to each of its rows."""
    if len(values) == len(rollout):
        return list(values)
    groups = int(rollout.group.max()) + 1
    if len(values) != groups:
        raise RewardError(
            f"the column {name} has {len(values)} values, expected {len(rollout)} (one "
            f"a row) or {groups} (one a group)"
        )
    return [values[g] for g in rollout.group.tolist()]


def mean(values: Sequence[float | None]) -> float:
    """Over those that are numbers; NaN of none."""
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else math.nan
