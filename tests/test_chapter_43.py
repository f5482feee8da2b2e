"""Chapter 43: its claims' controls fail."""

import pytest
import torch

import zolab
from zolab import lab
from zolab.bench.gptq import GPTQ
from zolab.lab import claims
from zolab.quantized.convert import unsigned
from zolab.quantized.fake import FakeLinear, on_grid
from zolab.storage.codecs import span
from zolab.tasks import perplexity as p
from zolab.tasks import splits

pytestmark = pytest.mark.usefixtures("one_thread")
TRAINED = (
    *("zeroqat-from-clip-search", "qat-below-clip-search"),
    *("zeroqat-below-gptq", "training-adds-to-rounding"),
    "zeroqat-with-activations",
)


def judge(name: str, measured: float, se: float | None = None) -> str:
    return claims.ledger()[name].judge(measured, se)


def normal(seed, shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("eps, holds", [(5e-6, True), (0.25, False)])
def test_half_a_step_is_felt(eps, holds):
    step, w0, x = 0.5, normal(1, (8,)), normal(2, (64, 8))
    loss = lambda w: ((step * (w / step).round() - w0) @ x.T).square().mean(-1)  # noqa: E731
    keys = (zolab.make_key(0, k) for k in range(200))
    z = torch.stack([zolab.direction(key, "w", 8) for key in keys])
    found = int((loss(w0 + eps * z) != loss(w0 - eps * z)).sum())
    assert (judge("below-a-step", found) == claims.HOLDS) is holds


def felt_over_law(w, share=0.1, top=15):
    scale, zero = span(w, top)
    z = zolab.direction(zolab.make_key(3, 0), "w", w.shape)
    eps = share * scale[:, None]
    up, down = (on_grid(w + s * eps * z, scale, zero, top) for s in (1, -1))
    felt = (up - down) / (2 * eps)
    cosine = float((felt * z).mean() / felt.square().mean().sqrt().clamp(min=1e-9))
    return cosine / (2 * share) ** 0.5


def test_weights_on_their_levels_do_not_follow_the_law():
    w = normal(0, (2048, 64))
    scale, zero = span(w, 15)
    assert judge("felt-share", felt_over_law(w)) == claims.HOLDS
    assert felt_over_law(on_grid(w, scale, zero, 15)) == 0  # all far from a middle
    middle = on_grid(w, scale, zero, 15) + 0.49 * scale[:, None]
    for other in (on_grid(w, scale, zero, 15), middle):
        assert judge("felt-share", felt_over_law(other)) == claims.NOT_SEEN


@pytest.mark.parametrize("bits, inverse", [(None, True), (2, True), (None, False)])
def test_a_scale_without_its_inverse_is_seen(bits, inverse):
    linear = torch.nn.Linear(128, 128)
    fake, x = FakeLinear(linear, bits and unsigned(bits)), normal(0, (64, 128))
    with torch.no_grad():
        before = fake(x)
        fake.log_t.copy_(0.5 * normal(1, (128,)))
        fake.delta.copy_(normal(2, (128,)))
        after = fake(x if inverse else x * fake.log_t.exp())
        change = float((after - before).abs().max() / before.abs().max())
    holds = judge("scale-and-shift-cancel", change) == claims.HOLDS
    assert holds is (bits is None and inverse)


def test_gptq_without_texts_gains_nothing():
    """With inputs that are alike in all channels GPTQ is rounding to nearest."""
    model, tokenizer = zolab.load_model("tiny")
    lines = [s.text for s in splits(test=1).transfer]
    held, seen = (p.texts(tokenizer, lines[i]) for i in (slice(300, 340), slice(32)))
    found = {}
    for name in ("nearest", "texts", "none"):
        by = None if name == "nearest" else GPTQ(model, lambda: p.nats(model, seen))
        if name == "none":
            by.squares = {k: torch.eye(len(h)).double() for k, h in by.squares.items()}
        other = zolab.pack(
            zolab.load_model("tiny")[0],
            unsigned(2),
            skip=["*embed*", "lm_head*"],
            by=by,
        )
        found[name] = p.nats(other, held)
    gain = {k: p.worse(found["nearest"], v, held) for k, v in found.items()}
    name = "gptq-below-nearest"
    assert judge(name, *gain["texts"]) == claims.SAME
    assert gain["none"][0] == pytest.approx(0, abs=1e-4)
    # what nothing changed has no spread: it is judged with that of the texts
    assert judge(name, gain["none"][0], gain["texts"][1]) == claims.NOT_SEEN


@pytest.mark.parametrize("name", TRAINED)
def test_equal_gaps_are_no_gain(name):
    """Seeds that scatter around the line that they are compared with."""
    noise = [0.01 * float(x) for x in normal(4, (5,))]
    line = sum(noise) / 5
    assert judge(name, *lab.mean_se([line - m for m in noise])) == claims.NOT_SEEN
    assert judge(name, *lab.mean_se([line - m + 0.1 for m in noise])) == claims.SAME
    assert judge(name, *lab.mean_se([line - m - 0.1 for m in noise])) == claims.OPPOSITE


def test_the_record_is_of_equal_passes():
    """What the four verdicts are taken from: five seeds, tuned alike."""
    r = lab.recorded("bench-two-bits-cpu-tiny")
    assert not r["changed"] and len(r["after"]) == 5
    for name, row in r["trained"].items():
        assert len(row["gaps"]) == 5 and not row["by"]["changed"]
        if "six times" in name:
            assert row["passes"] == 1080
            usual = r["trained"][name.removesuffix(", six times")]
            assert row["lr"] == usual["lr"] and row["bits"] == usual["bits"]
            continue
        assert row["passes"] == 180
        assert len(row["tried"]) == 4 and row["lr"] in row["lrs"]
        assert row["tried"][row["lrs"].index(row["lr"])] == min(row["tried"])
