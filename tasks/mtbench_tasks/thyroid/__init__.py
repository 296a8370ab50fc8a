"""Thyroid ultrasound: nodule mask and TI-RADS category from one image."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from mtbench.errors import UsageError
from mtbench.training.cache import cache_dir
from mtbench.training.task import Progress, Recipe
from mtbench_tasks._lesion import manifest
from mtbench_tasks._lesion.cases import Collection
from mtbench_tasks._lesion.task import LesionTask, Source
from mtbench_tasks.thyroid import aimi, ddti, phantom, thyroidxl, tn3k

EXTRA = "thyroid"

HIGH = 3
"""The grade index from which a nodule counts as high risk: DDTI's 4b, ACR's TR4."""


class Thyroid(LesionTask):
    """Nodule mask and TI-RADS category, learnt from readers who differ.

    Two objectives on one U-Net encoder. ``segmentation``: Dice plus cross-entropy of the mask.
    ``risk``: cross-entropy of the category (or the squared earth mover's distance, which knows that
    grades are ordered), plus ``guide`` times the squared error between the embedding's guided part
    e_r and the standardised radiomics of the training contour. A case that lacks a label trains the
    other objective. `labels` says whose labels train and validate; test labels are the ground
    truth where there is one, else the readers' consensus, a single reader's own.

    Args:
        source: ``phantom`` (embedded simulation), ``ddti``, ``tn3k`` (benign or malignant),
            ``aimi`` (cine-clips), ``thyroidxl``, or ``manifest`` (your own images).
        data: where the source's data lies, of ``manifest`` a CSV; the phantom needs none.
        target: ``grades``, or ``low-high`` (DDTI: 2, 3, 4a against 4b, 4c, 5; ACR: TR1-3 against
            TR4-5; TN3K: benign against malignant).
        image_size: side of the network's grid, divisible by 16.
        width: channels of the first level.
        augmentation: its strength, 0 (mirroring only) to 1; by default 0.3, for real images 1.
        dropout: of the risk head's pooled features; by default none, for real images 0.5.
        guide: weight of the radiomics guidance within the risk loss; by default 1, for DDTI 2.
        risk_loss: ``ce``, or ``emd``: the squared earth mover's distance (Hou et al. 2016).
        strict: stop at what is broken in the data, instead of leaving it out.
        labels: of a case with several readers, ``reader``: those of one, drawn by the seed;
            ``all``: each reading is a sample; ``consensus``: STAPLE of the masks and the majority
            of the categories, of equally frequent ones the most suspicious.
        grades: the manifest's categories from benign to malignant; by default the known scale that
            they fit: TR1-TR5, 1-5, BI-RADS', benign malignant, low high.
        cases: number of phantom cases.
        readers: number of simulated readers.
        reader_noise: how much the simulated readers differ from the truth; 0 is not at all.
        phantom_seed: another phantom population.
        frames: how many frames of each of AIMI's clips are used, evenly spaced.
    """

    sources = {  # noqa: RUF012 - a ClassVar of the base
        "phantom": Source(
            load=lambda _data, progress: _phantom(progress, size=60),
            grades=phantom.GRADES,
            high=HIGH,
            recipe=Recipe(epochs=10, batch_size=8, lr=4e-3, select="last"),
            augmentation=0.3,
            dropout=0.0,
            views=ddti.split_views,
        ),
        # Few graded cases, learnt longer: it wants holding back.
        "ddti": Source(
            load=lambda data, _progress: ddti.load(data),
            grades=ddti.GRADES,
            high=HIGH,
            recipe=Recipe(epochs=36, batch_size=8, lr=2e-3, weight_decay=0.05, select="last"),
            guide=2.0,
            what="the folder or zip as published",
            views=ddti.split_views,
        ),
        # Not tuned, as the data was not at hand: DDTI's, with an epoch's length in mind.
        "tn3k": Source(
            load=tn3k.load,
            grades=tn3k.GRADES,
            high=1,
            recipe=Recipe(epochs=20, batch_size=16, lr=2e-3, weight_decay=0.05, select="last"),
            what="the folder of trainval-image and its siblings, as published",
        ),
        "aimi": Source(
            load=aimi.load,
            grades=aimi.GRADES,
            high=HIGH,
            recipe=Recipe(epochs=36, batch_size=8, lr=2e-3, weight_decay=0.05, select="last"),
            what="the folder of dataset.hdf5 and metadata.csv, as published",
        ),
        "thyroidxl": Source(
            load=thyroidxl.load,
            grades=thyroidxl.GRADES,
            high=HIGH,
            recipe=Recipe(epochs=10, batch_size=16, lr=2e-3, weight_decay=0.05, select="last"),
            what="the folder of train, test and stats, as published",
        ),
        "manifest": manifest.SOURCE,
    }

    def __init__(
        self,
        *,
        source: Literal["phantom", "ddti", "tn3k", "aimi", "thyroidxl", "manifest"] = "phantom",
        data: Path | None = None,
        target: Literal["grades", "low-high"] = "grades",
        image_size: int = 96,
        width: int = 16,
        augmentation: float | None = None,
        dropout: float | None = None,
        guide: float | None = None,
        risk_loss: Literal["ce", "emd"] = "ce",
        strict: bool = False,
        labels: Literal["reader", "all", "consensus"] = "reader",
        grades: tuple[str, ...] | None = None,
        cases: int = 1000,
        readers: int = 3,
        reader_noise: float = 1.0,
        phantom_seed: int = 0,
        frames: int = aimi.FRAMES,
    ) -> None:
        super().__init__(
            source=source, data=data, target=target, image_size=image_size, width=width,
            augmentation=augmentation, dropout=dropout, guide=guide, risk_loss=risk_loss,
            strict=strict, labels=labels, grades=grades,
        )  # fmt: skip
        if source == "phantom" and cases < 20:
            raise UsageError(f"cases must be at least 20 to be split, found {cases}")
        if frames < 1:
            raise UsageError(f"frames must be at least 1, found {frames}")
        if source == "aimi":
            self.origin = replace(self.origin, load=partial(aimi.load, frames=frames))
        self.phantom = {
            "size": cases, "readers": readers, "reader_noise": reader_noise, "seed": phantom_seed
        }  # fmt: skip

    def collection(self, progress: Progress) -> Collection:
        """Return the cases."""
        if self.source == "phantom":
            return _phantom(progress, **self.phantom)
        return super().collection(progress)


def _phantom(progress: Progress, **parameters: Any) -> Collection:
    return phantom.load(
        **parameters,
        cache=cache_dir(),
        progress=lambda done, total: progress("simulating phantoms", done, total),
    )
