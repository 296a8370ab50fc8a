"""Nash-MTL: the objectives bargain for the direction."""

import torch
from torch import Tensor

from mtbench.balancing.balancer import Weighting
from mtbench.balancing.solvers import fair_shares, shorten
from mtbench.balancing.step import Step
from mtbench_baselines._checks import at_least, nonnegative


class NashMTL(Weighting):
    r"""Follow the Nash bargaining solution: the largest product of all improvements.

    .. math:: \max_{\|d\| \le \epsilon} \sum_k \log \langle g_k, d\rangle
        \quad\Rightarrow\quad d = \textstyle\sum_k w_k g_k, \qquad G w = 1 / w, \quad w > 0

    with :math:`G = J J^\top` and 1/w by element. The direction is invariant to
    the scale of every single objective. The equation is solved to rounding at every scale by
    `mtbench.balancing.solvers.fair_shares`, which says how w stays bounded where gradients cancel;
    the paper's iteration of convex programs is approximate, and misses it often.

    Scale: :math:`\|d\| = \sqrt K`, whatever the gradients are; then, as in the authors' code, d is
    cut to the length max_norm. Where that is 1 every step has the length 1, and the learning rate
    alone says how far a step goes.

    Deviations: between solutions, weights are applied as they are, whereas the authors cut every
    step anew. An objective without a gradient at a solution keeps its last weight, 1 at first.

    Args:
        num_objectives: K.
        seed: unused.
        max_norm: the longest step; 0 for no limit.
        update_weights_every: at how many steps the weights are solved for once; the others
            cost one encoder backward.

    Example:
        Orthogonal gradients of lengths 1 and 2 both count with length 1.

        >>> method = NashMTL(2, max_norm=0.0)
        >>> method.weights(torch.tensor([[1.0, 0.0], [0.0, 4.0]]), torch.ones(2))
        tensor([1.0000, 0.5000], dtype=torch.float64)
    """

    paper = "Navon et al., ICML 2022, arXiv 2202.01017, Algorithm 1"
    checked_against = "scipy's SLSQP on the log product; torchjd 0.18 where it converges"
    sees_zero_rows = True
    on_host = ("last", "count")

    last: Tensor
    count: Tensor

    def __init__(
        self,
        num_objectives: int,
        seed: int = 0,
        *,
        max_norm: float = 1.0,
        update_weights_every: int = 1,
    ) -> None:
        super().__init__(num_objectives, seed)
        nonnegative(self, max_norm=max_norm)
        at_least(self, 1, update_weights_every=update_weights_every)
        self.max_norm, self.update_weights_every = max_norm, update_weights_every
        self.register_buffer("last", torch.ones(num_objectives, dtype=torch.float64, device="cpu"))
        self.register_buffer("count", torch.zeros((), dtype=torch.long, device="cpu"))

    @property
    def weighs_only(self) -> bool:
        """Whether no step goes without a solution."""
        return self.update_weights_every == 1

    def balance(self, step: Step) -> Tensor:
        """Find the weights, or take the last ones, and apply them."""
        if self.count.item() % self.update_weights_every == 0:
            return super().balance(step)
        self.count += 1
        step.release()
        step.backward(self.last, "features")
        return self.last.clone()

    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Return the solution, cut to the longest step."""
        self.count += 1  # not in a step that overflows: the next one tries again
        G, last = gramian.numpy(), self.last.numpy().copy()
        active = G.diagonal() > 0
        if active.any():
            present = torch.from_numpy(G[active][:, active])
            last[active] = shorten(present, fair_shares(present), self.max_norm).numpy()
            self.last.copy_(torch.from_numpy(last))
        return torch.from_numpy(last)
