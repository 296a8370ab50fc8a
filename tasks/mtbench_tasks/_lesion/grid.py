"""From images of any size to the network's square grid, once for all, on disk."""

import hashlib
import itertools
import json
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import Any

import numpy as np
import torch
from joblib import Parallel, cpu_count, delayed
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from mtbench.errors import DataError
from mtbench.training.task import Progress
from mtbench_tasks._lesion.cases import Collection, Image, digest
from mtbench_tasks._lesion.doubts import examine

VERSION = 6  # part of every cache key: raise it when the same cases give another grid or doubt

ABANDONED = 24 * 3600.0
"""Seconds after which nobody fills a temporary folder any more."""


@dataclass(frozen=True)
class Placement:
    """How an image lies on the network's square grid: scaled by its longer side, then padded.

    The scale is the same in both directions: taller-than-wide must stay so.

    Attributes:
        shape: (H, W) of the image.
        size: side of the grid.
    """

    shape: tuple[int, int]
    size: int

    @property
    def box(self) -> tuple[slice, slice]:
        """Rows and columns of the grid that the image covers."""
        longest = max(self.shape)
        height, width = (max(1, round(side * self.size / longest)) for side in self.shape)
        top, left = (self.size - height) // 2, (self.size - width) // 2
        return slice(top, top + height), slice(left, left + width)

    def to_grid(self, plane: NDArray[np.float32]) -> Tensor:
        """Return an (H, W) plane on the grid, (size, size), zero outside."""
        rows, columns = self.box
        grid = torch.zeros(self.size, self.size)
        grid[self.box] = F.interpolate(
            torch.from_numpy(plane)[None, None],
            size=(rows.stop - rows.start, columns.stop - columns.start),
            mode="bilinear",
            antialias=True,
        )[0, 0]
        return grid

    def from_grid(self, grid: Tensor) -> Tensor:
        """Return a (size, size) plane at the image's own resolution, (H, W)."""
        return F.interpolate(grid[self.box][None, None], size=self.shape, mode="bilinear")[0, 0]


def to_input(image: Image, size: int) -> Tensor:
    """Return an image as the network takes it, (1, size, size), 0 to 1."""
    shape = (image.shape[0], image.shape[1])
    plane = image.astype(np.float32)
    plane /= 255
    return Placement(shape, size).to_grid(plane)[None]


@dataclass(frozen=True)
class Prepared:
    """The N cases of a collection on the grid, S x S; the arrays lie on disk and are read by batch.

    Attributes:
        inputs: (N, 1, S, S) float32, 0 to 1.
        masks: (M, 1, S, S) uint8, 0 or 1, one per contour.
        rows: for each case the row of `masks` of each of `Case.said`; -1 without a contour.
        images: for each case the hash of its image's content.
        contours: for each row of `masks` the hash of its content.
        broken: what is wrong with the cases that could not be read, by their number.
        doubts: what looks odd of the others, by their number.
        hashes: perceptual hashes of the images and of their mirror images, by number.
    """

    inputs: NDArray[np.float32]
    masks: NDArray[np.uint8]
    rows: list[list[int]]
    images: list[str]
    contours: list[str]
    broken: dict[int, str]
    doubts: dict[int, list[str]]
    hashes: dict[int, list[str]]


def prepare(
    collection: Collection, size: int, cache: Path | None, progress: Progress | None = None
) -> Prepared:
    """Bring a collection to the grid, in parallel, or read it from `cache`.

    Args:
        collection: the cases.
        size: S, side of the grid.
        cache: folder for one folder per collection and size; one that is broken, or that holds a
            case as broken which can be read by now, is made anew. None: everything is made, in
            memory.
        progress: called with (what, done, total).

    Raises:
        DataError: the cache cannot be written.
    """
    if cache is None:
        return _make(collection, size, None, progress)
    key = hashlib.sha256(f"{VERSION} {size} {collection.fingerprint}".encode()).hexdigest()[:24]
    folder = cache / "grids" / key
    found = _fetch(folder)
    # A file that a share did not hand over at that moment would else be broken for ever.
    if found is None or any(not examine(collection.cases[i]).faults for i in found.broken):
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.parent.mkdir(parents=True, exist_ok=True)
            for left in folder.parent.glob("tmp*"):  # of a process that was killed
                with suppress(OSError):  # another one has removed it
                    if time() - left.stat().st_mtime > ABANDONED:
                        shutil.rmtree(left)
            with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
                made = Path(temporary, key)
                made.mkdir()
                _make(collection, size, made, progress)
                made.rename(folder)
        except OSError as error:
            if (found := _fetch(folder)) is not None:  # another process was faster
                return found
            raise DataError(
                f"the cache {folder} cannot be written ({error}); make room or access for it, or "
                "set MTBENCH_CACHE to another folder"
            ) from error
        found = _fetch(folder)
        assert found is not None
    return found


def _make(
    collection: Collection, size: int, folder: Path | None, progress: Progress | None
) -> Prepared:
    cases = collection.cases
    numbers = itertools.count()
    rows = [
        [-1 if reading.contour is None else next(numbers) for reading in case.said]
        for case in cases
    ]
    count = next(numbers)

    def empty(name: str, shape: tuple[int, ...], kind: type) -> NDArray[Any]:
        if folder is None or 0 in shape:
            return np.zeros(shape, kind)
        made: NDArray[Any] = np.lib.format.open_memmap(folder / name, "w+", kind, shape)
        return made

    inputs = empty("inputs.npy", (len(cases), 1, size, size), np.float32)
    masks = empty("masks.npy", (count, 1, size, size), np.uint8)
    images, contours = [""] * len(cases), [""] * count
    broken: dict[int, str] = {}
    doubts: dict[int, list[str]] = {}
    hashes: dict[int, list[str]] = {}

    def bring(i: int) -> None:
        case = cases[i]
        found = examine(case)
        if found.image is None or found.faults:
            broken[i] = found.faults[0]
            return
        image = found.image
        doubts[i], hashes[i] = list(found.doubts), list(found.hashes)
        inputs[i], images[i] = to_input(image, size), digest(image)
        placement = Placement((image.shape[0], image.shape[1]), size)
        for number, mask in enumerate(found.masks):
            if mask is None:
                continue
            row = rows[i][number]
            masks[row] = placement.to_grid(mask.astype(np.float32)) > 0.5
            contours[row] = digest(mask)
            if masks[row].any():
                continue
            rows[i][number] = -1  # no truth to learn from or to be scored against
            if mask.any():  # an empty one has been told
                doubts[i].append(
                    f"{case.name}: a mask of {int(mask.sum())} pixels vanishes on the network's "
                    f"grid of {size} x {size} and is left out; raise --image-size"
                )

    # Threads: decoding, interpolation and hashing all let go of the interpreter.
    run = Parallel(n_jobs=cpu_count(), backend="threading", return_as="generator")
    for done, _ in enumerate(run(delayed(bring)(i) for i in range(len(cases))), 1):
        if progress is not None:
            progress("preparing images", done, len(cases))
    # In the cases' order, whichever thread was first.
    broken, doubts = dict(sorted(broken.items())), dict(sorted(doubts.items()))
    hashes = dict(sorted(hashes.items()))
    if folder is not None:
        index = {"rows": rows, "images": images, "contours": contours, "broken": broken,
                 "doubts": doubts, "hashes": hashes}  # fmt: skip
        (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")
        for name, array in (("inputs.npy", inputs), ("masks.npy", masks)):
            if isinstance(array, np.memmap):
                array.flush()  # a power cut could leave the name with zeros behind it
            else:
                np.save(folder / name, array)
    return Prepared(inputs, masks, rows, images, contours, broken, doubts, hashes)


def _fetch(folder: Path) -> Prepared | None:
    """Read what `prepare` wrote; None when it is absent or broken."""
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        inputs, masks = _open(folder / "inputs.npy"), _open(folder / "masks.npy")
        broken, doubts, hashes = (
            {int(i): said for i, said in index[name].items()}
            for name in ("broken", "doubts", "hashes")
        )
        known = index["rows"], index["images"], index["contours"]
        return Prepared(inputs, masks, *known, broken, doubts, hashes)
    except (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError):
        return None


def _open(file: Path) -> NDArray[Any]:
    array: NDArray[Any] = np.load(file, mmap_mode="c")
    return array
