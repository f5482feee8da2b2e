"""The README's program runs as printed, on the embedded model."""

import re
from pathlib import Path

from helpers import same_bits

import zolab

ROOT = Path(__file__).parent.parent


def test_the_ten_lines_run_and_the_replay_is_bit_equal(tmp_path, monkeypatch):
    text = (ROOT / "README.md").read_text("utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, re.S)
    lines = [s for s in block.splitlines() if s.strip()]
    assert len(lines) <= 10, "the README promises ten lines"
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(block, "README.md", "exec"), names)
    assert names["loss"] > 0
    assert (tmp_path / "run.zolab").stat().st_size > 0
    assert same_bits(names["model"], names["again"])
    base, _ = zolab.load_model(names["name"])
    assert not same_bits(names["model"], base), "it did not move"


def test_every_make_target_of_the_readme_exists():
    text = (ROOT / "README.md").read_text("utf-8")
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), re.M)
    assert set(re.findall(r"\bmake (\w+)\b", text)) <= set(targets)
