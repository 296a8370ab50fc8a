"""Stanford AIMI's thyroid cine-clips: 192 nodules of 167 patients, 17,412 frames, ACR TI-RADS.

As published (doi 10.71718/7m5n-rh16): `dataset.hdf5`, 36 GB, with `image` and `mask` (N, H, W;
8 bits, a mask is 0 or 255), `annot_id` (N,) and `frame_num` (N,); `metadata.csv` with a line per
nodule, among others `annot_id` and `ti-rads_level` (1 to 5). The patient is what comes before the
first underscore of `annot_id`, such as 108 of "108_". The category is the nodule's TI-RADS level;
its histology is there too, and not used.

The file is never read whole: a frame is read when it is needed, and a few frames a clip are used.
"""

import csv
import hashlib
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mtbench.errors import DataError
from mtbench.training.task import Progress
from mtbench_tasks._lesion.cases import Case, Collection, Image, Mask, Reading, digest
from mtbench_tasks.thyroid.ultrasound import GRADES

if TYPE_CHECKING:
    import h5py

FRAMES = 4
MOST = 10_000_000  # frames, and pixels of one: a bound on what a file's header makes us allocate
VERSION = 1  # part of the fingerprint: raise it when the same files give other cases

_WHY = {
    "frames found": "in dataset.hdf5",
    "clips found": "different annot_id, one a nodule",
    "clips without a category": "kept for their masks: no line in metadata.csv, or none of 1 to 5",
    "nodules without a clip": "dropped: metadata.csv names an annot_id that dataset.hdf5 lacks",
    "patients": "the unit that is split",
    "frames used": "the cases of this collection, evenly spaced in each clip",
    **{f"clips of {grade}": "" for grade in GRADES},
}


def load(path: Path, progress: Progress, frames: int = FRAMES) -> Collection:
    """Read the index of the clips; pixels are read when they are needed.

    Of a clip of n frames, in the order of `frame_num`, those at floor((j + 1/2) n / frames) are
    used, j = 0, 1, ...: the middles of equal parts; all, where there are fewer. A case is named by
    clip and row of the file. The fingerprint is of metadata, index, and image and mask of one used
    frame a clip: hashing 36 GB would take minutes each time.

    Args:
        path: the folder of `dataset.hdf5` and `metadata.csv`.
        progress: is told how many clips have been looked at.
        frames: how many frames of each clip are used.

    Raises:
        DataError: a file is absent, or of another form.
    """
    file, table = path / "dataset.hdf5", path / "metadata.csv"
    if missing := [part.name for part in (file, table) if not part.is_file()]:
        raise DataError(
            f"{path} is no folder of AIMI's cine-clips: it must hold dataset.hdf5 and "
            f"metadata.csv; missing: {', '.join(missing)}"
        )
    problems: list[str] = []
    levels = _levels(table, problems)
    count: Counter[str] = Counter()
    content = hashlib.sha256(f"aimi {VERSION} {frames} {sorted(levels.items())}".encode())
    cases: list[Case] = []
    with _opened(file) as store:
        ids, numbers = _index(file, store)
        content.update(f"{store['image'].shape} {digest(ids)} {digest(numbers)}".encode())
        clips = np.unique(ids)
        for done, clip in enumerate(map(str, clips), 1):
            rows = np.flatnonzero(ids == clip)
            rows = rows[np.argsort(numbers[rows], kind="stable")]
            used = rows[np.unique((np.arange(frames) + 0.5) * len(rows) // frames).astype(int)]
            try:
                for name in ("image", "mask"):
                    content.update(digest(store[name][used[len(used) // 2]]).encode())
            except OSError:  # whoever reads this frame will say so
                content.update(b"unreadable")
            level = levels.get(clip)
            count["clips without a category" if level is None else f"clips of {GRADES[level]}"] += 1
            cases += [
                Case(
                    name=f"{clip}/{row}",
                    patient=clip.split("_")[0],
                    pixels=partial(_frame, file, int(row)),
                    readings=(Reading("aimi", partial(_mask, file, int(row)), level),),
                )
                for row in used
            ]
            progress("looking at clips", done, len(clips))
    count["frames found"], count["clips found"] = len(ids), len(clips)
    count["nodules without a clip"] = len(levels.keys() - set(map(str, clips)))
    count["patients"], count["frames used"] = len({case.patient for case in cases}), len(cases)
    report = tuple((count[what], what, why) for what, why in _WHY.items())
    return Collection(tuple(cases), GRADES, content.hexdigest(), report, tuple(problems))


@contextmanager
def _opened(file: Path) -> "Iterator[h5py.File]":
    """Open the HDF5 file for reading and explain what does not work."""
    import h5py

    try:
        with h5py.File(file, "r") as store:
            yield store
    except (OSError, KeyError, RuntimeError) as error:
        raise DataError(f"{file}: cannot be read as HDF5 ({error})") from error


def _index(file: Path, store: "h5py.File") -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return what identifies each of the N frames: clip and number; check the layout."""
    import h5py

    names = ("image", "mask", "annot_id", "frame_num")
    there = {n: store[n] for n in names if n in store and isinstance(store[n], h5py.Dataset)}
    shapes = {name: part.shape for name, part in there.items()}
    kinds = {str(part.dtype) for name, part in there.items() if name in ("image", "mask")}
    found = ", ".join(f"{name} {shape}" for name, shape in shapes.items()) or ", ".join(store)
    n, *size = shapes.get("image") or (0,)
    frames, listed = (n, *size), (n,)
    fits = shapes == dict(zip(names, (frames, frames, listed, listed), strict=True))
    large = max(n, math.prod(size)) > MOST
    if not fits or kinds != {"uint8"} or len(size) != 2 or 0 in frames or large:
        raise DataError(
            f"{file}: must hold image and mask (N, H, W) of uint8, annot_id (N,) and frame_num "
            f"(N,); found: {found or 'nothing'} ({', '.join(sorted(kinds)) or 'no image'})"
        )
    try:
        ids = np.array(store["annot_id"].asstr()[:], dtype=str)
        numbers = np.asarray(store["frame_num"][:])
        if not np.isfinite(numbers).all():
            raise ValueError("a frame_num is not finite")
        return ids, numbers.astype(np.int64)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{file}: annot_id must be text and frame_num whole numbers ({error})"
        ) from error


def _levels(table: Path, problems: list[str]) -> dict[str, int | None]:
    """Return the category of each annot_id of the metadata, None where there is none, or two."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: cannot be read as CSV ({error})") from error
    columns = list(rows[0]) if rows else []
    if not {"annot_id", "ti-rads_level"} <= set(columns):
        raise DataError(
            f"{table}: must have columns annot_id and ti-rads_level, found: "
            f"{', '.join(map(str, columns)) or 'none'}"
        )
    found: dict[str, set[int | None]] = {}
    for row in rows:
        if row["annot_id"]:
            found.setdefault(row["annot_id"], set()).add(_category(row["ti-rads_level"] or ""))
    levels: dict[str, int | None] = {}
    for name, several in found.items():
        known = several - {None}
        levels[name] = known.pop() if len(known) == 1 else None
        if known:  # there were more
            problems.append(f"{table}: {name} has several categories: its clip counts as ungraded")
    return levels


def _category(level: str) -> int | None:
    grade = f"TR{level.strip().removesuffix('.0')}"
    return GRADES.index(grade) if grade in GRADES else None


def _frame(file: Path, row: int) -> Image:
    with _opened(file) as store:
        frame: Image = store["image"][row]
    return frame


def _mask(file: Path, row: int) -> Mask:
    with _opened(file) as store:
        mask: Mask = store["mask"][row] > 0
    if not mask.any():
        raise DataError(f"{file}: the mask of frame {row} marks no pixel")
    return mask
