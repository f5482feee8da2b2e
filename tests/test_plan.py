"""The plan's sums: by hand, against transformers' own counts, and monotone."""

import json
from dataclasses import replace

import pytest
import torch

from zolab import cli, plan
from zolab.plan import METHODS, PUBLISHED, Machine, Shape, Window, Work, find, peak
from zolab.plan.activations import block
from zolab.plan.memory import KEEP_BELOW, TILE, adapters
from zolab.plan.methods import NF4

SMALL = Shape("small", "opt", 16, 2, 2, 64, 100, 34)
LLAMA = Shape("small", "llama", 16, 2, 4, 48, 100, kv_heads=2)
GB = 1e9
ALL = [(m, c) for m in METHODS for c in (False, True) if METHODS[m].backward or not c]


def config(s):
    from transformers import GPT2Config, LlamaConfig, OPTConfig

    if s.family == "gpt2":
        return GPT2Config(n_embd=s.width, n_layer=s.layers, n_head=s.heads)
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads")
    some = dict(zip(names, (s.width, s.layers, s.heads), strict=True))
    if s.family == "opt":
        return OPTConfig(**some, ffn_dim=s.inner, word_embed_proj_dim=s.width)
    some |= {"num_key_value_heads": s.kv_heads, "intermediate_size": s.inner}
    return LlamaConfig(
        **some, vocab_size=s.vocabulary, tie_word_embeddings=s.tied, max_length=9
    )


@pytest.mark.parametrize(
    "name", ["opt-125m", "opt-175b", "gpt2-xl", "SmolLM2-135M", "Llama-3.1-8B"]
)
def test_a_published_shape_has_as_many_parameters_as_transformers_makes(name):
    from transformers import AutoModelForCausalLM

    s = find(name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config(s))
    counts = [p.numel() for p in model.parameters()]
    assert (s.parameters, s.largest) == (sum(counts), max(counts))
    other = plan.of_config(model.config, s.name)
    assert (other.parameters, other.keys) == (s.parameters, s.keys)


def test_the_names_say_the_sizes():
    for s in PUBLISHED.values():
        end = s.name.rsplit("-", 1)[-1].lower()
        if end[-1] in "mb" and end[0].isdigit():
            said = float(end[:-1]) * {"m": 1e6, "b": 1e9}[end[-1]]
            assert 0.9 < s.parameters / said < 1.25, s.name


def test_sixteen_bytes_two_ways_and_the_others():
    by_hand = {  # weights, gradients, state
        ("adamw", "fp32"): (4, 4, 8),
        ("adamw", "bf16"): (2, 2, 4),
        ("adamw-mixed", "bf16"): (2, 2, 4 + 4 + 4),
        ("adam8", "bf16"): (2, 2, 2 + 2 * 4 / 256),
        ("sgd", "fp32"): (4, 4, 0),
        ("mezo", "bf16"): (2, 0, 0),
        ("inference", "fp32"): (4, 0, 0),
        ("lora", "bf16"): (2, 0, 0),
        ("qlora", "bf16"): (0.5 + 1 / 64 + 1 / 4096, 0, 0),
    }
    for (method, dtype), parts in by_hand.items():
        r = plan.rate(method, dtype)
        assert (r.weights, r.gradients, r.state) == pytest.approx(parts)
    for case in (("adamw", "fp32"), ("adamw-mixed", "bf16")):
        assert plan.rate(*case).total == 16


def test_opt_13b_by_hand():
    s, w = find("facebook/opt-13b"), Work(1, 1)
    assert s.block == 12 * 5120**2 + 13 * 5120
    assert s.parameters == 40 * s.block + (50272 + 2050 + 2) * 5120
    update = plan.moments(s, "adamw-mixed", w)[-1]
    held = update.weights + update.gradients + update.state
    assert held == 16 * s.parameters == pytest.approx(205.7 * GB, rel=1e-3)
    # 16 x 512 tokens: bf16 logits, an fp32 copy, its log-softmax
    loss = plan.moments(s, "inference", Work(16, 512))[1]
    assert loss.logits == 10 * 16 * 512 * 50272
    assert loss.activations == 2 * 16 * 512 * 5120


def test_what_a_block_keeps_by_hand():
    # two norms (in, out, mean and rsd), q k v and the result, a number a head, ReLU's
    assert block(SMALL, 4).kept == 4 * (2 * 2 * 16 + 4 * 16 + 64) + 16 + 4 * 2
    assert block(SMALL, 4).kept == pytest.approx(48 * 16, rel=0.05)  # 12 h numbers
    # RMS norms: fp32 input, normalised, output; k and v of half the width; four f
    norm = 4 * 16 + 2 * 16 + 2 * 16 + 4
    assert block(LLAMA, 2).kept == 2 * norm + 2 * (2 * 16 + 2 * 8 + 4 * 48) + 4 * 4


def test_lora_moves_its_factors_alone():
    low = 2 * 8 * (4 * (16 + 16) + 2 * (16 + 64))
    assert adapters(SMALL, 8) == low
    update = plan.moments(SMALL, "lora", Work(2, 8, "fp32"))[-1]
    assert update.gradients == 4 * low and update.state == 8 * low
    assert update.weights == 4 * (SMALL.parameters + low)
    inside = 2 * (4 * 16 * 16 + 2 * 16 * 64)
    four = plan.moments(SMALL, "qlora", Work(2, 8, "bf16"))[-1]
    rest = SMALL.parameters - inside + low
    assert four.weights == pytest.approx(NF4 * inside + 2 * rest)


def test_the_constants_are_the_engines():
    from zolab.engines import mode, resident

    assert mode.TILE == TILE and mode.Materialise.tall == 2 * TILE
    assert resident.KEEP_BELOW == KEEP_BELOW


@pytest.mark.parametrize(("method", "checkpoint"), ALL)
def test_more_of_anything_never_needs_less(method, checkpoint):
    dtype = "bf16"
    for s in (SMALL, LLAMA, replace(SMALL, family="gpt2"), find("opt-1.3b")):
        w = Work(2, 16, dtype)
        least = peak(s, method, w, checkpoint=checkpoint).total
        larger = [(s, replace(w, batch=3)), (s, replace(w, tokens=17))]
        for name, by in (("layers", 1), ("inner", 8), ("vocabulary", 64)):
            larger.append((replace(s, **{name: getattr(s, name) + by}), w))
        larger.append((replace(s, width=2 * s.width), w))
        for shape, work in larger:
            if method == "mezo" and (2 * shape.parameters >= KEEP_BELOW) != (
                2 * s.parameters >= KEEP_BELOW
            ):
                continue  # a model that grows past 64 MB gives up its second copy
            assert peak(shape, method, work, checkpoint=checkpoint).total >= least


def test_order_of_the_methods_on_a_large_model():
    s, w = find("llama-2-7b"), Work(1, 512)
    order = ["qlora", "inference", "mezo", "lora", "sgd", "adam8", "adamw-mixed"]
    peaks = [peak(s, m, w).total for m in order]
    assert peaks == sorted(peaks)
    less = peak(s, "sgd", replace(w, batch=8), checkpoint=True).total
    assert less < peak(s, "sgd", replace(w, batch=8)).total


def test_a_streamed_model_by_hand():
    s, w = find("opt-175b"), Work(1, 2048)
    v = Window(slots=2, probes=2, probes_per_pass=2)
    h = 12288
    assert s.block == 12 * h**2 + 13 * h
    kept = plan.on_device(s, 2, v)
    assert kept.window == 2 * 2 * s.block
    assert kept.rest == 2 * (50272 + 2050 + 2) * h
    assert kept.scratch == 2 * 4 * h * h  # fc1; a head tile of 3072 rows is smaller
    assert kept.vectors == 2 * 4 * (2 * h + 13 * h)
    m = plan.streamed(s, w, v)
    # a hidden state; the waiting probe's own with OPT's two embeddings; the logits
    assert m.total == kept.total + (1 + 3) * 2 * 2048 * h + 10 * 2048 * 50272
    assert plan.moved(s, w, v) == (96 * 2 * s.block,) * 2
    assert plan.moved(s, w, replace(v, write_back=8))[1] == 96 * 2 * s.block / 8
    assert plan.moved(s, w, replace(v, probes=5))[0] == 3 * 96 * 2 * s.block
    assert plan.in_ram(s, w) == 96 * 2 * s.block


def test_streaming_more_needs_more_and_less_than_resident():
    for s in (find("opt-1.3b"), find("llama-3.1-8b")):
        w = Work(4, 128)
        least = plan.streamed(s, w).total
        for v in (Window(slots=3), Window(probes=4), Window(slots=9, probes=9)):
            assert plan.streamed(s, w, v).total > least
        assert least < peak(s, "mezo", w).total
        huge = Window(slots=10_000)
        assert plan.on_device(s, 2, huge).window == 2 * s.layers * s.block


def test_the_threshold_by_hand_and_by_meeting():
    # b F / (2 Fw BW): two-sided on an H100, an A100, a T4; one-sided with 8 directions
    cases = [(500, 52, 2, 4807), (200, 25, 2, 4000), (40, 12, 2, 1666)]
    for flops, link, probes, tokens in [*cases, (500, 52, 9, 1068)]:
        machine = Machine(flops * 1e12, link * 1e9)
        v = Window(probes=probes, probes_per_pass=9)
        found = plan.pace(find("opt-13b"), Work(1, 8), machine, v)
        assert found.threshold == pytest.approx(tokens, abs=1)
    # with attention and the head left out, compute meets transfer at T*
    bare = replace(find("opt-66b"), vocabulary=1)
    machine = Machine(100e12, 10e9)
    t = round(plan.pace(bare, Work(1, 1), machine).threshold)
    at = plan.pace(bare, Work(t, 1), machine)
    assert at.compute == pytest.approx(at.transfer, rel=1e-3)
    assert plan.pace(bare, Work(2 * t, 1), machine).seconds == at.compute * 2
    assert plan.pace(bare, Work(t // 2, 1), machine).seconds == at.transfer


def test_a_disk_is_read_and_written():
    s, w = find("opt-13b"), Work(1, 1)
    once = plan.in_ram(s, w)
    slow = Machine(1e15, 1e12, disk=1e9)
    assert plan.pace(s, w, slow).transfer == 2 * once / 1e9
    ten = plan.pace(s, w, slow, Window(write_back=10))
    assert ten.transfer == pytest.approx(1.1 * once / 1e9)


def test_the_footprint_is_the_engines_own():
    engine = pytest.importorskip("zolab.engines.footprint")
    from zolab.bench.steppers import build
    from zolab.engines.blocks import blocks_of
    from zolab.space import Space

    wide = {"width": 128, "inner": 512}
    tall = replace(SMALL, vocabulary=7000, **wide)
    for s in (tall, replace(LLAMA, tied=False, **wide)):
        model = build(s, Work(1, 8, "fp32"))
        space = Space.of(model)
        blocks = blocks_of(model, space, None)
        theirs = engine.footprint(model, space, blocks, slots=2, probes=2)
        ours = plan.on_device(s, 4, Window(slots=2))
        assert ours.total == pytest.approx(theirs.total, rel=0.01)


def test_a_base_that_is_only_read_by_hand():
    s, w = find("opt-13b"), Work(1, 512)
    v = Window(write_back="never", rank=3, drawn=7)
    h, layers = s.width, s.layers
    rows = layers * (4 * h + 4 * h + h) + 50272 + 2050
    columns = layers * (4 * h + h + 4 * h) + 2 * h
    usual, kept = plan.on_device(s, 2, Window()), plan.on_device(s, 2, v)
    assert kept.delta == 7 * 3 * (4 * rows + columns)
    assert kept.rest - usual.rest == 2 * layers * s.vectors
    assert kept.window == 2 * 2 * 12 * h * h
    assert plan.moved(s, w, v) == (layers * 2 * 12 * h * h, 0.0)
    assert plan.in_ram(s, w, v) == layers * 2 * 12 * h * h
    more = plan.streamed(s, w, replace(v, drawn=8)).total
    assert more - plan.streamed(s, w, v).total == 3 * (4 * rows + columns)
    disk = Machine(1e15, 1e12, disk=1e9)
    assert plan.pace(s, w, disk, v).transfer == plan.in_ram(s, w, v) / 1e9


def test_the_engine_s_own_delta_is_the_plan_s():
    from zolab.bench.steppers import build
    from zolab.engines.streamed import Streamed
    from zolab.families import LowRank
    from zolab.optimizers import MeZO

    wide = {"width": 128, "inner": 512}
    for s in (replace(SMALL, **wide), replace(LLAMA, tied=False, **wide)):
        model = build(s, Work(1, 8, "fp32"))
        engine = Streamed(write_back="never", probes_per_pass=2, unseen="ignore")
        opt = MeZO(model, family=LowRank(rank=3, every=1), engine=engine)
        for _ in range(2):
            opt.step(lambda model=model: model(torch.arange(8)[None]).logits.mean())
        ours = plan.on_device(s, 4, Window(write_back="never", rank=3, drawn=2))
        assert engine.footprint.delta == ours.delta
        assert engine.footprint.total == pytest.approx(ours.total, rel=0.01)


def test_the_policy_follows_the_sizes():
    s, w, machine = find("opt-13b"), Work(16, 512), Machine(100e12, 12e9)

    def ask(device, ram, m=machine, work=w):
        return plan.advise(s, work, device=device * GB, ram=ram * GB, machine=m)

    assert ask(80, 64).policy == "resident"
    assert ask(8, 64).policy == "ram"
    assert ask(8, 16).policy == "none"
    assert "--disk" in ask(8, 16).why
    disk = ask(8, 16, replace(machine, disk=3e9))
    assert disk.policy == "disk" and disk.window.write_back == 10
    assert "x 512 tokens would stream" in ask(4, 64).why
    assert "too small" in ask(1, 64).why
    few = ask(8, 64, work=Work(1, 512)).lines()[-1]
    assert "times the tokens, or the probes, would cost no time" in few
    assert any(line.startswith("try first: 8-bit Adam") for line in ask(80, 64).lines())


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("8GB", "B", 8e9),
        ("8 GiB", "B", 8 * 2**30),
        ("12GB/s", "B/s", 12e9),
        ("100T", "FLOP/s", 1e14),
        ("1.5e3", "B", 1500),
    ],
)
def test_quantities_are_read(text, unit, value):
    assert plan.quantity(text, unit) == value


@pytest.mark.parametrize("text", ["", "GB", "-8GB", "8 apples", "0", "1.2.3G", "8GB/s"])
def test_what_is_no_quantity_is_refused(text):
    with pytest.raises(plan.PlanError, match="write 8GB|not above zero"):
        plan.quantity(text, "B")


def test_faults_say_what_was_found(tmp_path):
    cases = [
        (lambda: find("opt-14b"), "near: opt-1"),
        (lambda: find("nothing-at-all"), "Known: opt-125m"),
        (lambda: Work(0, 5), "0 x 5"),
        (lambda: Work(1, 5, "int4"), "it can be fp32"),
        (lambda: plan.batch("16"), "16x512"),
        (lambda: peak(SMALL, "adam", Work(1, 1)), "no method 'adam'"),
        (lambda: peak(SMALL, "mezo", Work(1, 1), checkpoint=True), "no activations"),
        (lambda: peak(SMALL, "lora", Work(1, 1), rank=0), "rank is 0"),
        (lambda: peak(SMALL, "adamw-mixed", Work(1, 1, "fp32")), "dtype is fp32"),
        (lambda: Window(slots=0), "slots is 0"),
        (lambda: Window(write_back="now"), "write_back is now"),
        (lambda: replace(SMALL, layers=0), "layers is 0"),
        (lambda: replace(SMALL, family="rnn"), "family 'rnn'"),
        (lambda: plan.of_config({"model_type": "x", "hidden_size": 3}), "lacks"),
    ]
    for call, message in cases:
        with pytest.raises(plan.PlanError, match=message):
            call()
    (tmp_path / "config.json").write_text("{", "utf-8")
    with pytest.raises(plan.PlanError, match="is no JSON"):
        find(str(tmp_path))


def test_a_folder_is_read(tmp_path):
    text = json.dumps(config(find("smollm2-135m")).to_dict())
    (tmp_path / "config.json").write_text(text, "utf-8")
    assert find(str(tmp_path)).parameters == find("smollm2-135m").parameters


def run(capsys, *argv):
    with pytest.raises(SystemExit) as leave:
        cli.main(["plan", *argv])
    return leave.value.code, capsys.readouterr().out


def test_the_command_says_it_in_a_few_lines(capsys):
    sizes = ["--device", "8GB", "--ram", "64GB", "--batch", "16x512"]
    rates = ["--link", "12GB/s", "--flops", "100T"]
    code, out = run(capsys, "facebook/opt-13b", *sizes, *rates)
    assert code == 0 and len(out.splitlines()) < 20
    for words in (
        "12.9e9 parameters, 25.7 GB in bf16",
        "8,192 tokens",
        'stream from RAM: zolab.Streamed(store="ram", slots=2)',
        "time: 4.2 s a step, the longer of compute 4.2 s and transfer 2.1 s",
        "25.2 GB up, 25.2 GB down",
        "T*: 4,167 tokens a step at 100 TFLOP/s",
        "the transfer hides",
    ):
        assert words in out
    code, out = run(capsys, "opt-13b", *sizes, *rates, "--write-back", "never")
    assert code == 0 and 'Streamed(store="ram", slots=2, write_back="never")' in out
    assert (
        "25.2 GB up, 0.00 B down" in out and "18.9 MB of the device for every V" in out
    )
    assert run(capsys, "opt-13b", "--link", "x")[0] == (
        "zolab: 'x' is no number of B/s; write 12GB/s"
    )


def test_the_command_measures_what_it_is_not_told(capsys, monkeypatch):
    from zolab.plan import ask

    monkeypatch.setattr(ask, "measure", lambda dtype: Machine(1e10, 5e9))
    monkeypatch.setattr(ask.doctor, "ram_gb", lambda: 16.0)
    monkeypatch.setattr(ask.doctor, "gpu_gb", lambda: 0.0)
    code, out = run(capsys, "smollm2-135m", "--batch", "8x64", "--dtype", "fp32")
    assert code == 0
    assert "link and FLOP/s measured on this machine" in out
    assert "10.0 GFLOP/s" in out and "try first: AdamW" in out
    monkeypatch.setattr(ask.doctor, "ram_gb", lambda: None)
    assert "give --device and --ram" in run(capsys, "smollm2-135m")[0]


def test_this_machine_has_rates():
    found = plan.measure("fp32", side=64)
    assert found.flops > 1e6 and found.link > 1e6
