"""GradDrop: pick a sign for every coordinate, at random, and keep the gradients that have it."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mtbench.balancing.balancer import Aggregator
from mtbench_baselines._checks import unit_interval

if TYPE_CHECKING:
    from optuna import Trial

_BLOCK = 1 << 16  # columns at a time


class GradDrop(Aggregator):
    r"""Sum, in each coordinate, the gradients of one sign, drawn by how much pulls that way.

    With the positive sign purity of coordinate n and a uniform random number,

    .. math:: P_n = \frac12 \Bigl( 1 + \frac{\sum_k g_{kn}}{\sum_k |g_{kn}|} \Bigr), \qquad
        U_n \sim \mathcal{U}[0, 1)

    the sum is over :math:`\{k : g_{kn} > 0\}` if :math:`P_n > U_n`, over
    :math:`\{k : g_{kn} < 0\}` otherwise; of the other gradients the share ``leak`` passes. In
    expectation, the direction is that of ``ew``.

    Deviations: the gradients are those of the shared parameters; the paper puts the layer at
    activations, where samples are merged after multiplication with the activation's sign. One leak
    serves all objectives. The authors' layer (lingvo) brings the result to the plain sum's norm by
    default, as no one else's does; nor does this.

    Args:
        num_objectives: K.
        seed: seeds the signs.
        leak: share of the dropped gradients that passes; in [0, 1], and 1 is ``ew``.

    Example:
        Only the first coordinate is in conflict: its purity is (1 + 2/4) / 2.

        >>> J = torch.tensor([[3.0, 1.0], [-1.0, 2.0]])
        >>> draws = torch.stack([GradDrop(2, seed=s).direction(J, torch.ones(2)) for s in range(9)])
        >>> draws.unique(dim=0)
        tensor([[-1.,  3.],
                [ 3.,  3.]])
    """

    paper = "Chen et al., NeurIPS 2020, arXiv 2010.06808, Algorithm 1"
    checked_against = "torchjd 0.18 and LibMTL 1.1.5, from the same random numbers"
    asks_nothing = True

    def __init__(self, num_objectives: int, seed: int = 0, *, leak: float = 0.0) -> None:
        super().__init__(num_objectives, seed)
        unit_interval(self, leak=leak)
        self.leak = leak

    @classmethod
    def suggest(cls, trial: "Trial", num_objectives: int) -> dict[str, Any]:
        """Draw the leak from [0, 1]."""
        return {"leak": trial.suggest_float("leak", 0.0, 1.0)}

    def direction(self, jacobian: Tensor, losses: Tensor) -> Tensor:
        """Return the sum of the gradients that were kept."""
        # U, until a block of it is read.
        direction = torch.rand(
            jacobian.shape[1], generator=self.generator, dtype=jacobian.dtype, device="cpu"
        )
        direction = direction.to(jacobian.device, non_blocking=True)
        parts = (torch.split(tensor, _BLOCK, dim=-1) for tensor in (jacobian, direction))
        for block, out in zip(*parts, strict=True):
            up, down = block.clamp(min=0).sum(0), block.clamp(max=0).sum(0)
            # P > U, as P = up / (up - down); where all are zero either sum is right.
            kept = torch.where(up > out.mul_(up - down), up, down)
            torch.lerp(kept, up.add_(down), self.leak, out=out)
        return direction
