"""The task of dense prediction on a pre-processed folder, but for what the folder holds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor

from mtbench.balancing.model import MultitaskModel
from mtbench.errors import DataError, UsageError
from mtbench.plugins import extras
from mtbench.training.task import Batch, Meter, Metric, Predictor, Progress, Recipe, Splits, Task
from mtbench_tasks._bounds import at_least
from mtbench_tasks._dense import folder, losses
from mtbench_tasks._dense.splits import DenseSplit, carve
from mtbench_tasks._sources import only


class Dense(Task):
    """Segmentation, depth and, where the layout has them, normals, by one network.

    Networks: ``segnet_mtan``, on which CAGrad, Nash-MTL and FAMO compare; what balances is the
    SegNet, and the attention modules belong to the heads (some published code counts them as
    shared). ``stl`` trains the same network with one head, where the papers' single-task rows are
    plain SegNets. ``deeplab_resnet50``, LibMTL's, here from random weights. Both have batch norm,
    so that samples mix: a method that looks at single samples (RLAR) sees what a sample does to the
    whole batch's loss, and a data-parallel run normalises by each rank's own samples.

    A subclass names itself, the `layout` of its folder, and the papers' `batch_sizes`, by network.

    Args:
        data: the pre-processed folder, with train/ and val/ in it.
        network: ``segnet_mtan`` or ``deeplab_resnet50``.
        width: channels of the network's first level.
        augmentation: random crops enlarged by 1, 1.2 or 1.5, and mirroring, as CAGrad, Nash-MTL
            and FAMO do; MTAN and LibMTL report without.
        validation: the share of the training images that is held out for validation.
        strict: whether a broken file ends the run; otherwise its sample is dropped and noted.
    """

    name: ClassVar[str]
    layout: ClassVar[folder.Layout]
    batch_sizes: ClassVar[Mapping[str, int]]
    recipe = Recipe(epochs=200, lr=1e-4, weight_decay=0.0, schedule="step", select="last")

    def __init__(
        self,
        *,
        data: Path | None = None,
        network: Literal["segnet_mtan", "deeplab_resnet50"] = "segnet_mtan",
        width: int = 64,
        augmentation: bool = True,
        validation: float = 0.1,
        strict: bool = False,
    ) -> None:
        at_least(1, width=width)
        if not 0 < validation < 1:
            raise UsageError(f"validation must be between 0 and 1, found {validation}")
        if network == "deeplab_resnet50":
            extras.need("dense", f"network={network}")
        self.data, self.network, self.width = data, network, width
        self.augmentation, self.validation, self.strict = augmentation, validation, strict
        self.recipe = replace(self.recipe, batch_size=self.batch_sizes[network])
        self.normals = "normals" in self.objectives
        from mtbench_tasks._dense.scores import metrics  # torchmetrics takes seconds to import

        self.metrics: Mapping[str, Metric] = metrics(self.normals)

    def setup(self, seed: int, progress: Progress) -> Splits:
        """Check the folder's files and carve a validation split from the training images."""
        found = folder.read(self.data, self.layout, progress)
        if found.dropped and self.strict:
            file, why = found.dropped[0]
            raise DataError(
                f"{self.data}: {len(found.dropped)} samples cannot be used, the first because "
                f"{file} {why}; mend them, or leave --strict out to drop them"
            )
        train, val = carve(found.samples["train"], self.validation, seed)
        test = found.samples["val"]
        if not (train and val and test):
            raise DataError(
                f"{self.data}: {len(train)} training, {len(val)} validation and {len(test)} test "
                "images can be used; each needs at least one (`mtbench data inspect` says why "
                "others are dropped)"
            )
        multiple = {"segnet_mtan": 32, "deeplab_resnet50": 8}[self.network]
        if any(side % multiple for side in found.size):
            raise DataError(
                f"{self.data}: images of {found.size[0]} x {found.size[1]} pixels; the sides must "
                f"divide by {multiple} for network={self.network}"
            )
        notes: dict[str, Any] = {
            "images": [len(train), len(val), len(test)],
            "size": list(found.size),
            "dropped": [f"{file} {why}" for file, why in found.dropped],
        }
        if found.doubts:
            said = ": ".join(found.doubts[0])
            notes["looks odd"] = f"{len(found.doubts)} files; the first: {said}"
        return Splits(
            DenseSplit(train, self.augmentation),
            DenseSplit(val, False),
            DenseSplit(test, False),
            fingerprint=found.fingerprint,
            notes=notes,
        )

    def model(self) -> MultitaskModel:
        """Return the network that was chosen."""
        build: Callable[[int, list[int], list[bool]], MultitaskModel]
        if self.network == "segnet_mtan":
            from mtbench_tasks._dense.networks import segnet_mtan as build
        else:
            from mtbench_tasks._dense.deeplab import deeplab_resnet50 as build
        channels = {"segmentation": self.layout.classes, "depth": 1, "normals": 3}
        return build(
            self.width,
            [channels[objective] for objective in self.objectives],
            [objective == "normals" for objective in self.objectives],
        )

    def losses(self, outputs: Sequence[Any], batch: Batch) -> list[Tensor]:
        """Return the losses of segmentation, depth and normals."""
        found = [
            losses.segmentation_loss(outputs[0], batch["segmentation"]),
            losses.depth_loss(outputs[1], batch["depth"]),
        ]
        if self.normals:
            found.append(losses.normals_loss(outputs[2], batch["normals"]))
        return found

    def meter(self) -> Meter:
        """Return a fresh meter of all objectives' metrics."""
        from mtbench_tasks._dense.scores import DenseMeter

        return DenseMeter(self.layout.classes, self.normals)

    def figures(self, predictor: Predictor, splits: Splits, folder: Path) -> list[Path]:
        """Draw test images with truth and prediction of every objective."""
        from mtbench_tasks._dense import pictures

        assert isinstance(splits.test, DenseSplit)
        file = folder / "predictions.png"
        return [pictures.predictions(predictor, splits.test, self.layout.classes, file)]

    @classmethod
    def inspect(cls, source: str, data: Path | None) -> list[tuple[str, str, str]]:
        """Return how many samples are used, and why each of the others is dropped."""
        found = cls._read(source, data)
        height, width = found.size
        rows = [
            (str(len(found.samples["train"])), "samples of train/ used", "training and validation"),
            (str(len(found.samples["val"])), "samples of val/ used", "test"),
            (f"{height} x {width}", "pixels, height x width", ""),
            (str(len(found.dropped)), "samples dropped", "by the file named below"),
        ]
        rows += [("1", file, why) for file, why in found.dropped]
        if found.doubts:
            said = f"used; the first: {': '.join(found.doubts[0])}"
            rows.append((str(len(found.doubts)), "files look odd", said))
        return rows

    @classmethod
    def preview(cls, source: str, data: Path | None, picture: Path) -> None:
        """Draw training images with their labels."""
        from mtbench_tasks._dense import pictures

        samples = cls._read(source, data).samples["train"]
        if not samples:
            raise DataError(
                f"{data}: no sample of train/ can be used; `mtbench data inspect` says why"
            )
        pictures.truth(DenseSplit(samples, False), cls.layout.classes, picture)

    @classmethod
    def _read(cls, source: str, data: Path | None) -> folder.Folder:
        only(source, cls.name)
        return folder.read(data, cls.layout, lambda what, done, total: None)
