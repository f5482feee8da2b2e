"""What a run cost, in the same units for every method.

rollouts          answers drawn in training (evaluations are not counted)
forward_tokens    real tokens that went forward: to draw an answer, and to look at it
backward_tokens   real tokens that went backward; 0 for a forward-only method
generate_s, train_s, cpu_s     seconds of the clock; CPU seconds of this process
peak_bytes        the most memory this process, and its GPU, ever held
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from zolab.rl.batch import Rollout


@dataclass
class Meter:
    """Counts since the run began, over all its processes."""

    rollouts: int = 0
    forward_tokens: int = 0
    backward_tokens: int = 0
    generate_s: float = 0.0
    train_s: float = 0.0
    cpu_s: float = 0.0
    peak_bytes: int = 0

    def drew(self, rows: int, tokens: int) -> None:
        """So many answers were drawn, of so many tokens with their prompts."""
        self.rollouts += rows
        self.forward_tokens += tokens

    def passed(self, rollout: Rollout, *, times: int = 1, back: bool = False) -> None:
        """A teacher-forced pass over answers, `back` if the gradient followed."""
        self.forward_tokens += times * rollout.tokens
        self.backward_tokens += times * rollout.tokens if back else 0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what is inside as "generate" or "train"."""
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            spent = getattr(self, f"{name}_s") + time.perf_counter() - wall
            setattr(self, f"{name}_s", spent)
            self.cpu_s += time.process_time() - cpu
            self.peak_bytes = max(self.peak_bytes, peak_bytes())

    def state(self) -> dict[str, float]:
        """As plain numbers."""
        return asdict(self)


def peak_bytes() -> int:
    """The high-water mark of this process's memory, plus its GPU's; 0 if unknown."""
    gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0
    status = Path("/proc/self/status")
    if status.exists():  # a child inherits getrusage's peak from what started it
        lines = status.read_text().splitlines()
        high = [x for x in lines if x.startswith("VmHWM")]
        return gpu + (int(high[0].split()[1]) * 1024 if high else 0)
    try:
        import resource
    except ImportError:  # Windows
        return gpu
    return gpu + resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
