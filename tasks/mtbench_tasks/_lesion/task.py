"""A task of two objectives: a lesion's mask and its risk category, from one image."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mtbench import seeding
from mtbench.cache import cache_dir
from mtbench.errors import DataError, UsageError, did_you_mean
from mtbench.model import MultitaskModel
from mtbench.task import Batch, Meter, Predictor, Progress, Recipe, Splits, Task
from mtbench_tasks._lesion import radiomics
from mtbench_tasks._lesion.cases import Case, Collection, Image, View
from mtbench_tasks._lesion.grid import Prepared, prepare
from mtbench_tasks._lesion.splits import CaseSplit, Sample, reading_of, split_patients


def whole(image: Image) -> list[View]:
    """Return the one view of an image that is no scanner's screen."""
    return [(slice(0, image.shape[0]), slice(0, image.shape[1]))]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a task's cases may come from, and what suits them.

    Attributes:
        load: reads the cases at the path that ``--data`` names; an embedded source ignores it.
        grades: the categories from benign to malignant.
        high: the index of the first grade that counts as high risk.
        recipe: the optimisation by default.
        augmentation: its default strength.
        dropout: the risk head's by default.
        guide: the guidance's default weight.
        what: what ``--data`` is to name; None for an embedded source.
        views: finds an image's views, when a new one is read.
    """

    load: Callable[[Path, Progress], Collection]
    grades: tuple[str, ...]
    high: int
    recipe: Recipe
    augmentation: float = 1.0
    dropout: float = 0.5
    guide: float = 1.0
    what: str | None = None
    views: Callable[[Image], list[View]] = whole


class LesionTask(Task):
    """Lesion mask and risk category, learnt from readers who differ.

    Two objectives on one U-Net encoder. ``segmentation``: Dice plus cross-entropy of the mask.
    ``risk``: cross-entropy of the category (or the squared earth mover's distance, which knows that
    grades are ordered), plus ``guide`` times the squared error between the embedding's guided part
    e_r and the standardised radiomics of the training contour. A case that lacks a label trains the
    other objective. Training and validation labels are those of one reader per case, drawn by the
    seed; test labels are the ground truth where there is one.

    A subclass names its `sources`, and may add parameters of its own.

    Args:
        source: where the cases come from; by default the first.
        data: where the source's data lies; an embedded one needs none.
        target: ``grades``, or ``low-high``, divided where the source says.
        image_size: side of the network's grid, divisible by 16.
        width: channels of the first level.
        augmentation: its strength, 0 (mirroring only) to 1; by default what suits the source.
        dropout: of the risk head's pooled features; by default what suits the source.
        guide: weight of the radiomics guidance within the risk loss; by default what suits the
            source.
        risk_loss: ``ce``, or ``emd``: the squared earth mover's distance (Hou et al. 2016).
        strict: stop at a case that cannot be read, instead of leaving it out.
    """

    objectives = ("segmentation", "risk")
    sources: ClassVar[Mapping[str, Source]]

    def __init__(
        self,
        *,
        source: str | None = None,
        data: Path | None = None,
        target: Literal["grades", "low-high"] = "grades",
        image_size: int = 96,
        width: int = 16,
        augmentation: float | None = None,
        dropout: float | None = None,
        guide: float | None = None,
        risk_loss: Literal["ce", "emd"] = "ce",
        strict: bool = False,
    ) -> None:
        self.source = next(iter(self.sources)) if source is None else self._known(source)
        self.origin = self.sources[self.source]
        given = {"augmentation": augmentation, "dropout": dropout, "guide": guide}
        chosen = {k: getattr(self.origin, k) if v is None else v for k, v in given.items()}
        self.augmentation, self.dropout, self.guide = chosen.values()
        self.dependent = {"source": self.source, **chosen}
        if image_size < 32 or image_size % 16:
            raise UsageError(f"image_size must be a multiple of 16 from 32 on, found {image_size}")
        if not 0 <= self.augmentation <= 1:
            raise UsageError(f"augmentation must be between 0 and 1, found {augmentation}")
        if width < 1:
            raise UsageError(f"width must be at least 1, found {width}")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"dropout must be at least 0 and below 1, found {dropout}")
        if not 0 <= self.guide < float("inf"):
            raise UsageError(f"guide must not be negative, found {guide}")
        self.data, self.target, self.strict = data, target, strict
        self.image_size, self.width, self.risk_loss = image_size, width, risk_loss
        self.recipe = self.origin.recipe
        self.grades = ("low", "high") if target == "low-high" else self.origin.grades
        self.high = 1 if target == "low-high" else self.origin.high
        from mtbench_tasks._lesion.scores import metrics  # MONAI takes seconds to import

        self.metrics = metrics(self.grades)

    def collection(self, progress: Progress) -> Collection:
        """Return the cases.

        Raises:
            DataError: the data is absent or broken.
        """
        return _load(self.source, self.origin, self.data, progress)

    def setup(self, seed: int, progress: Progress) -> Splits:
        """Load the source, split it by patient, and fit the radiomics target on training."""
        collection = self.collection(progress)
        prepared = prepare(
            collection,
            self.image_size,
            cache_dir(),
            lambda done, total: progress("preparing images", done, total),
        )
        if self.strict and prepared.broken:
            raise DataError(next(iter(prepared.broken.values())))
        cases = collection.cases
        usable = [i for i in range(len(cases)) if i not in prepared.broken]
        rng = np.random.default_rng(seeding.derive(seed, "split"))
        parts = split_patients([cases[i] for i in usable], rng)
        if min(map(len, parts)) == 0:
            raise DataError(f"{self.source}: {len(usable)} cases are too few to be split in three")
        reader = rng.integers(0, 2**31, len(usable))
        train, val = (
            [(usable[p], int(reader[p] % len(cases[usable[p]].readings))) for p in part]
            for part in parts[:2]
        )
        # The truth comes after the readings; without one, a reading is all there is.
        test = [
            (i, len(cases[i].readings) if cases[i].truth else int(r % len(cases[i].readings)))
            for i, r in ((usable[p], reader[p]) for p in parts[2])
        ]
        targets = _targets(cases, prepared, train + val, progress)
        standardise = radiomics.Standardiser.fit(targets[: len(train)])
        unknown = np.full((len(test), len(radiomics.FEATURES)), np.nan)
        rows = np.split(np.concatenate([standardise(targets), unknown]), [len(train), len(targets)])
        high = self.origin.high if self.target == "low-high" else None
        made = [
            CaseSplit(cases, prepared, samples, part, high, self.augmentation)
            for samples, part in zip((train, val, test), rows, strict=True)
        ]
        notes: dict[str, Any] = {
            "source": self.source,
            "images": [len(split) for split in made],
            "patients": [len({case.patient for case in split.cases}) for split in made],
            "with_mask": [int(split.has_mask.sum()) for split in made],
            "with_category": [int((split.category >= 0).sum()) for split in made],
        }
        if prepared.broken:
            notes["left out"] = list(prepared.broken.values())
        fingerprint = collection.fingerprint
        return Splits(made[0], made[1], made[2], fingerprint=fingerprint, notes=notes)

    def model(self) -> MultitaskModel:
        """Return the U-Net with its guided risk head."""
        from mtbench_tasks._lesion import network

        return network.build(
            len(self.grades), len(radiomics.FEATURES), width=self.width, dropout=self.dropout
        )

    def losses(self, outputs: Sequence[Any], batch: Batch) -> list[Tensor]:
        """Return the segmentation and the risk loss."""
        from mtbench_tasks._lesion import losses

        logits, risk = outputs
        guidance = losses.guidance_loss(risk.guided, batch["radiomics"])
        return [
            losses.segmentation_loss(logits, batch["mask"], batch["has_mask"]),
            losses.grade_loss(risk.logits, batch["category"], self.risk_loss)
            + self.guide * guidance,
        ]

    def meter(self) -> Meter:
        """Return a fresh meter of both objectives' metrics."""
        from mtbench_tasks._lesion.scores import LesionMeter

        return LesionMeter(self.grades, self.high)

    def figures(self, predictor: Predictor, splits: Splits, folder: Path) -> list[Path]:
        """Draw test cases with reader contours, truth and prediction."""
        from mtbench_tasks._lesion import pictures

        assert isinstance(splits.test, CaseSplit)
        return [pictures.panel(predictor, splits.test, self.grades, folder / "predictions.png")]

    def predict(
        self,
        predictor: Predictor,
        inputs: Sequence[Path],
        folder: Path,
        *,
        spacing: float | None = None,
    ) -> list[Any]:
        """Segment and grade images.

        Args:
            predictor: the trained model.
            inputs: image files.
            folder: where mask and overlay pictures go.
            spacing: millimetres per pixel, if known; axes are given in pixels otherwise.
        """
        from mtbench_tasks._lesion import reading

        if spacing is not None and not 0 < spacing < float("inf"):
            raise UsageError(f"spacing must be positive (millimetres per pixel), found {spacing}")
        size, grades, views = self.image_size, self.grades, self.origin.views
        images = [reading.load_image(path) for path in inputs]  # all, before the first is written
        return [
            reading.read(predictor, image, path, folder, size, grades, spacing, views)
            for image, path in zip(images, inputs, strict=True)
        ]

    @classmethod
    def inspect(cls, source: str, data: Path | None) -> list[tuple[str, str, str]]:
        """Return what of a source is used, repaired and dropped."""
        report = _load(source, cls.sources[cls._known(source)], data, _silent).report
        return [(str(count), what, why) for count, what, why in report]

    @classmethod
    def preview(cls, source: str, data: Path | None, picture: Path) -> None:
        """Draw cases of a source with their contours and grades."""
        from mtbench_tasks._lesion import pictures

        collection = _load(source, cls.sources[cls._known(source)], data, _silent)
        pictures.preview(collection, picture)

    @classmethod
    def _known(cls, source: str) -> str:
        if source not in cls.sources:
            raise UsageError(f"there is no source {source!r}: {did_you_mean(source, cls.sources)}")
        return source


def _load(name: str, source: Source, data: Path | None, progress: Progress) -> Collection:
    if data is None and source.what is not None:
        raise DataError(f"source {name} needs --data PATH: {source.what}")
    return source.load(data or Path(), progress)


def _silent(what: str, done: int, total: int) -> None:
    """Report no progress."""


def _targets(
    cases: Sequence[Case], prepared: Prepared, samples: Sequence[Sample], progress: Progress
) -> NDArray[np.float64]:
    """Return raw radiomics of samples, (N, R), NaN where there is no contour."""
    found = np.full((len(samples), len(radiomics.FEATURES)), np.nan)
    pixels, contours, keys, where = [], [], [], []
    for position, (i, number) in enumerate(samples):
        contour = reading_of(cases[i], number).contour
        if contour is not None:
            pixels.append(cases[i].pixels)
            contours.append(contour)
            keys.append(f"{prepared.images[i]} {prepared.contours[prepared.rows[i][number]]}")
            where.append(position)
    found[where] = radiomics.extract_all(
        pixels,
        contours,
        keys,
        cache=cache_dir(),
        progress=lambda done, total: progress("radiomics", done, total),
    )
    return found
