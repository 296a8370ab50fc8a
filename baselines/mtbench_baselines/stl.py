"""Single-task learning: one model per objective."""

from copy import deepcopy
from typing import Any

from torch import Tensor, nn

from mtbench.balancing.balancer import Scalarizer
from mtbench.balancing.model import MultitaskModel
from mtbench.balancing.step import Step


class _Encoders(nn.Module):
    """Independent encoders side by side; their features are concatenated into one tuple."""

    def __init__(self, encoders: list[nn.Module]) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(encoders)

    def forward(self, inputs: Any) -> tuple[Tensor, ...]:
        return tuple(feature for encoder in self.encoders for feature in encoder(inputs))


class _OwnFeatures(nn.Module):
    """Head k of K, reading the features of encoder k alone."""

    def __init__(self, head: nn.Module, k: int, of: int) -> None:
        super().__init__()
        self.head, self.k, self.of = head, k, of

    def forward(self, features: tuple[Tensor, ...]) -> Any:
        width = len(features) // self.of
        return self.head(features[self.k * width : (self.k + 1) * width])


class SingleTask(Scalarizer):
    r"""Train one whole model per objective: the reference of every delta-m.

    In a loop of your own, train ``balancer.wrap(model)``, where `model` is a
    `mtbench.MultitaskModel`, or a model of its own for each loss. Where losses share parameters
    this is the plain sum, and a warning says so.

    `wrap` puts K copies of the task's model side by side, equal at the start; head k reads the
    features of its own encoder. No parameter is shared, so minimising :math:`\sum_k L_k` minimises
    each :math:`L_k` alone, and any optimizer that acts parameter by parameter trains K independent
    models. One epoch is selected for all K together, by the rule of every other method. The cost
    recorded is that of K models.
    """

    paper = "the reference of delta-m; Maninis et al., CVPR 2019, eq. 4"
    checked_against = "K models trained one by one"
    passes = "K (F + H + E)"
    reference = True

    def objective(self, step: Step) -> tuple[Tensor, Tensor]:
        """Return the sum, and weights of one."""
        return step.total(), step.ones

    def _hooks(self) -> set[str]:
        return super()._hooks() | {"wrap"}

    def wrap(self, model: MultitaskModel) -> MultitaskModel:
        """Return K copies of the model side by side."""
        count = self.num_objectives
        encoders = [model.encoder, *(deepcopy(model.encoder) for _ in range(count - 1))]
        heads = [_OwnFeatures(head, k, of=count) for k, head in enumerate(model.heads)]
        return MultitaskModel(_Encoders(encoders), heads, model.latent)
