"""The common trainer: one cell from its spec to its result. It names no method and no task."""

import copy
import json
import math
import platform
import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from mtbench import seeding
from mtbench.balancing.distributed import ALONE, Ranks
from mtbench.balancing.engine import Engine
from mtbench.errors import RunError, UsageError
from mtbench.plugins.code import core_digest, origin
from mtbench.plugins.method import Method
from mtbench.training.cell.rundir import RunDirectory, Spec
from mtbench.training.machine import numerics
from mtbench.training.machine.cache import cache_dir
from mtbench.training.task import Recipe, Splits, Task
from mtbench.training.trainer.batches import Batches
from mtbench.training.trainer.evaluation import evaluate, judged
from mtbench.training.trainer.learner import Learner, build
from mtbench.training.trainer.loop import Loop
from mtbench.training.trainer.nonfinite import Diverged
from mtbench.training.trainer.observer import Observer
from mtbench.training.trainer.optimization import Descent, refuse_noise
from mtbench.training.trainer.record import Recorder
from mtbench.training.trainer.selection import SELECTION, selection_score
from mtbench.version import __version__

CHECKPOINT_SECONDS = 30.0

EPOCH_SECONDS = 1.0
"""How long after a checkpoint an epoch's end writes the next one: short ones wait for the disk."""


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
        ranks: the processes that train the cell together. All but rank 0 get a `Reader` as `run`.
        checkpoint_seconds: how long after a checkpoint the next one is written, within an epoch.
            At an epoch's end it is a second.
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
        self.recipe = Recipe(**spec.recipe)
        self.recipe.refuse_precision(spec.precision)

    def run(self) -> dict[str, Any]:
        """Train to the end and return the result, which is also written to the run directory.

        The checkpoint of the end stays, for who wants to look at it; with
        `RunDirectory.drop_checkpoint` it goes.
        """
        with seeding.preserved(), numerics.deterministic():
            numerics.reset_peak_memory(torch.device(self.spec.device))
            loop = self.prepare()
            at, steps = loop.record.at, loop.batches.steps
            self.observer.started(
                self.spec, self.recipe.epochs, steps, at.epoch * steps + at.position
            )
            outcome = {"status": "finished"}
            try:
                while at.epoch < self.recipe.epochs:
                    loop.epoch()
                    self._end_epoch(loop)
            except Diverged as event:
                outcome = {"status": "diverged", "reason": str(event)}
                loop.record.diverge()
            result = self._result(outcome, loop)
            self.run_directory.write_text("result.json", json.dumps(result, indent=2))
            self.observer.finished(result)
            return result

    def prepare(self) -> Loop:
        """Return the loop at the cell's start, or where it was broken off."""
        learner = Learner(
            self.spec, self.task, *build(self.spec, self.task, self.method, self.init), self.engine
        )
        batches = Batches(
            self.splits.train,
            self.recipe.batch_size,
            self.spec.seed,
            self.spec.device,
            learner.balancer.holds_out,
        )
        descent = Descent(self.recipe, learner, batches.steps * self.recipe.epochs)
        seeding.seed_everything(seeding.derive(self.spec.seed, "training"))
        record = Recorder(
            self.run_directory, self.spec.hash, learner, descent, batches.steps, self.recipe.epochs
        )
        if not record.resume():
            record.at.processes = self.ranks.size
            record.at.threads = self._choose_threads(learner, descent, batches)
            refuse_noise(self.recipe, learner, batches, self.ranks)
        elif record.at.processes != self.ranks.size:  # which would add in another order
            raise RunError(
                f"{self.run_directory.path}: was begun by {record.at.processes} processes and goes "
                f"on with as many, found {self.ranks.size}: use --nproc {record.at.processes}, or "
                "start anew with --no-resume"
            )
        else:
            # Another number of threads could add in another order: a resumed cell keeps its own.
            torch.set_num_threads(record.at.threads)
        return Loop(
            self.recipe, learner, descent, batches, record, self.observer, self.ranks,
            self.diagnose, self.checkpoint_seconds,
        )  # fmt: skip

    def _choose_threads(self, learner: Learner, descent: Descent, batches: Batches) -> int:
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        elif self.ranks.size > 1:
            torch.set_num_threads(self.ranks.agree(numerics.fair_threads()))
        elif torch.device(self.spec.device).type == "cpu":
            batch = batches.at(0, 0)

            def work() -> None:
                learner.step(batch).total().backward()  # type: ignore[no-untyped-call]
                descent.zero_grad()

            before = copy.deepcopy(learner.model.state_dict())
            with seeding.preserved():
                numerics.fastest_threads(work)
            learner.model.load_state_dict(before)  # batch norm's running statistics have moved
        return torch.get_num_threads()

    def _end_epoch(self, loop: Loop) -> None:
        learner, record = loop.learner, loop.record
        if not self.ranks.agreed(_tensors(learner)):
            raise RunError(
                f"after epoch {record.at.epoch} the processes hold different weights: they must "
                "run on equal hardware with equal software; train this cell with one process"
            )
        losses, metrics = evaluate(learner, self.splits.val, 2 * self.recipe.batch_size, self.ranks)
        score = selection_score(metrics, self.task.metrics)
        ended = record.end_epoch(losses, metrics, score, keep=self.recipe.select == "last")
        learner.balancer.after_evaluation(judged(metrics, self.task))
        last = record.at.epoch == self.recipe.epochs
        if last or record.age > min(EPOCH_SECONDS, self.checkpoint_seconds):
            record.checkpoint()
        self.observer.evaluated(ended)

    def _result(self, outcome: dict[str, Any], loop: Loop) -> dict[str, Any]:
        record = loop.record
        result: dict[str, Any] = {
            "version": 1,
            **outcome,
            "task": self.spec.task,
            "method": self.spec.method,
            "reference": self.method.reference,
            "seed": self.spec.seed,
            "hash": self.spec.hash,
            "selection": SELECTION if self.recipe.select == "best" else "last",
            "epochs": len(record.at.history),
            "nonfinite": record.at.nonfinite,
            "metrics": {name: vars(metric) for name, metric in self.task.metrics.items()},
            "notes": dict(self.splits.notes),
            "idle": sorted(self.task.idle),
            "plugins": self._origins(),
        }
        if acts := [e["notes"]["acts"] for e in record.at.history if "acts" in e.get("notes", {})]:
            result["acts"] = statistics.fmean(acts)
        if outcome["status"] == "finished":
            with self.ranks.in_turn():  # rank 0 has written it
                best = record.select()
            result["best_epoch"] = best["epoch"]
            result["val"], result["score"] = best["val"], best["score"]
            if self.spec.stage == "final":
                self._test(loop.learner)
        result["cost"], result["environment"] = self._cost(loop), self._environment(record)
        result["times"] = {"started": record.at.started, "ended": time.time()}
        return result

    def _test(self, learner: Learner) -> None:
        loss, metrics = evaluate(learner, self.splits.test, 2 * self.recipe.batch_size, self.ranks)
        sealed = json.dumps({"loss": loss, "metrics": metrics}, indent=2)
        self.run_directory.write_text("test.json", sealed)

    def _cost(self, loop: Loop) -> dict[str, Any]:
        record = loop.record
        times = record.step_seconds
        return {
            "seconds_per_step": statistics.median(times) if times else math.nan,
            "train_seconds": record.at.seconds,
            "peak_mib": record.measure_memory(),
            "passes": self.method.passes,
            "validation_passes": record.at.validation_passes,
            "search_passes": record.at.search_passes,
            "parameters": sum(p.numel() for p in loop.learner.model.parameters()),
        }

    def _origins(self) -> dict[str, str]:
        """Return which package and version, or which file, each plugin comes from."""
        parts = zip(self.method.entries, self.method.classes, strict=True)
        return {self.spec.task: origin(type(self.task))} | {e.name: origin(c) for e, c in parts}

    def _environment(self, record: Recorder) -> dict[str, Any]:
        return {
            "mtbench": __version__,
            "code": core_digest(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "platform": platform.platform(),
            "hardware": numerics.hardware(torch.device(self.spec.device)),
            "threads": record.at.threads,
            "processes": self.ranks.size,
            "jacobian": {None: "none", False: "loop", True: "batched"}[self.engine.batched],
        }


def _tensors(learner: Learner) -> Iterator[Tensor]:
    for part in learner.state().values():
        yield from (x for x in part.values() if isinstance(x, Tensor))
