"""The shape of a multitask model: one encoder, K heads."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

View = Callable[[tuple[Tensor, ...], int], tuple[Tensor, ...]]


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

    def encode(self, inputs: Any) -> tuple[Tensor, ...]:
        """Return the features, none of them computed from another as autograd sees it."""
        return tuple(feature.view_as(feature) for feature in self.encoder(inputs))

    def decode(self, features: tuple[Tensor, ...], view: View | None = None) -> list[Any]:
        """Return the K heads' outputs; `view` may give each head its own sight of the features."""
        return [
            head(features if view is None else view(features, k))
            for k, head in enumerate(self.heads)
        ]

    def forward(self, inputs: Any) -> list[Any]:
        """Return the K heads' outputs."""
        return self.decode(self.encode(inputs))
