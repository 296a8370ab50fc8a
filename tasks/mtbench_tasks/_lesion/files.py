"""Image and mask files: PNG, JPEG, TIFF, BMP by Pillow; DICOM and NIfTI by SimpleITK."""

import gzip
import hashlib
import json
import math
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pil

from mtbench.errors import DataError
from mtbench.training.data import regular
from mtbench.training.task import Progress
from mtbench_tasks._lesion.cases import Image, Mask

if TYPE_CHECKING:
    import SimpleITK as sitk  # noqa: N813

LARGEST = 100_000_000  # pixels: a header that promises more is broken, or a trap
UNPACKED = 2**30  # bytes that a zip may unpack to: DDTI as published has 40 MB
RANGE = (0.5, 99.5)  # percentiles: what lies outside is noise, markers, dead pixels
SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm", ".nii", ".nii.gz"
)  # fmt: skip
COLOURED = 32  # grey levels between the channels of a pixel: JPEG's noise is less
LOSSY = ("JPEG", "MPO")  # their zero is not zero: a mask is what exceeds half of 255
BROKEN = (OSError, SyntaxError, ValueError, EOFError, KeyError, TypeError, struct.error,
          OverflowError, Pil.DecompressionBombError)  # fmt: skip
"""What `decoded` raises on a broken image."""

_FORMATS = ("PNG", "JPEG", "TIFF", "BMP")  # no other: Pillow gives EPS to Ghostscript to run


def read_image(path: Path) -> Image:
    """Return the grey values of an image file, (H, W).

    Colour becomes luma; an alpha channel is ignored. Values that are whole numbers from 0 to 255
    stay as they are; others are scaled by the DICOM window, if there is one, else from the 0.5th to
    the 99.5th percentile of the image. DICOM's MONOCHROME1, where 0 is white, is inverted, and its
    window not used. NIfTI's first axis runs along rows, as ITK and most converters write it.

    Raises:
        DataError: it is absent, broken, or not one 2-D image.
    """
    if (kind := _kind(path)) is None:
        with _opened(path) as picture:
            if picture.mode[0] not in "IF":
                return np.asarray(picture.convert("L"))
            return _to_grey(path, np.asarray(picture), None)
    volume = _decode(path, kind)
    values = _pixels(path, volume)
    if values.ndim == 3:
        if values.dtype != np.uint8 or values.shape[2] not in (3, 4):
            raise DataError(
                f"{path}: has {values.shape[2]} channels of {values.dtype}; grey, or 8-bit RGB, is "
                "needed"
            )
        return np.asarray(Pil.fromarray(values[..., :3]).convert("L"))
    return _to_grey(path, values, _window(volume))


def read_mask(path: Path) -> Mask:
    """Return where a mask file is not zero, (H, W).

    In colour any channel counts, unless transparent; in a JPEG, where zero is not kept, what
    exceeds 127.

    Raises:
        DataError: it is absent, broken, not one 2-D image, or marks nothing or everything.
    """
    if (kind := _kind(path)) is None:
        with _opened(path) as picture:
            least = 127 if picture.format in LOSSY else 0
            if picture.mode in ("1", "L") or picture.mode[0] in "IF":
                mask = np.asarray(picture) > least
            else:
                colours = np.asarray(picture.convert("RGBA"))
                mask = (colours[..., :3] > least).any(axis=2) & (colours[..., 3] > 0)
    else:
        values = _pixels(path, _decode(path, kind)) != 0
        mask = values.any(axis=2) if values.ndim == 3 else values
    if mask.all() or not mask.any():
        raise DataError(
            f"{path}: marks {'every' if mask.any() else 'no'} pixel; in a mask what is not zero is "
            "lesion, and an image without a contour has no mask"
        )
    return mask


def read_spacing(path: Path) -> float | None:
    """Return millimetres per pixel as a DICOM's or NIfTI's header says, None where none does.

    1 x 1 mm counts as unknown: it is what writers put there when they do not know.

    Raises:
        DataError: the header cannot be read, or pixels are not square.
    """
    if (kind := _kind(path)) is None:
        return None
    x, y = _header(path, kind).GetSpacing()[:2]
    if not math.isclose(x, y, rel_tol=0.01):
        raise DataError(
            f"{path}: its pixels are {x:.3g} x {y:.3g} mm, but shape is only kept by square ones; "
            "resample image and mask"
        )
    return None if x == 1 else float(x)


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


def colour(path: Path) -> float:
    """Return the share of an image's pixels that are not grey.

    Raises:
        DataError: it is absent, broken, or not one 2-D image.
    """
    if (kind := _kind(path)) is None:
        with _opened(path) as picture:
            if picture.mode in ("1", "L", "LA") or picture.mode[0] in "IF":
                return 0.0
            values = np.asarray(picture.convert("RGB"))
    else:
        values = _pixels(path, _decode(path, kind))
        if values.ndim == 2:
            return 0.0
    return float((np.ptp(values[..., :3], axis=2) > COLOURED).mean())


def is_image(path: Path) -> bool:
    """Return whether a file is an image, broken ones among them, by its name or DICOM's mark."""
    if path.name.lower().endswith(SUFFIXES):
        return True
    try:
        with regular(path).open("rb") as file:
            return file.read(132)[128:] == b"DICM" and path.name != "DICOMDIR"
    except (OSError, DataError):
        return False


def _kind(path: Path) -> str | None:
    """Return SimpleITK's reader for a file, None if it is one for Pillow."""
    try:
        with regular(path).open("rb") as file:
            head = file.read(132)
    except FileNotFoundError:
        raise DataError(f"{path}: no such image") from None
    except OSError as error:
        raise DataError(f"{path}: does not decode as an image ({error.strerror})") from error
    if head[128:] == b"DICM":
        return "GDCMImageIO"
    return "NiftiImageIO" if path.name.lower().endswith((".nii", ".nii.gz")) else None


@contextmanager
def decoded(source: Path | IO[bytes]) -> Iterator[Pil.Image]:
    """Open and decode one image by Pillow.

    Raises:
        BROKEN: it is none, too large, or one of several frames.
    """
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with Pil.open(source, formats=_FORMATS) as picture:
            if picture.width * picture.height > LARGEST:
                raise ValueError(f"{picture.width} x {picture.height} pixels are too many")
            if (frames := getattr(picture, "n_frames", 1)) > 1:
                raise ValueError(f"has {frames} frames; one image is needed")
            picture.load()
            # Pillow skips tags that are broken; without them a TIFF's pixels are other pixels.
            skipped = [w for w in said if re.match("Tag data larger|Corrupt EXIF", str(w.message))]
            if picture.format == "TIFF" and skipped:
                raise ValueError(str(skipped[0].message))
            yield picture


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
def _opened(path: Path) -> Iterator[Pil.Image]:
    """Open a file by Pillow and explain what does not decode."""
    try:
        with decoded(path) as picture:
            yield picture
    except BROKEN as error:
        raise DataError(
            f"{path}: does not decode as an image ({_line(error)}); give PNG, JPEG, TIFF, BMP, "
            "DICOM or NIfTI files"
        ) from error


def _header(path: Path, kind: str) -> "sitk.ImageFileReader":
    """Return a reader that has read the header of one 2-D image.

    GDCM believes the length that a DICOM's element claims, up to 4 GiB, before it finds the file
    too short: a damaged one may cost that much memory for a moment.
    """
    import SimpleITK as sitk  # noqa: N813

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetImageIO(kind)
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _unreadable(path, kind, error) from error
    size = reader.GetSize()
    if len(size) < 2 or max(size[2:], default=1) > 1 or math.prod(size) > LARGEST:
        raise DataError(f"{path}: has {' x '.join(map(str, size))} pixels; one 2-D image is needed")
    if kind == "NiftiImageIO":
        _must_be_whole(path, reader)
    return reader


def _must_be_whole(path: Path, header: "sitk.ImageFileReader") -> None:
    """Refuse a NIfTI that was cut off: the library fills up what is missing."""
    start, bits = (float(header.GetMetaData(key)) for key in ("vox_offset", "bitpix"))
    try:
        with (gzip.open if path.name.lower().endswith(".gz") else open)(path, "rb") as file:
            file.seek(int(start + math.prod(header.GetSize()) * bits / 8) - 1)
            whole = len(file.read(1)) == 1
    except (OSError, EOFError, ValueError, OverflowError, zlib.error):
        whole = False
    if not whole:
        raise DataError(f"{path}: does not decode as NIfTI (it is cut off)")


def _decode(path: Path, kind: str) -> "sitk.Image":
    reader = _header(path, kind)
    try:
        image: sitk.Image = reader.Execute()
    except RuntimeError as error:
        raise _unreadable(path, kind, error) from error
    return image


def _unreadable(path: Path, kind: str, error: RuntimeError) -> DataError:
    form = "DICOM" if kind == "GDCMImageIO" else "NIfTI"
    return DataError(f"{path}: does not decode as {form} ({_line(error)})")


def _line(error: Exception) -> str:
    """Return the last line of an exception's text, which in SimpleITK's says what is wrong."""
    last = (str(error).strip() or type(error).__name__).splitlines()[-1]
    return re.sub(r"^ITK ERROR: \w+\(0x\w+\): ", "", last)


def _pixels(path: Path, volume: "sitk.Image") -> NDArray[Any]:
    """Return the values of one 2-D image, (H, W) or (H, W, C)."""
    import SimpleITK as sitk  # noqa: N813

    width, height = volume.GetSize()[:2]
    channels = volume.GetNumberOfComponentsPerPixel()
    values: NDArray[Any] = sitk.GetArrayFromImage(volume)
    return values.reshape((height, width) if channels == 1 else (height, width, channels))


def _said(volume: "sitk.Image", tag: str) -> str:
    """Return a DICOM entry, empty where there is none."""
    return volume.GetMetaData(tag).strip() if volume.HasMetaDataKey(tag) else ""


def _window(volume: "sitk.Image") -> tuple[float, float] | None:
    """Return the grey values that a DICOM's first window shows as black and as white."""
    if _said(volume, "0028|0004") == "MONOCHROME1":
        return None  # the library has inverted the values, but not the window
    try:
        centre, width = (
            float(_said(volume, tag).split("\\")[0]) for tag in ("0028|1050", "0028|1051")
        )
    except ValueError:
        return None
    low = centre - 0.5 - (width - 1) / 2  # DICOM PS3.3 C.11.2.1.2
    return (low, low + width - 1) if 1 < width < math.inf else None


def _to_grey(path: Path, values: NDArray[Any], window: tuple[float, float] | None) -> Image:
    """Return values as 8 bits."""
    if not np.isfinite(values).all():
        raise DataError(f"{path}: has values that are not finite")
    if window is None:
        if values.min() >= 0 and values.max() <= 255 and (values == np.round(values)).all():
            same: Image = values.astype(np.uint8)
            return same
        low, high = np.percentile(values, RANGE)
    else:
        low, high = window
    scaled = (values.astype(np.float64) - low) / max(high - low, 1e-12)
    grey: Image = np.round(255 * scaled.clip(0, 1)).astype(np.uint8)
    return grey
