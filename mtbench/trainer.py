"""The common trainer: one cell from its spec to its result. It names no method and no task."""

import csv
import io
import json
import math
import platform
import statistics
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, get_args

import torch
from torch import Tensor, nn

import mtbench
from mtbench import numerics, seeding
from mtbench.balancer import Balancer
from mtbench.cache import cache_dir
from mtbench.engine import Engine, grad
from mtbench.errors import RunError, UsageError
from mtbench.method import Method
from mtbench.model import MultitaskModel
from mtbench.rundir import RunDirectory, Spec
from mtbench.step import Space, Step
from mtbench.task import Batch, Metric, Recipe, Split, Splits, Task

SELECTION = "mean-primary"
"""The rule of ``select="best"``: the epoch with the largest mean of the primary validation metrics,
those that are better when lower counted negative, undefined ones left out; of equals, the first."""

CHECKPOINT_SECONDS = 30.0


class Observer(Protocol):
    """Is told how a cell goes."""

    def started(self, spec: Spec, epochs: int, steps: int, done: int) -> None:
        """A cell begins, or goes on after `done` of its epochs x steps."""

    def stepped(self, epoch: int, losses: dict[str, float]) -> None:
        """One step was made."""

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
    history: list[dict[str, Any]] = field(default_factory=list)
    best_score: float = -math.inf
    seconds: float = 0.0
    threads: int = 0
    batched: bool | None = None
    diagnostics: dict[str, dict[str, float]] = field(default_factory=dict)
    peak_mib: float = 0.0


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


def autocast(spec: Spec) -> AbstractContextManager[Any]:
    """Return the context in which a forward pass runs at the spec's precision."""
    if spec.precision == "fp32":
        return nullcontext()
    return torch.autocast(torch.device(spec.device).type, torch.bfloat16)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return the batch with its tensors on the device."""
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}


@contextmanager
def _fits(run: RunDirectory, name: str) -> Iterator[None]:
    """Explain a tensor file that loads, but is of another model or program."""
    try:
        yield
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RunError(
            f"{run.path / name}: is not of this model ({type(error).__name__}); mtbench or a "
            "plugin has changed since: delete the file to train this cell from its start"
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
        with autocast(self.spec):
            return self.model.decode(self.model.encode(inputs), self.balancer.view)


def load_trained(run: RunDirectory, task: Task, method: Method) -> Predict:
    """Return the selected model of a finished cell.

    Raises:
        RunError: the cell has no selected weights, or the file is corrupt.
    """
    spec = run.spec().model_copy(update={"device": "cpu"})
    state = run.load("best.pt")
    if state is None:
        raise RunError(f"{run.path}: has no trained weights (best.pt) yet; finish the run first")
    with seeding.preserved():
        model, balancer = build(spec, task, method)
    with _fits(run, "best.pt"):
        model.load_state_dict(state["model"])
        balancer.load_state_dict(state["balancer"])
    return Predict(spec, model, balancer)


class Trainer:
    """Trains one cell, resuming where its run directory left off.

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
    ) -> None:
        if len(splits.train) == 0:
            raise UsageError(f"task {spec.task}: the training split is empty")
        self.spec, self.task, self.splits, self.run_directory = spec, task, splits, run
        self.observer, self.method, self.threads = observer, method, threads
        self.init = init
        self.engine = Engine(notebook=cache_dir()) if engine is None else engine
        self.diagnose = diagnose
        self.device = torch.device(spec.device)
        self.recipe = Recipe(**spec.recipe)
        self.steps = math.ceil(len(splits.train) / self.recipe.batch_size)
        self.total_steps = self.steps * self.recipe.epochs
        self.log_every = max(1, self.total_steps // 500)
        self.rows: list[list[Any]] = []
        self.order, self.order_epoch = torch.empty(0), -1
        self.step_seconds: deque[float] = deque(maxlen=1000)

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
        self.at = Progress(sums=[0.0] * len(self.task.objectives))

    def _restore(self) -> None:
        state = self.run_directory.load("checkpoint.pt", self.spec.device)
        if state is None:
            self.at.threads = self._choose_threads()
            return
        with _fits(self.run_directory, "checkpoint.pt"):
            self.model.load_state_dict(state["model"])
            self.balancer.load_state_dict(state["balancer"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.at = Progress(**state["progress"])
            seeding.set_global_state({k: _cpu(v) for k, v in state["rng"].items()})
            self.step_seconds.extend(state["step_seconds"])
            self.rows = state["rows"]
        # Another number of threads could add in another order: a resumed cell keeps its own.
        torch.set_num_threads(self.at.threads)
        self.engine.batched = self.at.batched

    def _choose_threads(self) -> int:
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        elif self.device.type == "cpu":
            batch = self._batch(0, 0)

            def work() -> None:
                self._forward(batch).total().backward()  # type: ignore[no-untyped-call]
                self.optimizer.zero_grad()

            with seeding.preserved():
                numerics.fastest_threads(work)
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

    def _losses(self, features: tuple[Tensor, ...], batch: Batch) -> Sequence[Tensor]:
        return self.task.losses(self.model.decode(features, self.balancer.view), batch)

    def _forward(self, batch: Batch) -> Step:
        with autocast(self.spec):
            features = self.model.encode(batch["inputs"])
            losses = self._losses(features, batch)
        return Step(
            losses,
            features=features,
            shared=self.model.encoder.parameters(),
            heads=[head.parameters() for head in self.model.heads],
            latent=self.model.latent,
            again=lambda: self._forward(batch),
            engine=self.engine,
        )

    def _epoch(self) -> None:
        self.model.train()
        begin = saved = time.perf_counter()
        while self.at.position < self.steps:
            self._step(self._batch(self.at.epoch, self.at.position))
            self.at.position += 1
            if time.perf_counter() - saved > CHECKPOINT_SECONDS and self.at.position < self.steps:
                self.at.seconds += time.perf_counter() - begin
                self._checkpoint()
                begin = saved = time.perf_counter()
        self.balancer.after_epoch()
        self.at.seconds += time.perf_counter() - begin
        self._end_epoch()

    def _step(self, batch: Batch) -> None:
        begin = time.perf_counter()
        index = self.at.epoch * self.steps + self.at.position
        lr = self.recipe.lr * self._schedule(index)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        step = self._forward(batch)
        losses = step.values.tolist()
        self._must_be_finite(losses, "loss")
        plain = _plain_gradient(step) if self.at.position == 0 else None
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
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit).item()
        self._must_be_finite([norm], "gradient")
        self.optimizer.step()
        self.balancer.after_step(lambda: self._forward(batch).losses)
        self.optimizer.zero_grad()
        self.step_seconds.append(time.perf_counter() - begin)
        self.at.sums = [a + b for a, b in zip(self.at.sums, losses, strict=True)]
        named = dict(zip(self.task.objectives, losses, strict=True))
        if index % self.log_every == 0:
            shown = [math.nan] * len(losses) if weights is None else weights.tolist()
            self.rows.append([index, self.at.epoch, lr, norm, *losses, *shown])
        self.observer.stepped(self.at.epoch, named)

    def _schedule(self, index: int) -> float:
        if self.recipe.schedule == "constant":
            return 1.0
        warmup = max(1, round(0.05 * self.total_steps))
        if index < warmup:
            return (index + 1) / warmup
        done = (index - warmup) / max(1, self.total_steps - warmup)
        return 0.5 * (1 + math.cos(math.pi * done))

    def _must_be_finite(self, values: Sequence[float], what: str) -> None:
        if not all(map(math.isfinite, values)):
            shown = ", ".join(f"{value:g}" for value in values)
            raise Diverged(
                f"non-finite {what} ({shown}) in epoch {self.at.epoch}, step {self.at.position}"
            )

    def _end_epoch(self) -> None:
        objectives = self.task.objectives
        losses, metrics = self._evaluate(self.splits.val)
        score = selection_score(metrics, self.task)
        record = {
            "epoch": self.at.epoch,
            "train_loss": dict(
                zip(objectives, [total / self.steps for total in self.at.sums], strict=True)
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
                },
            )
        self.at.history.append(record)
        self.at.epoch, self.at.position = self.at.epoch + 1, 0
        self.at.sums = [0.0] * len(objectives)
        self._checkpoint()
        self.observer.evaluated(record)

    @torch.no_grad()
    def _evaluate(self, split: Split) -> tuple[dict[str, float], dict[str, float]]:
        """Return the mean losses and the metrics of a split."""
        self.model.eval()
        meter = self.task.meter()
        sums = torch.zeros(len(self.task.objectives), dtype=torch.float64)
        for indices in torch.split(torch.arange(len(split)), 2 * self.recipe.batch_size):
            batch = to_device(split.batch(indices), self.device)
            with autocast(self.spec):
                outputs = self.model.decode(self.model.encode(batch["inputs"]), self.balancer.view)
                losses = self.task.losses(outputs, batch)
            sums += len(indices) * torch.stack([x.detach().double().cpu() for x in losses])
            meter.update(outputs, batch)
        means = (sums / max(1, len(split))).tolist()
        return dict(zip(self.task.objectives, means, strict=True)), meter.compute()

    def _checkpoint(self) -> None:
        self.at.peak_mib = max(self.at.peak_mib, numerics.peak_memory(self.device))
        self.at.batched = self.engine.batched
        # The texts first: a checkpoint that says it is at the end must not lack its last lines.
        lines = [json.dumps(record) + "\n" for record in self.at.history]
        self.run_directory.write_text("epochs.jsonl", "".join(lines))
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        names = self.task.objectives
        losses, weights = [f"loss_{n}" for n in names], [f"weight_{n}" for n in names]
        writer.writerow(["step", "epoch", "lr", "grad_norm", *losses, *weights])
        writer.writerows(self.rows)
        self.run_directory.write_text("steps.csv", table.getvalue())
        self.run_directory.save(
            "checkpoint.pt",
            {
                "model": self.model.state_dict(),
                "balancer": self.balancer.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "progress": vars(self.at),
                "rng": seeding.global_state(),
                "rows": self.rows,
                "step_seconds": list(self.step_seconds),
            },
        )

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
            "metrics": {name: vars(metric) for name, metric in self.task.metrics.items()},
            "notes": dict(self.splits.notes),
        }
        best = self.run_directory.load("best.pt", self.spec.device)
        if outcome["status"] == "finished" and best is not None:
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
            "mtbench": mtbench.__version__,
            "python": platform.python_version(),
            "torch": version("torch"),
            "platform": platform.platform(),
            "hardware": numerics.hardware(self.device),
            "threads": self.at.threads,
            "jacobian": {None: "none", False: "loop", True: "batched"}[self.engine.batched],
        }
        return result


def _plain_gradient(step: Step) -> Tensor:
    """Return the gradient of the plain sum of losses in the shared parameters, (d,)."""
    return _flat(grad([step.total()], step.shared), step.shared)


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


def draw(run: RunDirectory, task: Task, splits: Splits, method: Method) -> list[Path]:
    """Draw the task's figures of a trained cell, unless that is done; return the files."""
    done = sorted(run.path.glob("*.png"))
    if done or not (run.path / "best.pt").exists():
        return done
    return list(task.figures(load_trained(run, task, method), splits, run.path))


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
