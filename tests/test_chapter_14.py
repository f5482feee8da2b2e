"""Chapter 14: its claims' controls fail, and its record is whole."""

import copy

import pytest
import torch

import zolab
from zolab import lab
from zolab.bench import table
from zolab.bench.fits import score
from zolab.bench.rows import ROWS
from zolab.lab import claims
from zolab.tasks import Sentiment, splits

pytestmark = pytest.mark.usefixtures("one_thread")


def judge(name: str, measured: float, se: float | None = None) -> str:
    return claims.ledger()[name].judge(measured, se)


@pytest.fixture(scope="module")
def record():
    return table.recorded("tiny", device="cpu")


def test_averaging_first_breaks_the_law_of_flat_steps():
    g = torch.Generator().manual_seed(0)
    shares = torch.tensor([0.0, 0.0, 0.2, 0.6])  # two directions turn nobody
    turned = torch.rand(4, 1000, generator=g) < shares[:, None]
    i = torch.randint(1000, (200, 16), generator=g)
    flat = float((~turned[:, i].any(2)).float().mean())
    p = turned.float().mean(1)
    assert judge("flat-steps", flat - float(((1 - p) ** 16).mean())) == claims.HOLDS
    for wrong in ((1 - p.mean()) ** 16, 1 - p.mean()):  # and a law for one sentence
        assert judge("flat-steps", flat - float(wrong)) == claims.NOT_SEEN


def test_shuffled_labels_teach_a_count_nothing():
    model, tokenizer = zolab.load_model("tiny")
    task = Sentiment(tokenizer, words=("down", "up"), max_tokens=24)
    data = splits(train=400, dev=0, test=400)
    (x, y), (held_x, held_y) = (
        lab.states(model, task, s) for s in (data.train, data.test)
    )

    def train(labels: torch.Tensor, seed: int) -> float:
        head = lab.ReadOut(model, task)
        opt = zolab.MeZO(head, lr=0.1, eps=0.1, seed=seed)
        for k in range(60):
            opt.param_groups[0]["lr"] = 0.1 * (1 - k / 60)
            opt.step(lambda: -((head(x) > 0) == (labels > 0.5)).float().mean())
        with torch.no_grad():
            return float(((head(held_x) > 0) == (held_y > 0.5)).float().mean())

    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    for labels, learns in ((y, True), (y[order], False)):
        above = [train(labels, seed) - 0.56 for seed in range(3)]
        verdict = judge("count-objective", *lab.mean_se(above, 1000))
        assert (verdict == claims.SAME) == learns


def test_shuffled_answers_are_ahead_of_nothing(record):
    coins = copy.deepcopy(record)
    g = torch.Generator().manual_seed(0)
    for row in ("mezo", "mezo-lora", "mezo-prefix", "mezo-accuracy"):
        for run in table.judged(coins, row):
            n = run["score"]["n"]
            run["score"] = score(torch.randn(n, generator=g), torch.ones(n))
    rows = {
        "table-beats-bias": ("mezo", "bias"),
        "table-beats-context": ("mezo", "context"),
        "table-beats-probe": ("mezo", "probe"),
        "table-near-adamw": ("mezo", "adamw"),
        "table-adapters": ("mezo-lora", "bias"),
        "table-prefix": ("mezo-prefix", "bias"),
        "table-accuracy": ("mezo-accuracy", "bias"),
        "table-smollm": ("mezo", "context"),
    }
    for name, (row, other) in rows.items():
        assert judge(name, *table.ahead(coins, row, other)) != claims.SAME, name
    perfect = copy.deepcopy(coins)
    for run in table.judged(perfect, "mezo"):
        run["score"] = score(torch.ones(1000), torch.ones(1000))
    for name in ("table-beats-bias", "table-beats-context", "table-beats-probe"):
        assert judge(name, *table.ahead(perfect, *rows[name])) == claims.SAME


def test_inference_is_not_half_of_mezo(record):
    peaks = {row: cost["peak_mb"] for row, cost in record["costs"].items()}
    assert judge("table-memory", peaks["mezo"] / peaks["zero"]) != claims.SAME
    assert judge("table-memory", peaks["mezo"] / peaks["mezo"]) != claims.SAME


def test_the_record_is_whole(record):
    assert set(record["chosen"]) == set(ROWS) and record["failed"] == {}
    for row, r in ROWS.items():
        runs = table.judged(record, row)
        assert len(runs) == (1 if r.how in ("majority", "zero") else 5)
        for run in runs:
            bits = table.right_ones(run["score"])
            assert len(bits) == record["setting"]["held_out"]
            assert float(bits.mean()) == pytest.approx(run["score"]["accuracy"])
        if r.knob:
            tuned = [n for n in record["runs"] if n.startswith(f"{row} tune ")]
            assert len(tuned) == 3, "equal budgets"
