"""The pre-processed folders of MTAN (Liu et al. 2019): one NumPy file per image and quantity.

``train/`` and ``val/`` each hold a folder per quantity, with ``0.npy``, ``1.npy``, ... in it:
``image`` (H, W, 3), ``label`` (H, W), whole numbers, ``depth`` (H, W, 1), and ``normal`` (H, W, 3),
unit vectors. Where nothing is known, a label is -1, and depth and normal are 0.

Every file is read once, hashed and checked, and the findings are kept in the cache folder; after
that, files are read when a batch needs them.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from mtbench.errors import DataError
from mtbench.training.machine.cache import cache_dir, writing
from mtbench.training.task import Progress
from mtbench_tasks._tabular import stand_ins

VERSION = 1
"""Part of the fingerprint and of the cache key: raise it when the same files give other samples."""

FINDINGS = 4
"""Part of the cache key: raise it when more is said of the same files."""

UNIT = 0.05
"""By how much the length of most normals may differ from 1."""

PARTS = ("train", "val")

CHANNELS: Mapping[str, int | None] = MappingProxyType(
    {"image": 3, "segmentation": None, "depth": 1, "normals": 3}
)
"""Last dimension of the image and of each objective's labels; None where there is none."""


# A header is a Python literal, and NumPy lets through whatever Python makes of a broken one.
_BROKEN = (OSError, ValueError, TypeError, OverflowError, MemoryError, RecursionError, TokenError)


@dataclass(frozen=True)
class Layout:
    """What a data set's folder holds.

    Attributes:
        classes: C, the number of classes; labels are 0 to C - 1, or -1.
        folders: by quantity (``image``, and the objectives), the names that its folder may have;
            the first one found is read.
    """

    classes: int
    folders: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Finding:
    """What one file was found to be.

    Attributes:
        sha256: of its bytes; empty where it cannot be read.
        shape: of its array; empty where there is none.
        problem: why it cannot be used, or empty.
        doubt: what of it is used, but looks odd, or empty.
    """

    sha256: str
    shape: tuple[int, ...]
    problem: str
    doubt: str = ""


@dataclass(frozen=True)
class Sample:
    """One image with its labels.

    Attributes:
        files: by quantity.
        group: equal for byte-equal images.
    """

    files: Mapping[str, Path]
    group: str


@dataclass(frozen=True)
class Folder:
    """The usable content of a folder.

    Attributes:
        samples: by part, in the order of their numbers.
        size: (H, W) of all of them.
        dropped: (file, why) of every sample that is left out: its first problem, or that the image
            of train/ is in val/ as well.
        doubts: (file, what) of every file that is used, but looks odd.
        fingerprint: identifies the content that is used.
    """

    samples: Mapping[str, tuple[Sample, ...]]
    size: tuple[int, int]
    dropped: tuple[tuple[str, str], ...]
    doubts: tuple[tuple[str, str], ...]
    fingerprint: str


def read(root: Path | None, layout: Layout, progress: Progress) -> Folder:
    """Return what of a folder can be used.

    Raises:
        DataError: no folder is given, or it lacks a part or a quantity.
    """
    if root is None:
        raise DataError("needs --data PATH: the pre-processed folder, with train/ and val/ in it")
    parts = {part: _listing(root, part, layout) for part in PARTS}
    listed = [pair for part in parts.values() for sample in part for pair in sample.items()]
    findings = _examined(root, listed, layout, progress)
    shapes = Counter(
        finding.shape[:2]
        for part in parts.values()
        for sample in part
        if not (finding := findings[sample["image"]]).problem
    )
    size = shapes.most_common(1)[0][0] if shapes else (0, 0)
    used: dict[str, tuple[Sample, ...]] = {}
    dropped: list[tuple[str, str]] = []
    digest = hashlib.sha256(f"dense {VERSION} {layout.classes}".encode())
    for part, samples in parts.items():
        kept = []
        for sample in samples:
            problems = [
                (file.relative_to(root).as_posix(), problem)
                for quantity, file in sample.items()
                if (problem := _problem(findings[file], quantity, size))
            ]
            if problems:
                dropped.append(problems[0])
                continue
            kept.append(Sample(sample, findings[sample["image"]].sha256))
            for quantity, file in sample.items():
                digest.update(f"\n{part} {quantity} {file.name} {findings[file].sha256}".encode())
        used[part] = tuple(kept)
    tested = {sample.group for sample in used["val"]}
    dropped += [
        (s.files["image"].relative_to(root).as_posix(), "is byte-equal to an image of val/")
        for s in used["train"]
        if s.group in tested
    ]
    used["train"] = tuple(s for s in used["train"] if s.group not in tested)
    doubts = tuple(
        (file.relative_to(root).as_posix(), findings[file].doubt)
        for part in PARTS
        for sample in used[part]
        for file in sample.files.values()
        if findings[file].doubt
    )
    return Folder(used, (size[0], size[1]), tuple(dropped), doubts, digest.hexdigest())


def load(file: Path) -> NDArray[np.float32]:
    """Return one array, read now.

    Raises:
        DataError: it cannot be read any more.
    """
    try:
        return np.array(_mapped(file), dtype=np.float32)
    except _BROKEN as error:
        raise DataError(
            f"{file}: was readable when the folder was checked, but is not now ({_brief(error)})"
        ) from error


def _listing(root: Path, part: str, layout: Layout) -> list[dict[str, Path]]:
    """Return the files of each sample by quantity; the files need not exist."""
    folders = {}
    for quantity, names in layout.folders.items():
        found = [root / part / name for name in names if (root / part / name).is_dir()]
        if not found:
            wanted = " or ".join(f"{part}/{name}" for name in names)
            raise DataError(
                f"{root}: has no folder {wanted}; --data must be the pre-processed folder, with "
                "train/ and val/ in it"
            )
        folders[quantity] = found[0]
    numbered = {
        file.name
        for folder in folders.values()
        for file in folder.iterdir()
        if re.fullmatch(r"[0-9]+\.npy", file.name)
    }
    ordered = sorted(numbered, key=lambda name: (int(Path(name).stem), name))
    return [{quantity: folder / name for quantity, folder in folders.items()} for name in ordered]


def _examined(
    root: Path, listed: Sequence[tuple[str, Path]], layout: Layout, progress: Progress
) -> dict[Path, Finding]:
    """Return the findings on every file, from the cache if no size or time has changed since.

    Contents are no part of the cache's key: to hash them is what takes the time that it saves.
    """
    key = hashlib.sha256(f"dense {VERSION} {FINDINGS} {layout.classes} {root.resolve()}".encode())
    for _, file in listed:
        stat = file.stat() if file.is_file() else None
        key.update(
            f"\n{file.relative_to(root)} {stat and (stat.st_size, stat.st_mtime_ns)}".encode()
        )
    cache = cache_dir() / f"dense-{key.hexdigest()[:32]}.json"
    try:
        known = json.loads(cache.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = [None] * len(listed)
    # A file that a share did not hand over at that moment would else be broken for ever.
    fresh = [i for i, row in enumerate(known) if row is None or not row[0]]
    rows = [*known]
    for done, i in enumerate(fresh, 1):
        quantity, file = listed[i]
        found = _examine(file, quantity, layout.classes)
        rows[i] = [found.sha256, list(found.shape), found.problem, found.doubt]
        progress("checking files", done, len(fresh))
    if rows != known:
        with writing(cache) as temporary:
            temporary.write_text(json.dumps(rows), encoding="utf-8")
    return {
        file: Finding(sha256, tuple(shape), *said)
        for (_, file), (sha256, shape, *said) in zip(listed, rows, strict=True)
    }


def _examine(file: Path, quantity: str, classes: int) -> Finding:
    """Read one file whole."""
    if not file.is_file():
        return Finding("", (), "is not there")
    try:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        array = _mapped(file)
        if array.dtype.kind not in "fiu":
            return Finding(digest, array.shape, f"must hold numbers, holds {array.dtype}")
        problem = doubt = ""
        if not np.isfinite(array).all():
            problem = "holds values that are not finite"
        elif quantity == "segmentation":
            labels = np.asarray(array)
            if not ((labels >= -1) & (labels < classes) & (labels == np.floor(labels))).all():
                problem = f"labels must be whole numbers from -1 to {classes - 1}"
        elif quantity == "depth":
            doubt = _doubt(np.asarray(array, np.float64))
        elif quantity == "normals":
            doubt = _not_unit(array)
    except _BROKEN as error:
        return Finding("", (), f"is no readable NumPy file ({_brief(error)})")
    return Finding(digest, array.shape, problem, doubt)


def _doubt(depth: NDArray[np.float64]) -> str:
    """Return what is odd about a depth map: numbers that may stand for one that is not known."""
    return "; ".join(
        f"{value:g} in {count} pixels lies outside of all others, {low:g} to {high:g}: "
        + ("it counts as unknown, as 0 does" if value < 0 else "if nothing is known there, write 0")
        for value, count, low, high in stand_ins(depth)
    )


def _not_unit(normals: NDArray[np.generic]) -> str:
    """Return what is odd about normals: an angle to those that are no unit vectors is none."""
    lengths = np.sqrt(np.square(normals, dtype=np.float64).sum(axis=-1))
    middle = float(np.median(lengths[lengths > 0])) if lengths.any() else 1.0
    if abs(middle - 1) <= UNIT:
        return ""
    return (
        "normals must be unit vectors, or 0 where nothing is known; their median length is "
        f"{middle:.3g}: divide each by its length"
    )


def _mapped(file: Path) -> NDArray[np.generic]:
    """Open a file without reading its content; a pickled object is refused."""
    return np.lib.format.open_memmap(file, mode="r")


def _problem(finding: Finding, quantity: str, size: tuple[int, ...]) -> str:
    channels = CHANNELS[quantity]
    shape = (*size, channels) if channels is not None else size
    if finding.problem or finding.shape == shape:
        return finding.problem
    return f"must have shape {shape}, has {finding.shape}"


def _brief(error: Exception) -> str:
    """Return an error's first line."""
    return (str(error).splitlines() or [type(error).__name__])[0]
