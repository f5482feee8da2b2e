"""Rows of text and label, each with its place: from a file, from a hub, embedded."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from zolab.errors import ZolabError
from zolab.tasks.sentences import splits

FIELD = 1 << 24  # characters; Python's own limit of 131,072 is one long review
FILES = (".csv", ".tsv", ".txt")
INSTALL = 'pip install "datasets>=4"'
Row = tuple[str, str, str]  # where it stands, text, label


class TableError(ZolabError):
    """The data cannot be read, or cannot be trained on."""


def is_file(name: str) -> bool:
    """Whether `name` is a file; raises where it can only be one and is not there."""
    path = Path(name).expanduser()
    if path.is_dir():
        raise TableError(f"{path} is a folder, expected a CSV file in it")
    if path.is_file():
        return True
    if path.suffix.lower() in FILES or name.startswith((".", "/", "~")):
        raise TableError(f"no file {path} (looked from {Path.cwd().name}/)")
    return False


def file_rows(path: Path, text: str, label: str) -> Iterator[Row]:
    """Of a CSV file: UTF-8, a first line with the columns, a field a column."""
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise TableError(
            f"{path}, line {line}: not UTF-8 (byte {error.object[error.start]:#x}); "
            "save it again as UTF-8"
        ) from None
    head = content.partition("\n")[0].rstrip("\r")
    # most columns; of equals the comma
    mark = max(",;\t", key=lambda d: len(next(csv.reader([head], delimiter=d), [])))
    csv.field_size_limit(FIELD)
    lines = csv.reader(io.StringIO(content, newline=""), delimiter=mark, strict=True)
    try:
        columns = [c.strip() for c in next(lines, [])]
        for wanted in (text, label):
            _there(wanted, columns, str(path))
        at, to = columns.index(text), columns.index(label)
        for row in lines:
            where = f"{path}, line {lines.line_num}"
            if row and len(row) != len(columns):
                raise TableError(
                    f"{where}: {len(row)} fields, the first line names {len(columns)}; "
                    f'a text with {mark!r} in it stands in "quotes"'
                )
            if row:
                yield where, row[at], row[to]
    except csv.Error as error:
        raise TableError(f"{path}, line {lines.line_num}: {error}") from None


def _there(wanted: str, columns: Sequence[str], name: str) -> None:
    if columns.count(wanted) != 1:
        which = "no column" if wanted not in columns else "more than one column"
        raise TableError(
            f"{name} has {which} {wanted!r}; there are {', '.join(columns) or 'none'}"
        )


def embedded_rows() -> Iterator[Row]:
    """The 3,000 training sentences that the package carries."""
    for s in splits(train=3000, dev=0).train:
        yield "embedded", s.text, ("blame", "praise")[s.label]


def dataset_rows(
    name: str, text: str, label: str, config: str | None, split: str
) -> Iterator[Row]:
    """Of a data set that the package `datasets` finds; none of its code is run."""
    try:
        import datasets
    except ImportError:
        raise TableError(
            f"no file is called {name!r}. To ask a hub for a data set of that name, "
            f"install the package datasets ({INSTALL}) and restart the kernel"
        ) from None
    if int(datasets.__version__.partition(".")[0]) < 4:
        raise TableError(
            f"datasets {datasets.__version__} may run a data set's own code: {INSTALL}"
        )
    try:
        rows: Any = datasets.load_dataset(name, config, split=split)
    except Exception as why:  # network, name, config, split: it says which
        raise TableError(
            f"no file is called {name!r}, and as a data set (config {config!r}, split "
            f"{split!r}) it cannot be had: {type(why).__name__}: {why}"
        ) from why
    for wanted in (text, label):
        _there(wanted, rows.column_names, name)
    # A ClassLabel stores numbers and has their names; -1 stands for no label.
    names = getattr(rows.features[label], "names", None)
    for i, row in enumerate(rows):
        y = row[label]
        if names is not None:
            y = names[y] if y is not None and y >= 0 else None
        said = row[text]
        yield f"{name}, row {i}", str(said or ""), "" if y is None else str(y)
