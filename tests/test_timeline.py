"""What lab says of a streamed step's lanes, from spans with known answers."""

import pytest

from zolab.engines.window import Span
from zolab.lab.figures import canvas
from zolab.lab.passes import computed, passes
from zolab.lab.timeline import timeline


def steady(load: float, compute: float, steps: int = 3) -> list[Span]:
    """Two blocks in two slots: each load runs beside the computation before it."""
    spans, ready, now = [], load, 0.0
    spans.append(Span("up", 0, 0.0, load))
    for i in range(2 * steps):
        spans.append(Span("wait", i % 2, now, max(now, ready)))
        now = max(now, ready)
        spans.append(Span("up", (i + 1) % 2, now, now + load))
        spans.append(Span("down", i % 2, now, now + load / 2))
        ready, now = now + load, now + compute
    return spans


@pytest.mark.parametrize(("load", "compute"), [(3.0, 1.0), (1.0, 3.0), (2.0, 2.0)])
def test_a_pass_is_computing_and_stalls(load, compute):
    found = passes(steady(load, compute))[1:]
    assert len(found) == 1  # nothing ends the last pass, the first one fills
    p = found[0]
    assert p.seconds == pytest.approx(2 * max(load, compute))
    assert p.computing == pytest.approx(2 * compute)
    assert p.up == pytest.approx(2 * load) and p.down == pytest.approx(load)
    assert p.bound == pytest.approx(p.seconds)


def test_a_span_that_straddles_two_passes_is_shared_out():
    waits = [Span("wait", 0, t, t + 1) for t in (0.0, 4.0, 8.0)]
    found = passes([*waits, Span("up", 0, 3.0, 6.0)])
    assert [p.up for p in found] == [1.0, 2.0]
    assert [p.stalled for p in found] == [1.0, 1.0]
    assert [p.start for p in found] == [0.0, 4.0]


def test_computing_is_what_lies_between_the_waits():
    spans = steady(3.0, 1.0)
    assert {s.end - s.start for s in computed(spans)} == {1.0}
    assert [s.block for s in computed(spans)] == [0, 1, 0, 1, 0]


def test_stalls_are_what_no_block_computes_in():
    pytest.importorskip("matplotlib")
    with canvas("lanes of two blocks, stalls shaded", "", 300, 200) as (ax, image):
        stalls = timeline(ax, steady(3.0, 1.0), start=3.0, end=9.0)
        numbers = {t.get_text() for t in ax.texts}
    assert stalls == [(4.0, 6.0), (7.0, 9.0)]
    assert numbers == {"0", "1", "stall"} and image


def test_no_spans_is_an_error():
    with pytest.raises(ValueError, match="spans = "):
        timeline(None, [])
