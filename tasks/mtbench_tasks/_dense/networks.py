"""SegNet with MTAN's attention, the smaller of the field's two networks.

It uses batch normalisation, as published. In training it computes a sample's output from the whole
batch, so that samples mix, in the encoder and in the heads. A method that looks at single samples,
as RLAR does, then sees in a sample's dL_k/dz what this sample does to the others' losses as well;
and data-parallel training, where each rank normalises by its own shard, is not the one-rank
computation.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtbench.balancing.model import MultitaskModel

WIDTH = 64
"""Channels of the first level in both publications."""

LEVELS = 5
"""Of SegNet: the image's sides must divide by 2^5."""

EPSILON = 1e-8
"""Added to a vector's squared length before it is brought to length 1."""


def convolution(before: int, after: int, size: int = 3) -> nn.Sequential:
    """Return a convolution with batch norm and a rectifier."""
    return nn.Sequential(
        nn.Conv2d(before, after, size, padding=size // 2), nn.BatchNorm2d(after), nn.ReLU()
    )


def _unpool(x: Tensor, where: Tensor) -> Tensor:
    """Put every value back where 2 x 2 pooling found it; torch's own is not deterministic."""
    batch, channels, height, width = x.shape
    flat = x.new_zeros(batch, channels, 4 * height * width)
    flat = flat.scatter(2, where.flatten(2), x.flatten(2))
    return flat.view(batch, channels, 2 * height, 2 * width)


def _attention(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        convolution(before, after, 1),
        nn.Conv2d(after, after, 1),
        nn.BatchNorm2d(after),
        nn.Sigmoid(),
    )


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.xavier_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _widths(width: int) -> list[tuple[int, int]]:
    """Return (coarser side, finer side) of every level's decoder, the finest level first."""
    widths = [width * factor for factor in (1, 2, 4, 8, 8)]
    return list(zip(widths, [widths[0], *widths], strict=False))


class SegNet(nn.Module):
    """The shared encoder and decoder (Badrinarayanan et al., arXiv 1511.00561; VGG-16's widths).

    Args:
        width: channels of the first level; the others have 2, 4, 8 and 8 times as many.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter, self.stay = nn.ModuleList(), nn.ModuleList()
        self.leave, self.refine = nn.ModuleList(), nn.ModuleList()
        before = 3
        for level, (own, finer) in enumerate(_widths(width)):
            repeats = 1 if level < 2 else 2
            self.enter.append(convolution(before, own))
            self.stay.append(nn.Sequential(*(convolution(own, own) for _ in range(repeats))))
            self.leave.append(convolution(own, finer))
            self.refine.append(nn.Sequential(*(convolution(finer, finer) for _ in range(repeats))))
            before = own
        self.apply(_initialise)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return two maps a level, fine to coarse on the way down, coarse to fine on the way up.

        Down: what a level's first and last convolution made. Up: what came up from below, and what
        the level's last convolution made.
        """
        features, switches = [], []
        for enter, stay in zip(self.enter, self.stay, strict=True):
            entered = enter(x)
            kept = stay(entered)
            features += [entered, kept]
            x, where = F.max_pool2d(kept, 2, return_indices=True)
            switches.append(where)
        for level in reversed(range(LEVELS)):
            raised = _unpool(x, switches[level])
            x = self.refine[level](self.leave[level](raised))
            features += [raised, x]
        return tuple(features)


class AttentionHead(nn.Module):
    """One objective's attention over all of SegNet's features, and its prediction.

    Going down, at level l the objective masks the shared map k_l by
    a_l = sigmoid(attention(e_l, x_(l-1))), with e_l the map that entered the level, and passes
    x_l = pool(convolve(a_l k_l)) on; going up alike, with interpolation in the place of pooling.

    Args:
        width: of the SegNet.
        channels: of the prediction.
        unit: whether the prediction is a unit vector at each pixel.
    """

    def __init__(self, width: int, channels: int, unit: bool) -> None:
        super().__init__()
        levels = _widths(width)
        coarser = [own for own, _ in levels[1:]] + [levels[-1][0]]
        self.down_mask, self.down = nn.ModuleList(), nn.ModuleList()
        self.up_mask, self.up = nn.ModuleList(), nn.ModuleList()
        for level, ((own, finer), below) in enumerate(zip(levels, coarser, strict=True)):
            self.down_mask.append(_attention(own if level == 0 else 2 * own, own))
            self.down.append(convolution(own, below))
            self.up.append(convolution(own, finer))
            self.up_mask.append(_attention(own + finer, finer))
        self.predict = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, channels, 1)
        )
        self.unit = unit
        self.apply(_initialise)

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        """Return the prediction at the image's resolution, (B, channels, H, W)."""
        down = [features[i : i + 2] for i in range(0, 2 * LEVELS, 2)]
        up = [features[i : i + 2] for i in range(2 * LEVELS, 4 * LEVELS, 2)]
        x: Tensor | None = None
        for level, (entered, kept) in enumerate(down):
            seen = entered if x is None else torch.cat([entered, x], 1)
            x = F.max_pool2d(self.down[level](self.down_mask[level](seen) * kept), 2)
        assert x is not None
        for level, (raised, kept) in zip(reversed(range(LEVELS)), up, strict=True):
            x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)
            x = self.up[level](x)
            x = self.up_mask[level](torch.cat([raised, x], 1)) * kept
        return finished(self.predict(x), self.unit)


def finished(prediction: Tensor, unit: bool) -> Tensor:
    """Return the prediction, brought to length 1 at each pixel if it is a unit vector."""
    if not unit:
        return prediction
    vector = prediction.float()
    # Smooth at 0, where dead rectifiers put whole regions: a norm's second derivative is NaN there.
    return vector * (vector.square().sum(1, keepdim=True) + EPSILON).rsqrt()


def segnet_mtan(width: int, channels: list[int], units: list[bool]) -> MultitaskModel:
    """Return SegNet-MTAN (Liu et al. 2019, arXiv 1803.10704); z is SegNet's deepest map.

    Deviation: the convolutions that carry attended maps from level to level are each head's own;
    MTAN's are shared by the objectives, though each feeds them its own masked maps.

    Args:
        width: channels of the first level.
        channels: per objective.
        units: per objective, whether it predicts unit vectors.
    """
    heads = [AttentionHead(width, c, unit) for c, unit in zip(channels, units, strict=True)]
    return MultitaskModel(SegNet(width), heads, latent=2 * LEVELS - 1)
