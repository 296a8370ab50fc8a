"""only: the base balances some objectives; the others are left to the plain sum."""

import torch
from torch import Tensor

from mtbench.balancing.balancer import Balancer
from mtbench.balancing.wrapper import WeightingWrapper
from mtbench.errors import UsageError


class Only(WeightingWrapper):
    r"""Balance the objectives of a set S with the base, and add the others as they are.

    .. math:: d = \sum_{k \in S} w_k g_k + \sum_{k \notin S} g_k

    w are the base's weights for the gradients of S, as if there were no others. For a term that is
    no objective in its own right, such as a regulariser, or one whose weight is known.

    Args:
        base: a method on the Gramian.
        seed: unused.
        objectives: S, by number, from 0; by default all but the last. A base has nothing to balance
            where S is one objective, as it is by default with K = 2.

    Example:
        MGDA of the gradients (1, 0) and (0, 2); the third has weight 1.

        >>> from mtbench_baselines.mgda import MGDA
        >>> G = torch.diag(torch.tensor([1.0, 4.0, 9.0]).double())
        >>> Only(MGDA(3), objectives=(0, 1)).weights(G, torch.ones(3))
        tensor([0.8000, 0.2000, 1.0000], dtype=torch.float64)
    """

    paper = "ours; a mask"
    checked_against = "the base on the objectives of the set alone"
    is_symmetric = False

    def __init__(
        self, base: Balancer, seed: int = 0, *, objectives: tuple[int, ...] | None = None
    ) -> None:
        super().__init__(base, seed)
        K = self.num_objectives
        chosen = range(max(K - 1, 1)) if objectives is None else tuple(objectives)
        if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(range(K)):
            raise UsageError(
                f"{self._called}: objectives must be different numbers from 0 to {K - 1}, at least "
                f"one, found {chosen}"
            )
        self.chosen = torch.tensor([k in chosen for k in range(K)], device="cpu")

    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Return the base's weights, and 1 for the other objectives that have a gradient."""
        inside = gramian * self.chosen[:, None] * self.chosen
        found = self.base.weigh(inside, losses).to(gramian)
        return torch.where(self.chosen, found, (gramian.diagonal() > 0).to(found))
