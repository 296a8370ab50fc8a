"""Reading a new image with a trained model: mask, category, axes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pil
from PIL import ImageDraw
from scipy.spatial import ConvexHull, QhullError
from scipy.spatial.distance import cdist
from skimage.measure import find_contours, label

from mtbench.errors import DataError
from mtbench.task import Predictor
from mtbench_tasks._lesion.cases import Image, Mask, View
from mtbench_tasks._lesion.grid import Placement, to_input

CONTOUR = (255, 196, 0)


def load_image(path: Path) -> Image:
    """Return a file's grey values.

    Raises:
        DataError: there is no such file, it does not decode, or it has more than 8 bits.
    """
    try:
        with Pil.open(path) as picture:
            if picture.mode[0] in "IF":  # PIL would clip them to white
                raise DataError(
                    f"{path}: has {picture.mode} pixels of unknown range; save it with 8 bits"
                )
            return np.asarray(picture.convert("L"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such image") from None
    except (OSError, ValueError, Pil.DecompressionBombError) as error:
        raise DataError(
            f"{path}: does not decode as an image ({error}); give PNG, JPEG, TIFF or BMP files"
        ) from error


def axes(mask: Mask) -> tuple[float, float]:
    """Return the long and the short axis of a mask in pixels.

    The long axis is the largest distance between two points of the outline, the short axis the
    extent perpendicular to it; each pixel counts with its full side.

    >>> axes(np.ones((3, 7), dtype=bool))
    (7.6, 5.5)
    """
    rows, columns = np.nonzero(mask)
    corners = np.concatenate([np.stack([rows + i, columns + j], 1) for i in (0, 1) for j in (0, 1)])
    try:
        corners = corners[ConvexHull(corners).vertices]
    except QhullError:
        return 0.0, 0.0
    distances = cdist(corners, corners)
    a, b = np.unravel_index(distances.argmax(), distances.shape)
    along = (corners[b] - corners[a]) / distances[a, b]
    across = corners @ np.array([-along[1], along[0]])
    return round(float(distances[a, b]), 1), round(float(np.ptp(across)), 1)


def read(
    predictor: Predictor,
    image: Image,
    path: Path,
    folder: Path,
    size: int,
    grades: Sequence[str],
    spacing: float | None,
    views_of: Callable[[Image], Sequence[View]],
) -> dict[str, Any]:
    """Read one image, each of its views by itself, as in training.

    Writes ``NAME_mask.png`` (0 or 255, the image's own resolution) and ``NAME_overlay.png``.

    Returns:
        The files and, per view, its box (left, top, right, bottom), the category, the probability
        of each, and the axes of the largest segmented region.
    """
    whole = np.zeros(image.shape, dtype=bool)
    views = []
    for box in views_of(image):
        mask, probabilities = _predict(predictor, image[box], size)
        whole[box] = mask
        long_axis, short_axis = axes(mask) if mask.any() else (0.0, 0.0)
        unit, scale = ("px", 1.0) if spacing is None else ("mm", spacing)
        rows, columns = box
        views.append(
            {
                "box": [columns.start, rows.start, columns.stop, rows.stop],
                "category": grades[int(probabilities.argmax())],
                "probabilities": {
                    g: round(float(p), 4) for g, p in zip(grades, probabilities, strict=True)
                },
                f"long_axis_{unit}": round(long_axis * scale, 2),
                f"short_axis_{unit}": round(short_axis * scale, 2),
            }
        )
    mask_file, overlay_file = folder / f"{path.stem}_mask.png", folder / f"{path.stem}_overlay.png"
    Pil.fromarray(whole.astype(np.uint8) * 255).save(mask_file)
    _overlay(image, whole, views).save(overlay_file)
    return {
        "image": str(path), "mask": str(mask_file), "overlay": str(overlay_file), "views": views
    }  # fmt: skip


def _predict(predictor: Predictor, view: Image, size: int) -> tuple[Mask, NDArray[np.float32]]:
    """Return the largest segmented region at the view's resolution, and the probabilities."""
    logits, risk = predictor(to_input(view, size)[None])
    plane = Placement((view.shape[0], view.shape[1]), size).from_grid(logits[0, 0].float().cpu())
    regions = label(plane.numpy() > 0)
    sizes = np.bincount(regions.ravel())[1:]
    mask = regions == sizes.argmax() + 1 if len(sizes) else np.zeros(view.shape, dtype=bool)
    return mask, risk.logits[0].float().softmax(0).cpu().numpy()


def _overlay(image: Image, mask: Mask, views: Sequence[dict[str, Any]]) -> Pil.Image:
    picture = Pil.fromarray(image).convert("RGB")
    draw = ImageDraw.Draw(picture)
    for contour in find_contours(np.pad(mask, 1).astype(float), 0.5):
        draw.line([(x - 1, y - 1) for y, x in contour], fill=CONTOUR, width=2)
    for view in views:
        left, top, *_ = view["box"]
        chance = view["probabilities"][view["category"]]
        text = f"{view['category']}  {chance:.0%}"
        area = draw.textbbox((left + 4, top + 4), text)
        draw.rectangle((area[0] - 2, area[1] - 2, area[2] + 2, area[3] + 2), fill=(0, 0, 0))
        draw.text((left + 4, top + 4), text, fill=CONTOUR)
    return picture
