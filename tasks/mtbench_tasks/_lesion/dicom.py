"""DICOM files, by pydicom, with GDCM as decoder of what it does not decode itself."""

import math
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mtbench.errors import DataError
from mtbench_tasks._lesion.cases import View
from mtbench_tasks._lesion.categories import said
from mtbench_tasks._lesion.pixels import LARGEST, Geometry, Stored, geometry
from mtbench_tasks._lesion.warned import heard

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.uid import UID

CENTIMETRES = 3  # of Physical Units X/Y Direction, PS3.3 C.8.5.5.1.15
PLANE = 1  # of Region Spatial Format: 2-D; others are M-mode, spectra, graphs
SPACINGS = "PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"
MODALITIES = "", "US", "IVUS", "CD", "DD", "EC", "OT", "SC"
"""Ultrasound, by names of today and retired ones, or what says nothing of it."""

AGREE = 0.02  # share by which spacings of one image may differ
LEADING = {b"\x02\0", b"\x08\0"}  # group of the first element of a file without preamble


def marked(head: bytes) -> bool:
    """Return whether a file that begins so (132 bytes) is DICOM, with or without its preamble."""
    if head[128:132] == b"DICM":
        return True
    # Elements 0000 to 0018 of group 2 or 8; either a value representation or a short length.
    explicit = head[4:6].isalpha() and head[4:6].isupper()
    implicit = head[5:8] == b"\0\0\0"
    return head[:2] in LEADING and head[2:4] <= b"\x18\0" and (explicit or implicit)


def header(path: Path) -> "Dataset":
    """Return a file's header.

    Raises:
        DataError: it is no DICOM image.
    """
    return _open(path, header=True)


def inspect(path: Path) -> Geometry:
    """Return how a file's pixels lie, from its header.

    Raises:
        DataError: it is no DICOM image.
    """
    with heard(), decoding():
        return _described(_open(path, header=True))


def frames(path: Path) -> int:
    """Return how many frames a file has, from its header.

    Raises:
        DataError: it is no DICOM image.
    """
    with heard(), decoding():
        return max(1, int(_open(path, header=True).get("NumberOfFrames") or 1))


def load(path: Path, frame: int) -> Stored:
    """Return a frame, counted from 1, with its lookup tables or its window.

    Raises:
        DataError: it is no DICOM image, is broken, or has no such frame.
    """
    from pydicom.pixels.processing import apply_color_lut
    from pydicom.pixels.utils import pixel_array

    with heard(), decoding():  # pydicom mends what it warns of
        data = _open(path, header=False)
        found = _described(data)
        values = pixel_array(data, index=frame - 1)
        if "palette" in _text(data, "PhotometricInterpretation").casefold():
            values = apply_color_lut(values, data)
        if values.ndim == 3:
            return Stored(_eight_bits(values), found)
        return _grey(data, values, found)


@contextmanager
def decoding() -> Iterator[None]:
    """Make one line of whatever a broken file raises.

    pydicom reads a value when it is asked for: each of them may raise, and not the file alone.

    Raises:
        DataError: anything was raised.
    """
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # of four decoders, of tables that do not fit, of any value
        raise DataError(f"does not decode as DICOM ({_line(error)})") from error


def _open(path: Path, *, header: bool) -> "Dataset":
    import pydicom  # takes a moment: not everybody reads DICOM

    with heard(), decoding():
        _must_not_be_deflated(path)
        # force: the preamble may be absent.
        data = pydicom.dcmread(path, stop_before_pixels=header, force=True)
        size = data.get("Rows"), data.get("Columns")
        if not hasattr(data.file_meta, "TransferSyntaxUID"):
            data.file_meta.TransferSyntaxUID = _syntax(data)
    if not all(isinstance(side, int) and side > 0 for side in size):
        raise DataError("does not decode as DICOM (it holds no image)")
    if math.prod(size) > LARGEST:
        raise DataError(f"{size[1]} x {size[0]} pixels are too many")
    return data


def _must_not_be_deflated(path: Path) -> None:
    """Refuse a file that pydicom would unpack whole, to whatever size, for its header alone.

    Raises:
        DataError: it is deflated.
    """
    from pydicom.filereader import read_dataset, read_preamble
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    with path.open("rb") as file:
        read_preamble(file, force=True)
        meta = read_dataset(file, False, True, stop_when=lambda tag, _, __: tag >> 16 != 2)
    if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        raise DataError(
            "is deflated as a whole, and may unpack to any size: save it in another transfer "
            "syntax, such as Explicit VR Little Endian"
        )


def _syntax(data: "Dataset") -> "UID":
    """Return the transfer syntax of a file that does not name it; compressed ones always do."""
    from pydicom import uid

    if data.original_encoding[0]:
        return uid.ImplicitVRLittleEndian
    little = data.original_encoding[1]
    return uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian


class _Region(NamedTuple):
    view: View
    spacing: tuple[float, float] | None


def _described(data: "Dataset") -> Geometry:
    """Return how the pixels lie, and whose they are."""
    patient = said(str(data.get("PatientID") or ""))  # it is unique within its issuer
    issuer = said(str(data.get("IssuerOfPatientID") or ""))
    whose = " of ".join(filter(None, (patient, patient and issuer)))
    return replace(_geometry(data), patient=whose)


def _geometry(data: "Dataset") -> Geometry:
    shape = int(data.Rows), int(data.Columns)
    told: list[str] = []
    if str(data.get("BurnedInAnnotation", "")).strip().upper() == "YES":
        told.append("its header says that text is burnt into the pixels: it may name the patient")
    if (kind := _text(data, "Modality")) not in MODALITIES:
        told.append(f"its header says that it is {kind}, and no ultrasound")
    regions = _regions(data, shape, told)
    calibrated = [region.spacing for region in regions if region.spacing is not None]
    spacing = calibrated[0] if calibrated else None
    if regions and not calibrated and not _pixel_spacing(data, []):
        told.append("its regions of ultrasound are not in centimetres: they give no spacing")
    if not all(np.allclose(other, calibrated[0], rtol=AGREE) for other in calibrated):
        told.append("its regions of ultrasound have different spacings: none is taken")
        spacing = None
    elif said := _pixel_spacing(data, told):
        if spacing is None:
            spacing = said
        elif not np.allclose(said, spacing, rtol=AGREE):
            told.append(
                f"its regions of ultrasound say {_by(spacing)} mm per pixel, its pixel spacing "
                f"is {_by(said)}: the regions' is taken"
            )
    if _text(data, "PresentationLUTShape") == "INVERSE" and (
        _text(data, "PhotometricInterpretation") == "MONOCHROME2"
    ):
        told.append("its header says that it is inverted and that it is not: it is taken as not")
    ratio = _numbers(data.get("PixelAspectRatio"))
    if ratio is None and data.get("PixelAspectRatio"):
        told.append(f"its aspect ratio is {data.PixelAspectRatio}, no two numbers: not taken")
    if ratio:
        if spacing is None:
            return geometry(shape, None, ratio[0] / ratio[1], _around(regions), told=tuple(told))
        if not np.isclose(ratio[0] / ratio[1], spacing[0] / spacing[1], rtol=AGREE):
            told.append(
                f"its pixels are {ratio[0]:g} : {ratio[1]:g} by its aspect ratio, and "
                f"{_by(spacing)} mm by its spacing: the spacing is taken"
            )
    return geometry(shape, spacing, 1.0, _around(regions), told=tuple(told))


def _regions(data: "Dataset", shape: tuple[int, int], told: list[str]) -> list[_Region]:
    """Return the 2-D regions of (0018,6011); `told` gets what is odd about them."""
    found = []
    for item in data.get("SequenceOfUltrasoundRegions") or ():
        corners = [item.get(f"RegionLocation{c}") for c in ("MinX0", "MinY0", "MaxX1", "MaxY1")]
        if item.get("RegionSpatialFormat") != PLANE or not all(isinstance(c, int) for c in corners):
            continue
        left, top, right, bottom = corners
        # The last pixel belongs to the region; writers differ.
        if not (0 <= left < right <= shape[1] and 0 <= top < bottom <= shape[0]):
            told.append(
                f"its region of ultrasound, from {left}, {top} to {right}, {bottom}, is not within "
                "the image: the header is of another, so neither sector nor spacing is taken"
            )
            return []
        steps = [item.get(f"PhysicalDelta{axis}") for axis in "YX"]
        units = [item.get(f"PhysicalUnits{axis}Direction") for axis in "YX"]  # or lists of such
        deltas = _numbers(steps)
        known = units == [CENTIMETRES] * 2 and deltas is not None
        view = slice(top, min(bottom + 1, shape[0])), slice(left, min(right + 1, shape[1]))
        found.append(_Region(view, (10 * deltas[0], 10 * deltas[1]) if known and deltas else None))
    return found


def _around(regions: Sequence[_Region]) -> View | None:
    """Return what holds all regions."""
    if not regions:
        return None
    rows, columns = ([region.view[axis] for region in regions] for axis in (0, 1))
    return (
        slice(min(r.start for r in rows), max(r.stop for r in rows)),
        slice(min(c.start for c in columns), max(c.stop for c in columns)),
    )


def _pixel_spacing(data: "Dataset", told: list[str]) -> tuple[float, float] | None:
    """Return millimetres down and across; 1 x 1 is what writers put who do not know."""
    shared = data.get("SharedFunctionalGroupsSequence")
    measures = shared[0].get("PixelMeasuresSequence") if shared else None
    places = [data.get(name) for name in SPACINGS]
    places += [measures[0].get("PixelSpacing")] if measures else []
    told += [
        f"its pixel spacing is {place}, no two numbers above 0: not taken"
        for place in places
        if place and not _numbers(place)
    ]
    found = [said for said in map(_numbers, places) if said and said != (1, 1)]
    if not all(np.allclose(other, found[0], rtol=AGREE) for other in found):
        by = " and ".join(_by(said) for said in found)
        told.append(f"its header says {by} mm per pixel: the first is taken")
    return found[0] if found else None


def _numbers(said: Any) -> tuple[float, float] | None:
    """Return two positive numbers, None where there are no such."""
    try:
        first, second = (abs(_number(value)) for value in said)
    except (TypeError, ValueError):
        return None
    return (first, second) if 0 < first < math.inf and 0 < second < math.inf else None


def _grey(data: "Dataset", values: NDArray[Any], found: Geometry) -> Stored:
    """Return grey values with how they are to be shown: PS3.3 C.11.1 and C.11.2."""
    from pydicom.pixels import processing

    hidden = _padding(data, values)
    inverse = _text(data, "PhotometricInterpretation") == "MONOCHROME1"
    shown: tuple[float, float] | None = None
    width, centre = _first(data, "WindowWidth"), _first(data, "WindowCenter")
    values = processing.apply_modality_lut(values, data)
    if lut := data.get("VOILUTSequence"):
        bits = int(lut[0].LUTDescriptor[2])
        if bits == 8:
            _widen(lut[0])
        values = np.rint(values).astype(np.int32) if values.dtype.kind == "f" else values
        values, shown = processing.apply_voi(values, data), (0.0, 2.0**bits - 1)
    elif width > 1 and math.isfinite(width + centre):
        data.WindowWidth, data.WindowCenter = width, centre
        ends = np.array([-1e12, 1e12])
        low, high = processing.apply_windowing(ends, data)
        values, shown = processing.apply_windowing(values, data), (float(low), float(high))
    return Stored(values, found, shown, hidden, inverse)


def _widen(table: "Dataset") -> None:
    """Give a table of 8 bits an entry, as PS3.3 C.11.2.1.1 says, the 16 that pydicom reads."""
    entries, said = int(table.LUTDescriptor[0]) or 2**16, table.get("LUTData")
    if isinstance(said, bytes) and len(said) < 2 * entries:
        table.LUTData = np.frombuffer(said, np.uint8)[:entries].astype(np.uint16).tobytes()


def _padding(data: "Dataset", values: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Return where stored values are padding: (0028,0120), to (0028,0121) if it is there."""
    first, last = data.get("PixelPaddingValue"), data.get("PixelPaddingRangeLimit")
    if not isinstance(first, int):
        return None
    last = last if isinstance(last, int) else first
    hidden: NDArray[np.bool_] = (values >= min(first, last)) & (values <= max(first, last))
    return None if hidden.all() else hidden


def _eight_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Return colours as bytes."""
    if values.dtype == np.uint8:
        return values
    if values.dtype != np.uint16:
        raise DataError(f"has colours of {values.dtype}; 8 or 16 bits are needed")
    shift = 8 if values.max() > 255 else 0
    return np.asarray(values >> shift).astype(np.uint8)


def _first(data: "Dataset", name: str) -> float:
    """Return an entry's first number, NaN where there is none."""
    said = data.get(name)
    try:
        return _number(said if isinstance(said, str) or not isinstance(said, Sequence) else said[0])
    except (TypeError, ValueError, IndexError):
        return math.nan


def _number(said: Any) -> float:
    """Return a number; some writers put a comma for the point.

    Raises:
        ValueError: it is none; Python would take 1_2 as 12.
    """
    text = str(said).replace(",", ".")
    if "_" in text:
        raise ValueError(text)
    return float(text)


def _text(data: "Dataset", name: str) -> str:
    return str(data.get(name) or "").strip().upper()


def _by(spacing: tuple[float, float]) -> str:
    return " x ".join(f"{side:.3g}" for side in reversed(spacing))


def _line(error: Exception) -> str:
    """Return the first line of what is wrong, and what it announces, short."""
    first, *more = (str(error).strip() or type(error).__name__).splitlines()
    said = " ".join((first, *(more[:1] if first.endswith(":") else ())))
    return textwrap.shorten(said, 160, placeholder=" ...")
