"""Splits that share nothing, padding that changes nothing, floors that hold."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from zolab.errors import ZolabError
from zolab.models import load_model
from zolab.tasks import Sentence, Sentiment, evaluate, loss, overlap, splits
from zolab.tasks import sentences as module
from zolab.tasks.sentiment import fit_bias, margins


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny")


def test_no_sentence_is_in_two_splits():
    s = splits(test=None)
    parts = (s.train, s.dev, s.test, s.transfer)
    for a, b in itertools.combinations(parts, 2):
        assert overlap(a, b) == 0
    sizes = [len(p) for p in parts]
    assert sizes == [1000, 500, 1808, 500]


def test_a_leak_is_seen_and_refused(monkeypatch):
    rows = module._read()
    stolen = rows["train"][0]
    copy = Sentence("  " + stolen.text.upper().replace(" ", "  ") + " !", stolen.label)
    assert overlap(rows["train"], [copy]) == 1
    leaky = {**rows, "test": [replace(s) for s in rows["train"]]}
    monkeypatch.setattr(module, "_read", lambda: leaky)
    with pytest.raises(ZolabError, match="in two splits"):
        splits()


def test_splits_are_a_function_of_the_seed_and_balanced():
    assert splits(seed=3) == splits(seed=3)
    assert splits(seed=3).train != splits(seed=4).train
    shot = splits(shots=16)
    assert sum(s.label for s in shot.train) == 16 == len(shot.train) // 2
    assert set(splits(seed=1, test=None).test) == set(splits(seed=2, test=None).test)
    with pytest.raises(ZolabError, match="8,530"):
        splits(train=5000)


def test_damaged_sentences_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "sentences.json.gz"
    path.write_bytes(module.SENTENCES.read_bytes()[:-9])
    monkeypatch.setattr(module, "SENTENCES", path)
    with pytest.raises(ZolabError, match="sha256"):
        splits()


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_changes_no_margin(tiny, side):
    model, tokenizer = tiny
    task = Sentiment(tokenizer)
    tokenizer.padding_side = side  # the task pads by itself
    rows = sorted(splits().test[:40], key=lambda s: len(s.text))
    pair = [rows[0], rows[-1]]
    with torch.no_grad():
        together = margins(model, task.batch(pair))
        alone = torch.cat([margins(model, task.batch([s])) for s in pair])
    assert torch.allclose(together, alone, atol=1e-4)
    tokenizer.padding_side = "right"


def test_the_short_path_equals_the_full_logits(tiny):
    model, tokenizer = tiny
    batch = Sentiment(tokenizer).batch(splits().test[:4])
    with torch.no_grad():
        logits = model(input_ids=batch.ids, attention_mask=batch.mask).logits
        p = logits[torch.arange(4), batch.last].log_softmax(-1)
        by_hand = p[:, batch.options[1]] - p[:, batch.options[0]]
        assert torch.allclose(margins(model, batch), by_hand, atol=1e-4)


def test_the_loss_is_the_cross_entropy_of_two_options(tiny):
    model, tokenizer = tiny
    batch = Sentiment(tokenizer).batch(splits().test[:8])
    with torch.no_grad():
        got, m = loss(model, batch), margins(model, batch).double()
    by_hand = torch.log1p(torch.exp(-m * (2 * batch.label - 1))).mean()
    assert got.dtype == torch.float32
    assert got.ndim == 0
    assert abs(float(got) - float(by_hand)) < 1e-5


def test_a_long_sentence_keeps_its_prompt(tiny):
    _, tokenizer = tiny
    batch = Sentiment(tokenizer, max_tokens=8).batch([Sentence("so " * 99, 1)])
    assert tokenizer.decode(batch.ids[0, -2:]) == " it was"


def test_a_word_of_two_tokens_is_refused(tiny):
    _, tokenizer = tiny
    with pytest.raises(ZolabError, match="expected 1"):
        Sentiment(tokenizer, words=("terrible", "supercalifragilistic")).options()


def test_batches_are_a_function_of_the_seed(tiny):
    _, tokenizer = tiny
    task, train = Sentiment(tokenizer), splits(train=40).train
    a, b, c = (task.batches(train, 16, seed=s) for s in (0, 0, 1))
    for _ in range(4):
        x, y, z = next(a), next(b), next(c)
        assert torch.equal(x.ids, y.ids)
        assert x.ids.shape != z.ids.shape or not torch.equal(x.ids, z.ids)


def test_a_bias_is_fitted_where_it_should_be():
    margin = torch.tensor([-3.0, -2.0, -1.5, -1.0])
    label = torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert 1.5 < fit_bias(margin, label) < 2.0
    assert fit_bias(margin, torch.ones(4)) > 3.0
    assert fit_bias(margin, torch.zeros(4)) < 1.0


def test_one_scalar_repairs_great_terrible_and_not_up_down(tiny):
    model, tokenizer = tiny
    s = splits(train=150, test=300)
    known = evaluate(model, Sentiment(tokenizer), s.test, train=s.train)
    assert known.bias_only.accuracy > 0.70
    assert known.beats(known.majority) > 3
    wire = Sentiment(tokenizer, words=("down", "up"))
    cut = evaluate(model, wire, s.test, train=s.train)
    assert cut.bias_only.accuracy < 0.62
    assert cut.majority.se == pytest.approx(
        math.sqrt(cut.majority.accuracy * (1 - cut.majority.accuracy) / 300)
    )
    assert 0.49 < cut.majority.accuracy < 0.56


def test_bias_never_sees_the_test_labels(tiny):
    model, tokenizer = tiny
    s = splits(train=60, test=60)
    flipped = [Sentence(t.text, 1 - t.label) for t in s.test]
    task = Sentiment(tokenizer)
    a = evaluate(model, task, s.test, train=s.train)
    b = evaluate(model, task, flipped, train=s.train)
    assert a.bias == b.bias
    assert a.bias_only.accuracy == pytest.approx(1 - b.bias_only.accuracy)
