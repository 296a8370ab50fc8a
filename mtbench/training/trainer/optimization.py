"""The optimizer and the learning rate that a recipe asks for."""

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn, optim

from mtbench import seeding
from mtbench.balancing.distributed import ALONE, Ranks
from mtbench.balancing.jacobian import vector
from mtbench.errors import UsageError
from mtbench.training.task import Recipe
from mtbench.training.trainer.batches import Batches
from mtbench.training.trainer.learner import Learner
from mtbench.training.trainer.nonfinite import Diverged

MOMENTUM = 0.9
"""Of ``sgd``."""

SAME = 1e-2
"""Of gradients' lengths: more than rounding changes, in bf16 too."""


class Descent:
    """Moves model and method along ``.grad``, as a recipe says.

    The encoder's learning rate is ``encoder_lr`` times that of all else, and the method's own
    parameters do not decay.

    ``muon`` is meant for the weight matrices of hidden layers: here those of the encoder. All else
    is moved by AdamW. Muon's updates are made as long as AdamW's (arXiv 2502.16982, which is
    ``adjust_lr_fn="match_rms_adamw"`` in torch), so that one learning rate serves both.

    Args:
        recipe: says how.
        learner: what is moved.
        steps: of the whole run.

    Raises:
        UsageError: Muon finds no matrix, or L-BFGS several batches.
    """

    def __init__(self, recipe: Recipe, learner: Learner, steps: int) -> None:
        self._recipe, self._steps = recipe, steps
        if recipe.optimizer == "lbfgs" and steps > recipe.epochs:
            raise UsageError(
                "optimizer=lbfgs takes the whole training split as one batch, found "
                f"{steps // recipe.epochs} batches of {recipe.batch_size}: raise batch_size"
            )
        model, matrices = learner.model, []
        if recipe.optimizer == "muon":
            matrices = [p for p in model.encoder.parameters() if p.ndim == 2]
            if not matrices:
                raise UsageError(
                    "optimizer=muon moves the weight matrices of linear layers, and this encoder "
                    "has none: use adamw"
                )
        if recipe.encoder_lr == 1:
            parts = [(1.0, _without(model.parameters(), matrices))]
        else:
            encoder = list(model.encoder.parameters())
            parts = [
                (recipe.encoder_lr, _without(encoder, matrices)),
                (1.0, _without(model.parameters(), encoder)),
            ]
        groups: list[dict[str, Any]] = [{"params": parameters} for _, parameters in parts]
        if own := list(learner.balancer.parameters()):
            groups.append({"params": own, "weight_decay": 0.0})
        given: dict[str, Any] = {"lr": recipe.lr, "weight_decay": recipe.weight_decay}
        first: optim.Optimizer
        if recipe.optimizer == "sgd":
            first = optim.SGD(groups, momentum=MOMENTUM, fused=True, **given)
        elif recipe.optimizer == "adam":
            first = optim.Adam(groups, fused=True, **given)
        elif recipe.optimizer == "lbfgs":
            first = _LineSearch(groups, recipe.lr, model.encoder.parameters())
        else:
            first = optim.AdamW(groups, fused=True, **given)
        self._optimizers: list[optim.Optimizer] = [first]
        self._factors = [[factor for factor, _ in parts] + [1.0] * bool(own)]
        if matrices:
            self._optimizers.append(optim.Muon(matrices, adjust_lr_fn="match_rms_adamw", **given))
            self._factors.append([recipe.encoder_lr])

    def set_rate(self, index: int) -> float:
        """Set the learning rate of the step with this index in the run, and return it."""
        lr = self._recipe.lr * _share(self._recipe.schedule, index, self._steps)
        for optimizer, factors in zip(self._optimizers, self._factors, strict=True):
            for group, factor in zip(optimizer.param_groups, factors, strict=True):
                group["lr"] = lr * factor
        return lr

    def step(self, weights: Tensor | None, evaluate: Callable[[Tensor], float]) -> None:
        """Move.

        Args:
            weights: (K,), that the method returned.
            evaluate: returns the losses' sum with such weights, where the model is then, and
                writes its gradient. L-BFGS asks it.

        Raises:
            UsageError: L-BFGS cannot know by the weights what the method does.
        """
        for optimizer in self._optimizers:
            if isinstance(optimizer, _LineSearch):
                optimizer.along(weights, evaluate)
            else:
                optimizer.step()

    def zero_grad(self) -> None:
        """Forget every gradient."""
        for optimizer in self._optimizers:
            optimizer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """Return what the optimizer keeps; of several, ``{"parts": [...]}``."""
        first, *others = [optimizer.state_dict() for optimizer in self._optimizers]
        return {"parts": [first, *others]} if others else first

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        parts = state["parts"] if len(self._optimizers) > 1 else [state]
        for optimizer, part in zip(self._optimizers, parts, strict=True):
            optimizer.load_state_dict(part)


class _LineSearch(optim.LBFGS):
    """L-BFGS on a sum of losses, which forgets what it knows of the one with other weights.

    Args:
        groups: what it moves.
        lr: of a step.
        shared: the part of it where a method's weights hold.
    """

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, shared: Iterable[nn.Parameter]
    ) -> None:
        super().__init__(groups, lr, line_search_fn="strong_wolfe")
        self._shared = list(shared)

    def along(self, weights: Tensor | None, evaluate: Callable[[Tensor], float]) -> None:
        """Lower the losses' sum with these weights.

        A trial point where it is not finite is rejected: it is told to be worse than the start, and
        flat, so that the search comes back.
        """
        if weights is None:
            raise UsageError(
                "optimizer=lbfgs lowers the losses' weighted sum, and this method has no weights: "
                "choose another method or optimizer"
            )
        group, shown = self.param_groups[0], weights.tolist()
        if group.get("weights") != shown:
            self.state.clear()
            group["weights"] = shown
        written = self._gradient()
        start = evaluate(weights)
        self._refuse_another(written, weights, evaluate)
        known = [start]  # what is asked first

        def look() -> float:
            try:
                return known.pop() if known else evaluate(weights)
            except Diverged:
                self.zero_grad()
                return 2 * abs(start) + 1

        super().step(look)  # type: ignore[no-untyped-call]

    def _refuse_another(
        self, written: Tensor, weights: Tensor, evaluate: Callable[[Tensor], float]
    ) -> None:
        """Refuse a method that has written another gradient than the sum's, which is at hand."""
        wanted = self._gradient()
        apart = (written - wanted).norm()
        if apart <= SAME * wanted.norm():
            return
        # Gradients that nearly cancel leave what rounding made of each.
        parts = []
        for own in torch.eye(len(weights)).to(weights) * weights:
            evaluate(own)
            parts.append(self._gradient().norm())
        if apart > SAME * sum(parts):
            raise UsageError(
                "optimizer=lbfgs lowers the losses' weighted sum, and this method writes another "
                "gradient: choose another method or optimizer (its class should say "
                "is_weighted_sum = False)"
            )
        evaluate(weights)

    def _gradient(self) -> Tensor:
        return vector([p.grad for p in self._shared], self._shared)


def refuse_noise(recipe: Recipe, learner: Learner, batches: Batches, ranks: Ranks = ALONE) -> None:
    """Refuse L-BFGS where a run's first and last step would not lower the same function.

    Costs two forward passes; nothing is left of them.

    Raises:
        UsageError: losses of the training samples differ where nothing has moved, or a forward pass
            moves something.
    """
    if recipe.optimizer != "lbfgs":
        return
    before = copy.deepcopy(dict(learner.model.named_buffers()))
    with seeding.preserved():
        first, last = (
            learner.step(batches.at(epoch, 0), ranks.of(batches.samples(0))).observed
            for epoch in (0, recipe.epochs - 1)
        )
    wanted = "optimizer=lbfgs wants the same losses whenever it looks"
    if not torch.allclose(first, last, rtol=1e-4, atol=1e-7, equal_nan=True):
        shown = (", ".join(f"{value:g}" for value in found.tolist()) for found in (first, last))
        raise UsageError(
            f"{wanted}, and of the training samples found first {next(shown)}, then {next(shown)}: "
            "switch off what is random (dropout, augmentation), or choose another optimizer"
        )
    for name, buffer in learner.model.named_buffers():
        if not torch.allclose(buffer, before[name], rtol=0, atol=0, equal_nan=True):
            raise UsageError(
                f"{wanted}, and a look changes the model's {name}: take layers that keep nothing "
                "of what they see (no batch norm), or choose another optimizer"
            )


def _without(parameters: Iterable[Tensor], others: Sequence[Tensor]) -> list[Tensor]:
    left_out = {id(p) for p in others}
    return [p for p in parameters if id(p) not in left_out]


def _share(schedule: str, index: int, steps: int) -> float:
    if schedule == "constant":
        return 1.0
    if schedule == "step":
        return 1.0 if 2 * index < steps else 0.5
    warmup = max(1, round(0.05 * steps))
    if index < warmup:
        return (index + 1) / warmup
    done = (index - warmup) / max(1, steps - warmup)
    return 0.5 * (1 + math.cos(math.pi * done))
