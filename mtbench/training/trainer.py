"""The common trainer: one cell from its spec to its result. It names no method and no task."""

import copy
import csv
import io
import json
import math
import platform
import shutil
import statistics
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, get_args

import torch
from torch import Tensor, nn

from mtbench import seeding
from mtbench.balancing.balancer import Balancer
from mtbench.balancing.distributed import ALONE, Ranks
from mtbench.balancing.engine import Engine
from mtbench.balancing.model import MultitaskModel
from mtbench.balancing.step import Space, Step
from mtbench.errors import RunError, UsageError
from mtbench.plugins.method import Method
from mtbench.training import numerics
from mtbench.training.cache import cache_dir
from mtbench.training.rundir import RunDirectory, Spec
from mtbench.training.task import Batch, Metric, Recipe, Split, Splits, Task
from mtbench.version import __version__

SELECTION = "mean-primary"
"""The rule of ``select="best"``: the epoch with the largest mean of the primary validation metrics,
those that are better when lower counted negative, undefined ones left out; of equals, the first."""

CHECKPOINT_SECONDS = 30.0

CHECKPOINT_VERSION = 1

LOOK_SECONDS = 0.5
"""How long the host leaves the numbers of the steps that it makes on the device."""

LOOK_STEPS = 10
"""The same in steps, for several ranks: all must stop after the same one, and clocks differ."""

MOST_SKIPPED = 0.01
"""The share of a run's steps, at least one, that may be skipped before it has diverged."""

EXTRA_STATE = "_extra_state"
"""What torch calls that part of a module's state which is neither parameter nor buffer."""


class Observer(Protocol):
    """Is told how a cell goes."""

    def started(self, spec: Spec, epochs: int, steps: int, done: int) -> None:
        """A cell begins, or goes on after `done` of its epochs x steps."""

    def stepped(self, epoch: int, losses: dict[str, float]) -> None:
        """One step was made; there are no losses if it was skipped.

        Steps are told in their order, the first of a run at once, others when the host looks.
        """

    def evaluated(self, record: dict[str, Any]) -> None:
        """An epoch ended with this record."""

    def finished(self, result: dict[str, Any]) -> None:
        """The cell ended."""


class Diverged(Exception):  # noqa: N818 - an outcome, not an error
    """A loss or a gradient became infinite or NaN."""


@dataclass
class Progress:
    """Where a cell stands: all that is kept beside weights and generators."""

    epoch: int = 0
    position: int = 0
    sums: list[float] = field(default_factory=list)
    counted: int = 0  # steps in the sums
    history: list[dict[str, Any]] = field(default_factory=list)
    best_score: float = -math.inf
    seconds: float = 0.0
    threads: int = 0
    batched: bool | None = None
    diagnostics: dict[str, dict[str, float]] = field(default_factory=dict)
    peak_mib: float = 0.0
    processes: int = 1
    precision: str = "fp32"
    nonfinite: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class _Made:
    """A step that was made, whose numbers stay on the device until the host looks at them.

    Attributes:
        position: in its epoch.
        lr: the learning rate.
        numbers: of the "loss" of each objective, the "gradient" norms, and the "weight" of each
            objective where the step is logged and the method has weights.
        read: the same on the host, once it has looked.
        seconds: what it took.
    """

    position: int
    lr: float
    numbers: dict[str, list[Tensor]]
    read: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0


def build(
    spec: Spec, task: Task, method: Method, init: Mapping[str, Tensor] | None = None
) -> tuple[MultitaskModel, Balancer]:
    """Return the initial model, equal for every method at one seed, and the balancer.

    Args:
        spec: the cell.
        task: an instance with the spec's parameters.
        method: what constructs the balancer.
        init: weights to start from, taken where name and shape agree.
    """
    seeding.seed_everything(seeding.derive(spec.seed, "model"))
    model = task.model()
    if init is not None:
        model.load_state_dict(fitting(model, init), strict=False)
    balancer = method(
        len(task.objectives), seeding.derive(spec.seed, "balancer"), **spec.method_params
    )
    return balancer.wrap(model).to(spec.device), balancer.to(spec.device)


def fitting(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return those weights whose name and shape the model has."""
    own = model.state_dict()
    return {k: v for k, v in weights.items() if k in own and own[k].shape == v.shape}


def autocast(precision: str, device: str) -> AbstractContextManager[Any]:
    """Return the context in which a forward pass runs at a precision."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, torch.bfloat16)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return the batch with its tensors on the device, or on their way there."""
    return {
        k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()
    }


@contextmanager
def _fits(run: RunDirectory, name: str) -> Iterator[None]:
    """Explain a tensor file that loads, but is of another model or program."""
    try:
        yield
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RunError(
            f"{run.path / name}: is not of this model ({type(error).__name__}); mtbench or a "
            "plugin has changed since: delete the folder to train this cell from its start"
        ) from error


class Predict:
    """A trained model as a function from inputs to the heads' outputs."""

    def __init__(self, spec: Spec, model: MultitaskModel, balancer: Balancer) -> None:
        self.spec, self.model, self.balancer = spec, model, balancer

    @torch.no_grad()
    def __call__(self, inputs: Any) -> list[Any]:
        """Return the K outputs."""
        self.model.eval()
        if isinstance(inputs, Tensor):
            inputs = inputs.to(self.spec.device)
        with autocast(self.spec.precision, self.spec.device):
            return self.model.decode(self.model.encode(inputs), self.balancer.view)


def load_trained(run: RunDirectory, task: Task, method: Method) -> Predict:
    """Return the selected model of a finished cell.

    Raises:
        RunError: the cell has no selected weights, or the file is corrupt.
    """
    state = run.load("best.pt")
    if state is None:
        raise RunError(f"{run.path}: has no trained weights (best.pt) yet; finish the run first")
    with _fits(run, "best.pt"):
        spec = run.spec().model_copy(update={"precision": state["precision"]})
        return restore(spec, task, method, state["model"], state["balancer"])


def restore(
    spec: Spec,
    task: Task,
    method: Method,
    weights: Mapping[str, Tensor],
    state: Mapping[str, Any],
) -> Predict:
    """Return a trained model on the CPU from the state dicts of model and balancer.

    The balancer's extra state, which only training needs, may be left out.
    """
    spec = spec.model_copy(update={"device": "cpu"})
    with seeding.preserved():
        model, balancer = build(spec, task, method)
    model.load_state_dict(weights)
    absent, unknown = balancer.load_state_dict(state, strict=False)
    if unknown or not all(name.endswith(EXTRA_STATE) for name in absent):
        raise KeyError(f"the balancer's {(unknown + absent)[0]}")
    return Predict(spec, model, balancer)


class Reader(RunDirectory):
    """A run directory to all ranks but the first, which writes for all."""

    def write_text(self, name: str, text: str) -> None:
        """Leave it to rank 0."""

    def save(self, name: str, state: dict[str, Any]) -> None:
        """Leave it to rank 0."""


class Trainer:
    """Trains one cell, resuming where its run directory left off.

    The host does not wait for a device in every step: what it wants to know of a step is kept there
    and read together with that of the steps after it, after half a second, and before anything is
    written. A step that was not finite is found then, and what was made of it is dropped with the
    steps after it. With ``nonfinite`` ``skip`` or ``fp32``, which must know before the optimizer's
    step, the host reads in every step.

    Args:
        spec: the cell.
        task: an instance with the spec's parameters.
        splits: what `task.setup` returned for the spec's seed.
        method: what constructs the balancer.
        run: the cell's directory.
        observer: is told how it goes.
        threads: of torch on the CPU; by default measured at the start.
        init: weights to start from; `build` says how.
        engine: how Jacobians are computed; by default what this machine was measured to do best.
        diagnose: whether the objectives' gradients are compared in the first step of every epoch,
            for every method; otherwise for those that compute them anyway.
        ranks: the processes that train the cell together. All but rank 0 get a `Reader` as `run`.
        checkpoint_seconds: how long after a checkpoint the next one is written, within an epoch.
    """

    def __init__(
        self,
        spec: Spec,
        task: Task,
        splits: Splits,
        method: Method,
        run: RunDirectory,
        observer: Observer,
        threads: int | None = None,
        init: Mapping[str, Tensor] | None = None,
        engine: Engine | None = None,
        diagnose: bool = False,
        ranks: Ranks = ALONE,
        checkpoint_seconds: float = CHECKPOINT_SECONDS,
    ) -> None:
        if len(splits.train) == 0:
            raise UsageError(f"task {spec.task}: the training split is empty")
        self.spec, self.task, self.splits, self.run_directory = spec, task, splits, run
        self.observer, self.method, self.threads = observer, method, threads
        self.init = init
        self.engine = Engine(notebook=cache_dir()) if engine is None else engine
        self.diagnose, self.ranks = diagnose, ranks
        self.checkpoint_seconds = checkpoint_seconds
        self.device = torch.device(spec.device)
        self.recipe = Recipe(**spec.recipe)
        if self.recipe.nonfinite == "fp32" and spec.precision == "fp32":
            raise UsageError("nonfinite=fp32 lowers bf16 to fp32, and the run is at fp32 already")
        self.steps = math.ceil(len(splits.train) / self.recipe.batch_size)
        self.total_steps = self.steps * self.recipe.epochs
        self.log_every = max(1, self.total_steps // 500)
        self.rows: list[list[Any]] = []
        self.order, self.order_epoch = torch.empty(0), -1
        self.step_seconds: deque[float] = deque(maxlen=1000)
        self.pending: list[_Made] = []
        self.looked = -math.inf

    def run(self) -> dict[str, Any]:
        """Train to the end and return the result, which is also written to the run directory."""
        with seeding.preserved(), numerics.deterministic():
            numerics.reset_peak_memory(self.device)
            self._build()
            self._restore()
            self.observer.started(
                self.spec,
                self.recipe.epochs,
                self.steps,
                self.at.epoch * self.steps + self.at.position,
            )
            outcome = {"status": "finished"}
            try:
                while self.at.epoch < self.recipe.epochs:
                    self._epoch()
            except Diverged as event:
                outcome = {"status": "diverged", "reason": str(event)}
            result = self._result(outcome)
            self.run_directory.write_text("result.json", json.dumps(result, indent=2))
            self.observer.finished(result)
            return result

    def _build(self) -> None:
        self.model, self.balancer = build(self.spec, self.task, self.method, self.init)
        groups: list[dict[str, Any]] = [{"params": list(self.model.parameters())}]
        if own := list(self.balancer.parameters()):
            groups.append({"params": own, "weight_decay": 0.0})
        self.optimizer = torch.optim.AdamW(
            groups, lr=self.recipe.lr, weight_decay=self.recipe.weight_decay, fused=True
        )
        seeding.seed_everything(seeding.derive(self.spec.seed, "training"))
        self.at = Progress(
            sums=[0.0] * len(self.task.objectives),
            processes=self.ranks.size,
            precision=self.spec.precision,
        )

    def _restore(self) -> None:
        state = self.run_directory.load("checkpoint.pt", self.spec.device)
        if state is None:
            self.at.threads = self._choose_threads()
            return
        file = self.run_directory.path / "checkpoint.pt"
        if state.get("version") != CHECKPOINT_VERSION:
            raise RunError(
                f"{file}: is of version {state.get('version')}, and this mtbench reads version "
                f"{CHECKPOINT_VERSION}: go on with the mtbench that wrote it, or delete the folder "
                "to train this cell from its start"
            )
        with _fits(self.run_directory, "checkpoint.pt"):
            self.model.load_state_dict(state["model"])
            self.balancer.load_state_dict(state["balancer"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.at = Progress(**state["progress"])
            seeding.set_global_state({k: _cpu(v) for k, v in state["rng"].items()})
            self.step_seconds.extend(state["step_seconds"])
            self.rows = state["rows"]
        if self.at.processes != self.ranks.size:  # which would add in another order
            raise RunError(
                f"{self.run_directory.path}: was begun by {self.at.processes} processes and goes "
                f"on with as many, found {self.ranks.size}: use --nproc {self.at.processes}, or "
                "start anew with --no-resume"
            )
        if self.at.history and not file.with_name("best.pt").exists():
            raise RunError(
                f"{file.with_name('best.pt')}: the selected weights are gone; delete the folder to "
                "train this cell from its start"
            )
        self._write_log()  # may have been cut, or be ahead of the checkpoint
        # Another number of threads could add in another order: a resumed cell keeps its own.
        torch.set_num_threads(self.at.threads)
        self.engine.batched = self.at.batched

    def _choose_threads(self) -> int:
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        elif self.ranks.size > 1:
            torch.set_num_threads(self.ranks.agree(numerics.fair_threads()))
        elif self.device.type == "cpu":
            batch = self._batch(0, 0)

            def work() -> None:
                self._forward(batch).total().backward()  # type: ignore[no-untyped-call]
                self.optimizer.zero_grad()

            before = copy.deepcopy(self.model.state_dict())
            with seeding.preserved():
                numerics.fastest_threads(work)
            self.model.load_state_dict(before)  # batch norm's running statistics have moved
        return torch.get_num_threads()

    def _batch(self, epoch: int, position: int) -> Batch:
        """Return a batch that depends on the seed, the epoch and the position alone."""
        if epoch != self.order_epoch:
            shuffle = seeding.generator(self.spec.seed, "order", epoch)
            self.order = torch.randperm(len(self.splits.train), generator=shuffle)
            self.order_epoch = epoch
        size = self.recipe.batch_size
        indices = self.order[position * size : (position + 1) * size]
        augmentation = seeding.generator(self.spec.seed, "augmentation", epoch, position)
        return to_device(self.splits.train.batch(indices, augmentation), self.device)

    def _forward(self, batch: Batch, ranks: Ranks = ALONE) -> Step:
        # A loss need not be a mean over samples, and labels may be missing: so every rank computes
        # all losses, from the outputs for all samples.
        inputs, sizes = ranks.share(batch["inputs"])
        with autocast(self.at.precision, self.spec.device):
            features = self.model.encode(inputs)
            outputs = ranks.gather(self.model.decode(features, self.balancer.view), sizes)
            losses = self.task.losses(outputs, batch)
        return Step(
            losses,
            features=features,
            shared=self.model.encoder.parameters(),
            heads=[head.parameters() for head in self.model.heads],
            latent=self.model.latent,
            again=lambda: self._forward(batch, ranks),
            engine=self.engine,
            ranks=ranks,
        )

    def _epoch(self) -> None:
        self.model.train()
        begin = saved = time.perf_counter()
        while self.at.position < self.steps:
            self._step(self._batch(self.at.epoch, self.at.position))
            self.at.position += 1
            if self.at.position == self.steps or self._due():
                self._count()
            since = time.perf_counter() - saved
            saving = since > self.checkpoint_seconds and self.at.position < self.steps
            if saving and not self.pending:
                self.at.seconds += time.perf_counter() - begin
                self._checkpoint()
                begin = saved = time.perf_counter()
        self.balancer.after_epoch()
        self.at.seconds += time.perf_counter() - begin
        self._end_epoch()

    def _step(self, batch: Batch) -> None:
        if self.recipe.nonfinite == "stop":
            self._attempt(batch)
            return
        # What a step changes before its gradients are known to be finite, but the generators.
        buffers = copy.deepcopy(dict(self.model.named_buffers()))
        balancer = copy.deepcopy(self.balancer.state_dict())
        try:
            self._attempt(batch)
        except Diverged as event:
            self._answer(event)
            self.pending.clear()
            for name, buffer in self.model.named_buffers():
                buffer.copy_(buffers[name])
            self.balancer.load_state_dict(balancer)
            self.optimizer.zero_grad()
            if self.at.position == 0:  # of what is looked at once an epoch
                self.at.diagnostics = {}
            if self.recipe.nonfinite == "fp32":
                self._attempt(batch)
            else:
                self.observer.stepped(self.at.epoch, {})

    def _attempt(self, batch: Batch) -> None:
        try:
            self._update(batch)
        except Exception:
            self._look()  # what is not finite may raise anything where it is worked with
            raise

    def _answer(self, event: Diverged) -> None:
        """Record what is done about numbers that are not finite; raise if nothing is."""
        if self.recipe.nonfinite == "skip":
            limit = max(1, int(MOST_SKIPPED * self.total_steps))
            if len(self.at.nonfinite) == limit:
                raise Diverged(f"{event}, after {limit} skipped of {self.total_steps}") from event
            answer = "skipped"
        else:
            if self.at.precision == "fp32":
                raise event
            self.at.precision = answer = "fp32"
        self.at.nonfinite.append(
            {
                "epoch": self.at.epoch,
                "step": self.at.position,
                "reason": str(event),
                "answer": answer,
            }
        )

    def _update(self, batch: Batch) -> None:
        begin = time.perf_counter()
        index = self.at.epoch * self.steps + self.at.position
        lr = self.recipe.lr * self._schedule(index)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        samples = len(self.splits.train) - self.at.position * self.recipe.batch_size
        ranks = self.ranks.of(min(samples, self.recipe.batch_size))
        if self.ranks.size > 1:  # dropout differs between ranks, and a checkpoint is rank 0's alone
            seeding.seed_everything(seeding.derive(self.spec.seed, "rank", ranks.rank, index))
        step = self._forward(batch, ranks)
        made = _Made(self.at.position, lr, {"loss": [step.values]})
        self.pending.append(made)
        plain = None
        if self.at.position == 0:
            plain = _flat(step.gradient(step.total()), step.shared)
        if plain is not None and self.diagnose:
            for space in get_args(Space):
                step.gramian(space)
        weights = self.balancer.backward(step)
        if plain is not None:
            update = _compare(_flat([p.grad for p in step.shared], step.shared), plain)
            shown = [] if weights is None else weights.tolist()
            self.at.diagnostics = {
                "update": update,
                "weights": dict(zip(self.task.objectives, shown, strict=False)),
                **{f"{space} gradients": _alignment(G) for space, G in step.gramians.items()},
            }
        del step, plain  # frees the graph before the optimizer allocates
        limit = math.inf if self.recipe.clip is None else self.recipe.clip
        norms = [nn.utils.clip_grad_norm_(self.model.parameters(), limit)]
        made.numbers["gradient"] = norms
        if own := [p for p in self.balancer.parameters() if p.grad is not None]:
            norms.append(nn.utils.clip_grad_norm_(own, math.inf))
        if weights is not None and index % self.log_every == 0:
            made.numbers["weight"] = [weights.detach().clone()]
        if self.recipe.nonfinite != "stop":
            self._look()
        self.optimizer.step()
        self.balancer.after_step(lambda: self._forward(batch, ranks).losses)
        self.optimizer.zero_grad()
        made.seconds = time.perf_counter() - begin

    def _due(self) -> bool:
        """Return whether the host looks now, which changes no number."""
        if self.recipe.nonfinite != "stop":
            return True
        if self.ranks.size > 1:
            return self.at.position % LOOK_STEPS == 1
        return time.perf_counter() - self.looked > min(LOOK_SECONDS, self.checkpoint_seconds)

    def _look(self) -> None:
        """Read, in one copy, the numbers of the steps that were made since the last look.

        Raises:
            Diverged: some are not finite; it names the first such step.
        """
        begin = time.perf_counter()
        new = [made for made in self.pending if not made.read]
        if not new:
            return
        tensors = [x for made in new for some in made.numbers.values() for x in some]
        there = [x.to(self.device, non_blocking=True).flatten() for x in tensors]
        numbers = iter(torch.cat(there).tolist())
        waited = time.perf_counter() - begin
        for made in new:
            made.seconds += waited / len(new)
            made.read = {
                what: list(islice(numbers, sum(x.numel() for x in some)))
                for what, some in made.numbers.items()
            }
        for made in new:
            for what in ("loss", "gradient"):
                values = made.read.get(what, [])
                if not all(map(math.isfinite, values)):
                    shown = ", ".join(f"{value:g}" for value in values)
                    raise Diverged(
                        f"non-finite {what} ({shown}) in epoch {self.at.epoch}, step "
                        f"{made.position}"
                    )

    def _count(self) -> None:
        """Enter the steps that were made since the last time into the record, and tell of them."""
        self._look()
        pending, self.pending = self.pending, []
        for made in pending:
            losses = made.read["loss"]
            self.at.sums = [a + b for a, b in zip(self.at.sums, losses, strict=True)]
            self.at.counted += 1
            self.step_seconds.append(made.seconds)
            index = self.at.epoch * self.steps + made.position
            if index % self.log_every == 0:
                shown = made.read.get("weight", [math.nan] * len(losses))
                norm = made.read["gradient"][0]
                self.rows.append([index, self.at.epoch, made.lr, norm, *losses, *shown])
            named = dict(zip(self.task.objectives, losses, strict=True))
            self.observer.stepped(self.at.epoch, named)
        self.looked = time.perf_counter()

    def _schedule(self, index: int) -> float:
        if self.recipe.schedule == "constant":
            return 1.0
        if self.recipe.schedule == "step":
            return 1.0 if 2 * index < self.total_steps else 0.5
        warmup = max(1, round(0.05 * self.total_steps))
        if index < warmup:
            return (index + 1) / warmup
        done = (index - warmup) / max(1, self.total_steps - warmup)
        return 0.5 * (1 + math.cos(math.pi * done))

    def _end_epoch(self) -> None:
        if not self.ranks.agreed(self._state()):
            raise RunError(
                f"after epoch {self.at.epoch} the processes hold different weights: they must run "
                "on equal hardware with equal software; train this cell with one process"
            )
        objectives = self.task.objectives
        losses, metrics = self._evaluate(self.splits.val)
        score = selection_score(metrics, self.task)
        record = {
            "epoch": self.at.epoch,
            "train_loss": dict(
                zip(
                    objectives,
                    [
                        total / self.at.counted if self.at.counted else math.nan
                        for total in self.at.sums
                    ],
                    strict=True,
                )
            ),
            "val_loss": losses,
            "val": metrics,
            "score": score,
            **self.at.diagnostics,
        }
        last = self.recipe.select == "last"
        if last or score > self.at.best_score or not self.at.history:
            self.at.best_score = score
            self.run_directory.save(
                "best.pt",
                {
                    "model": self.model.state_dict(),
                    "balancer": self.balancer.state_dict(),
                    "epoch": self.at.epoch,
                    "precision": self.at.precision,
                },
            )
        self.at.history.append(record)
        self.at.epoch, self.at.position = self.at.epoch + 1, 0
        self.at.sums, self.at.counted = [0.0] * len(objectives), 0
        self.at.diagnostics = {}
        self._checkpoint()
        self.observer.evaluated(record)

    def _state(self) -> Iterator[Tensor]:
        for module in (self.model, self.balancer):
            yield from (x for x in module.state_dict().values() if isinstance(x, Tensor))

    @torch.no_grad()
    def _evaluate(self, split: Split) -> tuple[dict[str, float], dict[str, float]]:
        """Return the mean losses and the metrics of a split."""
        self.model.eval()
        meter = self.task.meter()
        sums = torch.zeros(len(self.task.objectives), dtype=torch.float64)
        for indices in torch.split(torch.arange(len(split)), 2 * self.recipe.batch_size):
            batch = to_device(split.batch(indices), self.device)
            ranks = self.ranks.of(len(indices))
            inputs, sizes = ranks.share(batch["inputs"])
            with autocast(self.at.precision, self.spec.device):
                outputs = self.model.decode(self.model.encode(inputs), self.balancer.view)
                outputs = ranks.gather(outputs, sizes)
                losses = self.task.losses(outputs, batch)
            sums += len(indices) * torch.stack([x.detach().double().cpu() for x in losses])
            meter.update(outputs, batch)
        means = (sums / max(1, len(split))).tolist()
        return dict(zip(self.task.objectives, means, strict=True)), meter.compute()

    def _checkpoint(self) -> None:
        self.at.peak_mib = max(self.at.peak_mib, numerics.peak_memory(self.device))
        self.at.batched = self.engine.batched
        # The log first: a checkpoint that says it is at the end must not lack its last lines.
        self._write_log()
        self.run_directory.save(
            "checkpoint.pt",
            {
                "version": CHECKPOINT_VERSION,
                "model": self.model.state_dict(),
                "balancer": self.balancer.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "progress": vars(self.at),
                "rng": seeding.global_state(),
                "rows": self.rows,
                "step_seconds": list(self.step_seconds),
            },
        )

    def _write_log(self) -> None:
        lines = [json.dumps(record) + "\n" for record in self.at.history]
        self.run_directory.write_text("epochs.jsonl", "".join(lines))
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        names = self.task.objectives
        losses, weights = [f"loss_{n}" for n in names], [f"weight_{n}" for n in names]
        writer.writerow(["step", "epoch", "lr", "grad_norm", *losses, *weights])
        writer.writerows(self.rows)
        self.run_directory.write_text("steps.csv", table.getvalue())

    def _result(self, outcome: dict[str, Any]) -> dict[str, Any]:
        result: dict[str, Any] = {
            "version": 1,
            **outcome,
            "task": self.spec.task,
            "method": self.spec.method,
            "reference": self.method.reference,
            "seed": self.spec.seed,
            "hash": self.spec.hash,
            "selection": SELECTION if self.recipe.select == "best" else "last",
            "epochs": len(self.at.history),
            "nonfinite": self.at.nonfinite,
            "metrics": {name: vars(metric) for name, metric in self.task.metrics.items()},
            "notes": dict(self.splits.notes),
        }
        if outcome["status"] == "finished":
            with self.ranks.in_turn():  # rank 0 has written it
                best = self.run_directory.load("best.pt", self.spec.device) or {}
            with _fits(self.run_directory, "best.pt"):
                self.model.load_state_dict(best["model"])
                self.balancer.load_state_dict(best["balancer"])
            result["best_epoch"] = best["epoch"]
            result["val"] = self.at.history[best["epoch"]]["val"]
            result["score"] = self.at.history[best["epoch"]]["score"]
            if self.spec.stage == "final":
                loss, metrics = self._evaluate(self.splits.test)
                sealed = json.dumps({"loss": loss, "metrics": metrics}, indent=2)
                self.run_directory.write_text("test.json", sealed)
        self.at.peak_mib = max(self.at.peak_mib, numerics.peak_memory(self.device))
        seconds = statistics.median(self.step_seconds) if self.step_seconds else math.nan
        result["cost"] = {
            "seconds_per_step": seconds,
            "train_seconds": self.at.seconds,
            "peak_mib": self.at.peak_mib,
            "passes": self.method.passes,
            "parameters": sum(p.numel() for p in self.model.parameters()),
        }
        result["environment"] = {
            "mtbench": __version__,
            "python": platform.python_version(),
            "torch": version("torch"),
            "platform": platform.platform(),
            "hardware": numerics.hardware(self.device),
            "threads": self.at.threads,
            "processes": self.ranks.size,
            "jacobian": {None: "none", False: "loop", True: "batched"}[self.engine.batched],
        }
        return result


def _flat(values: Sequence[Tensor | None], like: Sequence[Tensor]) -> Tensor:
    zeros = (torch.zeros_like(p) if v is None else v for v, p in zip(values, like, strict=True))
    return torch.cat([value.flatten() for value in zeros] or [torch.zeros(0)])


def _compare(update: Tensor, plain: Tensor) -> dict[str, float]:
    """Return the update's length relative to the plain sum's gradient, and their cosine.

    Methods differ in it by a factor of a hundred, which is one of the learning rate.
    """
    lengths = update.norm().item(), plain.norm().item()
    if 0 in lengths:
        return {"length": math.nan, "cosine": math.nan}
    return {
        "length": lengths[0] / lengths[1],
        "cosine": (update @ plain).item() / (lengths[0] * lengths[1]),
    }


def _alignment(gramian: Tensor) -> dict[str, float]:
    """Return how the objectives' gradients lie to each other, over the pairs that have one.

    The mean and the least cosine, and the mean magnitude similarity, 2 |g| |h| / (|g|^2 + |h|^2).
    """
    squares = gramian.diagonal()
    j, k = torch.triu_indices(len(squares), len(squares), offset=1)
    live = (squares[j] > 0) & (squares[k] > 0)
    j, k = j[live], k[live]
    if not len(j):
        return {}
    lengths = (squares[j] * squares[k]).sqrt()
    cosines = gramian[j, k] / lengths
    return {
        "cosine": cosines.mean().item(),
        "least cosine": cosines.min().item(),
        "magnitude similarity": (2 * lengths / (squares[j] + squares[k])).mean().item(),
    }


def conclude(run: RunDirectory, task: Task, splits: Splits, method: Method) -> list[Path]:
    """Fit what the task's `predict` needs and draw its figures, unless that is done.

    Returns:
        The figures' files.
    """
    done = sorted(run.path.glob("*.png"))
    if not (run.path / "best.pt").exists():
        return done
    predictor = load_trained(run, task, method)
    if run.fitted() is None and (fitted := task.fit(predictor, splits)):
        run.write_text("fitted.json", json.dumps(fitted, indent=2))
    drawing = run.path / ".figures"  # while it is there, the figures are not all drawn
    if done and not drawing.exists():
        return done
    drawing.mkdir(exist_ok=True)
    pictures = task.figures(predictor, splits, drawing)
    for file in drawing.iterdir():
        file.replace(run.path / file.name)
    done = [run.path / picture.name for picture in pictures]
    shutil.rmtree(drawing)
    return done


def selection_score(metrics: dict[str, float], task: Task) -> float:
    """Return the score of the `SELECTION` rule."""
    signed = [
        metrics[name] if metric.higher_is_better else -metrics[name]
        for name, metric in task.metrics.items()
        if metric.primary and not math.isnan(metrics[name])
    ]
    return statistics.fmean(signed) if signed else -math.inf


def _cpu(value: Any) -> Any:
    """Return generator states on the CPU, where torch wants them whatever the device."""
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, list | tuple):
        return type(value)(_cpu(item) for item in value)
    return value


def resolve_device(name: str) -> str:
    """Return the device's type to train on.

    Raises:
        UsageError: torch knows no such device, or this machine has none.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError("mtbench trains on cpu, cuda and mps")
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UsageError(
            f"--device {name}: not available here ({reason}); use --device cpu"
        ) from error
    return str(device)


def primary_metrics(metrics: dict[str, Metric]) -> list[str]:
    """Return the names of the metrics that are compared."""
    return [name for name, metric in metrics.items() if metric.primary]
