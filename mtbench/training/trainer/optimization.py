"""The optimizer and the learning rate that a recipe asks for."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn, optim

from mtbench.errors import UsageError
from mtbench.training.task import Recipe
from mtbench.training.trainer.learner import Learner

MOMENTUM = 0.9
"""Of ``sgd``."""


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
        UsageError: Muon finds no matrix, or L-BFGS no function.
    """

    def __init__(self, recipe: Recipe, learner: Learner, steps: int) -> None:
        self._recipe, self._steps = recipe, steps
        if recipe.optimizer == "lbfgs":
            _refuse_to_search(recipe, learner, steps)
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
            first = _LineSearch(groups, recipe.lr, line_search_fn="strong_wolfe")
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
            UsageError: L-BFGS has no function to ask.
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
    """L-BFGS on a sum of losses, which forgets what it knows of the one with other weights."""

    def along(self, weights: Tensor | None, evaluate: Callable[[Tensor], float]) -> None:
        """Lower the losses' sum with these weights."""
        if weights is None:
            raise UsageError(
                "optimizer=lbfgs lowers the losses' weighted sum, and this method has no weights: "
                "choose another method or optimizer"
            )
        group, shown = self.param_groups[0], weights.tolist()
        if group.get("weights") != shown:
            self.state.clear()
            group["weights"] = shown
        super().step(lambda: evaluate(weights))  # type: ignore[no-untyped-call]


def _refuse_to_search(recipe: Recipe, learner: Learner, steps: int) -> None:
    """Refuse L-BFGS where there is no function that it could lower."""
    if not learner.balancer.is_weighted_sum:
        raise UsageError(
            "optimizer=lbfgs lowers the losses' weighted sum, and this method's direction is the "
            "gradient of no such sum: choose another method or optimizer"
        )
    if any(True for _ in learner.balancer.parameters()):
        raise UsageError(
            "optimizer=lbfgs moves the model, and this method has parameters of its own to move: "
            "train with adam, and go on by lbfgs with --method ls --weights-from RUN --init RUN"
        )
    if steps > recipe.epochs:
        raise UsageError(
            "optimizer=lbfgs takes the whole training split as one batch, found "
            f"{steps // recipe.epochs} batches of {recipe.batch_size}: raise batch_size"
        )
    for name, module in learner.model.named_modules():
        # Attention, recurrent layers and graph convolutions drop by a rate of their own.
        is_dropout = isinstance(module, nn.modules.dropout._DropoutNd)
        rate = module.p if is_dropout else getattr(module, "dropout", 0)
        if isinstance(rate, int | float) and rate > 0:
            raise UsageError(
                "optimizer=lbfgs wants the same losses whenever it looks, and the model's "
                f"{name}, a {type(module).__name__}, drops at random: choose another optimizer"
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
