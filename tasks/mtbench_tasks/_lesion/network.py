"""The multitask network: a U-Net whose deepest features also give the risk category."""

import math
from typing import NamedTuple

import torch
from monai.networks.blocks.dynunet_block import UnetOutBlock, UnetUpBlock
from torch import Tensor, nn
from torch.nn import functional as F

from mtbench.balancing.model import MultitaskModel
from mtbench_tasks._lesion.encoders import NORM, Encoder

LESION = 0.1
"""The share of lesion pixels that a new network expects."""

SLOPE = 0.1
"""Of the risk head's leaky rectifiers."""


class Risk(NamedTuple):
    """What the risk head says of a batch.

    Attributes:
        logits: (B, G), one per grade.
        guided: (B, R), e_r, the estimate of the standardised radiomics target.
        texture: (B, 3 C), the mean of each channel of the encoder's second level in the top, the
            middle and the bottom third: what kind of image it is. Nothing is learnt by it.
    """

    logits: Tensor
    guided: Tensor
    texture: Tensor


class Described(NamedTuple):
    """What it says where it has learnt descriptors too.

    Attributes:
        logits: as `Risk` has them.
        guided: likewise.
        texture: likewise.
        descriptors: (B, T), logits of all terms of all descriptors, one after the other.
    """

    logits: Tensor
    guided: Tensor
    texture: Tensor
    descriptors: Tensor


class SegmentationHead(nn.Module):
    """The expanding path: all features to the lesion mask's logits, (B, 1, H, W).

    Args:
        widths: the features' channels, each of half the resolution of the one before.
        stride: how much coarser than the image the first is.
    """

    def __init__(self, widths: tuple[int, ...], stride: int) -> None:
        super().__init__()
        self.stride = stride
        pairs = list(zip(widths[1:], widths, strict=False))[::-1]
        self.levels = nn.ModuleList(
            UnetUpBlock(
                2, deep, fine, kernel_size=3, stride=1, upsample_kernel_size=2, norm_name=NORM
            )
            for deep, fine in pairs
        )
        self.out = UnetOutBlock(2, widths[0], 1)
        # Adam moves the few numbers of this layer by at most a learning rate a step: a start far
        # from the share of lesion pixels was not made up for (Lin et al. 2017, section 4.1). The
        # features have equal means, being normalised: weights of zero sum keep these out.
        last = self.out.conv.conv
        with torch.no_grad():
            last.weight -= last.weight.mean()
            last.bias.fill_(math.log(LESION / (1 - LESION)))

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        """Return the logits at the image's resolution."""
        deep = features[-1]
        for level, skip in zip(self.levels, features[-2::-1], strict=True):
            deep = level(deep, skip)
        return F.interpolate(self.out(deep), scale_factor=float(self.stride), mode="bilinear")


class RiskHead(nn.Module):
    r"""Pool z to an embedding :math:`e = [e_r | e_d]` and read the category from both.

    A learnt attention map pools z, so that the embedding is of the nodule, not of the neck; the
    maximum beside it sees small foci. :math:`e_r` is pulled to the radiomics target in training;
    :math:`e_d` is free. The convolution comes first because z is normalised per channel: its plain
    average would be a constant.

    Args:
        width: channels of z.
        guided: R, the size of the radiomics target.
        free: the size of :math:`e_d`.
        grades: G, the number of categories.
        dropout: of the pooled features.
        terms: T, what may be said of all descriptors together, read from :math:`e_r` alone; 0:
            they are not learnt.
    """

    def __init__(
        self, width: int, guided: int, free: int, grades: int, dropout: float, terms: int = 0
    ) -> None:
        super().__init__()
        self.mix = nn.Conv2d(width, width, 3, padding=1)
        self.attention = nn.Conv2d(width, 1, 1)
        self.dropout = nn.Dropout(dropout)
        self.hidden = nn.Linear(2 * width, width)
        self.guided = nn.Linear(width, guided)
        self.free = nn.Linear(width, free)
        self.grade = nn.Linear(guided + free, grades)
        # Last: the other parameters begin alike with and without it.
        self.described = nn.Linear(guided, terms) if terms else None

    def forward(self, features: tuple[Tensor, ...]) -> Risk | Described:
        """Return logits, e_r, texture, and the descriptors' logits where they are learnt."""
        mixed = F.leaky_relu(self.mix(features[-1]), SLOPE)
        attention = self.attention(mixed).flatten(2).softmax(-1)
        focused = (attention * mixed.flatten(2)).sum(-1)
        pooled = self.hidden(self.dropout(torch.cat([focused, mixed.amax((2, 3))], 1)))
        pooled = F.leaky_relu(pooled, SLOPE)
        guided, free = self.guided(pooled), F.leaky_relu(self.free(pooled), SLOPE)
        logits = self.grade(torch.cat([guided, free], 1))
        if self.described is None:
            return Risk(logits, guided, texture(features[1]))
        return Described(logits, guided, texture(features[1]), self.described(guided))


def texture(level: Tensor) -> Tensor:
    """Return the mean of each channel of a level (B, C, H, W) in its thirds, (B, 3 C).

    An ultrasound image looks otherwise above and below: which thirds have what tells more than
    what the whole has.
    """
    thirds = level.detach().float().tensor_split(3, dim=2)
    return torch.cat([third.mean((2, 3)) for third in thirds], 1)


def build(
    encoder: Encoder,
    grades: int,
    guided: int,
    *,
    free: int = 32,
    dropout: float = 0.0,
    terms: int = 0,
) -> MultitaskModel:
    """Return the network.

    Args:
        encoder: its contracting path.
        grades: G, the number of categories.
        guided: R, the size of the radiomics target.
        free: the size of e_d.
        dropout: of the risk head's pooled features.
        terms: of all descriptors together; 0: they are not learnt.
    """
    return MultitaskModel(
        encoder,
        [
            SegmentationHead(encoder.widths, encoder.stride),
            RiskHead(encoder.widths[-1], guided, free, grades, dropout, terms),
        ],
    )
