"""A reader's own data: a table of texts and labels, split by the texts alone.

A CSV file, the name of a data set on a hub, or "embedded". Which split a text falls
into is a hash of the text: the same in every run and on every machine, and rows that
are added later move no other row, so a test sentence never becomes a training one.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from zolab.tasks.readers import (
    Row,
    TableError,
    dataset_rows,
    embedded_rows,
    file_rows,
    is_file,
)
from zolab.tasks.sentences import Sentence, Splits


@dataclass(frozen=True)
class Table:
    """Sentences without duplicates; label i of a sentence is `labels[i]`.

    `left_out` counts the rows that are not here, by reason.
    """

    sentences: tuple[Sentence, ...]
    labels: tuple[str, str]
    left_out: Mapping[str, int] = field(default_factory=dict)

    def splits(self, *, dev: float = 0.1, test: float = 0.1) -> Splits:
        """Shares by hash of the text; the rest is train.

        Raises TableError when a split has no sentence of some label.
        """
        if not (dev > 0 and test > 0 and dev + test < 1):
            raise TableError(f"dev {dev} and test {test}: shares above 0, sum below 1")
        parts: dict[str, list[Sentence]] = {"test": [], "dev": [], "train": []}
        for s in self.sentences:
            place = _place(s.text)
            name = "test" if place < test else "dev" if place < test + dev else "train"
            parts[name].append(s)
        for name, rows in parts.items():
            for i, label in enumerate(self.labels):
                if all(s.label != i for s in rows):
                    raise TableError(
                        f"{name} has no sentence labelled {label!r}: "
                        f"{len(self.sentences)} sentences are too few to split"
                    )
        made = {name: tuple(rows) for name, rows in parts.items()}
        return Splits(**made, transfer=())


def read_table(
    source: str | os.PathLike[str],
    *,
    text: str = "text",
    label: str = "label",
    labels: Sequence[str] | None = None,
    config: str | None = None,
    split: str = "train",
    empty: str = "raise",
) -> Table:
    """The rows of a CSV file, of a hub's data set, or the "embedded" sentences.

    text, label: the columns.  labels: the two to keep, in the order of the task's two
    words; None takes both that there are, sorted.  A file is UTF-8, its first line
    names the columns, and a comma, semicolon or tab parts them.  A data set (with
    `config` and `split`) needs the package `datasets`.  empty="drop" leaves rows
    without text or label out and counts them; "raise" refuses them.

    Texts that agree in letters and digits are one; with two labels they are left out.
    Raises TableError, which says what was found.
    """
    if empty not in ("raise", "drop"):
        raise TableError(f"empty={empty!r}, expected 'raise' or 'drop'")
    name = os.fspath(source)
    if name == "embedded":
        rows: Iterable[Row] = embedded_rows()
    elif is_file(name):
        rows = file_rows(Path(name).expanduser(), text, label)
    else:
        rows = dataset_rows(name, text, label, config, split)
    return _table(rows, name, labels, empty)


def write_csv(path: str | os.PathLike[str], table: Table) -> Path:
    """The table as a CSV that `read_table` reads: columns text and label."""
    with Path(path).open("w", encoding="utf-8", newline="") as file:
        out = csv.writer(file)
        out.writerow(["text", "label"])
        out.writerows([s.text, table.labels[s.label]] for s in table.sentences)
    return Path(path)


def same_text(text: str) -> str:
    """What two copies of a text share: letters and digits of any script, no case."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return re.sub(r"[\W_]+", "", plain) or text.strip()


def _place(text: str) -> float:
    digest = hashlib.blake2b(same_text(text).encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _table(
    rows: Iterable[Row], name: str, labels: Sequence[str] | None, empty: str
) -> Table:
    left_out: Counter[str] = Counter()
    seen: dict[str, list[tuple[str, str]]] = {}
    for where, text, label in rows:
        text, label = " ".join(text.split()), label.strip()
        if not text or not label:
            what = "label" if text else "text"
            if empty == "raise":
                raise TableError(
                    f"{where}: the {what} is empty; fill it, delete the row, or leave "
                    "such rows out with empty='drop'"
                )
            left_out[f"empty {what}"] += 1
        elif labels is not None and label not in labels:
            left_out[f"label {label}"] += 1
        else:
            seen.setdefault(same_text(text), []).append((text, label))
    kept = []
    for copies in seen.values():
        if len({label for _, label in copies}) > 1:
            left_out["same text, two labels"] += len(copies)
        else:
            kept.append(copies[0])
            left_out["duplicate"] += len(copies) - 1
    two = _two(Counter(label for _, label in kept), name, labels)
    sentences = tuple(Sentence(text, two.index(label)) for text, label in kept)
    return Table(sentences, two, {k: n for k, n in left_out.items() if n})


def _two(
    found: Counter[str], name: str, labels: Sequence[str] | None
) -> tuple[str, str]:
    told = ", ".join(f"{k} ({n} rows)" for k, n in found.most_common(6))
    told += ", ..." if len(found) > 6 else ""
    if labels is not None and (len(labels) != 2 or set(labels) - found.keys()):
        raise TableError(f"{name}: labels={list(labels)}, expected two of: {told}")
    if len(found) > 2:
        raise TableError(
            f"{name} has {len(found)} labels: {told}. The task has two words to choose "
            "from, so name two of them, labels=(first, second); or is this column no "
            "label?"
        )
    if len(found) < 2:
        raise TableError(f"{name} has one label: {told}" if found else f"{name}: empty")
    first, second = labels if labels is not None else sorted(found)
    return first, second
