"""Loading: every error is one clear sentence, and a damaged file never loads."""

import hashlib
import random
import shutil
import subprocess
import zipfile
from dataclasses import replace

import pytest
import torch

from zolab import assets, models
from zolab.assets import AssetError, cached, check, fetch
from zolab.models import DATA, load_model

PARAGRAPH = (
    "The first half of the movie is slow, but the actors are good and the ending made "
    "me cry. I would see it again with my family, there is a lot to laugh about."
)


def nats(model, tokenizer, text: str) -> float:
    batch = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        return float(model(**batch, labels=batch["input_ids"]).loss)


def test_tiny_has_read_english_and_a_random_start_has_not():
    model, tokenizer = load_model("tiny")
    words = PARAGRAPH.split()
    random.Random(0).shuffle(words)
    plain, shuffled = (nats(model, tokenizer, t) for t in (PARAGRAPH, " ".join(words)))
    assert plain < 4.7
    assert shuffled > plain + 0.7
    blank, _ = load_model("random:tiny")
    assert nats(blank, tokenizer, PARAGRAPH) > 8


def test_tiny_is_small_and_ordinary():
    model, tokenizer = load_model()
    assert sum(p.numel() for p in model.parameters()) == 1_180_800
    assert not model.training
    assert next(model.parameters()).dtype == torch.float32
    size = sum(f.stat().st_size for f in (DATA / "tiny").iterdir())
    assert size < 5_000_000
    assert tokenizer.decode(tokenizer("It was great .")["input_ids"][1:]) == (
        " it was great."
    )


def test_random_weights_come_from_the_seed_alone():
    before = torch.get_rng_state()
    a, _ = load_model("random:tiny", seed=1)
    b, _ = load_model("random:tiny", seed=1)
    c, _ = load_model("random:tiny", seed=2)
    first = [next(m.parameters()) for m in (a, b, c)]
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])
    assert torch.equal(before, torch.get_rng_state())


def test_a_folder_loads_and_a_damaged_one_says_so(tmp_path, monkeypatch):
    home = tmp_path / "tiny"
    shutil.copytree(DATA / "tiny", home)
    model, _ = load_model(str(home), dtype=torch.bfloat16)
    assert next(model.parameters()).dtype == torch.bfloat16
    weights = home / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(AssetError, match="not a model folder"):
        load_model(str(home))
    monkeypatch.setattr(models, "DATA", tmp_path)
    with pytest.raises(AssetError, match="sha256"):
        load_model("tiny")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("smolm2-135", "mean smollm2-135m"),
        ("tinny", "mean tiny"),
        ("random:opt-13b", "opt-1.3b"),
        ("./nowhere", "no such folder"),
    ],
)
def test_an_unknown_name_gets_its_closest_match(name, says):
    with pytest.raises(AssetError, match=says):
        load_model(name)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A registry of one package: the client call is replaced, the rest is real."""
    body = b"weights " * 100
    asset = assets.Asset(
        "pack", "1.0", "pip", "in/w.bin", hashlib.sha256(body).hexdigest(), 800, "MIT"
    )
    monkeypatch.setitem(assets.ASSETS, "pack", asset)
    monkeypatch.setenv("ZOLAB_CACHE", str(tmp_path / "cache"))
    state = {"body": body, "asset": asset, "calls": 0}

    def client(command, **_):
        state["calls"] += 1
        if state["body"] is None:
            return subprocess.CompletedProcess(command, 1, "", "no route")
        folder = command[command.index("--dest") + 1]
        with zipfile.ZipFile(f"{folder}/pack-1.0.whl", "w") as box:
            box.writestr("in/w.bin", state["body"])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(assets.subprocess, "run", client)
    return state


def leftovers(tmp_path):
    return [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


def test_a_download_is_checked_once_and_then_cached(package):
    path = fetch("pack")
    assert path.read_bytes() == package["body"]
    assert fetch("pack") == path
    assert package["calls"] == 1


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"weights " * 99, "792 bytes, expected 800"),
        (b"WEIGHTS " * 100, "sha256"),
        (None, "no route"),
    ],
)
def test_a_bad_download_leaves_nothing_in_the_cache(package, tmp_path, body, says):
    package["body"] = body
    with pytest.raises(AssetError, match=says):
        fetch("pack")
    assert leftovers(tmp_path) == []


def test_a_cached_file_that_rotted_is_refused(package):
    path = fetch("pack")
    path.write_bytes(b"w" * 800)
    with pytest.raises(AssetError, match="Delete it"):
        fetch("pack")


def test_a_client_that_never_answers_is_given_up(package, tmp_path, monkeypatch):
    def hang(command, *, timeout, **_):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(assets.subprocess, "run", hang)
    with pytest.raises(AssetError, match="no answer in 1 s"):
        fetch("pack", timeout=1.0)
    assert leftovers(tmp_path) == []


def test_without_npm_the_error_names_it(package, monkeypatch):
    monkeypatch.setitem(assets.ASSETS, "pack", replace(package["asset"], client="npm"))
    monkeypatch.setattr(assets.shutil, "which", lambda _: None)
    with pytest.raises(AssetError, match="npm only"):
        fetch("pack")


def test_check_knows_a_good_file(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"x")
    check(path, hashlib.sha256(b"x").hexdigest(), size=1)


@pytest.mark.skipif(cached("smollm2-135m") is None, reason="smollm2 is not cached")
def test_smollm2_after_four_bits_still_knows_france():
    model, tokenizer = load_model("smollm2-135m")
    batch = tokenizer("The capital of France is", return_tensors="pt")
    out = model.generate(**batch, max_new_tokens=1, do_sample=False)
    assert tokenizer.decode(out[0][-1]) == " Paris"
