"""Images of a folder, decoded once into one array."""

import hashlib
import io
import json
import shutil
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray
from PIL import Image, ImageOps

from mtbench.errors import DataError
from mtbench.training.machine.cache import cache_dir, writing
from mtbench.training.task import Progress

LARGEST = 10_000_000  # pixels; a header may lie
VERSION = 2  # part of the cache key: raise it when the same files give other pixels
# What Pillow makes of an entry that is broken.
_NO_EXIF = (SyntaxError, ValueError, TypeError, KeyError, OverflowError, struct.error)


class Photos(NamedTuple):
    """Those that can be read.

    Attributes:
        pixels: (N, size, size, 3), mapped from a file: what is not used is not in memory.
        names: of their files, within the folder.
        broken: images that were dropped, a line each.
        copies: of those that are byte-equal to another one, its name by theirs.
        sha256: of the files' contents.
    """

    pixels: NDArray[np.uint8]
    names: list[str]
    broken: tuple[str, ...]
    copies: dict[str, str]
    sha256: str


def decode(
    owner: str, folder: Path, names: Sequence[str], size: int, strict: bool, progress: Progress
) -> Photos:
    """Return images squeezed to a square, from the cache folder if they have been decoded.

    Args:
        owner: what the file in the cache folder is called after.
        folder: where they are.
        names: of the files within.
        size: side of the images.
        strict: raise instead of dropping what cannot be read.
        progress: is told how the decoding goes.

    Raises:
        DataError: an image cannot be read and `strict` is set, or there is no space.
    """
    # By size and time: to hash 200,000 files at each start would take minutes.
    stats = [(name, (folder / name).stat()) for name in names]
    lines = [f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats]
    said = [str(VERSION), str(folder.resolve()), str(size), *lines]
    key = hashlib.sha256("\n".join(said).encode())
    file = cache_dir() / f"{owner}-{key.hexdigest()[:16]}.npy"
    found = _fetch(file)
    # A file that a share did not hand over at that moment would else be broken for ever.
    if found is None or any(
        not isinstance(_read(folder / name, size)[1], str) for name in found[1]["broken"]
    ):
        _write(folder, names, size, file, progress)
        found = _fetch(file)
        assert found is not None
    pixels, made = found
    broken = tuple(f"{folder / name}: {why}" for name, why in made["broken"].items())
    if strict and broken:
        raise DataError(f"{len(broken)} images cannot be read (strict); {broken[0]}")
    return Photos(
        pixels=pixels,
        names=[name for name in names if name not in made["broken"]],
        broken=broken,
        copies=made["copies"],
        sha256=made["sha256"],
    )


def _fetch(file: Path) -> tuple[NDArray[np.uint8], dict[str, Any]] | None:
    """Read what `_write` wrote; None when it is absent or broken."""
    try:
        pixels = np.lib.format.open_memmap(file, mode="r")
        with file.open("rb") as stream:
            stream.seek(pixels.offset + pixels.nbytes)
            made: dict[str, Any] = json.load(stream)
    except (OSError, ValueError, EOFError):
        return None
    return pixels, made


def _write(folder: Path, names: Sequence[str], size: int, file: Path, progress: Progress) -> None:
    """Write the images that can be read, one after another, and a record of those that cannot.

    The record stands behind the array in its file: of two files, each could be that of another
    process, which could read other images.
    """
    needed = len(names) * size * size * 3
    if shutil.disk_usage(file.parent).free < needed:  # a full disk would kill the process
        raise DataError(
            f"{file.parent}: needs {needed >> 20} MiB for decoded images; set MTBENCH_CACHE to a "
            "folder with more space"
        )
    broken: dict[str, str] = {}
    first: dict[bytes, str] = {}
    copies: dict[str, str] = {}
    digest = hashlib.sha256()
    used = 0
    with writing(file) as temporary:
        pixels = np.lib.format.open_memmap(
            temporary, mode="w+", dtype=np.uint8, shape=(len(names), size, size, 3)
        )
        found = _read_all([folder / name for name in names], size)
        for done, (name, (sha256, read)) in enumerate(zip(names, found, strict=True)):
            if isinstance(read, str):
                broken[name] = read
            else:
                digest.update(sha256)
                if (other := first.setdefault(sha256, name)) != name:
                    copies[name] = other
                pixels[used] = read
                used += 1
            if done % 1_000 == 0:
                progress("decoding images", done, len(names))
        pixels.flush()
        del pixels
        with temporary.open("ab") as stream:
            made = {"sha256": digest.hexdigest(), "broken": broken, "copies": copies}
            stream.write(json.dumps(made).encode())


def _read_all(files: Sequence[Path], size: int) -> Iterator[tuple[bytes, NDArray[np.uint8] | str]]:
    """Yield the images in order; threads suffice, since decoding lets go of the interpreter."""
    workers = Parallel(n_jobs=-1, prefer="threads", return_as="generator", batch_size=16)
    found: Iterator[tuple[bytes, NDArray[np.uint8] | str]] = workers(
        delayed(_read)(file, size) for file in files
    )
    return found


def _read(file: Path, size: int) -> tuple[bytes, NDArray[np.uint8] | str]:
    """Return the hash of a file and its pixels, or why they cannot be read."""
    try:
        content = file.read_bytes()
        with Image.open(io.BytesIO(content), formats=["JPEG", "PNG"]) as image:
            if image.width * image.height > LARGEST:
                raise ValueError(f"{image.width} x {image.height} pixels are too many")
            image.load()
            with suppress(*_NO_EXIF):
                ImageOps.exif_transpose(image, in_place=True)
            if image.mode.startswith("I"):  # of 16 bits, which `convert` clips to 8
                values = np.asarray(image).astype(np.uint16) >> 8
                shown: Image.Image = Image.fromarray(values.astype(np.uint8))
            else:
                shown = image
            small = shown.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
        return hashlib.sha256(content).digest(), np.asarray(small)
    except (
        OSError, ValueError, SyntaxError, Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:  # fmt: skip
        return b"", f"cannot be read as an image ({' '.join(str(error).split())[:100]})"
