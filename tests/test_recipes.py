"""Every recipe runs as printed, and its numbers are those of a run or of a record."""

import importlib.util
import re
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "book" / "recipes").glob("*.md"))
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?(?![\w])")
FACTOR = 5.0  # another processor sums in another order, and eps has a grid of 4

spec = importlib.util.spec_from_file_location("recipes", ROOT / "scripts/recipes.py")
recipes = importlib.util.module_from_spec(spec)
spec.loader.exec_module(recipes)

pytestmark = pytest.mark.usefixtures("one_thread")


def alike(a: str, b: str) -> bool:
    """The same words, and numbers of the same size."""
    if NUMBER.sub("0", a).split() != NUMBER.sub("0", b).split():
        return False
    pairs = zip(NUMBER.findall(a), NUMBER.findall(b), strict=True)
    for x, y in (
        (float(x.replace(",", "")), float(y.replace(",", ""))) for x, y in pairs
    ):
        if x != y and not (x * y > 0 and 1 / FACTOR <= x / y <= FACTOR):
            return False
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_the_page_runs_and_shows_what_it_printed(page, tmp_path, monkeypatch):
    text = page.read_text("utf-8")
    monkeypatch.chdir(tmp_path)
    began = time.process_time()
    made = recipes.render(text, page.name)
    seconds = time.process_time() - began
    assert seconds < 40, f"{seconds:.0f} s; a page has 20 on a quiet machine"

    def parts(t, pattern):
        return [m.group(0) for m in re.finditer(pattern, t, re.S | re.M)]

    tables = r"<!-- begin: .*?<!-- end -->"
    assert parts(text, tables) == parts(made, tables), "run scripts/recipes.py"
    outputs = r"^```text output\n.*?^```$"
    for old, new in zip(parts(text, outputs), parts(made, outputs), strict=True):
        assert alike(old, new), f"the page shows\n{old}\nbut the run printed\n{new}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_the_page_is_in_form(page):
    text = page.read_text("utf-8")
    assert text.startswith("# ")
    assert "```python run" in text, "a recipe runs"
    fences = re.findall(r"^```(.+)$", text, re.M)
    known = ("python run", "text output", "python", "bash", "text", "{")
    assert all(f.startswith(known) for f in fences), fences
    assert text.count("<!-- begin:") == text.count("<!-- end -->")
    for block in re.findall(r"^```python run\n(.*?)^```$", text, re.S | re.M):
        assert max(map(len, block.splitlines())) <= 80
    for alt, path in re.findall(r"!\[(.*?)\]\((.*?)\)", text, re.S):
        assert len(alt.split()) > 5 and (page.parent / path).exists()


def test_blocks_share_a_namespace_and_errors_name_the_pages_line(tmp_path):
    page = (
        "# x\n```python run\na = 2\nprint(a)\n```\n```python\nraise SystemExit\n```\n"
        "```text output\nold\n```\n```python run\nprint(a + 1)\n```\n"
        "```text output\n```\n<!-- begin: os:getcwd -->\n<!-- end -->\n"
    )
    made = recipes.render(page)
    assert "```text output\n2\n```" in made and "```text output\n3\n```" in made
    assert str(Path.cwd()) in made
    with pytest.raises(ZeroDivisionError) as why:
        recipes.render("# x\n\n```python run\n1 / 0\n```\n", "page.md")
    assert why.traceback[-1].lineno + 1 == 4


def test_alike_sees_words_signs_and_sizes():
    assert alike("lr 1.0e-03 over 16", "lr 2.0e-03 over 16")
    assert not alike("lr 1.0e-03", "lr 1.0e-02") and not alike("lr 1", "eps 1")
    assert not alike("loss -0.1", "loss 0.1") and alike("0.0 a", "0.0 a")
    assert not alike("0.693", "nan")
