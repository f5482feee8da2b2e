"""zolab run executes a notebook without Jupyter, and says exactly where it failed."""

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from zolab import chapters, cli, doctor, ipython_shim, runner


def notebook(folder: Path, *cells: str, name="42_made_up.ipynb", tags=()) -> Path:
    """A notebook of code cells; a leading text cell must not be counted."""
    code = [
        {"cell_type": "code", "source": c.splitlines(True), "metadata": {"tags": tags}}
        for c in cells
    ]
    path = folder / name
    text = {"cell_type": "markdown", "source": ["# title"], "metadata": {}}
    path.write_text(json.dumps({"cells": [text, *code]}), "utf-8")
    return path


def run(capsys, *argv: str) -> tuple[int | str, str, str]:
    """(exit status or message, stdout, stderr) of one command."""
    with pytest.raises(SystemExit) as leave:
        cli.main(argv)
    out, err = capsys.readouterr()
    return leave.value.code, out, err


def test_cells_share_a_namespace_in_order(tmp_path, capsys):
    notebook(tmp_path, "x = 1", "x += 1", "assert x == 2\nx")
    code, out, err = run(
        capsys, "run", "42", "--folder", str(tmp_path), "--scale", "tiny"
    )
    assert code == 0
    assert "chapter 42 made up, scale tiny" in out
    assert "3 cells in" in out
    assert "3/3" in err


def test_cells_see_scale_folder_and_a_last_expression_is_shown(tmp_path, capsys):
    notebook(
        tmp_path,
        "import os, pathlib\nos.environ['ZOLAB_SCALE'], pathlib.Path.cwd().name",
        "1 + 1;",
        "display('two faces')",
    )
    argv = ("run", "--all", "--folder", str(tmp_path), "--scale", "overnight", "--show")
    code, out, _ = run(capsys, *argv)
    assert code == 0
    assert f"('overnight', '{tmp_path.name}')" in out
    assert "'two faces'" in out
    assert "\n2\n" not in out


def test_the_run_leaves_the_process_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOLAB_SCALE", "tiny")
    before = (Path.cwd(), list(sys.path), sys.modules["__main__"])
    chapter = chapters.Chapter("42", notebook(tmp_path, "import sys", "1 / 0"))
    with pytest.raises(chapters.ChapterError):
        runner.run(chapter, scale="gpu")
    assert (Path.cwd(), list(sys.path), sys.modules["__main__"]) == before
    assert runner.os.environ["ZOLAB_SCALE"] == "tiny"


def test_a_failing_cell_names_chapter_cell_and_line(tmp_path, capsys):
    notebook(
        tmp_path, "def f():\n    return 1 / 0", "print('before')\n\nf()", "late = 1"
    )
    code, _, err = run(
        capsys, "run", "42", "--folder", str(tmp_path), "--scale", "tiny"
    )
    assert code == 1
    assert "chapter 42 (42_made_up.ipynb), cell 2/3, line 3:\n    f()" in err
    assert "ZeroDivisionError" in err
    assert "return 1 / 0" in err  # the traceback shows the earlier cell's source
    assert "before" in err
    assert "cell 3" not in err


def test_keep_going_runs_the_rest_and_still_fails(tmp_path, capsys):
    notebook(tmp_path, "raise SystemExit", name="10_stops.ipynb")
    notebook(tmp_path, "x = 1", name="11_works.ipynb")
    argv = ("run", "--all", "--folder", str(tmp_path), "--scale", "tiny")
    code, out, _ = run(capsys, *argv)
    assert code == 1
    assert "chapter 11" not in out
    code, out, err = run(capsys, *argv, "--keep-going")
    assert code == 1
    assert "chapter 11 works" in out
    assert "failed: chapter 10" in err


@pytest.mark.parametrize("line", ["!pip install x", "%%bash", "%run other", "f?"])
def test_a_notebook_command_is_refused(tmp_path, capsys, line):
    notebook(tmp_path, f"x = 1\n{line}")
    code, _, err = run(
        capsys, "run", "42", "--folder", str(tmp_path), "--scale", "tiny"
    )
    assert code == 1
    assert f"'{line}' is a notebook command, not Python" in err
    assert "cell 1/1, line 2" in err


@pytest.mark.parametrize(
    "cell", ["%matplotlib inline\nx = 3", "x = '''\n%run\n!ls'''", "x = 7\\\n% 4"]
)
def test_display_magics_are_blank_and_python_is_left_alone(tmp_path, cell):
    path = notebook(tmp_path, cell, "assert x in (3, '\\n%run\\n!ls')")
    assert len(runner.run(chapters.Chapter("42", path), scale="tiny")) == 2


def test_tags_skip_a_cell_or_expect_it_to_raise(tmp_path):
    skipped = notebook(tmp_path, "1 / 0", tags=["nbval-skip"])
    assert runner.run(chapters.Chapter("42", skipped), scale="tiny") == []
    raising = notebook(tmp_path, "1 / 0", tags=["raises-exception"])
    assert len(runner.run(chapters.Chapter("42", raising), scale="tiny")) == 1
    calm = notebook(tmp_path, "1", tags=["raises-exception"])
    with pytest.raises(chapters.ChapterError, match="should raise and did not"):
        runner.run(chapters.Chapter("42", calm), scale="tiny")


def test_dataclasses_and_inspect_work_in_cells(tmp_path):
    path = notebook(
        tmp_path,
        "from __future__ import annotations\nimport inspect\n"
        "from dataclasses import dataclass\n"
        "@dataclass\nclass A:\n    x: int\n"
        "def f():\n    return A(1)",
        "assert inspect.getsource(f) == 'def f():\\n    return A(1)\\n'\n"
        "import sys\nassert sys.modules['__main__'].f is f",
    )
    assert len(runner.run(chapters.Chapter("42", path), scale="tiny")) == 2


def test_without_jupyter_and_matplotlib(tmp_path):
    """In a fresh interpreter where none of them can be imported."""
    notebook(
        tmp_path,
        "from IPython.display import HTML, display\ndisplay(HTML('<b>bold</b>'))",
        "from importlib.util import find_spec\nassert find_spec('nbformat') is None",
    )
    absent = ["IPython", "ipykernel", "nbformat", "nbclient", "matplotlib", "traitlets"]
    script = (
        f"import sys\nsys.modules.update(dict.fromkeys({absent}))\n"
        "from zolab.cli import main\nmain(sys.argv[1:])"
    )
    argv = ["run", "--all", "--folder", str(tmp_path), "--scale", "tiny", "--show"]
    done = subprocess.run(
        [sys.executable, "-c", script, *argv], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "<b>bold</b>" in done.stdout


def test_ctrl_c_is_clean(tmp_path, capsys):
    notebook(tmp_path, "raise KeyboardInterrupt")
    code, _, err = run(
        capsys, "run", "42", "--folder", str(tmp_path), "--scale", "tiny"
    )
    assert code == 130
    assert "stopped" in err
    assert "Traceback" not in err


def test_the_claims_of_the_run_are_printed_last(tmp_path, capsys, monkeypatch):
    class Claims:
        @staticmethod
        def report() -> str:
            return "the ledger's rows"

    monkeypatch.setitem(sys.modules, "zolab.lab.claims", Claims)
    notebook(tmp_path, "x = 1")
    _, out, _ = run(capsys, "run", "42", "--folder", str(tmp_path), "--scale", "tiny")
    assert out.rstrip().endswith("the ledger's rows")


def test_claims_prints_the_ledger_worst_first(capsys, monkeypatch):
    from zolab.lab import claims

    text = dict.fromkeys((f.name for f in fields(claims.Claim)), "?")
    rows = [
        claims.Claim(**text | {"id": name, "verdict": verdict, "checked": checked})
        for name, verdict, checked in (
            ("good", claims.SAME, True),
            ("bad", claims.NOT_SEEN, False),
        )
    ]
    monkeypatch.setattr(claims, "ledger", lambda: {r.id: r for r in rows})
    code, out, _ = run(capsys, "claims")
    assert code == 0
    assert out.startswith("1 not seen, 1 same direction")
    assert out.index("bad, chapter") < out.index("good, chapter")
    assert "paper: ? (unverified); ?" in out


def test_unknown_chapter_scale_and_folder_name_the_choices(
    tmp_path, capsys, monkeypatch
):
    notebook(tmp_path, "x = 1")
    folder = ("--folder", str(tmp_path))
    code, *_ = run(capsys, "run", "43", *folder)
    assert code == "zolab: no chapter 43; there are 42 (or --all)"
    code, *_ = run(capsys, "run", *folder)
    assert code == "zolab: which chapter?; there are 42 (or --all)"
    code, _, err = run(capsys, "run", "42", *folder, "--scale", "huge")
    assert code == 2
    assert "tiny" in err and "overnight" in err
    monkeypatch.setenv("ZOLAB_SCALE", "huge")
    code, *_ = run(capsys, "run", "42", *folder)
    assert code.endswith("it can be tiny, laptop, overnight, gpu")
    monkeypatch.delenv("ZOLAB_SCALE")
    code, *_ = run(capsys, "run", "42", "--folder", str(tmp_path / "nowhere"))
    assert "no chapter NN_name.ipynb in" in code


def test_a_damaged_notebook_is_one_line(tmp_path, capsys):
    (tmp_path / "42_x.ipynb").write_text("{", "utf-8")
    code, _, err = run(
        capsys, "run", "42", "--folder", str(tmp_path), "--scale", "tiny"
    )
    assert code == 1
    assert "is not a notebook" in err


def test_doctor_reports_and_judges(capsys):
    code, out, _ = run(capsys, "doctor")
    assert code == 0
    for name in ("python", "torch", "numba", "cpu", "memory", "disk", "gpu", "scale"):
        assert f" {name} " in out
    assert "all is well" in out


def test_doctor_fails_where_the_asked_scale_does_not_fit(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "gpu_gb", lambda: 0.0)
    code, out, _ = run(capsys, "doctor", "--scale", "gpu")
    assert code == 1
    assert "gpu does not fit" in out
    assert doctor.fitting_scale() in ("tiny", "laptop")


def test_doctor_sees_a_gpu_that_torch_does_not(monkeypatch):
    monkeypatch.setattr(doctor, "gpu_gb", lambda: 0.0)
    monkeypatch.setattr(doctor, "_driver_gpu", lambda: "NVIDIA Made Up, 8192 MiB")
    check = doctor._gpu()
    assert check.state == "note"
    assert (
        "Made Up" in check.detail and "install a torch build for CUDA" in check.detail
    )


def test_doctor_fails_without_torch_and_tells_a_version_from_the_tested(monkeypatch):
    there = {"torch": None, "numpy": "1.0", "transformers": "99.0"}
    bounds = {"torch": "2.11", "numpy": "2.1"}
    monkeypatch.setattr(doctor, "_version", lambda name: there.get(name))
    monkeypatch.setattr(doctor, "_bounds", lambda: bounds)
    found = {c.name: c for c in doctor._packages()}
    assert found["torch"].state == "bad"
    assert found["numpy"].detail == "1.0; zolab needs 2.1 or newer"
    assert "99.0 (tested with 5." in found["transformers"].detail


def test_the_shim_shows_text_and_not_figures(capsys):
    class Figure:
        def savefig(self): ...

    ipython_shim.display(ipython_shim.Markdown("*so*"), Figure(), 3)
    assert capsys.readouterr().out == "*so*\n[figure]\n3\n"
