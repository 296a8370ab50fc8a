"""CelebA's aligned faces and their attributes, decoded once into one array."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mtbench.errors import DataError
from mtbench.training.task import Progress
from mtbench_tasks._photos import decode

ATTRIBUTES = (
    "5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs",
    "Big_Lips", "Big_Nose", "Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair", "Bushy_Eyebrows",
    "Chubby", "Double_Chin", "Eyeglasses", "Goatee", "Gray_Hair", "Heavy_Makeup",
    "High_Cheekbones", "Male", "Mouth_Slightly_Open", "Mustache", "Narrow_Eyes", "No_Beard",
    "Oval_Face", "Pale_Skin", "Pointy_Nose", "Receding_Hairline", "Rosy_Cheeks", "Sideburns",
    "Smiling", "Straight_Hair", "Wavy_Hair", "Wearing_Earrings", "Wearing_Hat",
    "Wearing_Lipstick", "Wearing_Necklace", "Wearing_Necktie", "Young",
)  # fmt: skip


@dataclass(frozen=True)
class Faces:
    """All faces that can be read.

    Attributes:
        pixels: (N, size, size, 3), mapped from a file: what is not used is not in memory.
        labels: (N, 40), whether each of `ATTRIBUTES` is there.
        parts: (N,), 0 training, 1 validation, 2 test.
        broken: images that were dropped, a line each.
        unlisted: number of images without attributes or part, or listed without a file.
        fingerprint: hash of images, attributes and parts.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.bool_]
    parts: NDArray[np.int64]
    broken: tuple[str, ...]
    unlisted: int
    fingerprint: str


def load(data: Path | None, size: int, strict: bool, progress: Progress) -> Faces:
    """Return the faces of a folder.

    The folder holds ``img_align_celeba`` (the images, possibly in a folder of the same name within,
    as Kaggle has it), ``list_attr_celeba.txt`` and ``list_eval_partition.txt``, or these as
    ``.csv``; or they lie in its subfolders ``Img``, ``Anno`` and ``Eval``, as published. Decoding
    and resizing is done once: 2.5 GB at 64 x 64 stay in the cache folder.

    Args:
        data: the folder.
        size: side of the images, which the aligned 178 x 218 pixels are squeezed to.
        strict: raise instead of dropping what cannot be read.
        progress: is told how the decoding goes.

    Raises:
        DataError: something is not there, or is not what its name says.
    """
    if data is None:
        raise DataError("task celeba needs --data PATH: a folder with img_align_celeba")
    folder = _images(data)
    listed = _labels(data).join(_parts(data), how="outer")
    known = listed.dropna()
    present = {entry.name: entry.stat() for entry in os.scandir(folder) if entry.is_file()}
    names = [name for name in known.index if name in present]
    if not names:
        raise DataError(f"{folder}: holds none of the {len(known)} images that are listed")
    photos = decode("celeba", folder, names, size, strict, progress)
    table = known.loc[photos.names].to_numpy(np.int64)
    content = hashlib.sha256(photos.sha256.encode() + table.tobytes())
    return Faces(
        pixels=photos.pixels,
        labels=table[:, :-1] == 1,
        parts=table[:, -1],
        broken=photos.broken,
        unlisted=len(listed.index.union(pd.Index(sorted(present)))) - len(names),
        fingerprint=f"celeba-1-{size}-{content.hexdigest()[:16]}",
    )


def _images(data: Path) -> Path:
    name = "img_align_celeba"
    for folder in (data / name / name, data / name, data / "Img" / name):
        if folder.is_dir():
            return folder
    raise DataError(f"{data}: holds no folder {name} or Img/{name}; unzip {name}.zip there")


def _table(data: Path, subfolder: str, stem: str, **options: Any) -> tuple[Path, pd.DataFrame]:
    """Read a table of image names and numbers as published (white space) or as Kaggle has it."""
    for folder in (data, data / subfolder):
        for file in (folder / f"{stem}.txt", folder / f"{stem}.csv"):
            if file.is_file():
                how = {"index_col": 0} if file.suffix == ".csv" else {"sep": r"\s+"} | options
                try:
                    return file, pd.read_csv(file, **how)
                except ValueError as error:
                    why = " ".join(str(error).split())
                    raise DataError(f"{file}: is no table: {why}") from error
    raise DataError(f"{data}: neither it nor its folder {subfolder} holds {stem}.txt or .csv")


def _labels(data: Path) -> pd.DataFrame:
    file, table = _table(data, "Anno", "list_attr_celeba", skiprows=1)
    lacking = [name for name in ATTRIBUTES if name not in table.columns]
    if lacking:
        raise DataError(f"{file}: must have CelebA's 40 attributes, found no {lacking[0]}")
    labels = table[list(ATTRIBUTES)]
    if not labels.isin([-1, 1]).all(axis=None) or labels.index.has_duplicates:
        raise DataError(f"{file}: must say -1 or 1 of every attribute, and name an image once")
    return labels


def _parts(data: Path) -> pd.Series:
    stem = "list_eval_partition"
    file, table = _table(data, "Eval", stem, header=None, index_col=0)
    if table.shape[1] != 1 or not table.isin([0, 1, 2]).all(axis=None):
        raise DataError(f"{file}: must say 0, 1 or 2 (train, val, test) of every image")
    if table.index.has_duplicates:
        raise DataError(f"{file}: must name an image once")
    return table.iloc[:, 0].rename("part")
