"""EnCodec's balancer: every objective's share of the gradient at the features is what was asked."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mtbench.balancing.balancer import Balancer
from mtbench.balancing.step import Step
from mtbench_baselines._checks import positive, unit_interval
from mtbench_baselines._norms import sample_squares
from mtbench_baselines._preference import drawn, ray

if TYPE_CHECKING:
    from optuna import Trial


class EnCodec(Balancer):
    r"""Divide each objective's gradient at the features by its own running mean norm.

    With :math:`\delta_k` the gradient at the features, (B, ...), and the mean over the batch of its
    samples' norms, averaged over the steps t' up to now,

    .. math:: G = \sum_k R\, \frac{w_k}{\sum_j w_j}\, \frac{\delta_k}{\bar n_k}, \qquad
        \bar n_k = \frac{\sum_{t'} \beta^{t - t'} n_k(t')}{\sum_{t'} \beta^{t - t'}}, \qquad
        n_k = \frac1B \sum_b \|\delta_{k,b}\|

    is sent back through the encoder, once. w then says what share of the gradient each objective
    has, whatever the losses are measured in.

    The authors put the balancer at a decoder's output, where no head comes after. Here heads get
    the gradient of their own loss.

    Deviations: an objective without a gradient keeps its mean, and its share goes to the others
    (our decision: the authors' code expects every loss that it has seen). No constant is added to
    the norms.

    Args:
        num_objectives: K.
        seed: unused.
        preference: w, K numbers above 0, of which only the ratios count; by default all alike.
        total_norm: R, above 0.
        decay: beta, in [0, 1].

    Example:
        One sample with the gradients (1, 0) and (0, 4): half of a unit each.

        >>> z = torch.ones(1, 2, requires_grad=True)
        >>> features = z * 1.0
        >>> method = EnCodec(2)
        >>> method.backward(Step([features[0, 0], 4 * features[0, 1]], features=features))
        tensor([0.5000, 0.1250], dtype=torch.float64)
        >>> z.grad
        tensor([[0.5000, 0.5000]])
    """

    paper = "Défossez et al., TMLR 2023, arXiv 2210.13438, by the authors' code"
    passes = "F + H + E"
    checked_against = "a twin of one backward per objective"
    needs_features = True

    total: Tensor
    count: Tensor
    preference: Tensor

    def __init__(
        self,
        num_objectives: int,
        seed: int = 0,
        *,
        preference: tuple[float, ...] | None = None,
        total_norm: float = 1.0,
        decay: float = 0.999,
    ) -> None:
        super().__init__(num_objectives, seed)
        positive(self, total_norm=total_norm)
        unit_interval(self, decay=decay)
        self.total_norm, self.decay = total_norm, decay
        self.register_buffer("preference", ray(self, preference), persistent=False)
        for name in ("total", "count"):
            self.register_buffer(name, torch.zeros(num_objectives, dtype=torch.float64))

    @classmethod
    def suggest(cls, trial: "Trial", num_objectives: int) -> dict[str, Any]:
        """Draw each objective's share."""
        return {"preference": drawn(trial, num_objectives)}

    def balance(self, step: Step) -> Tensor:
        """Average the norms, and send the weighted gradient back."""
        step.release()
        weights = self._weights(_norms(step).to(self.total))
        step.backward(weights, "features")
        return weights

    def _weights(self, norms: Tensor) -> Tensor:
        active = (norms > 0) & norms.isfinite().all()  # an overflow leaves no trace
        self.total.copy_(torch.where(active, self.decay * self.total + norms, self.total))
        self.count.copy_(torch.where(active, self.decay * self.count + 1, self.count))
        shares = self.preference * (norms > 0)
        mean = self.total / self.count.clamp(min=1)
        scale = self.total_norm / shares.sum().clamp(min=1e-300)
        return torch.where(mean > 0, scale * shares / mean, 0)


def _norms(step: Step) -> Tensor:
    """Return per objective the mean norm of the samples' gradients, over all ranks, (K,)."""
    rows = [
        torch.stack([sample_squares(part) for part in grads]).sum(0)
        for grads in step.feature_grads()
    ]
    samples: Tensor = step.ranks.gather(torch.stack(rows, dim=1))
    return samples.sqrt().mean(0)
