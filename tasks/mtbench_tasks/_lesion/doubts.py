"""What of a person's data is broken, and what looks odd: told, and not mended in silence."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from joblib import Parallel, cpu_count, delayed
from numpy.typing import NDArray
from PIL import Image as Pil
from scipy import ndimage

from mtbench.errors import DataError
from mtbench_tasks._lesion.cases import Case, Collection, Image, Mask, look
from mtbench_tasks._lesion.consensus import with_consensus

HALF = 0.5  # of the image: a lesion seldom covers more
SMALLEST = 32  # pixels: a smaller mask has no texture to speak of
SPECK = 0.05  # of a mask: a smaller part of it is no lesion of its own
SAMPLED = 128  # pixels along the shorter side tell what grey values an image has
BLANK = 8  # grey levels: an image that has fewer shows nothing
WHITE = 250  # grey values from here on are white
PAGE = 0.1  # of an image: of DDTI's and BrEaST's at most 0.02 is white
BLACK = 12  # grey values up to this are background, JPEG noise included
FLAT = 0.15  # of an image: of DDTI's and BrEaST's at most 0.04 is of one value above the background
FLOOR = 0.1  # of an image: where less is darker, a value is the scanner's black
BOX = 0.97  # of its bounding box: BrEaST's masks fill at most 0.88 of theirs
LIT = 0.2  # of a row or column: text and marks light less of it
HASH = 16  # side of the perceptual hash
BLOCK = 256  # hashes that are compared with all at once
BATCH = 16  # cases that a thread takes at once
NEAR = 44  # bits of HASH * HASH by which re-saved, mirrored or padded copies may differ
"""Over DDTI and BrEaST, images of two patients differ in 62 bits or more. Of copies that were saved
again, halved or mirrored 99 % differ in 44 at most, of padded ones 94 %, of those darkened by 40 %
88 % (`benchmarks/copies.py`)."""


@dataclass(frozen=True)
class Examined:
    """A case, read to the end.

    Attributes:
        image: None where it cannot be read.
        masks: of each of `Case.said`; None without a contour, or where it cannot be used.
        faults: what cannot be read or does not fit, a line each.
        doubts: what looks odd, a line each.
        hashes: perceptual hashes of the image and of its mirror image; empty without an image.
    """

    image: Image | None
    masks: tuple[Mask | None, ...]
    faults: tuple[str, ...]
    doubts: tuple[str, ...]
    hashes: tuple[str, ...] = ()


def examine(case: Case) -> Examined:
    """Read everything of a case."""
    faults, doubts = list[str](), list[str]()
    image = None
    try:
        image, told = look(case.pixels)
        doubts += told
        if callable(case.pixels):  # of a simulation's there is no doubt that it is a scan
            doubts += [f"{case.name}: {text}" for text in of_image(image)]
    except DataError as error:
        faults.append(str(error))
    masks: list[Mask | None] = []
    for reading in case.said:
        mask = None
        # A consensus of what cannot be read would be told twice.
        if reading.contour is not None and not (faults and reading is case.consensus):
            try:
                mask, told = case.mask(reading, image)
                doubts += told
                if reading in case.readings:
                    doubts += [f"{case.name}: {reading.reader}'s mask {t}" for t in of_mask(mask)]
            except DataError as error:
                faults.append(str(error))
                mask = None
        masks.append(mask)
    drawn = [
        (reading.reader, mask)
        for reading, mask in zip(case.readings, masks, strict=False)
        if mask is not None
    ]
    for (a, first), (b, second) in itertools.combinations(drawn, 2):
        if first.shape == second.shape and not (first & second).any():
            doubts.append(
                f"{case.name}: the masks of {a} and {b} do not meet: two lesions? If no two "
                "readers' masks meet, their consensus is all of them"
            )
    hashes = () if image is None else perceptual(image)
    return Examined(image, tuple(masks), tuple(faults), tuple(doubts), hashes)


def survey(collection: Collection) -> tuple[list[str], list[str], int]:
    """Read all of a collection, and what several readers come to together, as a run does.

    Returns:
        What is broken, and what looks odd, a line each; how many cases cannot be used for it.
    """

    def read(case: Case) -> tuple[Sequence[str], Sequence[str], Sequence[str]]:
        found = examine(case if case.truth else with_consensus(case))
        return found.faults, found.doubts, found.hashes

    # Threads: decoding lets go of the interpreter. In batches: handing over has its price.
    run = Parallel(cpu_count(), backend="threading", return_as="generator", batch_size=BATCH)
    problems, doubts = list(collection.problems), list(collection.doubts)
    hashes: dict[int, Sequence[str]] = {}
    broken = 0
    for i, (faults, odd, known) in enumerate(run(delayed(read)(c) for c in collection.cases)):
        problems += faults
        doubts += odd
        hashes[i] = known
        broken += bool(faults)
    doubts += [*halved(collection.cases), *alike(collection.cases, hashes)]
    return problems, doubts, broken


def halved(cases: Sequence[Case]) -> Iterator[str]:
    """Yield a line where learning from one reader an image leaves half of what is known out."""
    apart = sum(
        any(r.contour is not None for r in case.readings)
        and any(r.category is not None for r in case.readings)
        and all(r.contour is None or r.category is None for r in case.readings)
        for case in cases
    )
    if apart:
        yield (
            f"{apart} of {len(cases)} images have the mask from one reader and the category "
            "from another, and of each image one reader is learnt from: give --labels consensus to "
            "learn both"
        )


def of_image(image: Image) -> Iterator[str]:
    """Yield what is odd about an image's pixels."""
    height, width = image.shape
    if min(height, width) < SMALLEST:
        yield f"{width} x {height} pixels are too few to show a lesion"
        return
    every = max(1, min(image.shape) // SAMPLED)
    seen = np.ascontiguousarray(image[::every, ::every])
    counts = np.array(Pil.fromarray(seen).histogram())
    levels = np.flatnonzero(counts)
    value = BLACK + 1 + int(counts[BLACK + 1 :].argmax())
    white, flat, darker = (
        part.sum() / seen.size for part in (counts[WHITE:], counts[value], counts[:value])
    )
    if levels[-1] - levels[0] < BLANK:
        yield "is blank"
    elif len(levels) < BLANK:
        yield f"has {len(levels)} grey levels only: is it a mask?"
    elif white > PAGE:
        yield f"is white over {white:.0%}: is it a page, inverted, or shown in a narrow window?"
    elif flat > FLAT and darker > FLOOR:
        yield f"is of one grey value ({value}) over {flat:.0%}: is it a screenshot, or a drawing?"


def of_mask(mask: Mask) -> Iterator[str]:
    """Yield what is odd about a mask, after "the mask"."""
    area = int(np.count_nonzero(mask))
    if not area:
        yield "lies outside of what was scanned: it is left out"
        return
    if area > HALF * mask.size:
        yield f"covers {area / mask.size:.0%} of the image: is it the lesion's, and not inverted?"
    if area < SMALLEST:
        yield f"marks {area} pixel{'s' * (area > 1)} only: too few to learn from"
    lesions = parts(mask)
    if (count := len(lesions)) > 1:
        yield f"has {count} parts that lie apart: they are kept as {count} lesions"
    if specks := area - sum(map(np.count_nonzero, lesions)):
        yield f"has specks beside its lesion ({specks} px together): dust, or text?"
    high, wide = (np.ptp(np.flatnonzero(mask.any(axis=axis))) + 1 for axis in (1, 0))
    if count == 1 and SMALLEST <= area <= HALF * mask.size and area > BOX * high * wide:
        yield "is a rectangle: is it a box around the lesion, and not its outline?"


def parts(mask: Mask) -> list[Mask]:
    """Return the parts of a mask that lie apart, the largest first, without specks."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return []
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    regions, count = ndimage.label(mask[box], np.ones((3, 3)))
    if count == 1:
        return [mask]
    places = ndimage.find_objects(regions)
    sizes = np.array([np.count_nonzero(regions[at] == i) for i, at in enumerate(places, 1)])
    found = []
    for number in np.argsort(-sizes, kind="stable") + 1:
        if sizes[number - 1] >= SPECK * sizes.sum():
            part = np.zeros_like(mask)
            part[box] = regions == number
            found.append(part)
    return found


def perceptual(image: Image) -> tuple[str, ...]:
    """Return the perceptual hashes of an image without its black border, and of its mirror image.

    None of an image that has nothing to tell it by.
    """
    import imagehash  # takes half a second

    fewer = max(1, min(image.shape) // (4 * HASH))
    small = Pil.fromarray(image).reduce(fewer)
    lit = np.asarray(small) > BLACK
    rows, columns = (
        np.flatnonzero(np.count_nonzero(lit, axis=axis) > LIT * lit.shape[axis]) for axis in (1, 0)
    )
    if min(len(rows), len(columns)) * fewer < SMALLEST:
        return ()
    box = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    seen = small.resize((4 * HASH, 4 * HASH), Pil.Resampling.BOX, box)
    mirrored = seen.transpose(Pil.Transpose.FLIP_LEFT_RIGHT)
    hashes = (imagehash.phash(side, HASH).hash for side in (seen, mirrored))
    return tuple(np.packbits(found).tobytes().hex() for found in hashes)


def alike(cases: Sequence[Case], hashes: Mapping[int, Sequence[str]]) -> Iterator[str]:
    """Yield a line for each two images of different patients that look like one.

    Args:
        cases: all.
        hashes: of those that can be read, by number, as `perceptual` returns them.
    """
    for i, j, mirrored in copies(hashes):
        a, b = cases[i], cases[j]
        if a.patient != b.patient:
            yield (
                f"{a.name} and {b.name} look like one image{' mirrored' * mirrored}, but are of "
                f"patients {a.patient} and {b.patient}"
            )


def copies(hashes: Mapping[int, Sequence[str]]) -> Iterator[tuple[int, int, bool]]:
    """Yield each two images that look like one, by number, and whether one is mirrored.

    Args:
        hashes: by number, as `perceptual` returns them.
    """
    numbers = [i for i, found in hashes.items() if found]
    if len(numbers) < 2:
        return
    # Of rows of 1 and -1 a product counts the bits that are equal, less those that differ.
    as_is, mirrored = (
        np.array([_signs(hashes[i][side]) for i in numbers], np.float32) for side in (0, 1)
    )
    for start in range(0, len(numbers), BLOCK):
        rows = as_is[start : start + BLOCK]
        for others, turned in ((as_is, False), (mirrored, True)):
            near = rows @ others[start:].T >= HASH * HASH - 2 * NEAR
            for one, other in np.argwhere(np.triu(near, 1)) + start:
                yield numbers[one], numbers[other], turned


def _signs(known: str) -> NDArray[np.float32]:
    """Return a hash's bits, (HASH * HASH,), as 1 and -1."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(known), np.uint8)) * np.float32(2) - 1
