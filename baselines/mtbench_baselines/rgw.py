"""RGW: random weights on the gradients."""

import torch
from torch import Tensor

from mtbench.balancing.balancer import Weighting
from mtbench.balancing.step import Step


class RandomGradientWeighting(Weighting):
    r"""Follow :math:`\sum_k w_k g_k` with weights drawn anew in every step.

    .. math:: w = \mathrm{softmax}(s), \qquad s \sim \mathcal{N}(0, I_K)

    In expectation all objectives weigh the same. Unlike with random weights on the losses (``rlw``)
    the heads get the unweighted gradients.

    Deviation: of the paper's distributions only the normal one.

    Example:
        >>> weights = RandomGradientWeighting(3).weights(torch.eye(3), torch.ones(3))
        >>> round(weights.sum().item(), 6)
        1.0
    """

    paper = "Lin et al., TMLR 2022, arXiv 2111.10603, Algorithm 2"
    passes = "F + H + E"
    checked_against = "torchjd 0.18, from the same generator"

    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Return the drawn weights."""
        drawn = torch.randn(
            len(gramian), generator=self.generator, dtype=torch.float64, device="cpu"
        )
        return drawn.softmax(0)

    def balance(self, step: Step) -> Tensor:
        """Draw the weights and apply them; no gradient need be known by itself.

        An objective counts as being without one where its loss is exactly 0.
        """
        losses = step.host_values
        weights = self.weigh(torch.diag((losses != 0).double()), losses)
        step.release()
        step.backward(weights, "features")
        return weights
