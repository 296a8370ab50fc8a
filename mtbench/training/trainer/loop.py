"""The loop over the steps of an epoch."""

import math
import time
from collections.abc import Iterator
from functools import partial
from itertools import count

from torch import Tensor, nn

from mtbench import seeding
from mtbench.balancing.distributed import Ranks
from mtbench.balancing.step import Step
from mtbench.errors import StepError
from mtbench.training.task import Batch, Recipe
from mtbench.training.trainer.batches import Batches
from mtbench.training.trainer.diagnostics import Look
from mtbench.training.trainer.learner import Learner
from mtbench.training.trainer.nonfinite import Guard, check
from mtbench.training.trainer.numbers import Made, Numbers
from mtbench.training.trainer.observer import Observer
from mtbench.training.trainer.optimization import Descent
from mtbench.training.trainer.record import Recorder

LOOK_SECONDS = 0.5
"""How long the host leaves the numbers of the steps that it makes on the device."""

LOOK_STEPS = 10
"""The same in steps, for several ranks: all must stop after the same one, and clocks differ."""


class Loop:
    """Makes steps.

    The host does not wait for a device in every step: what it wants to know of a step is kept there
    and read together with that of the steps after it, after half a second, and before anything is
    written. A step that was not finite is found then, and what was made of it is dropped with the
    steps after it. With ``nonfinite`` ``skip`` or ``fp32``, which must know before the optimizer's
    step, the host reads in every step.

    Args:
        recipe: how the cell is optimised.
        learner: what is trained.
        descent: moves it.
        batches: what it learns from.
        record: what is kept of it.
        observer: who is told of it.
        ranks: the processes that share every batch.
        diagnose: whether the objectives' gradients are compared for every method.
        checkpoint_seconds: how long after a checkpoint the next one is written.
    """

    def __init__(
        self,
        recipe: Recipe,
        learner: Learner,
        descent: Descent,
        batches: Batches,
        record: Recorder,
        observer: Observer,
        ranks: Ranks,
        diagnose: bool,
        checkpoint_seconds: float,
    ) -> None:
        self.recipe, self.learner, self.descent, self.batches = recipe, learner, descent, batches
        self.record, self.observer, self.ranks, self.diagnose = record, observer, ranks, diagnose
        self.checkpoint_seconds = checkpoint_seconds
        self.numbers = Numbers(learner.device)
        steps = batches.steps * recipe.epochs
        self.guard = Guard(recipe, learner, record.at.nonfinite, steps)
        self.looked = -math.inf

    def epoch(self) -> None:
        """Go through an epoch, or what is left of it."""
        at = self.record.at
        self.learner.model.train()
        begin = time.perf_counter()
        while at.position < self.batches.steps:
            self.step(self.batches.at(at.epoch, at.position))
            at.position += 1
            if at.position == self.batches.steps or self._due():
                self.count()
            due = self.record.age > self.checkpoint_seconds and at.position < self.batches.steps
            if due and not self.numbers.pending:
                at.seconds += time.perf_counter() - begin
                self.record.checkpoint()
                begin = time.perf_counter()
        self.learner.balancer.after_epoch()
        at.seconds += time.perf_counter() - begin

    def step(self, batch: Batch) -> None:
        """Make a step, or do what is to be done where it is not finite."""
        if not self.guard.attempt(lambda: self._attempt(batch), self._undo):
            self.observer.stepped(self.record.at.epoch, {})

    def _update(self, batch: Batch) -> None:
        """What happens in a step."""
        begin, at, balancer = time.perf_counter(), self.record.at, self.learner.balancer
        index = at.epoch * self.batches.steps + at.position
        lr = self.descent.set_rate(index)
        ranks = self.ranks.of(self.batches.samples(at.position))
        if self.ranks.size > 1:  # dropout differs between ranks, and a checkpoint is rank 0's alone
            seeding.seed_everything(seeding.derive(self.batches.seed, "rank", ranks.rank, index))

        step = self.learner.step(batch, ranks, partial(self._validation, count()))
        made = Made(at.epoch, at.position, lr, {"loss": [step.observed]})
        self.numbers.pending.append(made)
        look = Look(step, self.diagnose) if at.position == 0 else None
        weights = balancer.backward(step)
        if index == 0 and any(value != 0 and math.isfinite(value) for value in step.read):
            self._refuse_nothing()
        if look is not None:
            at.diagnostics = look.after(weights, self.learner.task.objectives)
        del step, look  # frees the graph before the optimizer allocates

        limit = math.inf if self.recipe.clip is None else self.recipe.clip
        norms = [nn.utils.clip_grad_norm_(self.learner.model.parameters(), limit)]
        made.numbers["gradient"] = norms
        if own := [p for p in balancer.parameters() if p.grad is not None]:
            norms.append(nn.utils.clip_grad_norm_(own, math.inf))
        if weights is not None and self.record.logs(at.position):
            made.numbers["weight"] = [weights.detach().clone()]
        notes = balancer.all_notes()
        made.noted, made.numbers["note"] = tuple(notes), list(notes.values())
        if self.guard.before:
            self.numbers.look()
        self.descent.step(weights, partial(self._evaluate, batch, ranks))
        balancer.after_step(lambda: self.learner.forward(batch, ranks).losses)
        self.descent.zero_grad()
        made.seconds = time.perf_counter() - begin

    def _refuse_nothing(self) -> None:
        """Refuse a method that has written no gradient, of losses that have one.

        Raises:
            StepError: so it is.
        """
        idle, model = self.learner.balancer.watch.idle, self.learner.model
        if not idle and all(parameter.grad is None for parameter in model.parameters()):
            raise StepError(
                "the method wrote no `.grad`: its `balance` must, by step.backward(...)"
            )

    def _evaluate(self, batch: Batch, ranks: Ranks, weights: Tensor) -> float:
        """Return the losses' sum with these weights, and write its gradient.

        Raises:
            Diverged: one of them is not finite.
        """
        at = self.record.at
        at.search_passes += 1
        self.learner.model.zero_grad()
        step = self.learner.step(batch, ranks)
        step.descend(step.total(weights.to(step.values)))
        value = float(step.host_values @ weights.to(step.host_values))
        gradient = nn.utils.clip_grad_norm_(self.learner.model.parameters(), math.inf).item()
        what = "sum of losses or its gradient in a line search"
        check(what, [value, gradient], at.epoch, at.position)
        return value

    def _validation(self, numbers: Iterator[int]) -> Step:
        """Send one more validation batch through the model."""
        at = self.record.at
        at.validation_passes += 1
        batch, samples = self.batches.validation(at.epoch, at.position, next(numbers))
        return self.learner.step(batch, self.ranks.of(samples))

    def _attempt(self, batch: Batch) -> None:
        try:
            self._update(batch)
        except Exception:
            self.numbers.look()  # what is not finite may raise anything where it is worked with
            raise

    def _undo(self) -> None:
        """Drop what a step that was not finite has left."""
        self.numbers.pending.clear()
        self.descent.zero_grad()
        if self.record.at.position == 0:  # of what is looked at once an epoch
            self.record.at.diagnostics = {}

    def _due(self) -> bool:
        """Return whether the host looks now, which changes no number."""
        if self.guard.before:
            return True
        if self.ranks.size > 1:
            return self.record.at.position % LOOK_STEPS == 1
        return time.perf_counter() - self.looked > min(LOOK_SECONDS, self.checkpoint_seconds)

    def count(self) -> None:
        """Enter the steps that were made since the last time into the record, and tell of them."""
        for made in self.numbers.take():
            losses = self.record.enter(made)
            self.observer.stepped(self.record.at.epoch, losses)
        self.looked = time.perf_counter()
