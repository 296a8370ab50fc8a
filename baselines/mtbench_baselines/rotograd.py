"""RotoGrad: rotate every head's sight of z until the objectives' gradients there align."""

from collections.abc import Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mtbench.balancing.balancer import Balancer
from mtbench.balancing.distributed import Ranks
from mtbench.balancing.step import Step
from mtbench.errors import StepError
from mtbench_baselines._adam import descend
from mtbench_baselines._checks import at_least, positive, share

if TYPE_CHECKING:
    from optuna import Trial

    from mtbench.balancing.model import MultitaskModel

_SIZED = ("skew", "rotation", "first_moment", "second_moment")


class RotoGrad(Balancer):
    r"""Give the objectives' gradients at z one norm, and learn rotations that align them.

    Head k sees :math:`r_k = R_k z` in the place of z, R_k a rotation, the identity at the start.
    With :math:`G_k = \partial L_k / \partial z` over the whole batch and
    :math:`U_k = G_k / \|G_k\|`, the encoder gets the gradient of norm C from each,

    .. math:: C \sum_k U_k, \qquad C = \sum_k \alpha_k \|G_k\|, \qquad
        \alpha_k = \frac{\|G_k\| / \|G_k^0\|}{\sum_j \|G_j\| / \|G_j^0\|}

    so that C follows the objectives that have come down least from the norm :math:`\|G_k^0\|` that
    they started with. Then R_k descends, with all else constant,

    .. math:: L_k^\mathrm{rot} = -\sum_n \langle R_k v_n,\ \tilde u_{n,k} \rangle, \qquad
        v_n = \tfrac1K \sum_j u_{n,j}, \qquad \tilde u_{n,k} = R_k u_{n,k}

    for the samples n: it turns objective k's gradient towards the mean of all. It is
    parametrised as :math:`R_k = \exp(A_k - A_k^\top)`, and A_k is moved by Adam, kept in the state.
    Heads get the gradient of their own loss.

    For feature maps, (B, C, H, W), the channels are rotated, alike at all places, and n runs over
    the places too. Only z is rotated; heads see other features as they are, and the weights
    :math:`C / \|G_k\|` hold for all.

    Deviations:
        - The rotations' loss is in units of :math:`\|G_k\|`, so that the losses' scale does not
          matter.
        - What is rotated of a feature map, and what is not, is our choice; the authors' code lets
          the user say.
        - An objective without a gradient is left out; its rotation stays.

    Args:
        num_objectives: K.
        seed: unused.
        lr: Adam's learning rate for the rotations; above 0.
        decay: what lr is multiplied by after each epoch, in (0, 1]. The paper's game wants
            rotations that are slower than the model.
        burn_in: step after which :math:`\|G_k^0\|` is taken anew, as in the authors' code; at least
            0, which keeps the first step's.
        size: how many of z's channels are rotated, the first ones; all by default. Memory and time
            grow with its square and cube.

    Example:
        Norms 1 and 3 at the first step: each alpha is 1/2, so both get the norm 2.

        >>> z = torch.ones(1, 2, requires_grad=True) * 1.0
        >>> step = Step([z[0, 0], 3 * z[0, 1]], features=z)
        >>> RotoGrad(2).backward(step)
        tensor([2.0000, 0.6667], dtype=torch.float64)
    """

    paper = "Javaloy and Valera, ICLR 2022, arXiv 2103.02631"
    passes = "F + H + E, and K exponentials of m x m matrices, m the channels of z"
    checked_against = "a twin with hooks at R_k z, torch.linalg.matrix_exp and torch.optim.Adam"
    needs_features = True
    sized_later = _SIZED
    on_host = ("place",)
    finds_front = False  # heads see a rotated z: the front moves
    is_weighted_sum = False

    place: Tensor
    initial: Tensor
    count: Tensor
    turns: Tensor
    rate: Tensor
    skew: Tensor
    rotation: Tensor
    first_moment: Tensor
    second_moment: Tensor

    def __init__(
        self,
        num_objectives: int,
        seed: int = 0,
        *,
        lr: float = 0.001,
        decay: float = 1.0,
        burn_in: int = 20,
        size: int | None = None,
    ) -> None:
        super().__init__(num_objectives, seed)
        positive(self, lr=lr)
        share(self, decay=decay)
        at_least(self, 0, burn_in=burn_in)
        if size is not None:
            at_least(self, 1, size=size)
        self.decay, self.burn_in, self.size = decay, burn_in, size
        self.latent = -1  # which feature is z; torch.export indexes by no tensor
        self.register_buffer("place", torch.tensor(-1, device="cpu"))  # the same, saved
        zeros = torch.zeros(num_objectives, dtype=torch.float64)
        self.register_buffer("initial", zeros)  # ||G_k^0||
        self.register_buffer("count", zeros.clone())  # steps with a gradient
        self.register_buffer("turns", zeros.clone())  # Adam's
        self.register_buffer("rate", torch.tensor(lr, dtype=torch.float64))
        for name in _SIZED:  # (K, m, m) from the first step on, where m becomes known
            self.register_buffer(name, zeros.new_zeros(num_objectives, 0, 0))

    @classmethod
    def suggest(cls, trial: "Trial", num_objectives: int) -> dict[str, Any]:
        """Draw lr log-uniformly from [0.0001, 0.1]."""
        return {"lr": trial.suggest_float("lr", 1e-4, 1e-1, log=True)}

    def wrap(self, model: "MultitaskModel") -> "MultitaskModel":
        """Note which feature is z."""
        self._look_at(model.latent)
        return model

    def _look_at(self, latent: int) -> None:
        self.latent = latent
        self.place.fill_(latent)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.latent = int(self.place)

    def view(self, features: tuple[Tensor, ...], k: int) -> tuple[Tensor, ...]:
        """Return the features with z rotated for head k."""
        size = self.rotation.shape[-1]
        if not size:
            return features
        seen = list(features)
        z = seen[self.latent]
        moved, kept = z[:, :size], z[:, size:]
        turned = self.rotation[k].to(z) @ moved.reshape(z.shape[0], size, -1)
        seen[self.latent] = torch.cat([turned.reshape(moved.shape), kept], dim=1)
        return tuple(seen)

    def balance(self, step: Step) -> Tensor:
        """Write gradients of one norm, then turn the rotations."""
        self._look_at(step.latent)
        step.release()
        grads = [grads[step.latent] for grads in step.feature_grads()]
        if grads[0].dim() < 2:
            raise StepError(
                f"{self._called}: rotates the channels of z, and found z of shape "
                f"{tuple(grads[0].shape)}: give it as (B, C)"
            )
        squares = torch.stack([g.double().square().sum() for g in grads])
        norms = step.ranks.total(squares).sqrt()
        lengths = norms.tolist()
        finite = isfinite(sum(lengths))  # an overflow leaves no trace
        weights = self._weights(norms.to(self.initial)) if finite else torch.ones_like(self.initial)
        step.backward(weights, "features")
        if finite:
            self._turn(grads, lengths, step.ranks)
        return weights

    def _weights(self, norms: Tensor) -> Tensor:
        """Return C / ||G_k||, 0 for objectives without a gradient."""
        active = norms > 0
        first = active & ((self.count == 0) | (self.count == self.burn_in))
        self.initial.copy_(torch.where(first, norms, self.initial))
        self.count += active
        ratios = norms / self.initial.masked_fill(self.initial == 0, 1)
        common = (ratios * norms).sum() / ratios.sum().clamp(min=1e-300)
        return torch.where(active, common / norms.masked_fill(~active, 1), 0)

    def _turn(self, grads: Sequence[Tensor], norms: Sequence[float], ranks: Ranks) -> None:
        """Take one step of Adam on the rotations' losses."""
        count = sum(norm > 0 for norm in norms)
        if count < 2:  # nothing to align with
            return
        active = torch.tensor([norm > 0 for norm in norms], device="cpu").to(
            self.skew.device, non_blocking=True
        )
        channels = grads[0].shape[1]
        size = min(self.size or channels, channels)
        if not self.skew.numel():
            for name in _SIZED:
                setattr(self, name, self.skew.new_zeros(len(grads), size, size))
            self.rotation += torch.eye(size, device="cpu").to(self.rotation)
        units = [_rows(g, size) / (norm or 1.0) for g, norm in zip(grads, norms, strict=True)]
        mean = torch.stack(units).sum(0) / count
        # <R v, u~> summed over n is <R, u~ v^T>, so the loss's gradient at R is this matrix.
        products = ranks.total(torch.stack([unit @ mean.T for unit in units]))
        slope = -self.rotation @ products.to(self.rotation)
        with torch.enable_grad():
            skew = self.skew.detach().requires_grad_()
            (grad,) = torch.autograd.grad(_rotations(skew), skew, slope)

        turns, of = self.turns[:, None, None], active[:, None, None]
        descend(self.skew, self.first_moment, self.second_moment, turns, grad, self.rate, of)
        self.rotation.copy_(_rotations(self.skew))

    def after_epoch(self) -> None:
        """Slow the rotations down."""
        self.rate *= self.decay


def _rotations(skew: Tensor) -> Tensor:
    """Return exp(A - A^T), (K, m, m)."""
    rotations: Tensor = torch.linalg.matrix_exp(skew - skew.mT)
    return rotations


def _rows(grad: Tensor, size: int) -> Tensor:
    """Return the first channels of a gradient (B, C, ...) as rows, (size, samples and places)."""
    return grad[:, :size].double().transpose(0, 1).reshape(size, -1)
