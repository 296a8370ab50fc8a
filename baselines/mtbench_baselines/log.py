"""log: the base sees the objectives' logarithms."""

from torch import Tensor

from mtbench.balancing.balancer import Balancer
from mtbench.balancing.wrapper import WeightingWrapper
from mtbench.errors import UsageError
from mtbench_baselines._norms import divisors


class Log(WeightingWrapper):
    r"""Balance the objectives :math:`\log L_k` with the base.

    .. math:: \nabla \log L_k = \frac{\nabla L_k}{L_k}, \qquad
        G_{ij} \leftarrow \frac{G_{ij}}{L_i L_j}, \qquad
        d = \sum_k w_k \frac{\nabla L_k}{L_k}

    What a loss is measured in no longer matters, and the relative change of every loss counts. A
    base that reads losses is given their logarithms. Heads get the gradient of their own loss.

    A loss below 0 has no logarithm: its gradient is divided by :math:`|L_k|`, so that it keeps its
    direction, as if the objective were :math:`-\log |L_k|`. That of a loss of exactly 0 is divided
    by 1. Both are our decisions; as such a loss nears 0, its gradient takes over. A base
    that leaves out losses that are not positive, as ``epo`` does, is refused.

    Example:
        Gradients (1, 0) and (0, 2) of the losses 1 and 4: those of the logs are (1, 0), (0, 1/2),
        and MGDA's weights for these 1/5 and 4/5.

        >>> import torch
        >>> from mtbench_baselines.mgda import MGDA
        >>> G = torch.diag(torch.tensor([1.0, 4.0]).double())
        >>> Log(MGDA(2)).weights(G, torch.tensor([1.0, 4.0]).double())
        tensor([0.2000, 0.2000], dtype=torch.float64)
    """

    paper = "the chain rule; its use for one method: DB-MTL, Lin et al., 2023, arXiv 2308.12029"
    checked_against = "the base on log losses by autograd"

    def __init__(self, base: Balancer, seed: int = 0) -> None:
        super().__init__(base, seed)
        if base.needs_positive:
            raise UsageError(
                f"{self._called}: {base._called} leaves out objectives that are not positive, and "
                "the logarithm of a loss below 1 is not: leave the wrapper out"
            )

    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Return the base's weights for the logarithms, as weights of the losses."""
        scale = divisors(losses)
        found = self.base.weigh(gramian / scale[:, None] / scale, scale.log() * losses.sign())
        return found.to(scale) / scale
