"""What a loop has to do for a method beside the one call, and whether it does."""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor

HOOKS = ("after_step", "after_epoch", "view")
"""What a loop calls beside `backward`."""

_PATIENCE = 10
"""Steps after which what was not done is taken for forgotten."""

_EPOCH = 1000
"""Steps after which an epoch should have ended."""

_PARTS = 256
"""Micro-batches after which a step should have been made."""


class Watch:
    """Counts a balancer's steps, and warns once of each thing that it needs and does not get.

    Attributes:
        calls: the steps so far.
        heard: the hooks that were called.
        idle: whether the last step was not the method's.
        before: the losses of the last step; none where a trainer sees to the hooks.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.idle = False
        self.heard: set[str] = set()
        self.before: Sequence[float] = ()
        self._unmoved = 0
        self._parts = 0
        self._parted = 0
        self._shared = self._together = False
        self._at_first: list[Tensor] = []

    def begins(self) -> bool:
        """Count a step that begins, and return whether to look at it."""
        self.calls += 1
        self._parts = 0
        return self.calls in (1, _PATIENCE, _EPOCH)

    def look(
        self,
        name: str,
        own: Iterable[Tensor],
        trained: Callable[[], Iterable[Tensor]],
        shared: Callable[[], Sequence[Tensor]],
        hooks: set[str],
        epochs_matter: bool,
    ) -> None:
        """Look at the beginning of a step.

        Args:
            name: the method's.
            own: the balancer's own parameters.
            trained: says what the losses reach.
            shared: says what several of them reach.
            hooks: those that the method needs, and ``wrap`` if a model for each loss.
            epochs_matter: whether to ask for `after_epoch`: not where a trainer sees to it.
        """
        forgotten = hooks - self.heard
        if self.calls == 1:
            self._at_first = [p.detach().clone() for p in own]
        elif self.calls == _PATIENCE:
            pairs = list(zip(own, self._at_first, strict=False))
            # Whoever is in an optimizer has no gradient left where the model has none.
            pulled = any(_has_gradient(p) for p, _ in pairs)
            stuck = pulled and all(torch.equal(p, q) for p, q in pairs)
            if stuck and not any(map(_has_gradient, trained())):
                self._warn(
                    f"{name}: its own parameters have not moved in {_PATIENCE} steps",
                    "give the optimizer [*model.parameters(), *balancer.parameters()]",
                )
            self._at_first = []
            if "after_step" in forgotten:
                self._warn(
                    f"{name}: after_step was not called in {_PATIENCE} steps",
                    "after optimizer.step() say balancer.after_step(losses_fn), which repeats the "
                    "forward pass on the same batch",
                )
            if "view" in forgotten:
                self._warn(
                    f"{name}: view was not called in {_PATIENCE} steps",
                    "hand head k balancer.view((z,), k)[0] in the place of z",
                )
            if "wrap" in hooks and shared():
                self._warn(
                    f"{name}: the losses have no model of their own each",
                    "train balancer.wrap(model), where the model is a mtbench.MultitaskModel",
                )
        elif self.calls == _EPOCH and epochs_matter and "after_epoch" in forgotten:
            self._warn(
                f"{name}: after_epoch was not called in {_EPOCH} steps",
                "say balancer.after_epoch() at each epoch's end (all is well if yours are longer)",
            )

    def accumulates(self, name: str) -> None:
        """Count a micro-batch that `backward` has not made a step of."""
        self._parts += 1
        if self._parts == _PARTS:
            self._warn(
                f"{name}: accumulate was called {_PARTS} times without backward",
                "hand the last micro-batch of each step to balancer.backward, which writes .grad "
                "(all is well if yours are more)",
            )

    def parted(self, name: str, shared: bool) -> None:
        """Look at a step that took gradients objective by objective.

        Args:
            name: the method's.
            shared: whether any two of its losses have a trained parameter in common.
        """
        self._parted += 1
        self._shared |= shared
        labelled = sum(value != 0 and not math.isnan(value) for value in self.before)
        self._together |= labelled > 1 or len(self.before) == 1
        if self._parted == _PATIENCE and not self._together:
            self._warn(
                f"{name}: no step of {_PATIENCE} had two losses to balance",
                "hand one batch of each objective to every step, as in "
                "balancer.accumulate([loss_0, None]), then balancer.backward([None, loss_1]) (all "
                "is well if it remembers the gradients of earlier steps and you say shared=)",
            )
        elif self._parted == _PATIENCE and not self._shared:
            self._warn(
                f"{name}: no two losses had a trained parameter in common in {_PATIENCE} steps",
                "see that the encoder is not frozen, and what it hands to the heads not detached",
            )

    def repeats(self, name: str, after: Sequence[Tensor]) -> None:
        """Look at losses that `after_step` computed anew, until once they are others than before.

        What a wrapper asks has made no step of its own, and sees nothing.

        Args:
            name: the method's.
            after: the losses, in order.
        """
        if not self.before or not 0 <= self._unmoved < _PATIENCE:
            return
        pairs = zip(after, self.before, strict=True)
        same = all(math.isnan(known) or loss.item() == known for loss, known in pairs)
        self._unmoved = self._unmoved + 1 if same else -1
        if self._unmoved == _PATIENCE:
            self._warn(
                f"{name}: after_step found the losses of before the step, {_PATIENCE} times",
                "call it after optimizer.step(), with a function that computes them anew (all is "
                "well while the learning rate is 0)",
            )

    def _warn(self, found: str, remedy: str) -> None:
        warnings.warn(f"{found}, and the method needs it: {remedy}", stacklevel=4)


def _has_gradient(parameter: Tensor) -> bool:
    return parameter.grad is not None and bool(parameter.grad.any())


def noted(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Return a balancer's hook that notes that it was called."""

    @wraps(hook)
    def with_note(self: Any, *args: Any, **named: Any) -> Any:
        self.watch.heard.add(hook.__name__)
        return hook(self, *args, **named)

    return with_note
