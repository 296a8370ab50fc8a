"""Image files: PNG, JPEG, TIFF, BMP by Pillow; DICOM by pydicom; NIfTI by SimpleITK."""

import hashlib
import json
import re
import struct
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Literal

import numpy as np
from PIL import Image as Pil
from PIL import ImageOps, UnidentifiedImageError

from mtbench.errors import DataError
from mtbench.training.data import regular
from mtbench.training.task import Progress
from mtbench_tasks._lesion import dicom, nifti
from mtbench_tasks._lesion.cases import Image, Mask, Told
from mtbench_tasks._lesion.masks import outlined
from mtbench_tasks._lesion.pixels import (
    LARGEST,
    SQUARE,
    Geometry,
    Picture,
    Stored,
    geometry,
    picture,
)  # fmt: skip
from mtbench_tasks._lesion.warned import heard

UNPACKED = 2**30  # bytes that a zip may unpack to: DDTI as published has 40 MB
SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm", ".nii", ".nii.gz"
)  # fmt: skip
TURNED = "its header turns it (EXIF): it is shown turned, not as it is stored"
LOSSY = ("JPEG", "MPO")  # their zero is not zero
BROKEN = (OSError, SyntaxError, ValueError, EOFError, KeyError, TypeError, struct.error,
          OverflowError, Pil.DecompressionBombError)  # fmt: skip
"""What `decoded` raises on a broken image."""

_FORMATS = ("PNG", "JPEG", "TIFF", "BMP")  # no other: Pillow gives EPS to Ghostscript to run
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0  # a TIFF's tag
_ORIENTATION, _UPRIGHT, _SWAPPED = 274, 1, 5  # EXIF's, and a TIFF's; rows become columns from 5 on

Kind = Literal["photo", "dicom", "nifti"]


@dataclass(frozen=True)
class ImageFile(Told):
    """An image that is read when it is asked for: what was scanned of it.

    Attributes:
        path: the file.
        frame: which one is meant, from 1; None where there is one.
    """

    path: Path
    frame: int | None = None

    def look(self) -> tuple[Image, list[str]]:
        """Return the grey values of what was scanned, (H, W), and what is odd about the file."""
        found = read_picture(self.path, self.frame)
        pixels = np.ascontiguousarray(found.pixels[found.scanned])
        return pixels, [f"{self.path}: {text}" for text in found.told]


@dataclass(frozen=True)
class MaskFile(Told):
    """A mask that is read when it is asked for, as it lies on what was scanned of its image.

    Attributes:
        path: the file.
        image: that of its image.
        value: which of its values is the lesion; None where there is one.
    """

    path: Path
    image: Path
    value: int | None = None

    def look(self) -> tuple[Mask, list[str]]:
        """Return where the lesion is, (H, W), and what is odd about the file."""
        mask, told = read_mask(self.path, self.image, self.value)
        return mask, [f"{self.path}: {text}" for text in told]


def read_picture(path: Path, frame: int | None = None) -> Picture:
    """Return an image file as an upright grey picture of square pixels.

    Args:
        path: the file.
        frame: which one is meant, from 1; None where there is one.

    Raises:
        DataError: it is absent, broken, or not one 2-D image.
    """
    with _of(path):
        return picture(_load(path, frame))


def read_mask(
    path: Path, image: Path | None = None, value: int | None = None
) -> tuple[Mask, list[str]]:
    """Return where a mask file marks the lesion, (H, W), and what is odd about it.

    It is brought to its image's upright, square pixels, and to the part of it that was scanned.

    Args:
        path: the mask.
        image: the file that it was drawn on.
        value: which of its values is the lesion; None where there is one.

    Raises:
        DataError: it is absent, broken, no mask, or cannot be brought onto its image.
    """
    lies = None if image is None else read_geometry(image)
    with _of(path):
        stored = _load(path, None)
        values = stored.values
        if stored.geometry.pose is not None and lies is not None and lies.pose is not None:
            values = nifti.aligned(values, stored.geometry.pose, lies.pose)
        mask, told = outlined(values, lossy=stored.lossy, value=value)
    if lies is None:
        return mask, told if image is None else [*told, *_unturned(path, image, mask)]
    height, width = lies.squared
    if mask.shape == lies.shape != lies.squared:
        flat = Pil.fromarray(mask.astype(np.uint8) * 255)
        mask = np.asarray(flat.resize((width, height), Pil.Resampling.BILINEAR)) > 127
    return (mask[lies.scanned] if mask.shape == lies.squared else mask), told


def read_geometry(path: Path) -> Geometry | None:
    """Return how a file's pixels lie, from its header; None where that says nothing of it.

    Raises:
        DataError: it is absent or broken.
    """
    with _of(path):
        kind = _kind(path)
        if kind == "photo":
            return None
        return dicom.inspect(path) if kind == "dicom" else nifti.inspect(path)


def frames(path: Path) -> int:
    """Return how many frames a file has.

    Raises:
        DataError: it is absent or broken.
    """
    with _of(path):
        return dicom.frames(path) if _kind(path) == "dicom" else 1


def fingerprint(index: object, files: Sequence[Path], progress: Progress) -> str:
    """Return a hash of files' content, read in pieces, and of what else is known of them.

    A file that cannot be read counts as empty: whoever reads it will say so.

    Args:
        index: JSON-able: names, labels, versions.
        files: in a fixed order.
        progress: is told how many files have been read.
    """
    content = hashlib.sha256(json.dumps(index).encode())
    for done, file in enumerate(files, 1):
        try:
            with regular(file).open("rb") as stream:
                content.update(hashlib.file_digest(stream, "sha256").digest())
        except (OSError, DataError):
            content.update(bytes(32))
        progress("reading files", done, len(files))
    return content.hexdigest()


def by_name(root: Path, places: Iterable[str]) -> dict[str, str]:
    """Return files' places by the files' names.

    Args:
        root: the folder or zip that they lie in.
        places: within it, parted by slashes.

    Raises:
        DataError: two have one name, and which of them is meant nobody knows.
    """
    found: dict[str, str] = {}
    for place in places:
        name = PurePosixPath(place).name
        other = found.setdefault(name, place)
        if other != place and (root / other).resolve() != (root / place).resolve():
            raise DataError(
                f"{root}: must hold a file of one name once, found {other} and {place}: remove "
                "one of them"
            )
    return found


def is_image(path: Path) -> bool:
    """Return whether a file is an image, broken ones among them, by its name or DICOM's mark."""
    if path.name.lower().endswith(SUFFIXES):
        return True
    try:
        with regular(path).open("rb") as file:
            return dicom.marked(file.read(132)) and path.name != "DICOMDIR"
    except (OSError, DataError):
        return False


def must_unpack(path: Path) -> None:
    """Check what a zip unpacks to, before it is unpacked.

    Raises:
        DataError: too much.
        zipfile.BadZipFile: it is none.
    """
    with zipfile.ZipFile(regular(path)) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > UNPACKED:
        raise DataError(
            f"{path}: unpacks to {size >> 20} MiB, more than {UNPACKED >> 20}: it is broken, or a "
            "trap"
        )


@contextmanager
def decoded(source: Path | IO[bytes]) -> Iterator[Pil.Image]:
    """Open and decode one image by Pillow, upright as its EXIF says.

    Raises:
        DataError: it has several frames.
        BROKEN: it is none, or too large.
    """
    with heard() as said, Pil.open(source, formats=_FORMATS) as found:
        if found.width * found.height > LARGEST:
            raise ValueError(f"{found.width} x {found.height} pixels are too many")
        if (count := getattr(found, "n_frames", 1)) > 1:
            raise DataError(
                f"has {count} frames, and one image is needed: save the one that is meant, and "
                "colours as one frame"
            )
        orientation = _orientation(found)  # after loading, Pillow has turned a TIFF
        found.load()
        # Pillow skips tags that are broken; without them a TIFF's pixels are other pixels.
        skipped = [text for text in said if re.match("Tag data larger|Corrupt EXIF", text)]
        if found.format == "TIFF" and skipped:
            raise ValueError(skipped[0])
        if found.format != "TIFF":  # which Pillow turns by itself
            orientation = _orientation(found)  # a PNG's may stand behind its pixels
            ImageOps.exif_transpose(found, in_place=True)
        found.info[TURNED] = orientation not in (None, _UPRIGHT)
        yield found


def _orientation(found: Pil.Image) -> int | None:
    """Return how a header says that pixels are turned, 1 to 8; None where it does not say."""
    if found.format == "PNG" and "exif" not in found.info:
        return None  # to look behind its pixels, Pillow would decode them
    said = found.getexif().get(_ORIENTATION)
    return said if said in range(1, 9) else None  # a broken one may be a text


def _unturned(path: Path, image: Path, mask: Mask) -> list[str]:
    """Return what is odd where an image's header turns it, and its mask's says nothing, or a line.

    One that was drawn on the pixels as they are stored has the right size all the same, unless the
    turn swaps the sides of what is no square.
    """
    said = []
    for file in (image, path):
        try:
            with heard(), Pil.open(file, formats=_FORMATS) as found:
                said.append(_orientation(found))
        except BROKEN:  # DICOM and NIfTI too, which have other headers
            said.append(None)
    turned, own = said
    if own is not None or turned in (None, _UPRIGHT):
        return []
    if turned >= _SWAPPED and mask.shape[0] != mask.shape[1]:
        return []
    return [
        "the header (EXIF) of its image turns the image, and the mask has no such header: check "
        "that it was drawn on the image as shown, not as stored"
    ]


@contextmanager
def _of(path: Path) -> Iterator[None]:
    """Say of which file an error is."""
    try:
        yield
    except DataError as error:
        text = str(error)
        raise DataError(text if text.startswith(str(path)) else f"{path}: {text}") from error


def _kind(path: Path) -> Kind:
    """Return which library reads a file."""
    try:
        with regular(path).open("rb") as file:
            head = file.read(132)
    except FileNotFoundError:
        raise DataError(f"{path}: no such image") from None
    except OSError as error:
        raise DataError(f"{path}: does not decode as an image ({error.strerror})") from error
    if dicom.marked(head) or path.name.lower().endswith(".dcm"):
        return "dicom"
    return "nifti" if path.name.lower().endswith((".nii", ".nii.gz")) else "photo"


def _load(path: Path, frame: int | None) -> Stored:
    """Decode a file."""
    kind = _kind(path)
    if kind == "dicom":
        count = dicom.frames(path)
        if frame is None and count > 1:
            raise DataError(
                f"has {count} frames; say which one is meant (1 to {count}) in the manifest's "
                "column frame; a mask is to have one"
            )
        number = 1 if frame is None else frame
        if not 1 <= number <= count:
            raise DataError(f"has no frame {number}: it has {count}")
        return dicom.load(path, number)
    if frame is not None and frame != 1:
        raise DataError(f"has no frame {frame}: it has one")
    return nifti.load(path) if kind == "nifti" else _photo(path)


def _photo(path: Path) -> Stored:
    """Decode a file by Pillow."""
    try:
        # A stream: of a path, Pillow maps TIFFs of orientation 5 to 8 into memory the wrong way.
        with path.open("rb") as stream, decoded(stream) as found:
            told = (TURNED,) * found.info[TURNED] + _density(found)
            lies = geometry((found.height, found.width), None, told=told)
            lossy = found.format in LOSSY
            if found.mode[0] in "IF":
                values = np.asarray(found)
                inverse = found.getexif().get(_PHOTOMETRIC) == _WHITE_IS_ZERO
                if inverse and values.dtype.kind in "iu":
                    values = np.iinfo(values.dtype).max - values
                return Stored(values, lies, lossy=lossy)
            if found.mode in ("1", "L"):
                return Stored(np.asarray(found.convert("L")), lies, lossy=lossy)
            if found.mode == "P" and len(found.getcolors() or "") > 1:
                colours = np.asarray(found.convert("RGB"))
                if (colours == colours[0, 0]).all():
                    raise DataError("its palette makes all of its values one colour: save it grey")
            clear = found.mode in ("LA", "PA", "RGBA") or "transparency" in found.info
            mode = "RGBA" if clear else "RGB"  # a copy of a large image is not made for nothing
            same = found if found.mode == mode else found.convert(mode)
            return Stored(np.asarray(same), lies, lossy=lossy)
    except BROKEN as error:
        raise DataError(
            f"does not decode as an image ({_line(error)}); give PNG, JPEG, TIFF, BMP, DICOM or "
            "NIfTI files"
        ) from error


def _density(found: Pil.Image) -> tuple[str, ...]:
    """Return what is odd about a print resolution: nothing, or a line."""
    said = found.info.get("aspect") or found.info.get("dpi") or (1, 1)
    try:
        across, down = (float(side) for side in said)
        odd = abs(across / down - 1) > SQUARE
    except (TypeError, ValueError, ZeroDivisionError):
        return ()
    if not odd:
        return ()
    return (
        f"says that its pixels are not square ({across:g} x {down:g}); they are taken as square",
    )


def _line(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # whose words name an object
        return "its content is of no known format"
    return (str(error).strip() or type(error).__name__).splitlines()[-1]
