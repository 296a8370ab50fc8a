"""RLAR: penalise the alignment of the objectives' adversarial directions in latent space."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from mtbench.balancing.balancer import Scalarizer
from mtbench.balancing.distributed import ALONE, Ranks
from mtbench.balancing.engine import without_autocast
from mtbench.balancing.step import Step
from mtbench_baselines._checks import at_least, fraction, nonnegative, one_of

if TYPE_CHECKING:
    from optuna import Trial

Mode = Literal["positive", "absolute"]
Where = Literal["bottleneck", "pooled", "both"]

_EPS = 1e-4
_LOOKS = {"bottleneck": (False,), "pooled": (True,), "both": (False, True)}
"""Whether the sensitivities are pooled, for each penalty."""


class RLAR(Scalarizer):
    r"""Minimise :math:`\sum_k L_k + \lambda_e R`, where R penalises aligned sensitivities at z.

    For the latent z, (B, ...), and per sample b, with all inner products over the other axes:

    .. math:: g_k = \partial L_k / \partial z, \qquad a_k = g_k / \max(\|g_k\|, \epsilon), \qquad
        c_{jk} = \langle a_j, a_k \rangle, \qquad
        R = \operatorname*{mean}_{b,\ j < k} \max(0, c_{jk} - \tau)^2

    a_k is the l2 adversarial direction of objective k: where z moves to raise L_k fastest. R is
    differentiated through a_k, and so reaches the encoder and the heads.

    **This is our reading.** The paper's abstract says that the method "uses each task's normalized
    adversarial direction in latent space as a geometric probe of task sensitivity and penalizes
    excessive angular alignment between task-specific adversarial directions"; its equations could
    not be read. Ours are, in particular: the square, the mean, tau, the ramp, and the sign.
    ``mode="positive"`` follows the words (alignment); ``"absolute"`` puts :math:`|c_{jk}|` for
    :math:`c_{jk}`, and so penalises opposition, which gradient surgery acts on, as well.

    Which samples count: L_k is a mean over the batch, so g_k carries a factor 1/B and the loss's
    unit; epsilon is therefore relative, 1e-4 of the largest :math:`\|g_k\|` in the batch. At or
    below it (no label, or solved) there is no direction: the sample leaves the pairs of k, and R is
    the mean over those that remain, 0 if none does.

    Where it looks is ours, too. ``where="bottleneck"`` takes z as it is. Of a z with positions,
    (B, C, ...) with the channels first, ``"pooled"`` takes the embedding that is its mean over
    positions: g_k is then the sum of :math:`\partial L_k / \partial z` over positions, the gradient
    of a shift that is equal at all of them. Tokens, (B, T, C), must be transposed for that.
    ``"both"`` is the mean of the two penalties. In the many dimensions of a bottleneck cosines are
    small: a tau of some size lies above all of them.

    Its notes (`Balancer.notes`): ``acts``, the share of pairs and samples beyond tau, and
    ``alignment``, their mean cosine; of ``"both"``, the means.

    Precision: float32 at least, also under autocast. Samples must not mix in a head (batch norm).

    Cost: the heads' backward twice (the second through the first), one encoder backward.

    Args:
        num_objectives: K.
        seed: unused.
        weight: lambda; at least 0.
        margin: tau, the cosine that costs nothing; in [0, 1).
        warmup: in epoch e = 0, 1, ... lambda_e = lambda min(1, (e + 1) / (warmup + 1)): it is never
            0, and full from epoch ``warmup`` on. Epochs are counted by `after_epoch`; a loop that
            does not call it stays in epoch 0.
        mode: whether c or its absolute value is penalised.
        where: of what the directions are: the bottleneck, its pooled embedding, or both.

    Example:
        One sample; L_1 = z_1 and L_2 = z_1 + z_2 have c = 1 / sqrt 2 and so R = 1/2.

        >>> z = torch.ones(1, 2, requires_grad=True) * 1.0
        >>> step = Step([z[0, 0], z[0].sum()], features=z)
        >>> method = RLAR(2, weight=0.1, warmup=0)
        >>> objective, _ = method.objective(step)
        >>> round(objective.item(), 4)  # 1 + 2 + 0.1 / 2
        3.05
    """

    paper = "arXiv 2603.21095, the abstract, in our reading; its equations could not be read"
    passes = "F + 2 H + E"
    checked_against = "its formula by plain autograd; finite differences"
    needs_features = True
    is_weighted_sum = False

    epoch: Tensor

    def __init__(
        self,
        num_objectives: int,
        seed: int = 0,
        *,
        weight: float = 0.1,
        margin: float = 0.0,
        warmup: int = 1,
        mode: Mode = "positive",
        where: Where = "bottleneck",
    ) -> None:
        super().__init__(num_objectives, seed)
        nonnegative(self, weight=weight)
        fraction(self, margin=margin)
        at_least(self, 0, warmup=warmup)
        one_of(self, get_args(Mode), mode=mode)
        one_of(self, get_args(Where), where=where)
        self.weight, self.margin, self.warmup, self.mode = weight, margin, warmup, mode
        self.where = where
        self.register_buffer("epoch", torch.zeros((), dtype=torch.long))

    @classmethod
    def suggest(cls, trial: "Trial", num_objectives: int) -> dict[str, Any]:
        """Draw lambda log-uniformly from [0.001, 10], warm-up, mode, where to look, and tau.

        Tau is drawn where it acts. On the thyroid task nine in ten cosines are below 0.08 at the
        bottleneck, and below 0.25 at the pooled embedding: it is from [0, 0.02] and [0, 0.1].
        """
        where = trial.suggest_categorical("where", get_args(Where))
        return {
            "weight": trial.suggest_float("weight", 1e-3, 10.0, log=True),
            "margin": trial.suggest_float("margin", 0.0, 0.1 if where == "pooled" else 0.02),
            "warmup": trial.suggest_int("warmup", 0, 5),
            "mode": trial.suggest_categorical("mode", get_args(Mode)),
            "where": where,
        }

    def objective(self, step: Step) -> tuple[Tensor, Tensor]:
        """Return the sum of losses and penalty, and weights of one."""
        objective = step.total()
        if self.weight > 0 and step.num_objectives > 1:
            ramp = ((self.epoch + 1) / (self.warmup + 1)).clamp(max=1)
            objective = objective + self.weight * ramp * self.penalty(
                step.sensitivities, step.ranks
            )
        return objective, step.ones

    def penalty(self, sensitivities: tuple[Tensor, ...], ranks: Ranks = ALONE) -> Tensor:
        """Return R for K sensitivities dL_k/dz, each (B, ...), of this rank's samples.

        Ranks exchange a mean's sum and count, and no direction: normalising sample by sample takes
        out the 1 / B of the loss, so a_k is what it would be in any other batch.
        """
        with without_autocast(sensitivities[0]):
            found = [
                self._look([s.flatten(2).sum(2) for s in sensitivities], ranks)
                if pooled and sensitivities[0].ndim > 2
                else self._look(sensitivities, ranks)
                for pooled in _LOOKS[self.where]
            ]
            penalties, acts, alignments = zip(*found, strict=True)
            self.notes = {"acts": _mean(acts), "alignment": _mean(alignments)}
            return _mean(penalties)

    def _look(self, sensitivities: Sequence[Tensor], ranks: Ranks) -> tuple[Tensor, ...]:
        """Return the penalty of directions, the share beyond tau, and their mean cosine."""
        directions, live = _directions(sensitivities, ranks)
        cosines = directions @ directions.mT
        K, device = len(sensitivities), cosines.device
        j, k = torch.triu_indices(K, K, offset=1, device=device)
        signed = cosines[:, j, k]  # (B, pairs)
        cosine = signed.abs() if self.mode == "absolute" else signed
        both = live[:, j] & live[:, k]
        excess = torch.where(both, torch.relu(cosine - self.margin).square(), 0)
        with torch.no_grad():  # in one piece: ranks exchange it at once
            told = both, excess > 0, torch.where(both, signed, 0)
            sums = torch.stack([value.sum(dtype=signed.dtype) for value in told])
            count, acts, alignment = ranks.total(sums).unbind()
            count = count.clamp(min=1)
        return ranks.total(excess.sum()) / count, acts / count, alignment / count

    def after_epoch(self) -> None:
        """Count the epoch."""
        self.epoch += 1


def _mean(values: Sequence[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else sum(values[1:], start=values[0]) / len(values)


def _largest(sizes: Tensor, dim: tuple[int, ...]) -> Tensor:
    """Return each objective's largest of (B, K, ...), 0 of no sample."""
    return sizes.amax(dim) if len(sizes) else sizes.new_zeros(sizes.shape[1])


def _directions(sensitivities: Sequence[Tensor], ranks: Ranks) -> tuple[Tensor, Tensor]:
    """Return the unit directions (B, K, D), and for which (B, K) they mean anything."""
    # A rank may have no sample, of which -1 says nothing; a sample of z may be one number.
    g = torch.stack([s[:, None].flatten(1) for s in sensitivities], dim=1)
    g = g.to(torch.promote_types(g.dtype, torch.float32))
    # a_k does not depend on the scale, which may be a constant therefore; squares stay in range.
    scale = ranks.maximum(_largest(g.detach().abs(), (0, 2)))
    g = g / scale.masked_fill(scale == 0, 1)[:, None]
    norms = g.detach().norm(dim=2)
    live = norms > _EPS * ranks.maximum(_largest(norms, (0,)))
    g = torch.where(live[..., None], g, 1.0)  # before the division: no NaN from 0 / 0, twice over
    return g / g.norm(dim=2, keepdim=True), live
