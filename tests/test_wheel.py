"""The wheel carries the data: models, data sets, the claims and the recorded runs."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_wheel_holds_every_file_of_the_package(tmp_path):
    source = tmp_path / "source"
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "zolab", source / "zolab", ignore=skip)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    # setuptools is here, because torch needs it: nothing is fetched.
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
        + ["--wheel-dir", tmp_path, source],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    ours = (p for p in (ROOT / "zolab").rglob("*") if p.is_file())
    files = {p.relative_to(ROOT).as_posix() for p in ours}
    files = {f for f in files if "__pycache__" not in f}
    assert files <= packed
    assert not {f for f in packed - files if ".dist-info/" not in f}
