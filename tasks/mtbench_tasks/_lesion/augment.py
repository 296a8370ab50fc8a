"""Augmentation proper to ultrasound, on whole batches.

Depth has a direction (attenuation, shadows): no image is flipped vertically or turned far.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def augment(
    images: Tensor, masks: Tensor, strength: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return transformed images and masks.

    Mirrors left-right (p = 1/2). At strength 1, and in proportion below: turns up to 10 degrees,
    scales by 0.8-1.2, shifts up to 8 %, bends (a cubic surface through 5 x 5 points, each moved by
    up to 3 % of the image); gain 0.8-1.2, gamma 0.7-1.3, a gain that changes with
    depth by up to 30 %, offset up to 6 %, multiplicative noise of 15 % (speckle's kind), and an
    acoustic shadow (p = 1/4).

    Args:
        images: (B, 1, H, W), 0 to 1.
        masks: (B, 1, H, W), 0 or 1.
        strength: 0 only mirrors.
        generator: the only source of randomness.
    """
    batch, _, height, width = images.shape

    def around(centre: float, reach: float, *shape: int) -> Tensor:
        noise = 2 * torch.rand(batch, *shape, generator=generator) - 1
        return centre + strength * reach * noise

    def uniform(*shape: int) -> Tensor:
        return torch.rand(batch, *shape, generator=generator)

    angle, scale = around(0, math.pi / 18), around(1, 0.2)
    mirror = torch.where(uniform() < 0.5, -1.0, 1.0)
    rows = [
        torch.stack([scale * angle.cos() * mirror, -scale * angle.sin(), around(0, 0.16)], 1),
        torch.stack([scale * angle.sin() * mirror, scale * angle.cos(), around(0, 0.16)], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    bent = F.interpolate(around(0, 0.06, 2, 5, 5), (height, width), mode="bicubic")
    grid = grid + bent.movedim(1, -1)
    both = F.grid_sample(torch.cat([images, masks], 1), grid, align_corners=False)
    images, masks = both[:, :1], (both[:, 1:] > 0.5).float()

    inside = images > 0  # what lies outside the sector stays black
    depth = torch.linspace(-0.5, 0.5, height).view(1, 1, -1, 1)
    images = images.clamp(0, 1) ** around(1, 0.3, 1, 1, 1)
    images = images * (around(1, 0.2, 1, 1, 1) + around(0, 0.3, 1, 1, 1) * depth)
    images = images + around(0, 0.06, 1, 1, 1)
    images = images * around(1, 0.075, 1, height, width)
    column = torch.linspace(0, 1, width).view(1, 1, 1, -1)
    distance = (column - uniform(1, 1, 1)) / (0.03 + 0.07 * uniform(1, 1, 1))
    shadowed = (uniform(1, 1, 1) < 0.25 * strength) & (depth > uniform(1, 1, 1) - 0.5)
    images = torch.where(shadowed, images * (1 - 0.6 * torch.exp(-(distance**2))), images)
    return images.clamp(0, 1) * inside, masks
