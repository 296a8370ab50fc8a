"""From files to batches: a validation split, and the augmentation of MTAN-style work."""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mtbench import seeding
from mtbench.training.task import Batch, Split
from mtbench_tasks._dense.folder import Sample, load

SCALES = (1.0, 1.2, 1.5)
"""By how much a crop is enlarged."""

NEAREST = frozenset({"segmentation", "depth"})
"""Quantities whose neighbouring values must not be mixed."""


def carve(
    samples: Sequence[Sample], fraction: float, seed: int
) -> tuple[list[Sample], list[Sample]]:
    """Return the training and the validation part of the published training images.

    Byte-equal images never lie on both sides.
    """
    groups = sorted({sample.group for sample in samples})
    order = torch.randperm(len(groups), generator=seeding.generator(seed, "split")).tolist()
    held = {groups[i] for i in order[: max(1, round(fraction * len(groups)))]}
    train = [sample for sample in samples if sample.group not in held]
    return train, [sample for sample in samples if sample.group in held]


class DenseSplit(Split):
    """Samples that are read from their files when a batch asks for them; none is kept.

    A batch holds ``inputs`` (B, 3, H, W), ``segmentation`` (B, H, W), -1 where unknown, ``depth``
    (B, 1, H, W) and, where there are any, ``normals`` (B, 3, H, W), both 0 where unknown.

    Args:
        samples: the files.
        augmentation: whether training batches are augmented.
    """

    def __init__(self, samples: Sequence[Sample], augmentation: bool) -> None:
        self.samples, self.augmentation = tuple(samples), augmentation

    def __len__(self) -> int:
        return len(self.samples)

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Batch:
        """Return the samples at `indices`, augmented if a generator is given and it is wanted."""
        rows = [_read(self.samples[i]) for i in indices.tolist()]
        if generator is not None and self.augmentation:
            rows = [augment(row, generator) for row in rows]
        found: Batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        found["inputs"] = found.pop("image")
        found["segmentation"] = found["segmentation"][:, 0].long()
        return found

    def groups(self) -> Sequence[Hashable]:
        """Return what byte-equal images have in common."""
        return [sample.group for sample in self.samples]


def augment(sample: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Enlarge a random crop to the full size, and mirror it left-right with p = 1/2.

    The crop is 1/s of the height and width, s drawn from `SCALES`. Image and normals are
    interpolated, labels and depth are not. Depth is divided by s, as something that looks s times
    as large is s times as near; for Cityscapes' inverse depth this is the wrong way round, and what
    the published runs do. A mirrored normal points the other way in x.

    Args:
        sample: by quantity, (channels, H, W).
        generator: the only source of randomness.
    """

    def draw(count: int) -> int:
        return int(torch.randint(count, (), generator=generator))

    size = sample["image"].shape[-2:]
    scale = SCALES[draw(len(SCALES))]
    height, width = (int(side / scale) for side in size)
    top, left = draw(size[0] - height + 1), draw(size[1] - width + 1)
    mirrored = draw(2) == 1
    found = {}
    for name, plane in sample.items():
        crop = plane[None, :, top : top + height, left : left + width]
        if name in NEAREST:
            full = F.interpolate(crop, size, mode="nearest")[0]
        else:
            full = F.interpolate(crop, size, mode="bilinear", align_corners=True)[0]
        found[name] = full.flip(-1) if mirrored else full
    found["depth"] = found["depth"] / scale
    if mirrored and "normals" in found:
        found["normals"] = found["normals"] * torch.tensor([-1.0, 1.0, 1.0]).view(3, 1, 1)
    return found


def _read(sample: Sample) -> dict[str, Tensor]:
    """Return a sample's quantities, each (channels, H, W)."""
    arrays = {name: torch.from_numpy(load(file)) for name, file in sample.files.items()}
    return {
        name: array[None] if array.ndim == 2 else array.movedim(-1, 0)
        for name, array in arrays.items()
    }
