"""transformers.Trainer without gradients: its loop, data, logs; our step and journal.

The loop calls `training_step`, clips, calls `optimizer.step()` and moves the schedule.
Here the step happens inside `training_step`, since only it knows the loss, and what
the loop holds as its optimizer lends the param groups to the schedule and does nothing.
"""

from __future__ import annotations

import copy
import functools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from zolab.errors import JournalError
from zolab.journal import Journal
from zolab.optimizers import MeZO, ZOOptimizer

Factory = Callable[..., ZOOptimizer]
LOG, STATE = "journal.zolab", "zolab.json"


class ZOTrainer(Trainer):
    """A Trainer that trains with forward passes: no gradient is ever computed.

    `zo` holds options of `zolab.MeZO` (eps, num_queries, ...), or is a factory called
    as `zo(model, lr=, weight_decay=, seed=, journal=)`. Learning rate, weight decay
    and seed come from `args` unless `zo` has them; the journal is `journal.zolab` in
    `output_dir` (None: no journal). The logged loss is the mean of the probes'.

    `gradient_accumulation_steps` batches make one loss, scaled as the Trainer scales
    it. Clipping and loss scaling have nothing to act on and are skipped. A non-finite
    loss raises NonFiniteLossError, whatever `logging_nan_inf_filter` says.

    `train(resume_from_checkpoint=...)` wants the model with the weights that the run
    started from: the journal is cut at the checkpoint's step (the rest is kept beside
    it) and replayed, and the result must be the checkpoint, bit for bit. Raises
    JournalError otherwise, ValueError for more than one process or device.

    >>> import torch, transformers
    >>> from zolab.integrations import ZOTrainer
    >>> config = transformers.GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=2)
    >>> model = transformers.GPT2LMHeadModel(config)
    >>> rows = [{"input_ids": r, "labels": r} for r in torch.randint(9, (8, 5))]
    >>> args = transformers.TrainingArguments("run", max_steps=3, report_to="none")
    >>> trainer = ZOTrainer(model, args, train_dataset=rows, zo={"eps": 1e-3})
    >>> trainer.train().global_step, trainer.zo.steps  # doctest: +ELLIPSIS
    {'train_runtime': ...}
    (3, 3)
    """

    optimizer: Any

    def __init__(
        self, *args: Any, zo: dict[str, Any] | Factory | None = None, **kwargs: Any
    ) -> None:
        if kwargs.get("optimizers", (None, None))[0] is not None:
            raise ValueError("pass the optimizer as zo=options or zo=factory")
        super().__init__(*args, **kwargs)
        self._refuse_what_cannot_work()
        options = dict(zo) if isinstance(zo, dict) else {}
        self._journal = options.pop("journal", Path(self.args.output_dir) / LOG)
        self._factory: Factory = zo if callable(zo) else MeZO
        self._options = {
            "lr": self.args.learning_rate,
            "weight_decay": self.args.weight_decay,
            "seed": self.args.seed,
        } | options
        self.zo: ZOOptimizer | None = None
        self._resumed: dict[str, Any] | None = None
        self._batches: list[Any] = []

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's; the journal is open, and locked, only meanwhile."""
        self._resumed, self._batches = None, []
        try:
            return super().train(*args, **kwargs)
        finally:
            if self.zo is not None and self.zo.journal is not None:
                self.zo.journal.close()

    def training_step(
        self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None
    ) -> Tensor:
        """Collect the batch; with the last one of a step, probe, log and move."""
        assert self.zo is not None
        model.train()
        self._batches.append(self._prepare_inputs(inputs))
        loss = 0.0
        if self.accelerator.sync_gradients:
            batches, self._batches = self._batches, []
            ask = functools.partial(self._loss, model, batches, num_items_in_batch)
            loss = self.zo.step(ask)
        return torch.tensor(loss, device=self.args.device)

    def _loss(self, model: nn.Module, batches: list[Any], items: Any) -> Tensor:
        """The loss of one step's batches, as the Trainer would accumulate it."""
        losses = []
        for batch in batches:
            batch = copy.copy(batch)  # compute_loss may pop the labels
            with self.compute_loss_context_manager():
                loss = self.compute_loss(model, batch, num_items_in_batch=items)
            losses.append(loss)
        scaled = getattr(self, "loss_is_scaled_for_ga", None)  # newer than 5.0
        if scaled is None:
            by_items = self.model_accepts_loss_kwargs and items is not None
            scaled = by_items or self.compute_loss_func is not None
        return sum(losses) if scaled else sum(losses) / len(losses)

    def create_optimizer(self, model: nn.Module | None = None) -> Any:
        """The zeroth-order optimizer in the Trainer's place, journal open."""
        if self.optimizer is not None and self.zo is not None:
            if self._resumed is not None:
                raise ValueError("resume with a new ZOTrainer on the starting weights")
            _reopen(self.zo)
            return self.optimizer
        if self._journal is not None:
            Path(self._journal).parent.mkdir(parents=True, exist_ok=True)
            self._cut()
        target = self.model if model is None else model
        self.zo = self._factory(target, journal=self._journal, **self._options)
        if self._resumed is not None:
            self._check_rebuilt(self._resumed)
        self.optimizer = _Lent(self.zo)
        return self.optimizer

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        """As the Trainer's, with every update applied."""
        if self.zo is not None:
            self.zo.engine.flush()
        super().save_model(*args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As the Trainer's, plus the last step's mean |projected gradient|."""
        if "learning_rate" in logs and self.zo is not None and self.zo.last is not None:
            slopes = [abs(c) for _, c in self.zo.last.gradient.terms]
            logs["projected_grad"] = sum(slopes) / len(slopes)
        super().log(logs, *args, **kwargs)

    def _clip_grad_norm(self, model: nn.Module) -> None:
        return None

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> None:
        return None

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        assert self.zo is not None
        logged = self.zo.journal is not None
        state = {"steps": self.zo.steps, "weights": self.zo.space.digest()}
        Path(output_dir, STATE).write_text(json.dumps(state | {"journal": logged}))

    def _load_from_checkpoint(self, checkpoint: str, model: Any = None) -> None:
        """From the journal where there is one, else from the checkpoint's weights."""
        path = Path(checkpoint, STATE)
        if not path.exists():
            raise JournalError(f"{checkpoint} was not saved by a ZOTrainer: no {STATE}")
        self._resumed = json.loads(path.read_text())
        if self._journal is None or not self._resumed["journal"]:
            super()._load_from_checkpoint(checkpoint, model)

    def _cut(self) -> None:
        """Leave in the journal what the checkpoint has; the Trainer redoes the rest."""
        path = Path(self._journal)
        if not path.exists() or path.stat().st_size == 0:
            if self._resumed is not None and self._resumed["journal"]:
                raise JournalError(f"no journal at {path}: the run cannot be rebuilt")
            return
        with Journal(path) as journal:
            steps = self._resumed["steps"] if self._resumed else 0
            if self._resumed is None and journal.records:
                raise JournalError(
                    f"{path} holds a run of {journal.next_step} steps: resume it with "
                    "train(resume_from_checkpoint=True), or use another output_dir"
                )
            keep = sum(r.step < steps for r in journal.records)
            if keep < len(journal.records):
                shutil.copy(path, path.with_name(f"{path.name}.{journal.next_step}"))
                os.ftruncate(journal.fd, journal.start + keep * journal.size)

    def _check_rebuilt(self, resumed: dict[str, Any]) -> None:
        assert self.zo is not None
        found = self.zo.steps if resumed["journal"] else resumed["steps"]
        if (found, self.zo.space.digest()) != (resumed["steps"], resumed["weights"]):
            raise JournalError(
                f"the weights after {found} steps are not the checkpoint's (which has "
                f"{resumed['steps']}): it belongs to another journal or model"
            )

    def _refuse_what_cannot_work(self) -> None:
        args = self.args
        if args.world_size > 1 or args.n_gpu > 1:
            raise ValueError("ZOTrainer runs on one process and one device")
        if self.is_deepspeed_enabled or self.is_fsdp_enabled or args.torch_compile:
            raise ValueError("ZOTrainer wants the plain model: no sharding, no compile")


class _Lent(torch.optim.Optimizer):
    """The optimizer's groups for a schedule; stepping it does nothing.

    Accelerate must not wrap it: a loss scaler would look for gradients.
    """

    _is_accelerate_prepared = True
    step_was_skipped = False

    def __init__(self, zo: ZOOptimizer) -> None:
        self.zo = zo  # no super().__init__: groups and state are read from zo

    def __getattr__(self, name: str) -> Any:
        if name in ("param_groups", "state", "defaults"):
            return getattr(self.zo, name)
        raise AttributeError(name)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        return None

    def zero_grad(self, set_to_none: bool = True) -> None:
        return None

    def state_dict(self) -> dict[str, Any]:
        return self.zo.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.zo.load_state_dict(state_dict)


def _reopen(zo: ZOOptimizer) -> None:
    """The journal that the last `train` closed."""
    old = zo.journal
    if old is None or old.fd >= 0:
        return
    zo.journal = Journal(old.path, old.header, fsync=old.fsync)
    if zo.journal.next_step != zo.steps:
        raise JournalError(
            f"{old.path} has {zo.journal.next_step} steps, this run {zo.steps}: "
            "another run went on with it"
        )
