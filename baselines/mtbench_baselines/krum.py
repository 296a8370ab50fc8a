"""Multi-Krum: the mean of the gradients that lie closest to others."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mtbench.balancing.balancer import Weighting
from mtbench.errors import UsageError
from mtbench_baselines._checks import at_least

if TYPE_CHECKING:
    from optuna import Trial


class Krum(Weighting):
    r"""Average the m gradients with the smallest scores, and leave out the others.

    .. math:: s_i = \sum_{j \in N_i} \|g_i - g_j\|^2 = \sum_{j \in N_i} G_{ii} + G_{jj} - 2 G_{ij}

    where N_i are the K - f - 2 gradients closest to g_i. Made for distributed training with f
    adversarial workers, it is a reference here: with objectives for workers it follows the
    majority, and an objective unlike the others is never trained. With K = 2 it follows the first.

    Deviations: at least one neighbour is counted (the paper has K >= 2 f + 3); of equal scores the
    first wins. torchjd 0.18 sums distances where the paper sums their squares, and so selects
    others in a few draws.

    Args:
        num_objectives: K.
        seed: unused.
        byzantine: f; 0, or at most (K - 3) / 2.
        selected: m; at least 1, and 1 in the paper's Krum. All, where fewer are left.

    Example:
        Gradients 0.1, 1, 2, 9 on a line: with two neighbours each the scores are 4.42, 1.81, 4.61
        and 113.

        >>> g = torch.tensor([0.1, 1.0, 2.0, 9.0])
        >>> Krum(4).weights(torch.outer(g, g), torch.ones(4))
        tensor([0., 1., 0., 0.])
        >>> Krum(4, selected=2).weights(torch.outer(g, g), torch.ones(4))
        tensor([0.5000, 0.5000, 0.0000, 0.0000])
    """

    paper = "Blanchard et al., NeurIPS 2017, arXiv 1703.02757"
    checked_against = "textbook twin in gradient space; torchjd 0.18, K = 3"
    is_symmetric = False

    def __init__(
        self, num_objectives: int, seed: int = 0, *, byzantine: int = 0, selected: int = 1
    ) -> None:
        super().__init__(num_objectives, seed)
        if byzantine < 0 or (byzantine > 0 and num_objectives < 2 * byzantine + 3):
            raise UsageError(
                f"{self._called}: byzantine must be 0, or at most (K - 3) / 2 for K = "
                f"{num_objectives}, found {byzantine}"
            )
        at_least(self, 1, selected=selected)
        self.byzantine, self.selected = byzantine, selected

    @classmethod
    def suggest(cls, trial: "Trial", num_objectives: int) -> dict[str, Any]:
        """Draw f from 0 to (K - 3) / 2, and m from 1 to K."""
        return {
            "byzantine": trial.suggest_int("byzantine", 0, max((num_objectives - 3) // 2, 0)),
            "selected": trial.suggest_int("selected", 1, num_objectives),
        }

    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Return 1 / m for the selected, 0 for the others."""
        G, K = gramian.numpy(), len(gramian)
        square = G.diagonal()
        distances = np.maximum(square[:, None] + square - 2 * G, 0)
        distances.flat[:: K + 1] = np.inf
        distances.sort(axis=1)
        scores = distances[:, : max(K - self.byzantine - 2, 1)].sum(1)
        selected = scores.argsort(kind="stable")[: self.selected]
        weights = np.zeros_like(square)
        weights[selected] = 1 / len(selected)
        return torch.from_numpy(weights)
