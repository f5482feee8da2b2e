"""What `zolab plan` prints: words in, lines out; what is missing is measured here."""

from __future__ import annotations

from dataclasses import replace

from zolab import doctor
from zolab.plan.advice import advise
from zolab.plan.machine import measure
from zolab.plan.memory import Work
from zolab.plan.pace import Machine
from zolab.plan.shape import find
from zolab.plan.streamed import Window
from zolab.plan.units import PlanError, quantity
from zolab.plan.units import batch as in_batch

WHERE = "measured on this machine"


def answer(
    model: str,
    *,
    device: str | None = None,
    ram: str | None = None,
    batch: str = "16x512",
    dtype: str = "bf16",
    link: str | None = None,
    flops: str | None = None,
    disk: str | None = None,
    slots: int = 2,
    write_back: str = "1",
    embeddings: str = "device",
) -> list[str]:
    """The plan's lines. Raises PlanError on what cannot be read."""
    sequences, tokens = in_batch(batch)
    shape, work = find(model), Work(sequences, tokens, dtype)
    host = quantity(ram, "B") if ram else (doctor.ram_gb() or 0.0) * 2**30
    gpu = doctor.gpu_gb()
    space = quantity(device, "B") if device else (gpu * 2**30 or host)
    if not (host and space):
        raise PlanError("this system does not say its memory: give --device and --ram")
    machine = Machine(0.0, 0.0)
    if link is None or flops is None:
        machine = measure(dtype)
    if link is not None:
        machine = replace(machine, link=quantity(link, "B/s"))
    if flops is not None:
        machine = replace(machine, flops=quantity(flops, "FLOP/s"))
    if disk is not None:
        machine = replace(machine, disk=quantity(disk, "B/s"))
    steps = int(write_back) if write_back.isdecimal() else write_back
    window = Window(slots=slots, write_back=steps, embeddings=embeddings)
    on_gpu = device is not None or gpu > 0
    found = advise(
        shape,
        work,
        device=space,
        ram=host,
        machine=machine,
        window=window,
        gpu=on_gpu,
    )
    missing = [w for w, x in (("link", link), ("FLOP/s", flops)) if x is None]
    note = [f"({' and '.join(missing)} {WHERE})"] if missing and found.pace else []
    return [*found.lines(), *note]
