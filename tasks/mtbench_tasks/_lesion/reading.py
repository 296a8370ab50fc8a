"""Reading a new image with a trained model: mask, category, measurements."""

import glob
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, takewhile, zip_longest
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image as Pil
from PIL import ImageDraw
from skimage.measure import find_contours

from mtbench.errors import DataError
from mtbench_tasks._lesion import burnt, calipers, descriptors
from mtbench_tasks._lesion.cases import Image, Mask, View
from mtbench_tasks._lesion.conformal import interval, lengths
from mtbench_tasks._lesion.doubts import of_image
from mtbench_tasks._lesion.ensemble import Answer, Ask, regions_of, together, united
from mtbench_tasks._lesion.grid import to_input
from mtbench_tasks._lesion.ood import OutOfDistribution, Vector, features
from mtbench_tasks._lesion.pixels import Picture, implausible
from mtbench_tasks._lesion.radiomics import CLIP, FEATURES, Standardiser, extract, usable
from mtbench_tasks._lesion.screen import lit_box

CONTOUR = (255, 196, 0)
SHOWN = 4096  # pixels: the longer side of what is drawn for a person
ODD = 3  # features outside the training's range: one or two are chance
CLEAR = 0.5  # of the probability: a category that has less is no headline
UNCLEAR, NOTHING = "No clear category", "No lesion found"
BESIDE = 0.25  # of the smallest view: on DDTI's screens at most 0.09 beside the views is lit
WRITTEN = (
    "_mask.png", "_overlay.png", "_report.html", "_report.pdf", "_seg.dcm", "_sr.dcm"
)  # fmt: skip
"""How the names of a reading's files end."""

USE = "Research use only. Not a medical device."


@dataclass(frozen=True)
class Reference:
    """What of training and validation a reading is set against.

    Attributes:
        standardise: the training's radiomics, None where they are not known.
        ood: what the training's images are like, None where that is not known.
        spaced: of how many of the training's outlines the spacing was known, and how many there
            were, None where that is not recorded.
    """

    standardise: Standardiser | None = None
    ood: OutOfDistribution | None = None
    spaced: tuple[int, int] | None = None

    def compares(self, spacing: float | None) -> bool:
        """Return whether what measures the size of pixels is in the training's unit."""
        if self.spaced is None:
            return True
        known, outlines = self.spaced
        return known == (outlines if usable(spacing) else 0)

    @classmethod
    def of(cls, fitted: Mapping[str, Any]) -> Self:
        """Return the reference that `LesionTask.fit` wrote; an empty one where it has not."""
        if not fitted:
            return cls()
        known = fitted["radiomics"]
        mean, scale = (np.array(known[key]) for key in ("mean", "scale"))
        # Earlier code wrote no counts.
        spaced = (known["of known spacing"], known["outlines"]) if known.get("outlines") else None
        return cls(Standardiser(mean, scale), OutOfDistribution.of(fitted), spaced)


def clean(path: Path, to: Path) -> None:
    """Remove what an earlier reading of an image has left: it would be taken for this one's.

    That of its second view and of its frames too, unless another image has that name.

    Args:
        path: the image.
        to: as in `read`.
    """

    def left(part: str) -> list[Path]:
        return [file for end in WRITTEN if (file := beside(to, part + end)).exists()]

    frames = [f"_frame{n}" for n in takewhile(lambda n: left(f"_frame{n}"), count(1))]
    for part in ("", "_second", *frames, *(f"{frame}_second" for frame in frames)):
        old = left(part)
        if part and old and any(path.parent.glob(f"{glob.escape(to.name + part)}.*")):
            continue
        for file in old:
            file.unlink()


@contextmanager
def instead(path: Path, to: Path) -> Iterator[None]:
    """Leave nothing of an earlier reading of an image that is broken now."""
    try:
        yield
    except DataError:
        clean(path, to)
        raise


def mask_of(record: Mapping[str, Any]) -> Mask:
    """Return the mask that a reading has written, (H, W)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Pil.DecompressionBombWarning)  # it is our own
        with Pil.open(record["mask"]) as picture:
            mask: Mask = np.asarray(picture) > 0
    return mask


def boxes(picture: Picture, views_of: Callable[[Image], Sequence[View]]) -> list[View]:
    """Return the views of what was scanned, from the left.

    Args:
        picture: the image.
        views_of: finds the views of an image.
    """
    top, left = (side.start for side in picture.scanned)
    return [
        (slice(top + r.start, top + r.stop), slice(left + c.start, left + c.stop))
        for r, c in views_of(picture.pixels[picture.scanned])
    ]


def read(
    ask: Ask,
    picture: Picture,
    boxes: Sequence[View],
    path: Path,
    to: Path,
    size: int,
    grades: Sequence[str],
    given: float | None,
    reference: Reference,
    planes: Sequence[calipers.Plane] = (),
    lexicon: descriptors.Lexicon = (),
    text: burnt.Text = "keep",
) -> tuple[dict[str, Any], Image]:
    """Read one image, each of its views by itself, as in training.

    Writes ``TO_mask.png`` (0 or 255, as the image is shown) and ``TO_overlay.png``. What an earlier
    reading has left there is removed: it would stand beside this one's.

    Args:
        ask: the model, or several.
        picture: the image.
        boxes: its views.
        path: its file.
        to: where files go, and how their names begin.
        size: side of the network's grid.
        grades: the categories.
        given: millimetres per pixel, where the file says none.
        reference: what of training and validation it is set against.
        planes: of the views, from the left; those of further ones are unknown.
        lexicon: the descriptors that the model has learnt.
        text: what is done about text in the image: of `burnt.shown`.

    Returns:
        The record, and the image as a person may see it. The record has the files, the spacing with
        where it comes from, how many of the file's columns and rows a pixel of mask and box is
        (``pixel``: 1, unless the file's pixels are not square), notes, and, per view, its box
        (left, top, right, bottom), its plane, the category, the probability of each, the likeliest
        term of each descriptor that was learnt, and of the largest segmented region what `calipers`
        measures, ``interval`` (of `conformal`), whether it is taller than wide (known in a
        transverse plane only), and its radiomics, with ``z`` in standard deviations from the mean
        of the training's contours, null where these are in other units. ``others`` has the lengths
        of further regions. Where nothing is segmented, there is no lesion: lengths are 0, and the
        rest is null; the probabilities are those of a lesion, if there were one.
    """
    image, spacing = picture.pixels, picture.spacing or given
    whole = np.zeros(image.shape, dtype=bool)
    views, described = [], []
    for box, plane in zip_longest(boxes, planes[: len(boxes)]):
        grid = to_input(image[box], size)
        answers = ask(grid[None])
        answer, shape = together(answers), image[box].shape
        regions, probabilities = regions_of(answer.logits[0], shape), answer.chances[0].numpy()
        terms = answer.terms[0]
        described.append(features(grid[0], answer.texture[0]))
        whole[box] = united(regions, shape)
        largest = regions[0] if regions else whole[box]
        rows, columns = box
        place = [columns.start, rows.start, columns.stop, rows.stop]
        views.append(
            {
                "box": place,
                "plane": plane,
                "category": grades[int(probabilities.argmax())] if regions else None,
                "probabilities": {
                    g: round(float(p), 4) for g, p in zip(grades, probabilities, strict=True)
                },
                "descriptors": descriptors.read(terms, lexicon) if regions and lexicon else None,
                **_measure(largest, place, picture.step, spacing, plane),
                "interval": _interval(answers, shape, regions, grades, spacing),
                "others": [
                    _measure(region, place, picture.step, spacing, plane) for region in regions[1:]
                ],
                "radiomics": _radiomics(image[box], largest, spacing, reference),
            }
        )
    shown, told = burnt.shown(image, boxes, text)
    for ending in WRITTEN:
        beside(to, ending).unlink(missing_ok=True)
    mask_file, overlay_file = beside(to, "_mask.png"), beside(to, "_overlay.png")
    Pil.fromarray(whole.astype(np.uint8) * 255).save(mask_file)
    drawn, fewer = outlined(shown, whole)
    calipers.draw(drawn, views, picture.step, fewer)
    _name(drawn, views, fewer)
    drawn.save(overlay_file)
    record = {
        "image": str(path), "use": USE, "spacing_mm": spacing,
        "spacing_from": _origin(picture, given), "pixel": picture.step,
        "mask": str(mask_file), "overlay": str(overlay_file),
        "views": views, "notes": [*_notes(picture, given, views, described, reference), *told],
    }  # fmt: skip
    return record, shown


def _origin(picture: Picture, given: float | None) -> str | None:
    if picture.spacing is not None:
        return "the file's header"
    return None if given is None else "--spacing"


def _notes(
    picture: Picture,
    given: float | None,
    views: Sequence[Mapping[str, Any]],
    described: Sequence[Vector],
    reference: Reference,
) -> Iterator[str]:
    """Yield what a person should know before they believe a reading."""
    yield from picture.told
    for number, (view, seen) in enumerate(zip(views, described, strict=True), 1):
        which = f"view {number}: " if len(views) > 1 else ""
        left, top, right, bottom = view["box"]
        pixels = picture.pixels[top:bottom, left:right]
        yield from (which + text for text in of_image(pixels))
        if reference.ood is not None and (odd := reference.ood.doubt(seen)):
            yield which + odd
        known = [found["z"] for found in (view["radiomics"] or {}).values()]
        scores = [z for z in known if z is not None]
        if (far := sum(abs(z) >= CLIP for z in scores)) >= ODD:
            yield f"{which}{far} of {len(scores)} radiomics lie far outside the training's"
    own = picture.spacing
    spacing = own or given
    if (
        reference.spaced is not None
        and any(view["radiomics"] for view in views)
        and not reference.compares(spacing)
    ):
        there = "{} of {}".format(*reference.spaced)
        sized = [feature.name.replace("_", " ") for feature in FEATURES if feature.sized]
        yield (
            f"the spacing is {'known' if usable(spacing) else 'unknown'}, and was known of {there} "
            f"of the training's outlines: {', '.join(sized)} are in other units there, and have no "
            "z"
        )
    if own is None:
        yield from implausible(given)
    elif given is not None and abs(given - own) > 0.02 * own:
        yield f"--spacing {given:g} is not used: the file's header says {own:g} mm per pixel"
    height, width = picture.pixels.shape
    if len(views) > 1:
        yield f"a split screen was cut into {len(views)} views; --views whole reads it as one"
    elif views[0]["box"] != [0, 0, width, height]:
        yield "the image was cropped to what was scanned; --views whole reads all of it"
    if other := unread(picture.pixels, [view["box"] for view in views]):
        yield other
    empty = sum(view["category"] is None for view in views)
    if empty:
        where = "" if len(views) == 1 else f" in {empty} of {len(views)} views"
        yield f"nothing was segmented{where}: no lesion was found there"


def unread(image: Image, boxes: Sequence[Sequence[int]]) -> str | None:
    """Return what is said of a further view that was not read; None where there is none.

    Args:
        image: (H, W).
        boxes: left, top, right and bottom of what was read.
    """
    rest = image.copy()
    for left, top, right, bottom in boxes:
        rest[top:bottom, left:right] = 0
    rows, columns = lit_box(rest)
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    least = min((right - left) * (bottom - top) for left, top, right, bottom in boxes)
    if area == image.size or area < BESIDE * least:  # all of it is what a black image has
        return None
    return (
        f"beside what was read, {columns.stop - columns.start} x {rows.stop - rows.start} pixels "
        f"from {columns.start}, {rows.start} on are lit: another view? Crop it, and read it by "
        "itself"
    )


def headline(view: Mapping[str, Any]) -> str:
    """Return what is said of a view in large letters.

    >>> headline({"category": "TR4", "probabilities": {"TR3": 0.3, "TR4": 0.7}})
    'Category TR4'
    >>> headline({"category": "TR4", "probabilities": {"TR2": 0.3, "TR3": 0.3, "TR4": 0.4}})
    'No clear category'
    >>> headline({"category": None, "probabilities": {"TR2": 0.1, "TR4": 0.9}})
    'No lesion found'
    """
    if view["category"] is None:
        return NOTHING
    return f"Category {view['category']}" if clear(view) else UNCLEAR


def clear(view: Mapping[str, Any]) -> bool:
    """Return whether a view's category is likely enough to be named."""
    return bool(view["probabilities"][view["category"]] >= CLEAR)


def beside(to: Path, ending: str) -> Path:
    """Return the file whose name goes on with an ending."""
    return to.with_name(to.name + ending)


def outlined(image: Image, mask: Mask) -> tuple[Pil.Image, int]:
    """Return an image in colour with the outline of a mask, and by how much it was made smaller.

    Only what is longer than `SHOWN` pixels is.
    """
    fewer = math.ceil(max(image.shape) / SHOWN)
    picture = Pil.fromarray(image).reduce(fewer).convert("RGB")
    draw = ImageDraw.Draw(picture)
    for contour in find_contours(np.pad(mask[::fewer, ::fewer], 1).astype(float), 0.5):
        draw.line([(x - 1, y - 1) for y, x in contour], fill=CONTOUR, width=2)
    return picture, fewer


def _interval(
    answers: Sequence[Answer],
    shape: tuple[int, ...],
    regions: Sequence[Mask],
    grades: Sequence[str],
    spacing: float | None,
) -> dict[str, Any] | None:
    """Return how sure a reading of a lesion is; None where there is none, or that is not known."""
    if not regions:
        return None
    looks = []
    for answer in answers:
        own = regions if len(answers) == 1 else regions_of(answer.logits[0], shape)
        found = lengths(own[0]) if own else None
        looks.append((answer.spread, found, answer.chances[0].tolist()))
    return interval(looks, grades, spacing)


def _measure(
    mask: Mask,
    box: Sequence[int],
    pixel: calipers.Point,
    spacing: float | None,
    plane: calipers.Plane | None,
) -> dict[str, Any]:
    found = calipers.calipers(mask)
    known = plane == "transverse" and found
    taller = found["height"].length > found["width"].length if known else None
    return {**calipers.record(found, box, pixel, spacing), "taller_than_wide": taller}


def _radiomics(
    view: Image, mask: Mask, spacing: float | None, reference: Reference
) -> dict[str, dict[str, float | None]] | None:
    """Return each feature's value and z; None where the mask has no texture to speak of."""
    vector, known = extract(view, mask, spacing), reference.standardise
    if np.isnan(vector).any():
        return None
    scores = [None] * len(vector) if known is None else known(vector).round(2).tolist()
    alike = reference.compares(spacing)
    return {
        feature.name: {
            "value": float(f"{value:.6g}"),
            "z": z if alike or not feature.sized else None,
        }
        for feature, value, z in zip(FEATURES, vector, scores, strict=True)
    }


def _name(picture: Pil.Image, views: Sequence[dict[str, Any]], fewer: int) -> None:
    """Write each view's category and its probability into the view's corner."""
    draw = ImageDraw.Draw(picture)
    for view in views:
        left, top = (side // fewer for side in view["box"][:2])
        text = headline(view)
        if text not in (UNCLEAR, NOTHING):
            text = f"{view['category']}  {view['probabilities'][view['category']]:.0%}"
        area = draw.textbbox((left + 4, top + 4), text)
        draw.rectangle((area[0] - 2, area[1] - 2, area[2] + 2, area[3] + 2), fill=(0, 0, 0))
        draw.text((left + 4, top + 4), text, fill=CONTOUR)
