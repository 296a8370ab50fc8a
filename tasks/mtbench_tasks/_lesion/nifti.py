"""NIfTI files, by SimpleITK.

A NIfTI's header says how rows and columns lie in the room, which a single ultrasound image seldom
knows: it says what its writer put. nibabel's identity (+x, +y) and ITK's (-x, -y) both come with
rows counted downwards and columns to the right, and are taken as they are stored; where only one of
the axes is turned, as dcm2niix and flips write it, the rows are stored upwards and are turned. That
is our convention and not the format's; what the header does settle is how image and mask lie to
each other (`aligned`).
"""

import gzip
import math
import re
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from mtbench.errors import DataError
from mtbench_tasks._lesion.pixels import LARGEST, Geometry, Pose, Stored, geometry

if TYPE_CHECKING:
    import SimpleITK as sitk  # noqa: N813

STRAIGHT = 0.02  # of a direction's cosines: what is further off an axis is oblique
NEAR = 0.6  # pixels: so far two centres may lie apart
SAME = 0.01  # of a picture's height and width in millimetres: what differs by more is another


def inspect(path: Path) -> Geometry:
    """Return how a file's pixels lie, from its header.

    Raises:
        DataError: it is no NIfTI, or not one 2-D image.
    """
    return _geometry(_header(path))


def load(path: Path) -> Stored:
    """Return the values of one 2-D image, turned as they are to be shown.

    Raises:
        DataError: it is no NIfTI, is broken, or not one 2-D image.
    """
    import SimpleITK as sitk  # noqa: N813

    reader = _header(path)
    try:
        image: sitk.Image = reader.Execute()
    except RuntimeError as error:
        raise _unreadable(error) from error
    width, height = image.GetSize()[:2]
    channels = image.GetNumberOfComponentsPerPixel()
    values: NDArray[Any] = sitk.GetArrayFromImage(image)
    values = values.reshape((height, width) if channels == 1 else (height, width, channels))
    if channels > 1 and (values.dtype != np.uint8 or channels not in (3, 4)):
        raise DataError(f"has {channels} channels of {values.dtype}; grey, or 8-bit RGB, is needed")
    swapped, upwards = _turns(reader)
    values = values.swapaxes(0, 1) if swapped else values
    return Stored(np.ascontiguousarray(values[::-1] if upwards else values), _geometry(reader))


def aligned(mask: NDArray[Any], mine: Pose, image: Pose) -> NDArray[Any]:
    """Return a mask's values as they lie on the image, by what both headers say.

    Raises:
        DataError: the two lie in different places, at an angle, or are not of one size.
    """
    turn = np.array([[a @ b for b in (mine.down, mine.right)] for a in (image.down, image.right)])
    if not np.allclose(np.abs(turn), np.round(np.abs(turn)), atol=STRAIGHT) or not np.allclose(
        np.abs(np.linalg.det(turn)), 1, atol=0.1
    ):
        raise DataError("lies at an angle to its image; resample it to the image's grid")
    size = np.abs(turn) @ mine.size
    if not np.allclose(size, image.size, rtol=SAME, atol=0):
        own, its = (" x ".join(f"{side:.4g}" for side in each) for each in (size, image.size))
        raise DataError(
            f"its header makes it {own} mm, and its image is {its} mm; write both with one affine"
        )
    apart = float(np.linalg.norm(mine.centre - image.centre))
    if apart > NEAR * image.step:
        raise DataError(
            f"its header puts it {apart:.3g} mm away from its image; write both with one affine"
        )
    if abs(turn[0, 1]) > 0.5:
        mask, turn = mask.swapaxes(0, 1), turn[:, ::-1]
    down, right = np.sign(np.diag(turn)).astype(int)
    return np.ascontiguousarray(mask[::down, ::right])


def _header(path: Path) -> "sitk.ImageFileReader":
    """Return a reader that has read the header of one 2-D image."""
    import SimpleITK as sitk  # noqa: N813

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("NiftiImageIO")
    try:
        str(path).encode()
    except UnicodeEncodeError as error:  # of which SimpleITK ends the process
        raise DataError("its name is no UTF-8, as NIfTI's reader needs it: rename it") from error
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _unreadable(error) from error
    size = reader.GetSize()
    if len(size) < 2 or max(size[2:], default=1) > 1 or math.prod(size) > LARGEST:
        raise DataError(f"has {' x '.join(map(str, size))} pixels; one 2-D image is needed")
    _must_be_whole(path, reader)
    return reader


def _must_be_whole(path: Path, header: "sitk.ImageFileReader") -> None:
    """Refuse a file that was cut off: the library fills up what is missing."""
    start, bits = (float(header.GetMetaData(key)) for key in ("vox_offset", "bitpix"))
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"  # whatever it is called
        with (gzip.open if packed else open)(path, "rb") as file:
            file.seek(int(start + math.prod(header.GetSize()) * bits / 8) - 1)
            whole = len(file.read(1)) == 1
    except (OSError, EOFError, ValueError, OverflowError, zlib.error):
        whole = False
    if not whole:
        raise DataError("does not decode as NIfTI (it is cut off)")


def _axes(header: "sitk.ImageFileReader") -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the directions, (3,), of the first and the second axis of the file."""
    size = len(header.GetSize())
    matrix = np.zeros((3, 3))
    side = min(size, 3)
    matrix[:side, :side] = np.array(header.GetDirection()).reshape(size, size)[:side, :side]
    return matrix[:, 0], matrix[:, 1]


def _turns(header: "sitk.ImageFileReader") -> tuple[bool, bool]:
    """Return whether axes are stored swapped, and whether rows upwards.

    A plane that is not the room's x-y has no up and down of its own: it is taken as stored.
    """
    first, second = (axis[:2] for axis in _axes(header))
    if np.linalg.norm(first) < 0.5 or np.linalg.norm(second) < 0.5:
        return False, False
    swapped = abs(first[1]) > abs(first[0])
    across, down = (second[0], first[1]) if swapped else (first[0], second[1])
    return swapped, across * down < 0


def _disagree(header: "sitk.ImageFileReader") -> bool:
    """Return whether the header's two ways to say directions, where both are used, differ."""

    def number(key: str) -> float:
        return float(header.GetMetaData(key)) if header.HasMetaDataKey(key) else 0.0

    if not (number("qform_code") and number("sform_code")):
        return False
    b, c, d = (number(f"quatern_{axis}") for axis in "bcd")
    a = math.sqrt(max(0.0, 1 - b * b - c * c - d * d))
    by_qform = Rotation.from_quat([b, c, d, a]).as_matrix()[:, :2]  # of columns and of rows
    rows = (header.GetMetaData(f"srow_{axis}").split()[:2] for axis in "xyz")
    by_sform = np.array([[float(value) for value in row] for row in rows])
    lengths = np.linalg.norm(by_sform, axis=0)
    return bool(lengths.all()) and not np.allclose(by_sform / lengths, by_qform, atol=STRAIGHT)


def _geometry(header: "sitk.ImageFileReader") -> Geometry:
    first, second = _axes(header)
    width, height = header.GetSize()[:2]
    across, down = header.GetSpacing()[:2]
    origin = np.zeros(3)
    origin[: len(header.GetOrigin()[:3])] = header.GetOrigin()[:3]
    centre = origin + first * across * (width - 1) / 2 + second * down * (height - 1) / 2
    swapped, upwards = _turns(header)
    if swapped:
        first, second, width, height, across, down = second, first, height, width, down, across
    told = [f"its {what}" for what, is_so in (
        ("header turns its rows: it is shown upside down to how it is stored", upwards),
        ("header swaps its axes: it is shown turned to how it is stored", swapped),
    ) if is_so]  # fmt: skip
    if _disagree(header):
        told.append("its header says two directions (qform and sform): look at it as it is shown")
    size = np.array([height * down, width * across])
    pose = Pose(first, -second if upwards else second, centre, min(across, down), size)
    # 1 x 1 mm is what writers put who do not know.
    spacing = None if across == down == 1 else (float(down), float(across))
    return geometry((height, width), spacing, pose=pose, told=tuple(told))


def _unreadable(error: RuntimeError) -> DataError:
    """Say the last line of what SimpleITK says, which has what is wrong."""
    last = (str(error).strip() or type(error).__name__).splitlines()[-1]
    why = re.sub(r"^ITK ERROR: \w+\(0x\w+\): ", "", last)
    return DataError(f"does not decode as NIfTI ({why})")
