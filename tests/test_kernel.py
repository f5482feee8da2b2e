"""A chapter saved from a kernel: outputs, a stamp, and nothing of a failed run."""

import json

import pytest

from zolab import chapters, fresh, kernel

ABOUT = {"chapter": "42", "question": "Why?", "minutes": 10, "part": 4}
CELLS = [
    "from zolab import direction, lab, make_key\nprint('one')\nprint('two')",
    "z = direction(make_key(0, 0, 0), 'w', 3)\n"
    "lab.frames(lambda ax, n: ax.plot(z), n=[1, 2],\n"
    "           alt=lambda n: f'three random signs, {n} times')",
]


def written(tmp_path, cells):
    rows = [
        {"cell_type": "code", "id": f"c{i}", "metadata": {}, "source": s,
         "execution_count": None, "outputs": []}
        for i, s in enumerate(cells)
    ]  # fmt: skip
    nb = {"cells": rows, "metadata": {"zolab": ABOUT}, "nbformat": 4}
    path = tmp_path / "42_test.ipynb"
    path.write_text(json.dumps(nb | {"nbformat_minor": 5}))
    return chapters.Chapter("42", path)


def test_outputs_are_stored_with_a_stamp(tmp_path):
    kernel.save(written(tmp_path, CELLS), scale="tiny")
    saved = chapters.find(tmp_path)["42"]
    printed, drawn = saved.outputs()
    assert "".join(printed["text"]) == "one\ntwo\n", "one output for two prints"
    assert "zolab-frames" in "".join(drawn["data"]["text/html"])
    assert kernel.WIDGET not in drawn["data"], "no dead widget"
    ran = saved.about.ran
    assert ran["scale"] == "tiny"
    assert "zolab.noise" in ran["modules"], "also what is imported when it is used"
    assert "zolab.lab.figures" not in ran["modules"]
    assert len(saved.cells()) == 2, "the question for modules is not kept"
    assert fresh.stale(ran, CELLS) == []
    assert fresh.stale(ran, [CELLS[0], CELLS[1].replace("3", "4")]) == ["the cells"]


def test_a_failed_run_writes_nothing(tmp_path):
    chapter = written(tmp_path, ["x = 1", "1 / 0"])
    before = chapter.path.read_bytes()
    with pytest.raises(chapters.ChapterError, match="(?s)nothing saved.*ZeroDivision"):
        kernel.save(chapter, scale="tiny")
    assert chapter.path.read_bytes() == before
