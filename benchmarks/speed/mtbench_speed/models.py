"""Models of several sizes, each with K light heads, and random data for them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mtbench.balancing.model import MultitaskModel, View
from mtbench.training.machine.device import autocast

BATCHES = 4
"""Batches that a problem turns through, so that no step sees the Gramian of the one before."""


class _Block(nn.Module):
    """Two convolutions beside a shortcut; group norm, which does not mix samples."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.GroupNorm(1, after), nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.GroupNorm(1, after),
        )  # fmt: skip
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.GroupNorm(1, after)
            )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def mlp(width: int) -> nn.Module:
    """Return three square layers."""
    return nn.Sequential(*(m for _ in range(3) for m in (nn.Linear(width, width), nn.ReLU())))


def cnn(width: int) -> nn.Module:
    """Return five convolutions, each but the last doubling the channels."""
    sizes = [3, width, 2 * width, 4 * width, 8 * width, 8 * width]
    layers: list[nn.Module] = []
    for k in range(5):
        layers += [nn.Conv2d(sizes[k], sizes[k + 1], 3, 2 if k % 2 else 1, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def resnet(width: int) -> nn.Module:
    """Return the shape of ResNet-18."""
    blocks: list[nn.Module] = []
    for k in range(4):
        size = width * 2**k
        blocks += [
            _Block(size if k == 0 else size // 2, size, 2 if k else 1),
            _Block(size, size, 1),
        ]
    return nn.Sequential(
        nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.GroupNorm(1, width), nn.ReLU(),
        nn.MaxPool2d(3, 2, 1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


def resnet50(width: int) -> nn.Module:
    """Return MONAI's ResNet-50, batch norm and all."""
    from monai.networks.nets.resnet import ResNet

    planes = [width * 2**k for k in range(4)]
    net: nn.Module = ResNet(
        "bottleneck", [3, 4, 6, 3], planes, spatial_dims=2, n_input_channels=3,
        conv1_t_stride=2, feed_forward=False,
    )  # fmt: skip
    return net


class _ViT(nn.Module):
    """Torch's transformer over patches of 16 x 16; heads of 64 channels; the mean over patches."""

    def __init__(self, width: int, layers: int = 12, patches: int = 14 * 14) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            width, max(1, width // 64), 4 * width, dropout=0.0, activation="gelu",
            batch_first=True, norm_first=True,
        )  # fmt: skip
        self.cut = nn.Conv2d(3, width, 16, 16)
        self.position = nn.Parameter(torch.randn(1, patches, width) / 50)
        self.body = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.cut(x).flatten(2).transpose(1, 2) + self.position
        mean: Tensor = self.norm(self.body(tokens)).mean(1)
        return mean


class Kind(NamedTuple):
    """How a model is made: of what width, for inputs of what shape, in batches of what size."""

    encoder: Callable[[int], nn.Module]
    width: int
    shape: Callable[[int], tuple[int, ...]]
    batch: int


KINDS = {
    "mlp": Kind(mlp, 576, lambda width: (width,), 128),
    "cnn": Kind(cnn, 32, lambda _: (3, 32, 32), 16),
    "resnet": Kind(resnet, 64, lambda _: (3, 64, 64), 8),
    "resnet50": Kind(resnet50, 64, lambda _: (3, 224, 224), 32),
    "vit_b": Kind(_ViT, 768, lambda _: (3, 224, 224), 32),
}


@dataclass(frozen=True)
class Problem:
    """A model with its data.

    Attributes:
        name: the model's.
        model: encoder and K heads.
        inputs: (batches, B, ...).
        targets: (batches, K, B).
        precision: ``fp32``, or ``bf16`` autocast.
    """

    name: str
    model: MultitaskModel
    inputs: Tensor
    targets: Tensor
    precision: str = "fp32"

    @classmethod
    def of(
        cls, name: str, objectives: int, device: str, width: int | None, batch: int | None,
        precision: str = "fp32",
    ) -> "Problem":  # fmt: skip
        """Return the problem of a model's name; None is the model's own width or batch size."""
        kind = KINDS[name]
        width, batch = width or kind.width, batch or kind.batch
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            inputs = torch.randn(BATCHES, batch, *kind.shape(width))
            encoder = kind.encoder(width)
            with torch.no_grad():
                size = encoder(inputs[0]).shape[1]
            heads = [nn.Sequential(nn.Linear(size, 1), nn.Flatten(0)) for _ in range(objectives)]
            model = MultitaskModel.single_feature(encoder, heads)
            targets = torch.randn(BATCHES, objectives, batch)
        return cls(name, model.to(device), inputs.to(device), targets.to(device), precision)

    @property
    def objectives(self) -> int:
        """K."""
        return len(self.model.heads)

    @property
    def batch(self) -> int:
        """Samples in a batch."""
        return self.inputs.shape[1]

    @property
    def parameters(self) -> int:
        """How many the encoder has."""
        return sum(p.numel() for p in self.model.encoder.parameters())

    def forward(
        self, at: int, model: MultitaskModel | None = None, view: View | None = None
    ) -> tuple[tuple[Tensor, ...], list[Tensor]]:
        """Return features and losses of a batch, perhaps of a model in the place of this one."""
        model = model or self.model
        at %= BATCHES
        with autocast(self.precision, self.inputs.device.type):
            features = model.encode(self.inputs[at])
            outputs = model.decode(features, view)
        losses = [(y - t).square().mean() for y, t in zip(outputs, self.targets[at], strict=True)]
        return features, losses
