"""DCGD: two groups of objectives, and a direction that harms neither."""

from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from mtbench.balancing.balancer import Weighting
from mtbench.errors import UsageError
from mtbench_baselines._checks import one_of

if TYPE_CHECKING:
    from optuna import Trial

Variant = Literal["center", "average", "projection"]

_NOISE = 1e-12


class DCGD(Weighting):
    r"""Follow a direction in the dual cone of two groups' gradients.

    For physics-informed networks: the first objectives are the equations' residuals, the others the
    boundary and initial conditions. With the sums a and b of the two groups' gradients, the
    direction is

    .. math:: \text{center:}\quad d = \frac{\langle c, a + b\rangle}{\|c\|^2}\, c, \quad
        c = \frac{a}{\|a\|} + \frac{b}{\|b\|}, \qquad\text{that is}\qquad
        d = \frac{\|a\| + \|b\|}{2}\, c

    .. math:: \text{average:}\quad d = \tfrac12 (a_{\perp b} + b_{\perp a}), \qquad
        \text{projection:}\quad d = a_{\perp b} \text{ or } b_{\perp a}, \qquad
        x_{\perp y} = x - \frac{\langle x, y\rangle}{\|y\|^2}\, y

    where the latter two act only if a + b harms one of them, and are ``ew`` otherwise;
    ``projection`` keeps the part of the group that is not harmed across the other one. Two
    opposite groups cancel.

    Deviations: the group whose gradient is zero is left out, which is our decision; a gradient
    below a millionth of its parts' lengths counts as zero. Our source is the authors' code.

    Args:
        num_objectives: K.
        seed: unused.
        first: how many objectives are in the first group, in their order; the others are in the
            second, which must not be empty.
        variant: which direction.

    Example:
        a = (1, 0) and b = (0, 3): the sum, projected on the bisector, is (2, 2).

        >>> DCGD(2).weights(torch.tensor([[1.0, 0.0], [0.0, 9.0]]).double(), torch.ones(2))
        tensor([2.0000, 0.6667], dtype=torch.float64)
    """

    paper = "Hwang and Lim, NeurIPS 2024, arXiv 2409.18426, by the authors' code"
    checked_against = "a twin in gradient space; scipy SLSQP for the projection"
    sees_zero_rows = True
    is_symmetric = False

    def __init__(
        self,
        num_objectives: int,
        seed: int = 0,
        *,
        first: int = 1,
        variant: Variant = "center",
    ) -> None:
        super().__init__(num_objectives, seed)
        most = max(num_objectives - 1, 1)
        if not 1 <= first <= most:
            raise UsageError(f"{self._called}: first must be from 1 to {most}, found {first}")
        one_of(self, get_args(Variant), variant=variant)
        self.first, self.variant = first, variant

    @classmethod
    def suggest(cls, trial: "Trial", num_objectives: int) -> dict[str, Any]:
        """Draw the variant."""
        return {"variant": trial.suggest_categorical("variant", get_args(Variant))}

    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Return each objective the weight of its group, 0 without a gradient."""
        groups = torch.zeros(2, len(gramian), dtype=torch.float64, device="cpu")
        groups[0, : self.first] = groups[1, self.first :] = 1
        G = gramian.double()
        (aa, ab), (_, bb) = (groups @ G @ groups.T).tolist()
        parts_a, parts_b = (groups @ G.diagonal()).tolist()
        if aa <= _NOISE * parts_a or bb <= _NOISE * parts_b:
            found = [1.0, 1.0]
        elif self.variant == "center":
            half = (aa**0.5 + bb**0.5) / 2
            found = [half / aa**0.5, half / bb**0.5]
        elif aa + ab >= 0 and bb + ab >= 0:
            found = [1.0, 1.0]
        elif self.variant == "average":
            found = [(1 - ab / aa) / 2, (1 - ab / bb) / 2]
        elif bb + ab < 0:  # b is the shorter one, and harmed
            found = [1.0, -ab / bb]
        else:
            found = [-ab / aa, 1.0]
        weights = groups.new_tensor(found) @ groups
        return weights * (gramian.diagonal() > 0)
