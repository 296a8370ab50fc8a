"""GO4Align: similar objectives form groups, and a group's members share one weight."""

from math import inf
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mtbench.balancing.balancer import Scalarizer
from mtbench.balancing.step import Step
from mtbench_baselines._checks import at_least, nonnegative

if TYPE_CHECKING:
    from optuna import Trial

_LEAST = 1e-20
_MOST = 1e30


class GO4Align(Scalarizer):
    r"""Minimise :math:`\sum_k w_k L_k`, w being inverse losses, averaged within groups.

    .. math:: p_k \leftarrow \frac{p_k e^{-\eta L_k}}{\sum_j p_j e^{-\eta L_j}}, \qquad
        \gamma_k = p_k \frac{\sum_j L_j}{L_k}

    p, 1/K at the start, remembers the losses of all steps; the indicators gamma are clustered by
    k-means into groups (least sum of squares), and w_k is the mean of gamma over k's group. The
    weights are constants of the step. This is the authors' code; one group is ``ew`` but for a
    common factor, K groups are inverse losses without exchange.

    A loss of exactly 0 (no label in this batch) is in no group and has no weight, and its share of
    p stays what it is. Of a negative loss the absolute value counts. These are our decisions.

    Deviation: gamma is a number per objective, and k-means on a line is solved exactly, by dynamic
    programming over the sorted values; the authors' code runs Lloyd's iteration from a random
    start, which may miss the optimum and is not deterministic.

    Args:
        num_objectives: K.
        seed: unused.
        groups: how many, at least 1; no more than the objectives with a label are used.
        step_size: eta; at least 0.

    Example:
        Losses 1, 1.1 and 10 in two groups; gamma is about (4.03, 3.67, 0.40).

        >>> x = torch.tensor([1.0, 1.1, 10.0], requires_grad=True)
        >>> GO4Align(3, step_size=0.0).backward(Step([x[0], x[1], x[2]], shared=[x]))
        tensor([3.8500, 3.8500, 0.4033], dtype=torch.float64)
    """

    paper = "Shen et al., NeurIPS 2024, arXiv 2404.06486, and the authors' code"
    checked_against = "all partitions, and scipy.cluster.vq.kmeans from 50 starts"

    log_shares: Tensor

    def __init__(
        self, num_objectives: int, seed: int = 0, *, groups: int = 2, step_size: float = 1e-4
    ) -> None:
        super().__init__(num_objectives, seed)
        at_least(self, 1, groups=groups)
        nonnegative(self, step_size=step_size)
        self.groups, self.step_size = groups, step_size
        self.register_buffer("log_shares", torch.zeros(num_objectives, dtype=torch.float64))

    @classmethod
    def suggest(cls, trial: "Trial", num_objectives: int) -> dict[str, Any]:
        """Draw the number of groups, at most K, and eta log-uniformly from [1e-5, 0.1]."""
        return {
            "groups": trial.suggest_int("groups", 1, min(num_objectives, 5)),
            "step_size": trial.suggest_float("step_size", 1e-5, 0.1, log=True),
        }

    def objective(self, step: Step) -> tuple[Tensor, Tensor]:
        """Return the weighted sum, and the weights."""
        losses = step.values.to(self.log_shares).abs()
        labelled = losses > 0
        moved = self.log_shares - self.step_size * losses
        # What the labelled ones lose of p stays among them.
        was, left = (
            logs.masked_fill(~labelled, -inf).logsumexp(dim=0) for logs in (self.log_shares, moved)
        )
        moved = torch.where(labelled, moved + (was - left), self.log_shares)
        self.log_shares.copy_(moved - moved.max())
        ratios = (losses.sum() / losses.clamp(min=_LEAST)).clamp(max=_MOST)
        indicators = self.log_shares.softmax(dim=0) * ratios
        values = indicators.where(labelled, -1).cpu()  # all that the grouping needs, in one copy
        weights, labelled = torch.zeros_like(values), values >= 0
        if labelled.any():
            weights[labelled] = group_means(values[labelled], self.groups)
        weights = weights.to(losses, non_blocking=True)
        return step.total(weights), weights


def group_means(values: Tensor, groups: int) -> Tensor:
    """Return, (n,), the mean of each value's group in the best partition into groups (k-means).

    Groups of a best partition are intervals of the sorted values, so it suffices to choose where
    they begin: D[g, j], the least cost of the first j values in g groups, is the least over i of
    D[g-1, i] + cost of one group of the values i to j.
    """
    n = len(values)
    groups = min(groups, n)
    order = values.argsort()
    # In units of their range from the middle: squares keep their digits.
    middle = values.median()
    centred = values[order] - middle
    unit = centred.abs().max()
    centred = centred / unit.masked_fill(unit == 0, 1)
    zero = centred.new_zeros(1)
    sums = torch.cat([zero, centred.cumsum(0)])
    squares = torch.cat([zero, centred.square().cumsum(0)])
    size = torch.ones_like(sums).cumsum(0)
    size = size[None, :] - size[:, None]  # of the group of values i to j - 1
    total = sums[None, :] - sums[:, None]
    cost = squares[None, :] - squares[:, None] - total.square() / size.clamp(min=1)
    cost = cost.masked_fill(size < 1, inf)

    least = cost[0]
    starts = []
    for _ in range(groups - 1):
        least, start = (least[:, None] + cost).min(dim=0)
        starts.append(start.tolist())
    means = torch.empty_like(values)
    end = n
    for start in (*(row for row in reversed(starts)), [0] * (n + 1)):
        begin = start[end]
        members = order[begin:end]
        means[members] = values[members].mean()
        end = begin
    return means
