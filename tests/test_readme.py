"""The README's program runs as printed, on the embedded model."""

import re
from pathlib import Path

import pytest
from helpers import same_bits

import zolab
from zolab import lab

ROOT = Path(__file__).parent.parent
PACKED = "bench-quantized-cpu-opt-125m-int4"
SAID = {  # what begins a row or a sentence of the README: its records, the lines there
    "int4 weights: step": (f"{PACKED} {PACKED}-another", r"\w+: step / two forwards"),
    "int4 weights: peak": (PACKED, "qzo: peak|  the same of the process"),
    "And learning from": ("bench-rl-cpu-sorting", "(CPU seconds|peak of the).* / trl"),
}


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


@pytest.mark.parametrize("begins", SAID)
def test_its_numbers_are_the_records(begins):
    """Medians to two digits, and nothing that the record does not say."""
    names, lines = SAID[begins]
    text = (ROOT / "README.md").read_text("utf-8")
    said = text[text.index(begins) :].split("\n\n" if "And" in begins else "\n")[0]
    numbers = re.findall(r"(?<![\w.])(?<!TRL )\d\.\d\d(?!\d)", said)
    found, targets = [], []
    for line in [x for name in names.split() for x in lab.recorded(name)["lines"]]:
        if re.match(lines, line["name"]):
            found.append(f"{line['median']:.2f}")
            targets.append(f"{line['target'] or 0:.2f}")
    assert found and set(numbers) <= {*found, *targets}
    assert max(found) in numbers and min(found) in numbers
