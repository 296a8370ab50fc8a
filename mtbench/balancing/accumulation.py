"""Several micro-batches, one balanced step: all that a step needs of each, added up."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from mtbench.balancing.distributed import Summed
from mtbench.balancing.engine import unhooked
from mtbench.balancing.step import Step
from mtbench.errors import StepError


class Held:
    """The losses and gradients of micro-batches, objective by objective, as of one batch.

    Losses add up to the whole batch's, and so do gradients: the Jacobian of a sum is the sum of
    Jacobians, which its Gramian is not. So K gradients of what is shared are held, for any method.
    """

    def __init__(self, objectives: int) -> None:
        self.values: list[Tensor] = [torch.zeros((), dtype=torch.float32)] * objectives
        self.grads: list[dict[int, Tensor]] = [{} for _ in range(objectives)]
        self.parameters: dict[int, Tensor] = {}
        self.shared: dict[int, tuple[str, Tensor]] = {}
        self.versions: dict[int, int] = {}
        self.scale: float | None = None

    def add(self, step: Step) -> None:
        """Take in a micro-batch, whose graph is freed.

        Raises:
            StepError: parameters or the loss scale are others than for the micro-batches before.
                What moved parameters must count as torch's versions do, and its fused optimizers do
                not.
        """
        if self.scale not in (None, step.loss_scale):
            raise StepError(
                "accumulate: micro-batches of one step must have one loss_scale, "
                f"found {self.scale:g} and {step.loss_scale:g}: say loss_scale=scaler in each call"
            )
        self.scale = step.loss_scale
        common = [*step.roles.shared, *step.roles.rest]
        for parameter in chain(common, *step.heads):
            version = parameter._version
            if self.versions.setdefault(id(parameter), version) != version:
                raise StepError(
                    "accumulate: parameters have moved since an earlier micro-batch: step the "
                    "optimizer after backward, which takes the last one, and begin again now (an "
                    "embedding with max_norm= moves in its forward pass: leave that out)"
                )
        if step.told:
            self.shared |= {id(p): (name, p) for name, p in step.named_shared}
        step.release()
        with unhooked(chain(common, *step.heads)):
            rows = [list(zip(common, row, strict=True)) for row in step.rows(common)]
            at_heads = step.head_grads
        grads = [
            [(p, g) for p, g in (*row, *zip(head, own, strict=True)) if g is not None]
            for row, head, own in zip(rows, step.heads, at_heads, strict=True)
        ]
        told = [not step.says_no_label(k, [g for _, g in own]) for k, own in enumerate(grads)]
        labelled = step.ranks.maximum(torch.tensor(told, dtype=torch.float32)).tolist()
        for k, loss in enumerate(step.losses):
            value = self.values[k].to(loss.device)  # float32 or wider, whatever the loss is
            self.values[k] = value + loss.detach().reshape(()) if labelled[k] else value
            for parameter, grad in grads[k] if labelled[k] else ():
                self.parameters[id(parameter)] = parameter
                held = self.grads[k].get(id(parameter))
                self.grads[k][id(parameter)] = grad if held is None else held + grad

    def step(self, last: Step) -> Step:
        """Return the step of the whole batch, whose losses are linear at the present parameters."""
        losses = []
        for value, grads in zip(self.values, self.grads, strict=True):
            touched = [self.parameters[key] for key in grads]
            sums = last.ranks.sums(list(grads.values()))
            unscaled = [last.unscaled(grad) for grad in sums if grad is not None]
            losses.append(tangent(value, touched, unscaled))
        shared = self.shared.values() if self.shared else None
        return last.like(losses, shared=shared, ranks=Summed(last.ranks))


def tangent(value: Tensor, parameters: Sequence[Tensor], grads: Sequence[Tensor | None]) -> Tensor:
    """Return a loss of known value and gradients; a parameter without one is not reached."""
    known = [(p, grad) for p, grad in zip(parameters, grads, strict=True) if grad is not None]
    if not known:
        return value.detach()
    reached, found = zip(*known, strict=True)
    loss: Tensor = _Linear.apply(value.detach(), found, *reached)  # type: ignore[no-untyped-call]
    return loss


class _Linear(torch.autograd.Function):
    """A loss of known value and gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, grads: Sequence[Tensor], *parameters: Tensor) -> Tensor:
        ctx.grads = grads
        return value.clone()

    @staticmethod
    def backward(ctx: Any, seed: Tensor) -> Any:
        return (None, None, *(grad * seed.to(grad.dtype) for grad in ctx.grads))
