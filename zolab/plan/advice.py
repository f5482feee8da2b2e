"""What fits a machine, what to do there, and the lines that say so.

Resident if it fits, else streamed from RAM, else from disk (written back every tenth
step, which spares the disk: the log holds the rest), else nothing, with the largest
batch that would fit. A method that differentiates is named first where it fits: it
learns in far fewer steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from zolab.plan.memory import Memory, Work, peak
from zolab.plan.methods import METHODS
from zolab.plan.pace import Machine, Pace, pace, resident
from zolab.plan.shape import Shape
from zolab.plan.streamed import Window, in_ram, moved, one_v, streamed
from zolab.plan.units import PlanError, seconds, size

DISK_EVERY = 10  # steps between two writes of a block to a disk
ROWS = (  # method, checkpointing
    ("adamw-mixed", False),
    ("adamw-mixed", True),
    ("adam8", True),
    ("lora", True),
    ("qlora", True),
    ("mezo", False),
)


@dataclass(frozen=True)
class Row:
    """A method's peak on the device, and whether it fits."""

    label: str
    memory: Memory
    fits: bool
    backward: bool


@dataclass(frozen=True)
class Advice:
    """What fits and what to take: policy is resident, ram, disk or none."""

    shape: Shape
    work: Work
    device: float
    ram: float
    machine: Machine
    window: Window
    rows: tuple[Row, ...]
    policy: str
    pace: Pace | None
    why: str

    def lines(self) -> list[str]:
        """The plan in words, a few lines."""
        return list(_lines(self))


def advise(
    shape: Shape,
    work: Work,
    *,
    device: float,
    ram: float,
    machine: Machine,
    window: Window | None = None,
    gpu: bool = True,
    rank: int = 8,
) -> Advice:
    """Sum everything up for `device` and `ram` bytes; raises PlanError on bad sizes."""
    if min(device, ram, machine.flops, machine.link) <= 0:
        raise PlanError("device, ram, link and flops must be above zero")
    v = window or Window()
    low = [r for r in ROWS if work.bytes == 2 or not METHODS[r[0]].low]
    plain = [("adamw", False), ("adamw", True)] if work.bytes == 4 else []
    rows = []
    for method, checkpoint in plain + low:
        m = METHODS[method]
        found = peak(shape, method, work, checkpoint=checkpoint, rank=rank, gpu=gpu)
        label = m.label + (", checkpointing" if checkpoint else "")
        rows.append(Row(label, found, found.total <= device, m.backward))
    through = streamed(shape, work, v)
    label = f"MeZO streamed, {v.slots} slots"
    rows.append(Row(label, through, through.total <= device, False))
    policy, v, why = _policy(shape, work, device, ram, machine, v, rows)
    step = None
    if policy == "resident":
        step = Pace(resident(shape, work, machine, v.probes), 0.0, 0.0)
    elif policy in ("ram", "disk"):
        disk = machine.disk if policy == "disk" else 0.0
        step = pace(shape, work, replace(machine, disk=disk), v)
    return Advice(
        *(shape, work, device, ram, machine, v),
        rows=tuple(rows),
        policy=policy,
        pace=step,
        why=why,
    )


def _policy(
    shape: Shape,
    work: Work,
    device: float,
    ram: float,
    machine: Machine,
    v: Window,
    rows: list[Row],
) -> tuple[str, Window, str]:
    alone, through = rows[-2], rows[-1]
    if alone.fits:
        return "resident", v, "everything fits on the device: zolab.Resident()"
    if not through.fits:
        return "none", v, _too_large(shape, work, device, v, through.memory)
    need = in_ram(shape, work, v)
    if need <= ram:
        return "ram", v, f"stream from RAM: {_call('ram', v)}"
    if machine.disk:
        if not v.reads:
            v = replace(v, write_back=max(int(v.write_back), DISK_EVERY))
        return "disk", v, f"stream from disk: {_call('disk', v)}"
    short = f"the blocks take {size(need)}, RAM has {size(ram)}"
    return "none", v, f"{short}: a disk would do, give its rate with --disk"


def _call(store: str, v: Window) -> str:
    """How to ask for it."""
    every = f", write_back={v.write_back!r}".replace("'", '"')
    every = every if v.write_back != 1 else ""
    every += ', embeddings="ram"' if v.embeddings == "ram" else ""
    return f'zolab.Streamed(store="{store}", slots={v.slots}{every})'


def _too_large(
    shape: Shape, work: Work, device: float, v: Window, needed: Memory
) -> str:
    """Says the largest batch that streams, or that not even one sequence does."""
    fitting = [
        b
        for b in range(1, work.batch)
        if streamed(shape, replace(work, batch=b), v).total <= device
    ]
    if fitting:
        return f"too much at once: {fitting[-1]} x {work.tokens} tokens would stream"
    return f"the device is too small: streamed it needs {needed}"


def _lines(a: Advice) -> Iterator[str]:
    s, w = a.shape, a.work
    held = w.bytes * s.parameters
    yield (
        f"{s.name}: {s.parameters / 1e9:.3g}e9 parameters, {size(held)} in {w.dtype}; "
        f"a step of {w.batch} x {w.tokens} = {w.count:,} tokens"
    )
    yield ""
    for row in a.rows:
        fits = "fits" if row.fits else "no"
        yield f"  {row.label:32} {size(row.memory.total):>8}  {fits}"
    yield f"  (tensors on the device of {size(a.device)}; CUDA's own share is on top)"
    yield ""
    first = next((r.label for r in a.rows if r.fits and r.backward), None)
    if first:
        yield f"try first: {first} (a gradient learns in far fewer steps)"
    yield f"policy: {a.why}"
    if a.pace is None:
        return
    F, BW = size(a.machine.flops, "FLOP/s"), size(a.machine.link, "B/s")
    if a.policy == "resident":
        yield f"time: {seconds(a.pace.seconds)} a step at {F}"
        return
    up, down = moved(s, w, a.window)
    yield (
        f"time: {seconds(a.pace.seconds)} a step, the longer of compute "
        f"{seconds(a.pace.compute)} and transfer {seconds(a.pace.transfer)}"
    )
    where = f"disk at {size(a.machine.disk, 'B/s')}" if a.policy == "disk" else "RAM"
    ram = in_ram(s, w, a.window)
    yield (
        f"bytes a step: {size(up)} up, {size(down)} down, link at {BW}; "
        f"{size(ram)} in {where}" + (f" of {size(a.ram)}" if where == "RAM" else "")
    )
    if a.window.reads:
        each, n = one_v(s, a.window.rank), a.window.drawn
        yield (
            f"family=LowRank({a.window.rank}): what a run adds takes {size(each)} of "
            f"the device for every V; {n} are counted, {size(n * each)}"
        )
    ratio = a.pace.threshold / w.count
    said = "the transfer hides"
    if ratio > 1:
        said = f"{ratio:.1f} times the tokens, or the probes, would cost no time"
    yield (
        f"T*: {a.pace.threshold:,.0f} tokens a step at {F}; this step has "
        f"{w.count:,}: {said}"
    )
