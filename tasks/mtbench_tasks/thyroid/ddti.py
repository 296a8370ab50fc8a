"""DDTI, the Digital Database of Thyroid Images, as published (doi 10.1117/12.2073532).

A folder (or zip) of `N.xml`, one a patient, and `N_M.jpg`, screen shots of an ultrasound scanner.
The XML holds the TI-RADS category of the case, descriptors, and contours as JSON in `<svg>`. The
category is not one of ACR's TR1-TR5: it is 2, 3, 4a, 4b, 4c or 5.

The screens carry text, among it captions such as "TIRADS 5 (4C)", which give the label away: every
image is cropped to what was scanned, and a split screen is cut into its two views. Both are found
in the image alone, so that `split_views` does the same to an image that is to be predicted.
"""

import hashlib
import io
import json
import math
import re
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring
from PIL import Image as Pillow
from PIL import ImageDraw

from mtbench.errors import DataError
from mtbench_tasks._lesion.cases import Case, Collection, Image, Mask, Part, Reading, View
from mtbench_tasks._lesion.files import BROKEN, by_name, decoded, must_unpack
from mtbench_tasks._lesion.screen import crop_sector, split_views
from mtbench_tasks.thyroid import ddti_public

GRADES = ("2", "3", "4a", "4b", "4c", "5")
VERSION = 2  # part of the fingerprint: raise it when the same files give other cases

Contour = list[tuple[float, float]]

# The gap between a contour's ends, in its larger side: at most 0.11 in the 657 of DDTI that are
# whole, at most 0.04 in four that break off, and 0.76 or more in four others, whose closing line
# would run through the nodule.
OPEN = 0.25
HELD = 0.1  # a contour belongs to each view that holds more than this share of it

_DESCRIPTORS = ("composition", "echogenicity", "margins", "calcifications")
_SPELLING = {"ill- defined": "ill defined", "non": "none"} | {
    f"{size}calcifications": f"{size}calcification" for size in ("micro", "macro")
}

# Every line of the report: what is counted, and why.
_WHY = {
    "cases found": "N.xml",
    "images found": "N_M.jpg",
    "contours found": "freehand regions, those recovered included",
    "cases without a category": "kept for their masks",
    "categories outside the scale": f"taken as missing: not one of {', '.join(GRADES)}",
    "descriptors respelled": "variants of one word, such as 'ill- defined'",
    "marks truncated": "JSON cut off at 2,500 characters: the contours before are kept",
    "contours cut off": "dropped, and with them the outline of their view: it is not whole",
    "marks unreadable": "dropped: their JSON could not be recovered",
    "marks without a contour": "the XML names the image but draws nothing on it",
    "marks without an image": "dropped: the XML names an N_M.jpg that is not there",
    "arrows and lines": "dropped: regions of type arrow or of fewer than three points",
    "images without a case": "dropped: there is no N.xml that can be read for them",
    "copies of an image": "dropped: byte-equal to another; the labelled one is kept",
    "cases joined into another patient": "they share a byte-equal image: no split may divide them",
    "images cropped": "to the scanned sector: captions outside give the label away",
    "images of two views": "cut at the seam of the split screen, one case a view",
    "images with several contours": "united within each view",
    "contours out of bounds": "clipped to the image",
    "contours outside the sector": "dropped: not drawn on what was scanned",
    "contours across a seam": "each view keeps its part",
    "views without a contour": "dropped: the nodule is outlined in another view of the case",
    "views without contour and category": "dropped: nothing to learn from",
    "images used": "at least one view of them",
    "contours used": "at least a part of them",
    "views used": "the cases of this collection",
    "views with a mask": "",
    "views with a category": "",
}


@dataclass(frozen=True)
class _Record:
    """What one XML says of its case; contours, whole and cut off, are by the M of N_M.jpg."""

    category: int | None
    descriptors: dict[str, str]
    contours: dict[str, list[Contour]]
    cut: dict[str, list[Contour]]


def load(path: Path) -> Collection:
    """Read DDTI from its folder (flat, or one folder down) or its zip.

    Returns:
        One case a view: "N_M", or "N_Ma" and "N_Mb" of a split screen. The patient is N. Images
        and masks are decoded when they are asked for. An XML or image that cannot be read is a
        problem, and left out.

    Raises:
        DataError: nothing there, no DDTI files, one of them twice, a broken zip, or nothing that
            can be read.
    """
    files, places = _read(path)
    digest = hashlib.sha256(f"ddti {VERSION}".encode())
    for name, data in sorted(files.items()):
        digest.update(f"\0{name}\0{len(data)}\0".encode() + data)

    count: Counter[str] = Counter()
    problems: list[str] = []
    records: dict[str, _Record] = {}
    for name, data in files.items():
        if name.endswith(".xml"):
            try:
                records[Path(name).stem] = _parse(path, name, data, count)
            except DataError as error:
                problems.append(str(error))
    images = {Path(n).stem: d for n, d in files.items() if n[-3:] == "jpg"}
    named = {f"{n}_{m}" for n, record in records.items() for m in record.contours}
    count["marks without an image"] = len(named - images.keys())

    def drawn(name: str) -> list[Contour]:
        return records[_case(name)].contours.get(name.split("_")[1], [])

    def cut(name: str) -> list[Contour]:
        return records[_case(name)].cut.get(name.split("_")[1], [])

    copies: dict[bytes, list[str]] = {}
    for name, data in images.items():
        if _case(name) in records:
            copies.setdefault(data, []).append(name)
    patients = _patients(copies.values())
    cases: list[Case] = []
    for data, names in copies.items():
        # Of byte-equal images keep the labelled one; a contour may come from another.
        names.sort(key=lambda n: (records[_case(n)].category is None, not drawn(n)))
        source = next((n for n in names if drawn(n) or cut(n)), names[0])
        name = names[0]
        try:
            image = _decode(path, name + ".jpg", data)
        except DataError as error:
            problems.append(str(error))
            continue
        pixels = partial(_view, path, places[name + ".jpg"])
        record, patient = records[_case(name)], patients[_case(name)]
        views = _cut(name, patient, image, pixels, record, drawn(source), cut(source), count)
        count["images used"] += bool(views)
        cases += views
    if not cases and problems:
        raise DataError(problems[0])

    count["images found"] = len(images)
    count["images without a case"] = len(images) - sum(map(len, copies.values()))
    count["copies of an image"] = sum(len(names) - 1 for names in copies.values())
    count["cases joined into another patient"] = sum(n != p for n, p in patients.items())
    count["views used"] = len(cases)
    count["views with a mask"] = sum(c.readings[0].contour is not None for c in cases)
    count["views with a category"] = sum(c.readings[0].category is not None for c in cases)
    report = tuple((count[what], what, why) for what, why in _WHY.items())
    broken = [f"{n}_{m}" for n, record in records.items() for m, part in record.cut.items() if part]
    remarks = [f"contours that break off before they close are left out: {', '.join(broken)}"]
    return Collection(
        tuple(cases), GRADES, digest.hexdigest(), report, tuple(problems),
        remarks=tuple(remarks if broken else ()),
    )  # fmt: skip


def public(collection: Collection) -> Collection:
    """Return the cases, each with its part in `ddti_public`'s split.

    Content and fingerprint stay as they are.
    """

    def part(case: Case) -> Part:
        number = int(_case(case.name))
        if number in ddti_public.TEST:
            return "test"
        return "val" if number in ddti_public.VAL else "train"

    cases = tuple(replace(case, part=part(case)) for case in collection.cases)
    return replace(collection, cases=cases)


def _read(path: Path) -> tuple[dict[str, bytes], dict[str, str]]:
    """All N.xml and N_M.jpg by name, in the order of N and M, and their places below `path`."""
    if not path.exists():
        raise DataError(f"no DDTI at {path}: no such file or folder; check --data")
    try:
        if path.is_dir():
            below = (*path.glob("*/*"), *path.iterdir())
            found = [p for p in below if _is_ddti(p.name) and p.is_file()]
            places = by_name(path, sorted(p.relative_to(path).as_posix() for p in found))
            files = {name: (path / place).read_bytes() for name, place in places.items()}
        else:
            must_unpack(path)
            with zipfile.ZipFile(path) as archive:
                names = [n for n in archive.namelist() if _is_ddti(PurePosixPath(n).name)]
                places = by_name(path, names)
                files = {name: archive.read(place) for name, place in places.items()}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
        raise DataError(
            f"{path} is no readable folder or zip ({error}); give DDTI as published"
        ) from error
    suffixes = {Path(name).suffix for name in files}
    if suffixes != {".xml", ".jpg"}:
        raise DataError(
            f"{path} is no DDTI folder: it must hold N.xml and N_M.jpg (found: "
            f"{' and '.join(sorted(suffixes)) or 'neither'}); give DDTI as published"
        )
    ordered = sorted(files, key=lambda name: [int(n) for n in re.findall(r"\d+", name)])
    return {name: files[name] for name in ordered}, places


def _view(path: Path, place: str, view: View) -> Image:
    """Decode one view of an image that has been read before."""
    try:
        if path.is_dir():
            data = (path / place).read_bytes()
        else:
            with zipfile.ZipFile(path) as archive:
                data = archive.read(place)
    except (zipfile.BadZipFile, zlib.error, OSError) as error:
        raise DataError(f"{path}: {place} can no longer be read ({error})") from error
    return np.ascontiguousarray(_decode(path, place, data)[view])


def _draw(contours: Sequence[Contour], shape: tuple[int, int], view: View) -> Mask:
    """Fill contours within one view of an image of that shape."""
    height, width = shape
    canvas = Pillow.new("1", (width, height))
    draw = ImageDraw.Draw(canvas)
    for contour in contours:
        draw.polygon(contour, fill=1, outline=1)
    return np.array(canvas, dtype=bool)[view]


def _case(name: str) -> str:
    return name.split("_")[0]


def _is_ddti(name: str) -> bool:
    return re.fullmatch(r"\d+\.xml|\d+_\d+\.jpg", name) is not None


def _parse(path: Path, name: str, data: bytes, count: Counter[str]) -> _Record:
    """Read one case."""
    try:
        case: Element = fromstring(data)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise DataError(
            f"{path}: {name} is no well-formed XML ({error}); restore it from the published archive"
        ) from error
    count["cases found"] += 1
    grade = (case.findtext("tirads") or "").strip().lower()
    count["cases without a category"] += not grade
    count["categories outside the scale"] += grade not in ("", *GRADES)
    descriptors = {}
    for key in _DESCRIPTORS:
        if word := " ".join((case.findtext(key) or "").lower().split()):
            count["descriptors respelled"] += word in _SPELLING
            descriptors[key] = _SPELLING.get(word, word)
    contours: defaultdict[str, list[Contour]] = defaultdict(list)
    cut: defaultdict[str, list[Contour]] = defaultdict(list)
    for mark in case.iter("mark"):
        index = (mark.findtext("image") or "").strip()
        whole, part = _read_contours((mark.findtext("svg") or "").strip(), count)
        contours[index] += whole
        cut[index] += part
    category = GRADES.index(grade) if grade in GRADES else None
    return _Record(category, descriptors, dict(contours), dict(cut))


def _read_contours(svg: str, count: Counter[str]) -> tuple[list[Contour], list[Contour]]:
    """The freehand contours of one mark, and those that break off before they close.

    A text that breaks off ends with its last point; a contour that lacks little of it is closed.
    """
    if not svg:
        count["marks without a contour"] += 1
        return [], []
    whole = svg[: svg.rfind("}") + 1]
    for attempt in (svg, whole + "]}]", whole + "}]"):
        try:
            regions = json.loads(attempt)
            contours = [[(_number(p["x"]), _number(p["y"])) for p in r["points"]] for r in regions]
            arrows = [r.get("regionType") == "arrow" for r in regions]
        except (
            ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError
        ):  # fmt: skip
            continue
        count["marks truncated"] += attempt is not svg
        kept = [c for c, arrow in zip(contours, arrows, strict=True) if not arrow and len(c) > 2]
        count["arrows and lines"] += len(contours) - len(kept)
        count["contours found"] += len(kept)
        cut = kept[-1:] if attempt is not svg and kept and _is_open(kept[-1]) else []
        return kept[: len(kept) - len(cut)], cut
    count["marks unreadable"] += 1
    return [], []


def _is_open(contour: Contour) -> bool:
    """Whether the line that would close a contour is long."""
    points = np.asarray(contour)
    return bool(np.linalg.norm(points[-1] - points[0]) > OPEN * np.ptp(points, axis=0).max())


def _number(value: Any) -> float:
    if not math.isfinite(number := float(value)):
        raise ValueError(value)
    return number


def _patients(copies: Iterable[list[str]]) -> dict[str, str]:
    """The patient of each case number: cases that share an image are one."""
    patient: dict[str, str] = {}
    for names in copies:
        joined = {patient.setdefault(n, n) for n in map(_case, names)}
        first = min(joined, key=int)
        if len(joined) > 1:
            patient |= {n: first for n, p in patient.items() if p in joined}
    return patient


def _decode(path: Path, name: str, data: bytes) -> Image:
    try:
        with decoded(io.BytesIO(data)) as picture:
            return np.asarray(picture.convert("L"))
    except (*BROKEN, DataError) as error:
        raise DataError(
            f"{path}: {name} is no readable image; restore it from the published archive"
        ) from error


def _cut(
    name: str,
    patient: str,
    image: Image,
    pixels: Callable[[View], Image],
    record: _Record,
    contours: list[Contour],
    cut: list[Contour],
    count: Counter[str],
) -> list[Case]:
    """Cut one image into its views, which `pixels` will read again, and its contours with it.

    A view that holds a contour which was cut off has no outline: part of it is not known.
    """
    height, width = shape = image.shape[0], image.shape[1]
    full = slice(0, height), slice(0, width)
    views = split_views(image)
    count["images cropped"] += crop_sector(image) != full
    count["images of two views"] += len(views) > 1
    count["images with several contours"] += len(contours) > 1
    held: list[list[Contour]] = [[] for _ in views]
    unknown = set[int]()
    for contour in cut:
        filled = _draw([contour], shape, full)
        unknown |= {i for i, v in enumerate(views) if filled[v].sum() > HELD * filled.sum()}
        count["contours cut off"] += 1
    for contour in contours:
        points = np.asarray(contour)
        count["contours out of bounds"] += bool(((points < 0) | (points >= [width, height])).any())
        filled = _draw([contour], shape, full)
        holding = [i for i, v in enumerate(views) if filled[v].sum() > HELD * filled.sum()]
        for i in holding:
            held[i].append(contour)
        count["contours used"] += bool(holding)
        count["contours outside the sector"] += not holding
        count["contours across a seam"] += len(holding) > 1
    for i in unknown:
        held[i] = []
    cases = []
    suffixes = "ab" if len(views) > 1 else [""]
    for i, (suffix, view, drawn) in enumerate(zip(suffixes, views, held, strict=True)):
        if not drawn and i not in unknown and any(record.contours.values()):
            count["views without a contour"] += 1
        elif not drawn and record.category is None:
            count["views without contour and category"] += 1
        else:
            mask = partial(_draw, drawn, shape, view) if drawn else None
            reading = Reading("ddti", mask, record.category)
            read, words = partial(pixels, view), record.descriptors
            cases.append(Case(name + suffix, patient, read, (reading,), descriptors=words))
    return cases
