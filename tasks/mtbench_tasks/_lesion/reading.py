"""Reading a new image with a trained model: mask, category, measurements."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pil
from PIL import ImageDraw
from scipy.spatial import ConvexHull, QhullError
from scipy.spatial.distance import cdist
from skimage.measure import find_contours, label

from mtbench.training.task import Predictor
from mtbench_tasks._lesion.cases import Image, Mask, View
from mtbench_tasks._lesion.grid import Placement, to_input
from mtbench_tasks._lesion.radiomics import FEATURES, Standardiser, extract

CONTOUR = (255, 196, 0)
COLOURFUL = 0.2  # of the pixels: scanners' marks are less, photographs more
SMALL = 32  # pixels
USE = "Research use only. Not a medical device."


@dataclass(frozen=True)
class Reference:
    """What of training and validation a reading is set against.

    Attributes:
        temperature: the logits are divided by it; None where the model is not calibrated.
        standardise: the training's radiomics, None where they are not known.
    """

    temperature: float | None = None
    standardise: Standardiser | None = None

    @classmethod
    def of(cls, fitted: Mapping[str, Any]) -> Self:
        """Return the reference that `LesionTask.fit` wrote; an empty one where it has not."""
        if not fitted:
            return cls()
        mean, scale = (np.array(fitted["radiomics"][key]) for key in ("mean", "scale"))
        graded = fitted["calibration"]["readings"]
        return cls(
            fitted["calibration"]["temperature"] if graded else None, Standardiser(mean, scale)
        )


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
    to: Path,
    size: int,
    grades: Sequence[str],
    spacing: float | None,
    views_of: Callable[[Image], Sequence[View]],
    reference: Reference,
) -> dict[str, Any]:
    """Read one image, each of its views by itself, as in training.

    Writes ``TO_mask.png`` (0 or 255, the image's own resolution) and ``TO_overlay.png``.

    Returns:
        The files and, per view, its box (left, top, right, bottom), the category, the probability
        of each, and of the largest segmented region the axes, height and width, whether it is
        taller than wide, and its radiomics, with ``z`` in standard deviations from the mean of the
        training's contours. Where nothing is segmented, lengths are 0 and the rest is null.
    """
    whole = np.zeros(image.shape, dtype=bool)
    views = []
    for box in views_of(image):
        mask, probabilities = _predict(predictor, image[box], size, reference.temperature)
        whole[box] = mask
        rows, columns = box
        views.append(
            {
                "box": [columns.start, rows.start, columns.stop, rows.stop],
                "category": grades[int(probabilities.argmax())],
                "probabilities": {
                    g: round(float(p), 4) for g, p in zip(grades, probabilities, strict=True)
                },
                **_measure(mask, spacing),
                "radiomics": _radiomics(image[box], mask, reference.standardise),
            }
        )
    mask_file, overlay_file = beside(to, "_mask.png"), beside(to, "_overlay.png")
    Pil.fromarray(whole.astype(np.uint8) * 255).save(mask_file)
    picture = outlined(image, whole)
    _name(picture, views)
    picture.save(overlay_file)
    return {
        "image": str(path), "use": USE, "spacing_mm": spacing, "temperature": reference.temperature,
        "mask": str(mask_file), "overlay": str(overlay_file), "views": views,
    }  # fmt: skip


def notes(image: Image, colour: float, views: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what a person should know before they believe a reading.

    Args:
        image: what was read.
        colour: the share of its pixels that are not grey.
        views: the record's.
    """
    found = []
    if colour > COLOURFUL:
        found.append(
            f"{colour:.0%} of the pixels are coloured: is it a grey-scale ultrasound image?"
        )
    if max(image.shape) < SMALL:
        height, width = image.shape
        found.append(f"{width} x {height} pixels are too few to show a lesion")
    empty = sum(view["taller_than_wide"] is None for view in views)
    if empty:
        where = "" if len(views) == 1 else f" in {empty} of {len(views)} views"
        found.append(f"nothing was segmented{where}: there, the category is of no lesion")
    return found


def beside(to: Path, ending: str) -> Path:
    """Return the file whose name goes on with an ending."""
    return to.with_name(to.name + ending)


def outlined(image: Image, mask: Mask) -> Pil.Image:
    """Return an image in colour with the outline of a mask."""
    picture = Pil.fromarray(image).convert("RGB")
    draw = ImageDraw.Draw(picture)
    for contour in find_contours(np.pad(mask, 1).astype(float), 0.5):
        draw.line([(x - 1, y - 1) for y, x in contour], fill=CONTOUR, width=2)
    return picture


def _predict(
    predictor: Predictor, view: Image, size: int, temperature: float | None
) -> tuple[Mask, NDArray[np.float32]]:
    """Return the largest segmented region at the view's resolution, and the probabilities."""
    logits, risk = predictor(to_input(view, size)[None])
    plane = Placement((view.shape[0], view.shape[1]), size).from_grid(logits[0, 0].float().cpu())
    regions = label(plane.numpy() > 0)
    sizes = np.bincount(regions.ravel())[1:]
    mask = regions == sizes.argmax() + 1 if len(sizes) else np.zeros(view.shape, dtype=bool)
    return mask, (risk.logits[0].float() / (temperature or 1.0)).softmax(0).cpu().numpy()


def _measure(mask: Mask, spacing: float | None) -> dict[str, Any]:
    unit, scale = ("px", 1.0) if spacing is None else ("mm", spacing)
    long_axis, short_axis = axes(mask) if mask.any() else (0.0, 0.0)
    height, width = (int(np.ptp(where)) + 1 if len(where) else 0 for where in np.nonzero(mask))
    sizes = {"long_axis": long_axis, "short_axis": short_axis, "height": height, "width": width}
    lengths = {f"{name}_{unit}": round(value * scale, 2) for name, value in sizes.items()}
    return {**lengths, "taller_than_wide": height > width if mask.any() else None}


def _radiomics(
    view: Image, mask: Mask, standardise: Standardiser | None
) -> dict[str, dict[str, float | None]] | None:
    """Return each feature's value and z; None where the mask has no texture to speak of."""
    vector = extract(view, mask)
    if np.isnan(vector).any():
        return None
    scores = [None] * len(vector) if standardise is None else standardise(vector).round(2).tolist()
    return {
        feature.name: {"value": float(f"{value:.6g}"), "z": z}
        for feature, value, z in zip(FEATURES, vector, scores, strict=True)
    }


def _name(picture: Pil.Image, views: Sequence[dict[str, Any]]) -> None:
    """Write each view's category and its probability into the view's corner."""
    draw = ImageDraw.Draw(picture)
    for view in views:
        left, top, *_ = view["box"]
        chance = view["probabilities"][view["category"]]
        text = f"{view['category']}  {chance:.0%}"
        area = draw.textbbox((left + 4, top + 4), text)
        draw.rectangle((area[0] - 2, area[1] - 2, area[2] + 2, area[3] + 2), fill=(0, 0, 0))
        draw.text((left + 4, top + 4), text, fill=CONTOUR)
