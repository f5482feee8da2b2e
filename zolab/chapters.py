"""A chapter is a notebook NN_name.ipynb: its cells, and what it says of itself."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from zolab.errors import ZolabError


class ChapterError(ZolabError):
    """A chapter cannot be found or read, or one of its cells failed."""


@dataclass(frozen=True)
class Cell:
    """A code cell: its place among the code cells from 1, its source, its tags."""

    number: int
    source: str
    tags: frozenset[str]

    @property
    def first_line(self) -> str:
        """The first line of code or comment, to tell cells apart in a report."""
        return next((s for s in self.source.splitlines() if s.strip()), "")


@dataclass(frozen=True)
class About:
    """What a chapter declares, the notebook's metadata under "zolab".

    `needs` are chapters, `symbols` names of book/notation.md, `papers` keys of
    book/references.bib or arXiv numbers; `ran` is the stamp of its stored outputs.
    """

    chapter: str
    question: str
    minutes: int
    part: int
    needs: tuple[str, ...] = ()
    symbols: tuple[str, ...] = ()
    papers: tuple[str, ...] = ()
    ran: dict[str, Any] | None = None


@dataclass(frozen=True)
class Chapter:
    """A notebook NN_name.ipynb; `number` is "NN"."""

    number: str
    path: Path

    @property
    def name(self) -> str:
        """The file's name in words, without its number."""
        return self.path.stem.partition("_")[2].replace("_", " ")

    @property
    def title(self) -> str:
        """The heading of the first cell, else the file's name."""
        lines = "\n".join(self.texts()).splitlines()
        heads = (s[2:].strip() for s in lines if s.startswith("# "))
        return next(heads, self.name)

    @property
    def about(self) -> About:
        """What it declares; raises ChapterError on a word that means nothing."""
        row = self._json.get("metadata", {}).get("zolab", {})
        unknown = set(row) - {f.name for f in fields(About)}
        if unknown:
            raise ChapterError(f"{self.path.name} declares {sorted(unknown)}: unknown")
        lists = {k: tuple(v) for k, v in row.items() if isinstance(v, list)}
        try:
            return About(**row | lists)
        except TypeError as error:
            raise ChapterError(
                f"{self.path.name} declares too little: {error}"
            ) from None

    def cells(self) -> list[Cell]:
        """The code cells that hold anything; raises ChapterError on a damaged file."""
        found = []
        for number, c in enumerate(self._of_kind("code"), 1):
            tags = frozenset(c.get("metadata", {}).get("tags", ()))
            found.append(Cell(number, "".join(c["source"]), tags))
        return [c for c in found if c.source.strip()]

    def texts(self) -> list[str]:
        """The sources of the markdown cells."""
        return ["".join(c["source"]) for c in self._of_kind("markdown")]

    def outputs(self) -> list[dict[str, Any]]:
        """All stored outputs, in order."""
        return [o for c in self._of_kind("code") for o in c.get("outputs", ())]

    def _of_kind(self, kind: str) -> list[dict[str, Any]]:
        try:
            return [c for c in self._json["cells"] if c["cell_type"] == kind]
        except (KeyError, TypeError) as error:
            raise ChapterError(f"{self.path} is not a notebook: {error!r}") from error

    @cached_property
    def _json(self) -> dict[str, Any]:
        try:
            return json.loads(self.path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ChapterError(f"{self.path} is not a notebook: {error!r}") from error


def find(folder: Path | None = None) -> dict[str, Chapter]:
    """The chapters by number: of `folder`, ./notebooks, or the package's checkout.

    Raises ChapterError when there is no such folder or it holds no chapter.
    """
    places = [Path("notebooks"), Path(__file__).parent.parent / "notebooks"]
    if folder is not None:
        places = [folder]
    for place in places:
        paths = sorted(place.glob("[0-9][0-9]_*.ipynb"))
        if paths:
            return {p.name[:2]: Chapter(p.name[:2], p.resolve()) for p in paths}
    where = " or ".join(str(p) for p in places)
    raise ChapterError(f"no chapter NN_name.ipynb in {where}: run it in a checkout")
