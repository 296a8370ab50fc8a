"""What is done about losses and gradients that are infinite or NaN."""

import copy
import math
from collections.abc import Callable
from typing import Any

from mtbench.training.task import Recipe
from mtbench.training.trainer.learner import Learner

MOST_SKIPPED = 0.01
"""The share of a run's steps, at least one, that may be skipped before it has diverged."""


class Diverged(Exception):  # noqa: N818 - an outcome, not an error
    """A loss or a gradient became infinite or NaN.

    Attributes:
        epoch, step: when.
    """

    def __init__(self, text: str, epoch: int, step: int) -> None:
        super().__init__(text)
        self.epoch, self.step = epoch, step


def check(what: str, values: list[float], epoch: int, step: int) -> None:
    """Check the numbers of a step.

    Raises:
        Diverged: some are not finite.
    """
    if not all(map(math.isfinite, values)):
        shown = ", ".join(f"{value:g}" for value in values)
        raise Diverged(f"non-finite {what} ({shown}) in epoch {epoch}, step {step}", epoch, step)


class Guard:
    """Answers a step that was not finite as the recipe says: ``stop``, ``skip`` or ``fp32``.

    Args:
        recipe: says how.
        learner: what the step is made on.
        events: where each answer is recorded.
        steps: of the whole run.

    Attributes:
        before: whether it must be known before the optimizer's step that all is finite.
    """

    def __init__(
        self, recipe: Recipe, learner: Learner, events: list[dict[str, Any]], steps: int
    ) -> None:
        self._rule, self._learner, self._events, self._steps = (
            recipe.nonfinite, learner, events, steps,
        )  # fmt: skip
        self.before = self._rule != "stop"

    def attempt(self, make: Callable[[], None], undo: Callable[[], None]) -> bool:
        """Make a step; where it is not finite, leave all as it was before, and answer.

        Args:
            make: makes it.
            undo: drops what `make` has left beside model and balancer.

        Returns:
            Whether it was made, and not skipped.

        Raises:
            Diverged: that is the answer.
        """
        if self._rule == "stop":
            make()
            return True
        # What a step changes before its gradients are known to be finite, but the generators.
        model, balancer = self._learner.model, self._learner.balancer
        buffers = copy.deepcopy(dict(model.named_buffers()))
        state = copy.deepcopy(balancer.state_dict())
        try:
            make()
            return True
        except Diverged as event:
            self._answer(event)
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
        balancer.load_state_dict(state)
        undo()
        if self._rule == "skip":
            return False
        make()
        return True

    def _answer(self, event: Diverged) -> None:
        if self._rule == "skip":
            limit = max(1, int(MOST_SKIPPED * self._steps))
            if len(self._events) == limit:
                raise Diverged(
                    f"{event}, after {limit} skipped of {self._steps}", event.epoch, event.step
                ) from event
            answer = "skipped"
        else:
            if self._learner.precision == "fp32":
                raise event
            self._learner.precision = answer = "fp32"
        self._events.append(
            {"epoch": event.epoch, "step": event.step, "reason": str(event), "answer": answer}
        )
