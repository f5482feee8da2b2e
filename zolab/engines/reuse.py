"""Feature reuse: a probe starts at the first module that it changes.

A probe that moves coordinates of layer l leaves the layers before it as they were, so
their outputs are those of the clean pass. With layers of d_l coordinates, each a pass,
and a cost c_l of the layer, all coordinates cost

    sum_l d_l (c_l + ... + c_L)   instead of   sum_l d_l (c_1 + ... + c_L)

A. Chen et al., DeepZero, arXiv:2310.02025, section 5.

A module's output is returned again only if nothing that it depends on differs: none of
its slots moves at this probe, its inputs have the bits of the clean pass, its weights
and buffers were not written to, its kept output was not edited in place, and it draws
no random numbers. So every answer has the bits of `Resident`, for any model and any
probe; what cannot be reused is computed. What is kept lives as long as one `evaluate`,
in which weights cannot move, so that nothing goes stale. The price is memory: all
outputs of the clean pass, as for back-propagation.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zolab.engines.base import Objectives
from zolab.engines.calls import map_leaves
from zolab.engines.guards import eval_mode, generators
from zolab.engines.resident import Resident
from zolab.gradient import Answer, Probe
from zolab.space import Space

SINGLE = (tuple, (tuple, "."), ((),))  # how the arguments of f(x) are nested
PLAIN = (int, float, bool, str, type(None), torch.dtype, torch.device)


class Reuse(Resident):
    """`Resident`, except that unchanged modules are not run again within a step.

    `modules` is a glob of module names ("layers.*"), all by default. `ran` and `reused`
    count, by name, the calls since `bind` that were computed and those that were not
    (modules inside of a reused one are not called at all); `kept_bytes` is what the
    last clean pass left in memory. For estimators that move part of the model at a time
    (CGE, ModuleWise); it gains nothing where every probe moves the first layer.
    A module that gets or returns other objects than tensors, plain values and tuples,
    lists or dicts of them runs each time, though its parts need not: language models
    of transformers want `use_cache=False`.
    """

    def __init__(
        self, *, modules: str = "*", scratch: str = "auto", unseen: str = "raise"
    ) -> None:
        super().__init__(scratch=scratch, unseen=unseen)
        self.modules = modules

    def bind(self, model: nn.Module, space: Space, *, seed: int, rounding: str) -> None:
        super().bind(model, space, seed=seed, rounding=rounding)
        named = [(n, m) for n, m in model.named_modules() if n]
        self.named = {n: m for n, m in named if fnmatchcase(n, self.modules)}
        if not self.named:
            known = ", ".join(n for n, _ in named[:5])
            raise ValueError(f"no module matches {self.modules!r}; there are {known}")
        slots = {id(p): s.name for s in space for p in s.params}
        self.slots = {
            n: {slots[id(p)] for p in m.parameters() if id(p) in slots}
            for n, m in self.named.items()
        }
        self.ran: Counter[str] = Counter()
        self.reused: Counter[str] = Counter()
        self.kept_bytes = 0

    def evaluate(self, probes: list[Probe], objectives: Objectives) -> list[Answer]:
        restore, answers = generators(), dict[int, Answer]()
        for name in dict.fromkeys(p.objective for p in probes):
            mine = [i for i, p in enumerate(probes) if p.objective == name]
            # The clean probe goes first: every probe sees the same random numbers.
            mine.sort(key=lambda i: bool(probes[i].terms) or probes[i].want != "value")
            first = probes[mine[0]]
            resting = sum(self._rests(probes[i]) for i in mine)
            memo = Memo(self)
            with eval_mode(self.model), memo.installed():
                if first.terms and resting > 2:  # worth a clean pass that nobody asked
                    restore()
                    with memo.pass_of(Probe(objective=name)):
                        self.ask(Probe(objective=name), objectives)
                for i in mine:
                    restore()
                    with memo.pass_of(probes[i]):
                        answers[i] = self.ask(probes[i], objectives)
            self.kept_bytes = memo.nbytes
        self.check_seen()
        return [answers[i] for i in range(len(probes))]

    def _rests(self, probe: Probe) -> bool:
        """Whether some slot stays where it is."""
        return not all(any(d.moves(s.name) for d, _ in probe.terms) for s in self.space)


@dataclass(frozen=True)
class Kept:
    """A call of the clean pass: leaves of inputs and output, and what else it read."""

    inputs: Sequence[tuple[Any, int]]
    shape: Any
    output: Any
    leaves: Sequence[tuple[Any, int]]
    state: tuple[tuple[int, int], ...]
    single: bool  # one positional argument, a tensor or a plain value


class Memo:
    """The calls of one clean pass, and whether each may stand for a new one."""

    def __init__(self, engine: Reuse) -> None:
        self.engine = engine
        self.kept: dict[tuple[str, int], Kept] = {}
        self.calls: Counter[str] = Counter()
        self.moved: set[str] | None = None
        self.recording = False
        self.tensors = {
            n: [t for s in m.modules() for t in (s._parameters, s._buffers)]
            for n, m in engine.named.items()
        }

    @property
    def nbytes(self) -> int:
        """Bytes of all kept inputs and outputs, each storage once."""
        kept = (x for k in self.kept.values() for x, _ in (*k.inputs, *k.leaves))
        whole = (x.untyped_storage() for x in kept if isinstance(x, Tensor))
        return sum({s.data_ptr(): s.nbytes() for s in whole}.values())

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Inside, the modules ask here before they compute."""
        named = self.engine.named
        before = {n: m.__dict__.get("forward") for n, m in named.items()}
        for n, m in named.items():
            m.__dict__["forward"] = partial(self.call, n, m.forward)
        try:
            yield
        finally:
            for n, m in named.items():
                del m.__dict__["forward"]
                if before[n] is not None:
                    m.__dict__["forward"] = before[n]

    @contextmanager
    def pass_of(self, probe: Probe) -> Iterator[None]:
        """One run of the closure, at the probe; the first clean one is kept."""
        value = probe.want == "value"
        self.recording = value and not probe.terms and not self.kept
        self.moved = None
        if value and not self.recording:
            names = [s.name for s in self.engine.space]
            self.moved = {n for n in names if any(d.moves(n) for d, _ in probe.terms)}
        self.calls.clear()
        yield

    def call(
        self, name: str, forward: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """The module's output: the clean pass's, where nothing differs."""
        at = name, self.calls[name]
        self.calls[name] += 1
        # Our looks at tensors are no torch calls of the closure.
        with torch._C.DisableTorchFunction():
            kept = self.kept.get(at) if not self.recording else None
            if kept is not None and self._same(name, kept, args, kwargs):
                self.engine.reused[name] += 1
                return map_leaves(lambda x: x, kept.output)
            if self.recording:
                inputs, shape = leaves((args, kwargs))
                state, before = self._state(name), drawn()
        self.engine.ran[name] += 1
        out = forward(*args, **kwargs)
        if self.recording:
            with torch._C.DisableTorchFunction():
                found, _ = leaves(out)
                if inputs is not None and found is not None and drawn() == before:
                    single = shape == SINGLE
                    self.kept[at] = Kept(inputs, shape, out, found, state, single)
        return out

    def _same(self, name: str, kept: Kept, args: Any, kwargs: Any) -> bool:
        if self.moved is None or not self.moved.isdisjoint(self.engine.slots[name]):
            return False
        if any(version(x) != v for x, v in kept.leaves):  # edited in place since
            return False
        if self._state(name) != kept.state:
            return False
        if (
            kept.single
            and len(args) == 1
            and not kwargs
            and args[0] is kept.inputs[0][0]
        ):
            return version(args[0]) == kept.inputs[0][1]  # the usual case, soon said
        now, shape = leaves((args, kwargs))
        if now is None or shape != kept.shape:
            return False
        return all(map(equal, now, kept.inputs))

    def _state(self, name: str) -> tuple[tuple[int, int], ...]:
        """Address and version of every weight and buffer in the module."""
        found = (t for d in self.tensors[name] for t in d.values() if t is not None)
        return tuple((t.data_ptr(), version(t)) for t in found)


def version(x: Any) -> int:
    """How often a tensor was written to; 0 of anything else."""
    return x._version if isinstance(x, Tensor) else 0


def leaves(x: Any) -> tuple[list[tuple[Any, int]] | None, Any]:
    """(leaf, version) of every tensor and plain value of x, and how they are nested.

    None where x holds something whose equality or copying means nothing to us.
    """
    found: list[tuple[Any, int]] = []

    def nest(y: Any) -> Any:
        if type(y) in (tuple, list) or hasattr(y, "_fields"):
            return type(y), *map(nest, y)
        if type(y) is dict:
            return tuple(y), *map(nest, y.values())
        tensor = type(y) in (Tensor, nn.Parameter) and not y.is_inference()
        if not tensor and type(y) not in PLAIN:
            raise TypeError
        found.append((y, version(y)))
        return "."

    try:
        return found, nest(x)
    except TypeError:
        return None, None


def equal(now: tuple[Any, int], kept: tuple[Any, int]) -> bool:
    """Whether a leaf has the bits that the kept one had when its version was noted."""
    (a, changes), (b, noted) = now, kept
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return type(a) is type(b) and repr(a) == repr(b)  # -0.0 is not 0.0
    if version(b) != noted:  # edited since: its old value is gone
        return False
    if a is b:
        return changes == noted
    alike = a.dtype == b.dtype and a.shape == b.shape and a.stride() == b.stride()
    if not alike or a.device != b.device:
        return False
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}.get(a.element_size())
    if a.is_floating_point() and bits:
        a, b = a.view(bits), b.view(bits)
    return torch.equal(a, b)


def drawn() -> tuple[Any, ...]:
    """The global generators' states, to see whether a call drew from them."""
    gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    states = [torch.get_rng_state(), *gpu]
    raw = [s.numpy().tobytes() for s in states]
    numbers: Any = np.random.get_state()
    return *raw, random.getstate(), numbers[1].tobytes(), *numbers[2:]
