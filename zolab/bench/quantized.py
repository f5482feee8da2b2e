"""A step on packed weights over the same model's quantized forward passes.

    python -m zolab.bench quantized [--model opt-125m] [--codec int4] [--batch 4x128]
        [--repeats 5] [--peers PYTHON]

Time: CPU seconds of one thread, a step and as many passes in turn. A pass is the faster
of two: the packed model called as it is, and called by the engine with nothing moved.
Memory: tensors at the peak of a step (`zolab.bench.ledger`) over packed weights plus
what inference in fp32 holds beside its weights; and the process's, less what Python and
the libraries hold by themselves. Every number is from a process of its own.

`--peers` names an interpreter with packages that answer from quantized weights on a
CPU. Each does one pass of the model with its linears but the head in that package's
form, ours too, over the same pass in fp32 in the same process.

    python -m venv peers; peers/bin/pip install torch transformers numba safetensors \\
        bitsandbytes hqq torchao
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zolab.bench import peak
from zolab.bench.record import RESULTS, Line, machine, show
from zolab.bench.shapes import Setting
from zolab.bench.step import timed
from zolab.bench.steppers import STEPS, Step, build
from zolab.plan import Shape, Work, batch, find

TINY = Shape("tiny", "opt", 64, 2, 2, 256, 512, 64)
# Written down before the first measurement of a whole step, from ns a weight on one
# thread: a product with 512 tokens 15, a decode 0.6, z 0.2 (a sign) or 1.9 (rounded),
# an update 2.5 (a sign) or 5 (rounded); linears are two thirds of a pass.
EXPECTED = {"qzo": 1.02, "zoqo": 1.07, "quzo": 1.18}
HEAD = ("*embed*", "*lm_head*", "*wte*", "*wpe*")


def step_times(shape: Shape, codec: str, work: Work, repeats: int) -> dict[str, Any]:
    """CPU seconds of each job, a round after another, of one packed model."""
    import zolab

    model = build(shape, work)
    ids = torch.randint(0, shape.vocabulary, (work.batch, work.tokens))

    def loss(m: Any) -> Step:
        return lambda: m(input_ids=ids, labels=ids, use_cache=False).loss

    def twice(m: Any) -> Step:
        return torch.no_grad()(lambda: (loss(m)(), loss(m)()))

    jobs: dict[str, Step] = {"fp32": twice(copy.deepcopy(model))}
    zolab.pack(model, codec)
    jobs["packed"] = twice(model)
    jobs["unmoved"] = _still(copy.deepcopy(model), loss)
    for name in EXPECTED:
        own = copy.deepcopy(model)
        jobs[name] = STEPS[name](own, loss(own), 0)
    for job in jobs.values():
        job()
    found: dict[str, list[float]] = {name: [] for name in jobs}
    for i in range(repeats):
        for name in list(jobs)[:: -1 if i % 2 else 1]:
            found[name].append(timed(jobs[name], "cpu")[1])
    return found


def _still(model: nn.Module, loss: Callable[[Any], Step]) -> Step:
    """Two passes by the engine that decode every matrix and move none."""
    import zolab
    from zolab.gradient import Probe

    engine = zolab.Resident(scratch="one", unseen="ignore")
    opt = zolab.QZO(model, engine=engine)
    closure = loss(model)
    return lambda: opt.engine.evaluate([Probe(())] * 2, {"loss": closure})


def bytes_of(shape: Shape, codec: str, work: Work) -> dict[str, Any]:
    """Bytes of the weights in fp32 and packed."""
    import zolab

    model = build(shape, work)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    packed = zolab.packed_weights(zolab.pack(model, codec))
    own = {id(p.scale) for p in packed.values()}
    rest = [p for p in model.parameters() if not hasattr(p, "packed")]
    small = sum(p.numel() * p.element_size() for p in rest if id(p) not in own)
    return {"fp32": size, "packed": small + sum(p.nbytes for p in packed.values())}


def lines(
    shape: Shape, codec: str, work: Work, batch: str, repeats: int
) -> Iterator[Line]:
    """Ours, one after another as they are measured."""
    words = [shape.name, codec, batch, str(repeats)]
    t = _child(sys.executable, "time", *words)
    base = min(("packed", "unmoved"), key=lambda k: statistics.median(t[k]))
    for name, expected in EXPECTED.items():
        ratios = tuple(a / b for a, b in zip(t[name], t[base], strict=True))
        yield Line(f"{name}: step / two forwards", ratios, 1.15, 1.0, expected)
    for name in ("packed", "unmoved"):
        ratios = tuple(a / b for a, b in zip(t[name], t["fp32"], strict=True))
        yield Line(f"  two {name} forwards / in fp32", ratios)
    yield Line("  two forwards in fp32", tuple(t["fp32"]), unit="s")
    weights = _child(sys.executable, "bytes", *words)

    def of(what: str, method: str) -> float:
        return peak._child(peak.Job(what, asdict(shape), method, asdict(work), False))

    active = of("tensors", "inference") - weights["fp32"]
    needed = weights["packed"] + active
    for name in EXPECTED:
        method = f"{name}:{codec}"
        tensors = (of("tensors", method) / needed,)
        yield Line(f"{name}: peak / packed and activations", tensors, 1.05, 1.0, 1.05)
        own = (of("process", method) - of("nothing", method)) / needed
        yield Line("  the same of the process", (own,))
    yield Line("  packed weights", (weights["packed"] / 1e6,), unit="MB")
    yield Line("  activations of inference", (active / 1e6,), unit="MB")


def _linears(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    head = model.get_output_embeddings()  # type: ignore[operator]
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and child is not head:
                yield parent, name, child


def _zolab(codec: str) -> Callable[[nn.Module], None]:
    def put(model: nn.Module) -> None:
        import zolab

        zolab.pack(model, codec, skip=HEAD)

    return put


def _bitsandbytes(model: nn.Module) -> None:
    import bitsandbytes as bnb

    for parent, name, old in _linears(model):
        size = (old.in_features, old.out_features, old.bias is not None)
        new = bnb.nn.Linear4bit(*size, torch.float32, quant_type="nf4")
        new.weight = bnb.nn.Params4bit(old.weight.data, False, quant_type="nf4")
        new.bias = old.bias
        setattr(parent, name, new.to("cpu"))


def _hqq(model: nn.Module) -> None:
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    kind = BaseQuantizeConfig(nbits=4, group_size=64)
    how = {"compute_dtype": torch.float32, "device": "cpu", "del_orig": True}
    for parent, name, old in _linears(model):
        setattr(parent, name, HQQLinear(old, kind, **how))


def _torchao(bits: int) -> Callable[[nn.Module], None]:
    def put(model: nn.Module) -> None:
        import torchao.quantization as q

        kind = q.Int8WeightOnlyConfig() if bits == 8 else q.Int4WeightOnlyConfig()
        head = model.get_output_embeddings()  # type: ignore[operator]
        q.quantize_(
            model, kind, lambda m, name: isinstance(m, nn.Linear) and m is not head
        )

    return put


PEERS: dict[str, tuple[str, Callable[[nn.Module], None]]] = {  # what a pass needs
    "zolab int4": ("numba", _zolab("int4")),
    "zolab nf4": ("numba", _zolab("nf4")),
    "zolab int8": ("numba", _zolab("int8")),
    "bitsandbytes NF4": ("bitsandbytes", _bitsandbytes),
    "hqq, 4 bits": ("hqq", _hqq),
    "torchao int8": ("torchao", _torchao(8)),
    "torchao int4": ("torchao", _torchao(4)),
}


def pass_times(shape: Shape, peer: str, work: Work, repeats: int) -> dict[str, Any]:
    """CPU seconds of a pass in a package's form, and of the same pass in fp32."""
    package, put = PEERS[peer]
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return {"missing": f"{package} is not installed"}
    model = build(shape, work)
    ids = torch.randint(0, shape.vocabulary, (work.batch, work.tokens))
    other = copy.deepcopy(model)
    jobs = {"fp32": model, "theirs": other}
    found: dict[str, Any] = {"fp32": [], "theirs": [], "version": version}
    try:
        put(other)
        with torch.no_grad():
            other(input_ids=ids, use_cache=False)
    except Exception as why:  # a row that says so is the bench's answer
        return {"missing": f"{type(why).__name__}: {str(why).splitlines()[0][:200]}"}
    for i in range(repeats + 1):
        for name, m in list(jobs.items())[:: -1 if i % 2 else 1]:
            call = torch.no_grad()(lambda m=m: m(input_ids=ids, use_cache=False))
            if i:  # the first is warm-up
                found[name].append(timed(call, "cpu")[1])
    return found


def _child(python: str, *words: str) -> dict[str, Any]:
    """What a process of its own, of one thread, prints."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    env["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parents[2]), *filter(None, [env.get("PYTHONPATH")])]
    )
    done = subprocess.run(
        [python, "-m", "zolab.bench.quantized", *words],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=env,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: list[str] | None = None) -> int:
    """Measure, print a table, write the record."""
    parser = argparse.ArgumentParser(prog="python -m zolab.bench quantized")
    parser.add_argument("--model", default="opt-125m", help="tiny, or as in zolab plan")
    parser.add_argument("--codec", default="int4")
    parser.add_argument("--batch", default="4x128", help="sequences x tokens")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of each ratio")
    parser.add_argument(
        "--peers", metavar="PYTHON", help="an interpreter that has them"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    a = parser.parse_args(argv)
    shape, work = shape_of(a.model), Work(*batch(a.batch), "fp32")
    found = list(lines(shape, a.codec, work, a.batch, a.repeats))
    missing, versions = {}, {}
    for name in PEERS if a.peers else ():
        words = ["pass", shape.name, name, a.batch, str(a.repeats)]
        t = _child(a.peers, *words)
        if "missing" in t:
            missing[name] = t["missing"]
            continue
        ratios = tuple(x / y for x, y in zip(t["theirs"], t["fp32"], strict=True))
        found.append(Line(f"{name}: forward / in fp32, no head", ratios))
        versions[name] = t["version"]
    show(found)
    for name, why in missing.items():
        print(f"  {name}: {why}")
    short = shape.name.split("/")[-1].lower()
    record = {"item": "quantized"} | machine(
        "quantized", Setting("cpu", short, (1,), a.repeats)
    )
    record |= {
        "command": f"python -m zolab.bench quantized --model {short} --codec {a.codec} "
        f"--batch {a.batch} --repeats {a.repeats}" + " --peers PYTHON" * bool(a.peers),
        "codec": a.codec,
        "batch": a.batch,
        "peers": versions,
        "missing": missing,
        "lines": [x.as_json() for x in found],
    }
    a.out.mkdir(parents=True, exist_ok=True)
    path = a.out / f"bench-quantized-cpu-{short}-{a.codec}.json"
    path.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    print(f"  -> {path.name}")
    return 0


def shape_of(name: str) -> Shape:
    """A published shape, or "tiny", which no one published."""
    return TINY if name == "tiny" else find(name)


def _answer(what: str, model: str, kind: str, size: str, repeats: str) -> Any:
    torch.set_num_threads(1)
    work = Work(*batch(size), "fp32")
    if what == "bytes":
        return bytes_of(shape_of(model), kind, work)
    times = step_times if what == "time" else pass_times
    return times(shape_of(model), kind, work, int(repeats))


if __name__ == "__main__":
    print(json.dumps(_answer(*sys.argv[1:])))
