"""pyproject.toml is the only list; every other file must follow from it."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

# Declared, yet no file imports it: why it is on the list all the same.
NOT_IMPORTED = {
    "gguf": "transformers reads GGUF files with it",
    "ipykernel": "the kernel that runs the notebooks",
    "jupyter-book": "make book runs it",
    "jupyterlab": "make lab runs it",
    "mypy": "make test runs it",
    "nbdime": "git shows notebooks with it",
    "nbval": "a plug-in of pytest",
    "pytest-timeout": "a plug-in of pytest",
    "ruff": "make test runs it",
    "sphinx-mathjax-offline": "the book's formulas without a network",
    "types-pyyaml": "types for the checker",
}

# Imported, yet not declared: where it is missing, the code goes on without it.
# All but the first two are what benches are compared with, in environments of their
# own: one wants an older transformers.
OPTIONAL = {"datasets", "ipython", "evotorch", "mezo", "torchao", "torchopt"}
OPTIONAL |= {"torchzero", "trl"}


def requirements(lines: list[str]) -> dict[str, Requirement]:
    found = [Requirement(line) for line in lines]
    return {canonicalize_name(r.name): r for r in found if r.name != "zolab"}


CORE = requirements(PROJECT["dependencies"])
EXTRAS = {k: requirements(v) for k, v in PROJECT["optional-dependencies"].items()}
DECLARED = CORE | {k: v for extra in EXTRAS.values() for k, v in extra.items()}


def constraints() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    return requirements([s for s in lines if s and not s.startswith("#")])


def sources() -> dict[Path, str]:
    """Every Python file and, cells joined, every notebook."""
    found = {}
    folders = (
        "zolab",
        "scripts",
        "tests",
        "notebooks",
        "exercises",
        "solutions",
        "book",
    )
    for folder in folders:
        for path in (ROOT / folder).rglob("*.py"):
            found[path] = path.read_text("utf-8")
        for path in (ROOT / folder).glob("*.ipynb"):
            cells = json.loads(path.read_text("utf-8"))["cells"]
            code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
            found[path] = re.sub(r"^\s*[%!].*$", "", "\n".join(code), flags=re.M)
    found[ROOT / "conftest.py"] = (ROOT / "conftest.py").read_text("utf-8")
    return found


def third_party(source: str) -> set[str]:
    """Top-level names imported from neither the standard library nor this tree."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {a.name.partition(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module.partition(".")[0])
    ours = {"zolab"} | {p.stem for p in ROOT.glob("*.py")}
    ours |= {p.stem for f in ("tests", "scripts") for p in (ROOT / f).glob("*.py")}
    return names - set(sys.stdlib_module_names) - ours


@cache
def packages_distributions() -> dict[str, set[str]]:
    """Module -> the packages that bring it, in this environment."""
    found = metadata.packages_distributions()
    return {m: {canonicalize_name(d) for d in ds} for m, ds in found.items()}


def distribution(module: str) -> str:
    """The package that brings `module`; its own name where it is not installed."""
    return min(packages_distributions().get(module, {canonicalize_name(module)}))


def imported() -> dict[str, set[str]]:
    """Package -> the files that import it."""
    by_package: dict[str, set[str]] = {}
    for path, source in sources().items():
        for module in third_party(source):
            files = by_package.setdefault(distribution(module), set())
            files.add(str(path.relative_to(ROOT)))
    return by_package


def conda() -> dict:
    return yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))


def test_conda_brings_only_python_and_pip():
    plain = [d for d in conda()["dependencies"] if isinstance(d, str)]
    names = {re.match(r"[\w-]+", d)[0] for d in plain}
    assert names == {"python", "pip"}
    assert conda()["channels"] == ["conda-forge"]


def test_conda_python_range_is_the_projects():
    plain = [d for d in conda()["dependencies"] if isinstance(d, str)]
    (python,) = [d for d in plain if d.startswith("python")]
    wanted = SpecifierSet(PROJECT["requires-python"])
    assert SpecifierSet(python.removeprefix("python")) == wanted


def test_conda_leaves_the_rest_to_pip():
    (pip,) = [d for d in conda()["dependencies"] if isinstance(d, dict)]
    assert pip == {"pip": ["-e .[all]"]}


def test_all_is_every_extra_but_peers_and_what_pins_hard():
    (line,) = PROJECT["optional-dependencies"]["all"]
    assert Requirement(line).extras == set(EXTRAS) - {"all", "gym", "peers"}


def test_every_import_is_declared():
    known = DECLARED.keys() | OPTIONAL
    missing = {k: v for k, v in imported().items() if k not in known}
    assert not missing, "imported, but not in pyproject.toml"


def test_every_declared_package_is_imported_or_excused():
    idle = set(DECLARED) - set(imported()) - set(NOT_IMPORTED)
    assert not idle, "in pyproject.toml, but no file imports it"
    assert not set(NOT_IMPORTED) - set(DECLARED), "excused, but not declared"


def test_every_module_imports_with_torch_and_transformers_alone():
    """A GPU server has no notebook packages, often no numba: zolab works there."""
    absent = (set(NOT_IMPORTED) | set(DECLARED)) - {"torch", "numpy", "packaging"}
    absent -= {"transformers", "tokenizers", "safetensors", "huggingface-hub"}
    absent -= {"tqdm", "pyyaml"}
    blocked = {m for m, d in packages_distributions().items() if absent & d}
    names = "coded_cpu", "coded_gpu", "cpu", "gpu", "lanes", "select"
    kernels = [f"zolab.storage.{m}" for m in names]
    own = ["zolab.__main__", *kernels]
    script = f"""
import importlib, pkgutil, sys
sys.modules.update(dict.fromkeys({sorted(blocked | {"IPython"})}))
import zolab
for m in pkgutil.walk_packages(zolab.__path__, "zolab."):
    if m.name not in {own}:
        importlib.import_module(m.name)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("name", sorted(DECLARED))
def test_declared_package_is_pinned_within_its_bound(name: str):
    assert name in constraints(), "not in constraints.txt"
    (pin,) = constraints()[name].specifier
    assert pin.operator == "=="
    assert DECLARED[name].specifier.contains(pin.version)
    assert DECLARED[name].marker == constraints()[name].marker


def test_files_name_no_place_to_install_from():
    for name in ("pyproject.toml", "constraints.txt", "environment.yml", "Makefile"):
        text = (ROOT / name).read_text("utf-8")
        assert not re.search(r"https?://|index-url|find-links|file:", text), name


def test_import_list_sees_what_it_should():
    source = "import os, numpy.linalg\nfrom yaml import load\nfrom . import x\n"
    assert third_party(source + "import zolab.noise") == {"numpy", "yaml"}
    assert distribution("yaml") == "pyyaml"
