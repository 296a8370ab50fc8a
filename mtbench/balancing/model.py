"""The shape of a multitask model: one encoder, K heads."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from mtbench.errors import PluginError

View = Callable[[tuple[Tensor, ...], int], tuple[Tensor, ...]]


class PerObjective(tuple[Any, ...]):
    """Inputs of which every objective has its own, in the order of the heads.

    >>> import torch
    >>> mine, yours = torch.zeros(5, 4), torch.zeros(2, 4)
    >>> model = MultitaskModel.single_feature(nn.Linear(4, 8), [nn.Linear(8, 1), nn.Linear(8, 3)])
    >>> [tuple(output.shape) for output in model(PerObjective((mine, yours)))]
    [(5, 1), (2, 3)]
    """


class _OneFeature(nn.Module):
    """An encoder of ordinary make, its tensor as a tuple."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, inputs: Any) -> tuple[Tensor, ...]:
        return (self.body(inputs),)


class _OnOneFeature(nn.Module):
    """A head of ordinary make, on the only feature."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, features: tuple[Tensor, ...]) -> Any:
        (feature,) = features
        return self.body(feature)


class MultitaskModel(nn.Module):
    """An encoder whose features every head gets.

    Args:
        encoder: maps the inputs to a tuple of feature tensors, each (B, ...).
        heads: one module per objective, in the task's order; each maps the tuple of features to
            whatever its loss and metrics take.
        latent: which of the features is the latent representation z.
    """

    def __init__(self, encoder: nn.Module, heads: Sequence[nn.Module], latent: int = -1) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleList(heads)
        self.latent = latent

    @classmethod
    def single_feature(cls, encoder: nn.Module, heads: Sequence[nn.Module]) -> "MultitaskModel":
        """Return the model of ordinary modules: the encoder gives one tensor, every head takes it.

        >>> import torch
        >>> heads = [nn.Linear(8, 1), nn.Linear(8, 3)]
        >>> model = MultitaskModel.single_feature(nn.Linear(4, 8), heads)
        >>> [output.shape[1] for output in model(torch.zeros(5, 4))]
        [1, 3]
        """
        return cls(_OneFeature(encoder), [_OnOneFeature(head) for head in heads])

    def encode(self, inputs: Any) -> tuple[Tensor, ...]:
        """Return the features, none of them computed from another as autograd sees it."""
        features = self.encoder(inputs)
        if isinstance(features, Tensor):  # it would be taken for a tuple of its rows
            raise PluginError(
                "an encoder returns a tuple of features, found one tensor: make the model of "
                "ordinary modules by MultitaskModel.single_feature(encoder, heads)"
            )
        if len(features) == 1:
            return tuple(features)
        return tuple(feature.view_as(feature) for feature in features)

    def decode(self, features: tuple[Tensor, ...], view: View | None = None) -> list[Any]:
        """Return the K heads' outputs; `view` may give each head its own sight of the features."""
        return [self.read(features, k, view) for k in range(len(self.heads))]

    def read(self, features: tuple[Tensor, ...], k: int, view: View | None = None) -> Any:
        """Return head k's output."""
        return self.heads[k](features if view is None else view(features, k))

    def forward(self, inputs: Any, view: View | None = None) -> list[Any]:
        """Return the K heads' outputs, from one pass, or from K where inputs are `PerObjective`."""
        if not isinstance(inputs, PerObjective):
            return self.decode(self.encode(inputs), view)
        return [self.read(self.encode(own), k, view) for k, own in enumerate(inputs)]
