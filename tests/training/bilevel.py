"""A method that looks at all that the trainer offers: held-out batches, and metrics."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mtbench import Balancer, Judged, Step


class Bilevel(Balancer):
    """Weigh each loss by its value on a validation batch, and by the last validation metric.

    Args:
        num_objectives: K.
        seed: unused.
        share: of the training samples that are held out.
        calls: validation batches a step.
    """

    paper = "none"
    passes = "2 F + H + E"
    needs_validation = True
    told: Tensor

    def __init__(
        self, num_objectives: int, seed: int = 0, *, share: float = 0.25, calls: int = 1
    ) -> None:
        super().__init__(num_objectives, seed)
        self.holds_out, self.calls = share, calls
        self.register_buffer("told", torch.ones(num_objectives))

    def balance(self, step: Step) -> Tensor:
        held_out = [step.validation().values for _ in range(self.calls)]
        weights = torch.stack(held_out).mean(0) * self.told
        step.backward(weights)
        return weights

    def after_evaluation(self, metrics: Sequence[Judged]) -> None:
        for metric in metrics:
            if metric.primary and not metric.higher_is_better and metric.objective is not None:
                self.told[metric.objective] = metric.value
