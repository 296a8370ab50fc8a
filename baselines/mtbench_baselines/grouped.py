"""grouped: the base balances each layer, block or other group of parameters by itself."""

import copy
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from mtbench import seeding
from mtbench.balancing.balancer import Aggregator, Balancer, Weighting
from mtbench.balancing.engine import gramians, largest
from mtbench.balancing.step import Step
from mtbench.balancing.wrapper import Wrapper, weighting
from mtbench.errors import StepError, UsageError
from mtbench_baselines._groups import By, checked, grouped


class Grouped(Wrapper):
    r"""Let the base balance each group of shared parameters as if there were no other.

    With the columns :math:`J_p` of the Jacobian that belong to group p,

    .. math:: d_p = J_p^\top w(J_p J_p^\top), \qquad d = (d_1, \dots, d_P)

    Objectives that oppose each other in one layer may agree in the next. One Jacobian gives all
    groups' Gramians, and each group has its own state of the base, and its own random draws.
    ``by=all`` is the base itself. Heads get the gradient of their own loss. An objective whose
    gradient is zero in a group is left out there. A step whose gradients are not finite is the
    plain sum's, and no group hears of it.

    Layers, blocks and names need a step that knows the parameters' names, as it does in training;
    in your own loop hand over ``shared=encoder.named_parameters()``.

    Args:
        base: a method on the Gramian of the shared parameters or on their Jacobian, which does no
            more with a step and has no trainable parameter; other wrappers of such go inside.
        seed: unused.
        by: ``tensor``, each parameter tensor alone; ``layer``, the tensors of one module;
            ``block``, those of one child of the innermost module that holds them all; ``all``.
        named: regular expressions: each makes a group of the parameters in whose names it is found
            first, such as ``lora_A,lora_B``. `by` is for the others.

    Example:
        MGDA of (1, 0) and (0, 2) in the first tensor, of 1 and -1 in the second.

        >>> from mtbench_baselines.mgda import MGDA
        >>> x, y = torch.ones(2, requires_grad=True), torch.ones(1, requires_grad=True)
        >>> Grouped(MGDA(2)).backward([x[0] + y[0], 2 * x[1] - y[0]], shared=[x, y])
        >>> x.grad, y.grad
        (tensor([0.8000, 0.4000]), tensor([0.]))
    """

    paper = "layer-wise, e.g. GradVac, Wang et al., ICLR 2021, arXiv 2010.05874; torchjd's grouping"
    passes = "F + H + K E"
    is_weighted_sum = False
    checked_against = "the base on each block of the Jacobian, by hand"

    base: Weighting | Aggregator

    def __init__(
        self, base: Balancer, seed: int = 0, *, by: By = "tensor", named: tuple[str, ...] = ()
    ) -> None:
        super().__init__(base, seed)
        if not isinstance(base, Aggregator) or type(base).balance is not Aggregator.balance:
            base = weighting(self._called, base, at_shared=True)
        if any(True for _ in base.parameters()):
            raise UsageError(
                f"{self._called}: {base._called} has trainable parameters, and how many groups "
                "there are is not known before the first step: choose another method"
            )
        self.by, self.named = checked(self._called, by, named)
        self.groups = nn.ModuleList()  # copies of the base as it was made, which stays so

    def balance(self, step: Step) -> None:
        """Find each group's direction, and apply them all."""
        step.release()
        groups = grouped(self._called, step, self.by, self.named)
        if self.groups and len(self.groups) != len(groups):
            raise StepError(
                f"{self._called}: {len(self.groups)} groups of shared parameters in the first "
                f"step, found {len(groups)} now: say shared=encoder.parameters(), so that each "
                "stays itself where an objective has no label; after freezing or unfreezing, begin "
                "with a new balancer"
            )
        self._grow(len(groups))
        if isinstance(self.base, Aggregator):
            for method, group in zip(self._inside(), groups, strict=True):
                method.compares([step.shared[i] for i in group])
        jacobian = step.jacobian()
        sizes = [end - start for start, end in pairwise(step.offsets)]
        columns = torch.split(jacobian, sizes, dim=1)
        sides = [[columns[i] for i in group] for group in groups]
        found = self._found(sides, step) if groups else None
        if found is None:
            step.assign(jacobian.sum(0))
            return
        direction = torch.empty_like(jacobian[0])
        places = torch.split(direction, sizes)
        for group, parts in zip(groups, found, strict=True):
            for i, part in zip(group, parts, strict=True):
                places[i].copy_(part)
        step.assign(direction)

    def _found(self, sides: list[list[Tensor]], step: Step) -> list[list[Tensor]] | None:
        """Return each group's direction, tensor by tensor; None if a gradient is not finite."""
        like, methods = sides[0][0], self._inside()
        if isinstance(self.base, Weighting):
            products = gramians(sides)
            if not all(product.diagonal().isfinite().all() for product in products):
                return None
            weights = [
                method.weigh(product, step.host_values)
                for method, product in zip(methods, products, strict=True)
            ]
            rows = torch.stack(weights).to(like, non_blocking=True)
            return [
                [row @ block for block in blocks] for row, blocks in zip(rows, sides, strict=True)
            ]
        whole = [torch.cat(blocks, dim=1) for blocks in sides]
        if not torch.stack([largest(block) for block in whole]).isfinite().all():
            return None
        losses = step.values.to(like)
        found = [m.direct(block, losses) for m, block in zip(methods, whole, strict=True)]
        return [
            list(torch.split(direction, [block.shape[1] for block in blocks]))
            for direction, blocks in zip(found, sides, strict=True)
        ]

    def _grow(self, count: int) -> None:
        """Have a copy of the base for each group."""
        for number in range(len(self.groups), count):
            group = copy.deepcopy(self.base)
            for part in group.modules() if number else ():
                if isinstance(part, Balancer):
                    seed = seeding.derive(part.generator.initial_seed(), "group", number)
                    part.generator.manual_seed(seed)
            self.groups.append(group)

    def _inside(self) -> list[Any]:
        return list(self.groups)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        start = f"{prefix}groups."
        numbers = {
            key.removeprefix(start).partition(".")[0] for key in state_dict if key.startswith(start)
        }
        del self.groups[len(numbers) :]
        self._grow(len(numbers))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
