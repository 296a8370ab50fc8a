"""Thyroid ultrasound: nodule mask and TI-RADS category from one image."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mtbench import seeding
from mtbench.cache import cache_dir
from mtbench.errors import DataError, UsageError, did_you_mean
from mtbench.model import MultitaskModel
from mtbench.task import Batch, Meter, Predictor, Progress, Recipe, Splits, Task
from mtbench_tasks.thyroid import ddti, phantom, radiomics
from mtbench_tasks.thyroid.cases import Case, Collection, Reading
from mtbench_tasks.thyroid.splits import CaseSplit, split_patients

HIGH = 3
"""The grade index from which a nodule counts as high risk: DDTI's 4b, ACR's TR4."""

SOURCES = ("phantom", "ddti")

PRESETS = {
    "phantom": {"augmentation": 0.3, "dropout": 0.0, "guide": 1.0},
    "ddti": {"augmentation": 1.0, "dropout": 0.5, "guide": 2.0},
}
"""Defaults by source: DDTI has few graded cases and is learnt longer, so it wants holding back."""

RECIPES = {
    "phantom": Recipe(epochs=10, batch_size=8, lr=4e-3, select="last"),
    "ddti": Recipe(epochs=36, batch_size=8, lr=2e-3, weight_decay=0.05, select="last"),
}


class Thyroid(Task):
    """Nodule mask and TI-RADS category, learnt from readers who differ.

    Two objectives on one U-Net encoder. ``segmentation``: Dice plus cross-entropy of the mask.
    ``risk``: cross-entropy of the category (or the squared earth mover's distance, which knows that
    grades are ordered), plus ``guide`` times the squared error between the embedding's guided part
    e_r and the standardised radiomics of the training contour. A case that lacks a label trains the
    other objective. Training and validation labels are those of one reader per case, drawn by the
    seed; test labels are the ground truth where there is one.

    Args:
        source: ``phantom`` (embedded simulation) or ``ddti``.
        data: where the source's data lies; the phantom needs none.
        target: ``grades``, or ``low-high`` (DDTI: 2, 3, 4a against 4b, 4c, 5; ACR: TR1-3 against
            TR4-5).
        image_size: side of the network's grid, divisible by 16.
        width: channels of the first level.
        augmentation: its strength, 0 (mirroring only) to 1; by default 0.3, for DDTI 1.
        dropout: of the risk head's pooled features; by default none, for DDTI 0.5.
        guide: weight of the radiomics guidance within the risk loss; by default 1, for DDTI 2.
        risk_loss: ``ce``, or ``emd``: the squared earth mover's distance (Hou et al. 2016).
        cases: number of phantom cases.
        readers: number of simulated readers.
        reader_noise: how much the simulated readers differ from the truth; 0 is not at all.
        phantom_seed: another phantom population.
    """

    objectives = ("segmentation", "risk")

    def __init__(
        self,
        *,
        source: Literal["phantom", "ddti"] = "phantom",
        data: Path | None = None,
        target: Literal["grades", "low-high"] = "grades",
        image_size: int = 96,
        width: int = 16,
        augmentation: float | None = None,
        dropout: float | None = None,
        guide: float | None = None,
        risk_loss: Literal["ce", "emd"] = "ce",
        cases: int = 1000,
        readers: int = 3,
        reader_noise: float = 1.0,
        phantom_seed: int = 0,
    ) -> None:
        given = {"augmentation": augmentation, "dropout": dropout, "guide": guide}
        self.dependent = PRESETS[source] | {k: v for k, v in given.items() if v is not None}
        self.augmentation, self.dropout, self.guide = self.dependent.values()
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
        if source == "phantom" and cases < 20:
            raise UsageError(f"cases must be at least 20 to be split, found {cases}")
        self.source, self.data, self.target = source, data, target
        self.image_size, self.width, self.risk_loss = image_size, width, risk_loss
        self.phantom = {
            "size": cases, "readers": readers, "reader_noise": reader_noise, "seed": phantom_seed
        }  # fmt: skip
        self.recipe = RECIPES[source]
        grades = phantom.GRADES if source == "phantom" else ddti.GRADES
        self.grades = ("low", "high") if target == "low-high" else grades
        self.high = 1 if target == "low-high" else HIGH
        from mtbench_tasks.thyroid.scores import metrics  # MONAI takes seconds to import

        self.metrics = metrics(self.grades)

    def setup(self, seed: int, progress: Progress) -> Splits:
        """Load the source, split it by patient, and fit the radiomics target on training."""
        collection = load(self.source, self.data, self.phantom, progress)
        cases = collection.cases
        rng = np.random.default_rng(seeding.derive(seed, "split"))
        parts = split_patients(cases, rng)
        if min(map(len, parts)) == 0:
            raise DataError(f"{self.source}: {len(cases)} cases are too few to be split in three")
        reader = rng.integers(0, 2**31, len(cases))
        labels = [
            case.readings[r % len(case.readings)] for case, r in zip(cases, reader, strict=True)
        ]
        targets = _targets([(cases[i], labels[i]) for i in parts[0] + parts[1]], progress)
        standardise = radiomics.Standardiser.fit(targets[: len(parts[0])])
        unknown = np.full((len(parts[2]), len(radiomics.FEATURES)), np.nan)
        rows = np.concatenate([standardise(targets), unknown])
        for i in parts[2]:
            labels[i] = cases[i].truth or labels[i]
        made, start = [], 0
        for part in parts:
            made.append(
                CaseSplit(
                    [cases[i] for i in part],
                    [labels[i] for i in part],
                    rows[start : start + len(part)],
                    self.image_size,
                    HIGH if self.target == "low-high" else None,
                    self.augmentation,
                )
            )
            start += len(part)
        notes = {
            "source": self.source,
            "images": [len(split) for split in made],
            "patients": [len({case.patient for case in split.cases}) for split in made],
            "with_mask": [int(split.has_mask.sum()) for split in made],
            "with_category": [int((split.category >= 0).sum()) for split in made],
        }
        train, val, test = made
        return Splits(train, val, test, fingerprint=collection.fingerprint, notes=notes)

    def model(self) -> MultitaskModel:
        """Return the U-Net with its guided risk head."""
        from mtbench_tasks.thyroid import network

        return network.build(
            len(self.grades), len(radiomics.FEATURES), width=self.width, dropout=self.dropout
        )

    def losses(self, outputs: Sequence[Any], batch: Batch) -> list[Tensor]:
        """Return the segmentation and the risk loss."""
        from mtbench_tasks.thyroid import losses

        logits, risk = outputs
        guidance = losses.guidance_loss(risk.guided, batch["radiomics"])
        return [
            losses.segmentation_loss(logits, batch["mask"], batch["has_mask"]),
            losses.grade_loss(risk.logits, batch["category"], self.risk_loss)
            + self.guide * guidance,
        ]

    def meter(self) -> Meter:
        """Return a fresh meter of both objectives' metrics."""
        from mtbench_tasks.thyroid.scores import ThyroidMeter

        return ThyroidMeter(self.grades, self.high)

    def figures(self, predictor: Predictor, splits: Splits, folder: Path) -> list[Path]:
        """Draw test cases with reader contours, truth and prediction."""
        from mtbench_tasks.thyroid import pictures

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
        from mtbench_tasks.thyroid import reading

        if spacing is not None and not 0 < spacing < float("inf"):
            raise UsageError(f"spacing must be positive (millimetres per pixel), found {spacing}")
        size, grades = self.image_size, self.grades
        images = [reading.load_image(path) for path in inputs]  # all, before the first is written
        return [
            reading.read(predictor, image, path, folder, size, grades, spacing)
            for image, path in zip(images, inputs, strict=True)
        ]

    @classmethod
    def inspect(cls, source: str, data: Path | None) -> list[tuple[str, str, str]]:
        """Return what of a source is used, repaired and dropped."""
        report = load(_known(source), data, {}, _silent).report
        return [(str(count), what, why) for count, what, why in report]

    @classmethod
    def preview(cls, source: str, data: Path | None, picture: Path) -> None:
        """Draw cases of a source with their contours and grades."""
        from mtbench_tasks.thyroid import pictures

        pictures.preview(load(_known(source), data, {"size": 60}, _silent), picture)


def load(
    source: str, data: Path | None, phantom_params: dict[str, Any], progress: Progress
) -> Collection:
    """Return the cases of a source.

    Raises:
        DataError: the data is absent or broken.
    """
    if source == "phantom":
        return phantom.load(
            **phantom_params,
            cache=cache_dir(),
            progress=lambda done, total: progress("simulating phantoms", done, total),
        )
    if data is None:
        raise DataError(f"source {source} needs --data PATH: the folder or zip as published")
    return ddti.load(data)


def _silent(what: str, done: int, total: int) -> None:
    """Report no progress."""


def _known(source: str) -> str:
    if source not in SOURCES:
        raise UsageError(f"task thyroid has no source {source!r}: {did_you_mean(source, SOURCES)}")
    return source


def _targets(pairs: Sequence[tuple[Case, Reading]], progress: Progress) -> NDArray[np.float64]:
    """Return raw radiomics, (N, R), NaN where there is no contour."""
    found = np.full((len(pairs), len(radiomics.FEATURES)), np.nan)
    contoured = [i for i, (_, reading) in enumerate(pairs) if reading.mask is not None]
    masks = [m for _, reading in pairs if (m := reading.mask) is not None]
    found[contoured] = radiomics.extract_all(
        [pairs[i][0].image for i in contoured],
        masks,
        cache=cache_dir(),
        progress=lambda done, total: progress("radiomics", done, total),
    )
    return found
