"""Text that is burnt into an image, and may name the patient: found, told, blackened."""

from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

import numpy as np
from PIL import Image as Pil

from mtbench.plugins import extras
from mtbench_tasks._lesion.cases import Image, View
from mtbench_tasks._lesion.doubts import BLACK

Text = Literal["keep", "find", "blank"]
MARKS = 0.001  # of what lies outside the scan: JPEG's noise lights less
LONGEST = 2000  # pixels: the detector sees no more
AROUND = 2  # pixels about a text that belong to it


def shown(image: Image, views: Sequence[View], text: Text) -> tuple[Image, list[str]]:
    """Return an image as a person may see it, and what is to be said of text in it.

    Args:
        image: (H, W), all of it.
        views: what is read of it.
        text: ``keep`` looks at whether anything is lit outside the views; ``find`` looks for text
            everywhere; ``blank`` blackens both.
    """
    inside = np.zeros(image.shape, dtype=bool)
    for view in views:
        inside[view] = True
    outside = image.size - int(np.count_nonzero(inside))
    lit = int(np.count_nonzero(image[~inside] > BLACK)) if outside else 0
    marked = lit > MARKS * outside
    if text == "keep":
        return image, [_outside("the overlay shows it")] * marked
    places = find(image)
    where = "; ".join(f"{r.start} down, {c.start} across" for r, c in places[:3])
    told = [
        f"text was found in {len(places)} place{'s' * (len(places) > 1)} ({where}): it may name "
        f"the patient{'; it is blackened' * (text == 'blank')}"
    ] * bool(places)
    if text == "find":
        return image, [*told, *[_outside("the overlay shows it")] * marked]
    clean = np.where(inside, image, 0).astype(np.uint8)
    for place in places:
        clean[place] = 0
    return clean, [*told, *[_outside("it is blackened")] * marked]


def find(image: Image) -> list[View]:
    """Return where text is, (rows, columns), by RapidOCR's detector, which needs no network.

    Raises:
        UsageError: it is not installed.
    """
    fewer = -(-max(image.shape) // LONGEST)
    small = np.asarray(Pil.fromarray(image).reduce(fewer).convert("RGB"))
    boxes = _detector()(small, use_det=True, use_cls=False, use_rec=False).boxes
    found = []
    for corners in [] if boxes is None else boxes:
        (left, top), (right, bottom) = corners.min(axis=0) - AROUND, corners.max(axis=0) + AROUND
        rows, columns = (
            slice(max(0, int(low) * fewer), min(int(high + 1) * fewer, side))
            for low, high, side in ((top, bottom, image.shape[0]), (left, right, image.shape[1]))
        )
        found.append((rows, columns))
    return found


@cache
def _detector() -> Any:
    extras.need("deidentify", "--text")
    from rapidocr import RapidOCR  # takes seconds

    return RapidOCR(params={"Global.log_level": "error"})


def _outside(what: str) -> str:
    return f"text or marks lie outside of what was scanned, and may name the patient: {what}"
