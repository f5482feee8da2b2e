"""The bench runs at a tiny size, and what it writes can be read."""

import importlib.util
import json
import sys
from dataclasses import replace

import pytest
import torch

from zolab import estimators as every
from zolab.bench import (
    estimators,
    journal,
    memory,
    methods,
    offload,
    peers,
    precision,
    step,
    streamed,
    zoo,
)
from zolab.bench.__main__ import main
from zolab.bench.record import RESULTS, Line, write
from zolab.bench.shapes import SHAPES, Setting, build

TINY = Setting("cpu", "tiny", (1,), 2)


pytestmark = pytest.mark.usefixtures("one_thread")


def by_name(lines):
    return {x.name.strip().split(",")[0]: x for x in lines}


def test_the_command_prints_and_writes_a_record(tmp_path, capsys):
    arguments = ["--shape", "tiny", "--threads", "1", "--repeats", "1"]
    main(["journal", *arguments, "--out", str(tmp_path)])
    assert "bytes a step" in capsys.readouterr().out
    record = json.loads((tmp_path / "bench-journal-cpu-tiny.json").read_text())
    assert record["versions"]["torch"] == torch.__version__
    assert {"device", "cpu", "threads", "commit", "date", "command", "load"} < set(
        record
    )
    assert str(tmp_path) not in json.dumps(record)
    line = record["lines"][0]
    assert line["median"] == line["min"] == line["max"] == 16 and line["met"]


def test_step_measures_every_job_and_moves_no_weight():
    rounds = step.measure(TINY)
    assert [set(r) for r in rounds] == [{"forwards", "step", "limit", "published"}] * 2
    lines = by_name(step.summarise(rounds, ", 1 thread(s)", "cpu", 1))
    limits = lines["copies alone (the limit)"].values
    assert lines["step / two forwards"].limit in limits
    assert all(v > 0 for x in lines.values() for v in x.values)


def test_copying_kernels_are_taken_back_and_change_nothing():
    model, closure = build(TINY)
    from zolab import MeZO, storage

    opt = MeZO(model, lr=1.0)
    before, kernel = [p.detach().clone() for p in model.parameters()], storage.kernel
    with step.copying():
        opt.step(closure)
    assert storage.kernel is kernel
    assert opt.last.losses[0] == opt.last.losses[1] == closure().item()
    assert all(
        torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)
    )


def test_memory_peaks_are_of_the_child():
    ballast = torch.ones(200_000_000)  # 800 MB here, none of it there
    assert 100 < memory._child("step", TINY) < 800
    assert memory.peak_of("inference", TINY) > ballast.nbytes / 1e6
    assert memory.peak_of("published", TINY) > ballast.nbytes / 1e6


def test_small_updates_and_probes_survive():
    assert precision.update_share(0, stochastic=True) == pytest.approx(1, abs=0.03)
    assert precision.update_share(0, stochastic=False) < 0.06
    assert precision.probe_share(0, rounded=False) == pytest.approx(1, abs=0.03)
    assert precision.probe_share(0, rounded=True) < 0.1


def test_methods_runs_each_in_a_process_and_goes_on_where_it_stopped(tmp_path, capsys):
    options = ["--model", "tiny", "--seconds", "0.2", "--held-out", "8"]
    options += ["--out", str(tmp_path), "--seeds", "1", "--only"]
    assert main(["methods", *options, "inference", "mezo"]) == 0
    assert main(["methods", *options, "mezo", "adamw"]) == 0
    said = capsys.readouterr().out
    assert said.count("  MeZO ") == 1, "the second call found it in the record"
    record = json.loads((tmp_path / "bench-methods-cpu-tiny.json").read_text())
    assert list(record["methods"]) == ["inference", "mezo", "adamw"]
    assert record["methods"]["mezo"]["runs"][0]["lr"] == record["suggestion"]["lr"]
    for name, row in record["methods"].items():
        (run,) = row["runs"]
        seconds, steps, nats, right = run["points"][-1]
        assert 100 < run["peak_mb"] < 1500 and 0 <= right <= 1 and nats > 0
        assert (steps > 0 and seconds >= 0.2) or name == "inference"
    assert str(tmp_path) not in json.dumps(record)


@pytest.mark.parametrize("method", ["lora", "qlora", "adam8"])
def test_methods_of_the_peers_move_what_they_should(method):
    pytest.importorskip("bitsandbytes")
    from zolab import load_model

    model, _ = load_model("tiny")
    whole = sum(p.numel() for p in model.parameters())
    job = methods.Job(method, "tiny", 0, 0.1, 4, 8, lr=1e-2)
    model, step = methods.STEPS[method](model, job)
    moving = {n: p for n, p in model.named_parameters() if p.requires_grad}
    before = {n: p.detach().clone() for n, p in moving.items()}
    ids = torch.arange(20).view(2, 10)
    for _ in range(2):
        step(lambda: model(input_ids=ids, labels=ids).loss)
    assert all(not torch.equal(p, before[n]) for n, p in moving.items())
    size = sum(p.numel() for p in moving.values())
    assert size == whole if method == "adam8" else size < whole / 5
    four = [p for p in model.parameters() if p.dtype == torch.uint8]
    assert bool(four) == (method == "qlora")


PEER = """
def update(model, inputs, loss, eps, lr, seed):
    ballast = [0.0] * 4_000_000
    return loss(model, inputs) - loss(model, inputs)
"""


def test_estimators_measures_rows_and_peers(tmp_path, capsys):
    (tmp_path / "mezo.py").write_text(PEER)
    dist = tmp_path / "mezo-7.0.dist-info"
    dist.mkdir()
    (dist / "METADATA").write_text("Metadata-Version: 2.1\nName: mezo\nVersion: 7.0\n")
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\nPYTHONPATH="$PYTHONPATH:{tmp_path}" exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    options = ["--shape", "tiny", "--repeats", "2", "--out", str(tmp_path)]
    assert main(["estimators", *options, "--only", "fzoo"]) == 0
    assert "peers: none" in capsys.readouterr().out
    options += ["--peers", str(python)]
    assert main(["estimators", *options, "--only", "mezo", "evotorch"]) == 0
    assert "no module evotorch there" in capsys.readouterr().out
    record = json.loads((tmp_path / "bench-estimators-cpu-tiny.json").read_text())
    assert list(record["rows"]) == ["fzoo", "mezo"], "the record was added to"
    fzoo, mezo = record["rows"].values()
    assert fzoo["passes"] == 5 and fzoo["bytes"] == 12 + 4 * 4
    assert mezo["passes"] == 2 and mezo["bytes"] is None and mezo["version"] == "7.0"
    assert estimators.memory(mezo) > 1.05, "32 MB more than inference"
    for row in (fzoo, mezo):
        assert len(row["pairs"]) == 2 and estimators.ratio(row) > 0.5
    assert str(tmp_path) not in json.dumps(record)


PASSES = {"spsa2": 4, "one_sided2": 3, "cge": 3, "forward": 1, "svrg": 6, "rank": 3}
PASSES |= {"es": 4, "es_low": 4, "population": 4, "hizoo": 3, "conservative": 5}
PASSES |= {"blocks": 4, "fzoo": 5}


@pytest.mark.parametrize("name", zoo.ROWS)
def test_every_estimator_has_a_row_that_steps(name, tmp_path):
    model, closure = build(TINY)
    before = closure().item()
    opt, step = zoo.stepper(name, model, tmp_path / "run")
    step(closure)
    assert len(opt.last.losses) == PASSES.get(name, 2)
    assert all(abs(x - before) < 0.5 for x in opt.last.losses) or name == "forward"
    stepped = {s.name for s in opt.space if s.mask}
    assert bool(stepped) == (name in ("smallest", "random", "bits"))


def test_no_estimator_is_forgotten(tmp_path):
    model, _ = build(TINY)
    rows = [r.make(model)["estimator"] for r in zoo.ROWS.values()]
    assert {type(e).__name__ for e in rows} == set(every.__all__) - {
        "Estimator",
        "Keys",
    }
    families = {type(e.family).__name__ for e in rows} - {"str"}
    assert families == {"LowRank", "Subspace", "Blocks", "Coordinates"}


def test_peers_say_what_they_are_beside():
    assert {p.beside for p in peers.PEERS.values()} <= set(zoo.ROWS)


def test_suggestion_sweeps_around_its_lr(tmp_path, capsys):
    options = ["--only", "read-out", "--steps", "3", "--out", str(tmp_path)]
    assert main(["suggestion", *options]) == 0
    assert "best of the sweep" in capsys.readouterr().out
    record = json.loads((tmp_path / "bench-suggestion-cpu-tiny.json").read_text())
    row = record["cases"]["read-out"]
    assert [len(e) for e in row["ends"]] == [3] * len(record["factors"])
    assert row["best"] in [f * row["lr"] for f in record["factors"]]
    assert row["start"] != row["ends"][2][0]


def test_pictures_are_drawn_from_the_records(tmp_path):
    Image = pytest.importorskip("PIL.Image")
    pytest.importorskip("matplotlib")
    from zolab.bench import picture

    for draw in (picture.draw, picture.draw_curves):
        with Image.open(draw(tmp_path / "x.png")) as drawn:
            assert drawn.width == 660 and len(drawn.convert("L").getcolors()) > 10
    record = json.loads((RESULTS / "bench-methods-cpu-smollm2-135m.json").read_text())
    losses = [run["points"][-1][2] for run in record["methods"]["mezo"]["runs"]]
    assert f"MeZO ends at {sum(losses) / len(losses):.2f}" in picture.ALT
    for page in ("book/index.md", "README.md"):
        text = " ".join((RESULTS.parents[2] / page).read_text("utf-8").split())
        assert "front.png" not in text or picture.ALT in text, f"{page}: alt text"


def test_journal_bytes_and_replay():
    lines = by_name(journal.run(TINY))
    assert lines["bytes a step"].values == (16.0,)
    assert lines["replay of a step"].median > 0


@pytest.mark.parametrize(
    ("value", "target", "at_least", "met"),
    [(1.0, 1.1, False, True), (1.2, 1.1, False, False), (1.1, 1.1, False, True)]
    + [(0.9, 0.95, True, False), (0.95, 0.95, True, True), (1.0, None, False, None)],
)
def test_whether_a_target_is_met(value, target, at_least, met):
    assert Line("x", (value,), target, at_least=at_least).met is met


def test_shapes_have_the_published_size(tmp_path):
    s = SHAPES["opt-125m"]
    body = s.layers * (12 * s.width**2 + 13 * s.width)
    ends = s.vocabulary * s.width + 2050 * s.width + 2 * s.width
    assert body + ends == 125_239_296
    assert write("x", TINY, [Line("y", (1.0,))], tmp_path).exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_all_items_run_on_cuda(tmp_path):
    arguments = ["--device", "cuda", "--shape", "tiny", "--repeats", "2"]
    assert main(["all", *arguments, "--out", str(tmp_path)]) == 0
    assert len(list(tmp_path.glob("*.json"))) == 4


def test_streamed_measures_what_it_says():
    lines = streamed.run(TINY)
    assert all(v >= 0 for x in lines for v in x.values)
    up = [x for x in lines if "bytes up" in x.name]
    assert [x.values for x in up] == [(0.0,)] * 3  # both blocks stay in the window
    ratios = [x for x in lines if x.name.startswith("step / max")]
    assert [(x.target, x.limit) for x in ratios] == [(1.10, 1.0)] * 3
    peer = [x for x in lines if "accelerate" in x.name]
    here = importlib.util.find_spec("accelerate") is not None
    assert [x.unit for x in peer] == ["", "s"] * here
    assert all(len(x.values) == TINY.repeats for x in peer)


def test_what_accelerate_answers_is_the_model_s_loss():
    pytest.importorskip("accelerate")
    _, closure = build(TINY)
    with torch.no_grad():
        want = float(closure())
    assert offload.accelerate(TINY)() == (want, want)


def test_zo2_is_asked_on_a_gpu_with_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOLAB_PEERS", str(tmp_path))
    gpu = replace(TINY, device="cuda")
    assert not any("ZO2" in name for name in offload.peers(gpu))
    (tmp_path / "zo2" / "zo2").mkdir(parents=True)
    assert any("ZO2" in name for name in offload.peers(gpu))
    assert not any("ZO2" in name for name in offload.peers(TINY))
