"""A streamed step's activations beside the plan's sum, for one probe and for many.

Tolerance: what the sum leaves out (indices, masks, padding of small tensors, results of
one number) is below a fiftieth of a step at these sizes, so 3 %. Vectors in fp32 are
counted in, since they are made inside of a probe.
"""

import pytest
import torch

import zolab
from zolab.bench.live import Live
from zolab.bench.steppers import build
from zolab.plan import Shape, Window, Work, on_device, streamed
from zolab.plan.activations import block

pytestmark = pytest.mark.usefixtures("one_thread")

# "logits" and "half" are fullest at the loss, the others in a block
SHAPES = {
    "logits": ("opt", (128, 4, 4, 512, 4000, 514), Work(2, 64, "fp32")),
    "deep": ("opt", (128, 4, 4, 512, 300, 514), Work(8, 64, "fp32")),
    "llama": ("llama", (128, 4, 4, 384, 300, 0, 2), Work(8, 64, "bf16")),
    "gpt2": ("gpt2", (128, 4, 4, 512, 1000, 514), Work(4, 64, "fp32")),
    "half": ("gpt2", (128, 4, 4, 512, 1000, 514), Work(4, 64, "bf16")),
}


def measured(shape, work, probes, together):
    model = build(shape, work)
    engine = zolab.Streamed(probes_per_pass=together)
    opt = zolab.MeZO(model, num_queries=probes // 2, engine=engine)
    ids = torch.randint(0, shape.vocabulary, (work.batch, work.tokens))

    def closure():
        return model(input_ids=ids, labels=ids, use_cache=False).loss

    opt.step(closure)  # the scratch is made
    known = [*model.parameters(), *model.buffers(), engine.store.arena]
    known += [s.data for s in engine.window.slots]
    live = Live([*known, *engine.pool.buffers.values()])
    opt.step(live.watch(closure))
    return live.peak


@pytest.mark.parametrize("probes", [(2, 1), (6, 4)])
@pytest.mark.parametrize("name", SHAPES)
def test_activations_are_the_plan_s(name, probes):
    family, sizes, work = SHAPES[name]
    shape = Shape(name, family, *sizes)
    window = Window(probes=probes[0], probes_per_pass=probes[1])
    plan = streamed(shape, work, window)
    assert plan.moment == ("the loss" if name in ("logits", "half") else "a block")
    vectors = on_device(shape, work.bytes, window).vectors
    found = measured(shape, work, *probes)
    assert plan.activations + plan.logits + vectors == pytest.approx(found, rel=0.03)


def test_three_percent_can_tell_what_a_waiting_probe_holds():
    family, sizes, work = SHAPES["deep"]
    shape = Shape("deep", family, *sizes)
    plan = streamed(shape, work, Window(probes=4, probes_per_pass=4))
    less = work.count * shape.width * work.bytes  # a hidden state for each of three
    assert 3 * less > 0.1 * plan.activations
    assert block(shape, 4).waits == 3 * shape.width * 4


def test_live_counts_what_lives():
    kept = torch.zeros(1000)

    def run():
        a = kept + 1
        b = a * 2
        del a
        return (b + b).sum()

    live = Live([kept])
    out = live.watch(run)()
    assert live.peak == 2 * 4000 + 4 and live.now == 4
    del out
    assert live.now == 0
