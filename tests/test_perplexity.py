"""Perplexity: the model's own loss, text by text."""

import math

import pytest
import torch

import zolab
from zolab.errors import LossError
from zolab.tasks.perplexity import nats, perplexity, some, texts, tokens, worse

LINES = ["a good film .", "it was not what i had hoped for , and long", "so bad it is"]


def test_it_is_the_loss_of_the_model():
    model, tokenizer = zolab.load_model("tiny")
    batch = texts(tokenizer, LINES, max_tokens=9)
    assert tuple(batch["input_ids"].shape) == (3, 9)
    with torch.no_grad():
        want = math.exp(float(model(**batch).loss))
    assert perplexity(model, batch) == pytest.approx(want, rel=1e-5)
    each = nats(model, batch, size=2)
    for i in range(3):  # alone, a text is not padded
        own = texts(tokenizer, LINES[i : i + 1], max_tokens=9)
        assert float(nats(model, own)) == pytest.approx(float(each[i]), rel=1e-5)
    assert tokens(some(batch, [0, 2])) == sum(
        tokens(texts(tokenizer, [LINES[i]], max_tokens=9)) for i in (0, 2)
    )


def test_a_paired_difference_has_a_small_error():
    g = torch.Generator().manual_seed(0)
    labels = torch.ones(400, 11, dtype=torch.long)
    theirs = 50 + 10 * torch.randn(400, generator=g, dtype=torch.float64)
    mine = theirs + 1 + 0.5 * torch.randn(400, generator=g, dtype=torch.float64)
    gap, se = worse(mine, theirs, {"labels": labels})
    assert gap == pytest.approx(0.1, abs=3 * se)
    assert se == pytest.approx(0.5 / 10 / 20, rel=0.1)


def test_a_text_of_one_token_is_refused():
    _, tokenizer = zolab.load_model("tiny")
    with pytest.raises(LossError, match="less than two tokens"):
        texts(tokenizer, ["", "a good film"])
