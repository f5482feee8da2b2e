"""The digits: the file that was measured, cut so that neighbours stay together."""

import pytest
import torch

from zolab.errors import ZolabError
from zolab.tasks import digits as module
from zolab.tasks import load_digits as load


def nearest(train, test) -> float:
    far = torch.cdist(test.x.flatten(1), train.x.flatten(1))
    return float((train.y[far.argmin(1)] == test.y).float().mean())


def test_the_splits_are_the_file_in_order():
    d = load()
    assert [len(p) for p in (d.train, d.dev, d.test)] == [1000, 297, 500]
    x, y = module._read()
    assert x.shape == (1797, 1, 8, 8) and x.min() >= 0 and x.max() == 1
    counts = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert y.bincount().tolist() == counts
    assert torch.equal(d.test.x, x[1297:]) and torch.equal(d.dev.y, y[1000:1297])
    assert len(x.flatten(1).unique(dim=0)) == 1797  # no picture is there twice


def test_a_random_split_would_be_easier():
    d, (x, y) = load(), module._read()
    assert nearest(d.train, d.test) < 0.965
    easy = torch.randperm(1797, generator=torch.Generator().manual_seed(1))
    parts = [module.Pictures(x[i], y[i]) for i in (easy[:1297], easy[1297:])]
    assert nearest(*parts) > 0.98


def test_train_is_a_function_of_the_seed_and_batches_wrap():
    a, b, c = load(train=40, seed=1), load(train=40, seed=1), load(train=40, seed=2)
    assert torch.equal(a.train.x, b.train.x)
    assert not torch.equal(a.train.y, c.train.y)
    assert torch.equal(a.test.x, c.test.x)
    second = a.train.batch(1, 30)
    assert torch.equal(second.y, torch.cat([a.train.y[30:], a.train.y[:20]]))
    with pytest.raises(ZolabError, match="1,000"):
        load(train=1001)


def test_another_file_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "digits.csv.gz"
    path.write_bytes(module.DIGITS.read_bytes()[:-1])
    monkeypatch.setattr(module, "DIGITS", path)
    module._read.cache_clear()
    with pytest.raises(ZolabError, match="sha256"):
        load()
    module._read.cache_clear()
