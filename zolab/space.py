"""What moves: a space of named slots, found in a model by identity.

A slot is a parameter with a canonical name, so that LoRA wrappers, DataParallel and
compilation leave its directions alone. A tied weight is one slot (the first name):
two slots would perturb it twice. The stored values are never copied here; kernels
read them through `slot.base`.
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from zolab.errors import SpaceError
from zolab.gradient import Direction
from zolab.noise import slot_id

if TYPE_CHECKING:
    from zolab.masks import Mask
    from zolab.storage.delta import Delta
    from zolab.storage.packed import Packed

STORAGE = (torch.float32, torch.bfloat16, torch.float16)
WRAPPERS = re.compile(r"(^|\.)(base_model\.model|base_layer|module|_orig_mod)(?=\.)")


def canonical(name: str) -> str:
    """The parameter's name without the prefixes that wrappers add."""
    return WRAPPERS.sub("", name).lstrip(".")


@dataclass(frozen=True, eq=False)
class Curvature:
    """A diagonal Hessian of a slot's shape, fp32, and how fast it is averaged.

    Probes and updates are divided by its root.
    """

    hessian: Tensor
    smooth: float


@dataclass(frozen=True, eq=False)
class Slot:
    """One tensor that moves: name, 64-bit id, shape, its parameters and its group.

    `params` holds every Parameter object that shares the storage (tied weights);
    `group` is the index of the optimizer's param group. `mask` says which elements
    move (all, if None), `curvature` by how much. A `delta` holds what a run adds to a
    matrix that is only read.
    """

    name: str
    id: int
    params: tuple[nn.Parameter, ...]
    group: int = 0
    mask: Mask | None = None
    curvature: Curvature | None = None
    delta: Delta | None = None

    @property
    def packed(self) -> Packed | None:
        """Codes and scales, where the parameter is a packed weight."""
        return getattr(self.params[0], "packed", None)

    @property
    def base(self) -> Tensor:
        """The stored values (of a packed weight its codes), detached.

        Writing to it is the engine's business only.
        """
        return self.params[0].detach() if self.packed is None else self.packed.codes

    @property
    def shape(self) -> torch.Size:
        return self.params[0].shape

    @property
    def dtype(self) -> torch.dtype:
        return self.params[0].dtype

    @property
    def device(self) -> torch.device:
        return self.base.device

    @property
    def numel(self) -> int:
        return self.params[0].numel()

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns when its first axis is set against the rest."""
        rows = self.shape[0] if self.shape else 1
        return rows, self.numel // rows

    def direction(self, d: Direction) -> Tensor:
        """z of this slot, fp32, on the slot's device; masks and curvature left out."""
        from zolab.storage import draw_all  # kernels know slots; this is for teaching

        return draw_all(self, d)


@dataclass(frozen=True)
class Space:
    """An ordered tuple of slots; `for slot in space`, `space["name"]`, `len(space)`.

    `still` are packed weights that do not move: a probe decodes them all the same.
    """

    slots: tuple[Slot, ...]
    still: tuple[Slot, ...] = ()

    @classmethod
    def of(cls, model: nn.Module, *, frozen: bool = False) -> Space:
        """Every parameter of `model` with requires_grad (or `frozen`), tied ones once.

        Raises SpaceError on a compiled model, on a dtype that zolab does not store,
        on parameters that overlap without being tied, and on an empty space.
        """
        refuse_compiled(model)
        found: dict[int, list[nn.Parameter]] = {}
        names: dict[int, str] = {}
        for name, p in model.named_parameters(remove_duplicate=False):
            moves = p.requires_grad or frozen
            if (moves or hasattr(p, "packed")) and p.numel():
                _check(name, p)
                where = p.data_ptr()
                if all(p is not q for q in found.setdefault(where, [])):
                    found[where].append(p)
                names.setdefault(where, canonical(name))
        slots: list[Slot] = []
        still: list[Slot] = []
        for where, params in found.items():
            if any(q.shape != params[0].shape for q in params):
                raise SpaceError(f"{names[where]} shares storage at another shape")
            slot = Slot(names[where], slot_id(names[where]), tuple(params))
            (slots if frozen or params[0].requires_grad else still).append(slot)
        if not slots:
            raise SpaceError("no parameter has requires_grad=True: nothing would move")
        _check_overlap(slots)
        if len({s.name for s in slots}) < len(slots):
            raise SpaceError("two parameters have the same canonical name")
        return cls(tuple(slots), tuple(still))

    def select(self, pattern: str) -> Space:
        """The slots whose name matches a glob ("*norm*") or a regex ("re:...")."""
        if pattern.startswith("re:"):
            keep = [s for s in self.slots if re.search(pattern[3:], s.name)]
        else:
            keep = [s for s in self.slots if fnmatch.fnmatchcase(s.name, pattern)]
        if not keep:
            names = ", ".join(s.name for s in self.slots[:5])
            raise SpaceError(f"no slot matches {pattern!r}; slots are {names}, ...")
        return self.only(keep)

    def only(self, keep: Iterable[Slot]) -> Space:
        """These slots; packed weights that are not among them are still."""
        keep = tuple(keep)
        names = {s.name for s in keep}
        rest = (s for s in (*self.slots, *self.still) if s.name not in names)
        return Space(keep, tuple(s for s in rest if s.packed is not None))

    def grouped(self, param_groups: list[dict]) -> Space:
        """The slots that the optimizer's groups name, each with its group's index."""
        index = {id(p): i for i, g in enumerate(param_groups) for p in g["params"]}
        slots = []
        for s in self.slots:
            groups = {index[id(p)] for p in s.params if id(p) in index}
            if len(groups) > 1:
                raise SpaceError(f"{s.name} is tied but stands in groups {groups}")
            if groups:
                slots.append(replace(s, group=groups.pop()))
        if not slots:
            raise SpaceError("the param groups name no parameter of the model")
        moving = {id(p) for s in slots for p in s.params}
        for s in slots:  # a code's step is counted in scales: which one, of which step?
            if s.packed is not None and id(s.packed.scale) in moving:
                raise SpaceError(
                    f"{s.name} and its scales both require grad: move the codes "
                    "(QuZO, ZOQO) or the scales (QZO), not both"
                )
        return self.only(slots)

    def masked(self, masks: Mapping[str, Mask]) -> Space:
        """The same slots, of which those that `masks` names move only in part."""
        if strangers := masks.keys() - {s.name for s in self.slots}:
            raise SpaceError(f"masks for {sorted(strangers)}, which are no slots")
        for s in self.slots:
            packed = getattr(masks.get(s.name), "packed", None)
            if packed is not None and len(packed) != (s.numel + 7) // 8:
                raise SpaceError(
                    f"the mask of {s.name} has {len(packed)} bytes, expected "
                    f"{(s.numel + 7) // 8}: a bit for each of {s.numel} elements"
                )
            _refuse_packed(s, "a mask", masks.get(s.name))
        return self.only(replace(s, mask=masks.get(s.name)) for s in self.slots)

    def curved(self, smooth: float) -> Space:
        """The same slots with a diagonal Hessian beside each, ones at the start."""
        slots = []
        for s in self.slots:
            _refuse_packed(s, "a Hessian", smooth)
            ones = torch.ones(s.shape, device=s.params[0].device)
            slots.append(replace(s, curvature=Curvature(ones, smooth)))
        return self.only(slots)

    def __iter__(self) -> Iterator[Slot]:
        return iter(self.slots)

    def __len__(self) -> int:
        return len(self.slots)

    def __getitem__(self, name: str) -> Slot:
        for s in self.slots:
            if s.name == name:
                return s
        raise KeyError(f"no slot {name!r}; there are {[s.name for s in self.slots]}")

    @property
    def numel(self) -> int:
        return sum(s.numel for s in self.slots)

    def digest(self) -> str:
        """A hash of every stored bit: names the base that a journal belongs to.

        Packed weights that stand still count: scales say nothing without their codes.
        """
        h = hashlib.blake2b(digest_size=16)
        for s in (*self.slots, *self.still):
            h.update(f"{s.name} {tuple(s.shape)} {s.dtype}".encode())
            for part in (s.base, *_grid(s)):
                h.update(
                    part.contiguous().view(torch.uint8).cpu().numpy().reshape(-1).data
                )
        return h.hexdigest()


def _grid(slot: Slot) -> list[Tensor]:
    """The tensors besides its codes that say what a packed weight is."""
    p = slot.packed
    parts = () if p is None else (p.scale.detach(), p.zero, p.unit)
    return [t for t in parts if t is not None]


def _refuse_packed(slot: Slot, what: str, given: object) -> None:
    if given is not None and slot.packed is not None:
        raise SpaceError(f"{what} over the packed weight {slot.name}: not supported")


def refuse_compiled(model: nn.Module) -> None:
    """A compiled graph calls no torch function, so nothing could be materialised."""
    for name, m in model.named_modules():
        if hasattr(m, "_orig_mod") or getattr(m, "_compiled_call_impl", None):
            raise SpaceError(
                f"module {name or type(m).__name__!r} is compiled with torch.compile; "
                "zolab materialises weights call by call, so pass the plain model"
            )


def is_away(p: Tensor) -> bool:
    """Whether the parameter only claims its shape (`zolab.empty_weights`)."""
    return getattr(p, "zolab_away", False)


def _check(name: str, p: nn.Parameter) -> None:
    if p.dtype not in STORAGE:
        raise SpaceError(f"{name} is {p.dtype}, expected one of {STORAGE}")
    if is_away(p) or hasattr(p, "packed"):
        return
    if not p.is_contiguous():
        raise SpaceError(f"{name} is not contiguous: p.data = p.data.contiguous()")
    if p.is_meta:
        raise SpaceError(f"{name} is on the meta device: it has no values")


def _check_overlap(slots: list[Slot]) -> None:
    spans = sorted(
        (s.params[0].data_ptr(), s.numel * s.params[0].element_size(), s.name)
        for s in slots
        if not (is_away(s.params[0]) or s.packed)
    )
    for (a, size, first), (b, _, second) in zip(spans, spans[1:], strict=False):
        if a + size > b:
            raise SpaceError(f"{first} and {second} overlap in memory")
