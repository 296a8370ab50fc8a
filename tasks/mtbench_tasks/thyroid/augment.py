"""Augmentation proper to ultrasound, on whole batches.

Depth has a direction (attenuation, shadows): no image is flipped vertically or turned far.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def augment(images: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return transformed images and masks.

    Geometry: mirror left-right (p = 1/2), turn up to 10 degrees, scale 0.85-1.2, shift up to 8 %.
    Grey values: gain and contrast, gamma, a depth-dependent gain, an acoustic shadow (p = 1/4), and
    noise of the speckle's kind (multiplicative).

    Args:
        images: (B, 1, H, W), 0 to 1.
        masks: (B, 1, H, W), 0 or 1.
        generator: the only source of randomness.
    """
    batch, _, height, width = images.shape

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(batch, *shape, generator=generator)

    angle = uniform(-math.pi / 18, math.pi / 18)
    scale = 1 / uniform(0.85, 1.2)
    mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    rows = [
        torch.stack([scale * angle.cos() * mirror, -scale * angle.sin(), uniform(-0.16, 0.16)], 1),
        torch.stack([scale * angle.sin() * mirror, scale * angle.cos(), uniform(-0.16, 0.16)], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    both = F.grid_sample(torch.cat([images, masks], 1), grid, align_corners=False)
    images, masks = both[:, :1], (both[:, 1:] > 0.5).float()

    inside = images > 0  # what lies outside the sector stays black
    depth = torch.linspace(-0.5, 0.5, height).view(1, 1, -1, 1)
    images = images.clamp(0, 1) ** uniform(0.75, 1.35, 1, 1, 1)
    images = images * (uniform(0.8, 1.2, 1, 1, 1) + uniform(-0.3, 0.3, 1, 1, 1) * depth)
    images = images + uniform(-0.06, 0.06, 1, 1, 1)
    images = images * (1 + 0.15 * (uniform(0, 1, 1, height, width) - 0.5))
    column = torch.linspace(0, 1, width).view(1, 1, 1, -1)
    distance = (column - uniform(0, 1, 1, 1, 1)) / uniform(0.03, 0.1, 1, 1, 1)
    shadowed = (uniform(0, 1, 1, 1, 1) < 0.25) & (depth > uniform(-0.5, 0.5, 1, 1, 1))
    images = torch.where(shadowed, images * (1 - 0.6 * torch.exp(-(distance**2))), images)
    return images.clamp(0, 1) * inside, masks
