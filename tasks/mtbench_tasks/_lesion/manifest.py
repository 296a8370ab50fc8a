"""Anybody's images: a CSV of image, mask, category, patient, reader and spacing."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

from mtbench.errors import DataError, UsageError, did_you_mean
from mtbench.training.task import Progress
from mtbench_tasks._lesion import nnunet
from mtbench_tasks._lesion.cases import Case, Collection, Reading, United
from mtbench_tasks._lesion.categories import ODD, SCALES, place, scale_of, unsaid
from mtbench_tasks._lesion.files import ImageFile, MaskFile, fingerprint, read_geometry
from mtbench_tasks._lesion.pixels import Geometry, implausible
from mtbench_tasks._lesion.radiomics import STEP
from mtbench_tasks._lesion.source import Source, held_back
from mtbench_tasks._lesion.table import COLUMNS, Row, Table, locate_in, read
from mtbench_tasks._names import spelt_alike, visible

VERSION = 4  # part of the fingerprint: raise it when the same files give other cases

Images = Mapping[tuple[Path, int | None], Mapping[int, Row]]
"""By image and frame, its rows by their line."""

Locate = Callable[[str], Path]
"""Finds a file that a row names."""


def template() -> str:
    """Return a CSV to fill in: comments on the columns, the header, two readings of one image."""
    comments = [f"# {name}: {what}" for name, what in COLUMNS.items()]
    more = (
        "# Only image is needed. Paths are relative to this file. Lines with a # are left out.\n"
        "# More columns, such as scanner or sex: `mtbench evaluate` looks at their subgroups, and\n"
        "# compares descriptors, such as composition, with those of a model that has learnt them."
    )
    rows = [
        f"images/001.png,masks/001_{r}.png,TR{g},P01,{r},0.08,,," for r, g in (("a", 4), ("b", 3))
    ]
    return "\n".join([*comments, more, ",".join(COLUMNS), *rows, ""])


def _scale(path: Path, table: Table, wanted: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Return the grades of a file's categories, from benign to malignant.

    Args:
        path: the file.
        table: what it says.
        wanted: scales; the first on which they have a place, but for a few slips, is it. Without
            one the first known scale that they fit.

    Raises:
        DataError: they fit no known scale.
    """
    cells = _cells(table)
    meant = scale_of(cells)
    grades = _fitting(cells, wanted) or meant.grades
    if grades is None:
        raise DataError(_unknown(path, cells, meant.why))
    return grades


def _fitting(cells: Sequence[str], wanted: Sequence[tuple[str, ...]]) -> tuple[str, ...] | None:
    """Return the first scale on which categories have a place, but for a few slips."""
    graded = [cell for cell in cells if not unsaid(cell)]
    for grades in wanted:
        known = sum(place(cell, grades) is not None for cell in graded)
        if graded and known >= (1 - ODD) * len(graded):
            return grades
    return None


def load(
    path: Path,
    progress: Progress,
    grades: tuple[str, ...] | None = None,
    wanted: Sequence[tuple[str, ...]] = (),
) -> Collection:
    """Read a CSV with a row per image and reader; the files are read when they are needed.

    Columns are `COLUMNS`, in any order; others are left out, unless they look like one misspelt.
    A relative path begins at the CSV's folder and has no ``..``, so that a CSV from elsewhere
    reaches other files by an absolute path only, which one sees. A row that is broken, or whose
    files are not there, is a problem and left out; a row with neither mask nor category is left
    out and counted.

    Args:
        path: the CSV file, UTF-8 or UTF-16, with commas, semicolons, tabs or bars; or nnU-Net's
            ``dataset.json``; or a folder in nnU-Net's layout.
        progress: is told how many files have been read for the fingerprint.
        grades: the categories from benign to malignant; None: the known scale that they fit, or,
            for a look at the data, in alphabetical order.
        wanted: scales that come before the known ones, as in `_scale`.

    Raises:
        DataError: the file is no such CSV, there is nothing in it to learn from, or its categories
            are none of these.
    """
    path = nnunet.find(path)
    table = read(path)
    cells, problems = _cells(table), list(table.problems)
    meant = scale_of(cells)
    order = grades or _fitting(cells, wanted) or meant.grades
    doubts = []
    if order is None:
        problems.append(_unknown(path, cells, meant.why))
        order = tuple(sorted({cell.casefold(): cell for cell in cells}.values()))
    elif cells and all(place(cell, order) is None for cell in cells):
        raise DataError(
            f"{path}: none of its {len(cells)} categories, such as {cells[0]!r}, is one of "
            f"{', '.join(order)}"
        )
    elif grades is None and meant.why and order in SCALES:
        doubts.append(f"{path}: the categories {meant.why}")
    locate = cache(partial(locate_in, path.parent))
    images, bare, below = _by_image(path, table, order, locate, problems)
    owners = spelt_alike(row.patient for row in table.rows.values() if row.patient)
    doubts += [*table.doubts, *_patients(path, table, owners), *_readers(path, table)]
    read_from: list[tuple[Case, Mapping[int, Row]]] = []
    by_header = defaultdict[str, dict[str, str]](dict)
    for rows in images.values():
        try:
            case, odd, patient = _case(path, rows, order, owners, table.groups, locate)
        except DataError as error:
            problems.append(str(error))
            continue
        doubts += odd
        read_from.append((case, rows))
        by_header[patient].setdefault(case.patient, case.name)
    cases = [case for case, _ in read_from]
    if not cases and not problems:
        raise DataError(f"{path}: has no row with a mask or a category: nothing to learn from")
    doubts += [*_shared(path, images), *_differing(path, images, table.groups)]
    doubts += _headers(path, by_header)
    if below:
        doubts.append(
            f"{path}: the category is a negative number in {below} of {len(table.rows)} rows: they "
            "count as not graded"
        )
    remarks = []
    if 0 < (measured := sum(case.spacing is not None for case in cases)) < len(cases):
        remarks.append(
            f"spacing is known of {measured} of {len(cases)} images: their radiomics are taken at "
            f"{STEP:g} mm per pixel, the others' in their own pixels, and cannot be compared"
        )
    said = {row.split for row in table.rows.values()}
    if "train" in said and "test" not in said:
        remarks.append(
            "no row is of split test: who is tested is drawn from the patients of split train, "
            "unless --test-source says otherwise"
        )
    if others := [name for name in table.columns if name and name not in COLUMNS]:
        remarks.append(f"columns that `mtbench evaluate` alone looks at: {', '.join(others)}")
    return Collection(
        cases=tuple(cases),
        grades=order,
        fingerprint=_fingerprint(read_from, order, locate, progress),
        report=tuple(_report(cases, order, len(table.rows) + len(table.problems), bare)),
        problems=tuple(problems),
        remarks=tuple(remarks),
        doubts=tuple(doubts),
    )


def _by_image(
    path: Path, table: Table, order: Sequence[str], locate: Locate, problems: list[str]
) -> tuple[Images, int, int]:
    """Return the rows that say something, by image, and tell what is wrong with others.

    Args:
        path: the CSV file.
        table: its rows.
        order: the grades.
        locate: finds files.
        problems: is told of each.

    Returns:
        the rows; how many have neither mask nor category; and how many are graded below 0.
    """
    images: dict[tuple[Path, int | None], dict[int, Row]] = {}
    bare = below = 0
    listed = cache(_names)
    for line, row in table.rows.items():
        if fault := _fault(locate, listed, row):
            problems.append(f"{path} line {line}: {fault}")
            continue
        if row.category and place(row.category, order) is None:
            if unsaid(row.category) and order[0] != "0":
                below += 1
            else:
                likely = did_you_mean(row.category, order)
                problems.append(
                    f"{path} line {line}: category {row.category!r} is not on the scale "
                    f"({likely}): the cell is left out"
                )
            row = row.model_copy(update={"category": None})
        if row.mask or row.category:
            # The CSV's own place may be relative, and a row's image absolute.
            images.setdefault((locate(row.image).absolute(), row.frame), {})[line] = row
        else:
            bare += 1
    return images, bare, below


def _fingerprint(
    read_from: Sequence[tuple[Case, Mapping[int, Row]]],
    order: Sequence[str],
    locate: Locate,
    progress: Progress,
) -> str:
    """Return the digest of cases, with the rows that each is made of, and of their files."""
    known: list[list[object]] = []
    files: list[Path] = []
    for case, rows in read_from:
        readings = [(r.reader, r.category, r.contour is not None) for r in case.readings]
        known.append([case.name, case.patient, case.spacing, readings])
        if case.part is not None:
            known.append([case.part])
        known.append([(row.reader, row.mask_value) for row in rows.values()])
        first = next(iter(rows.values()))
        names = [first.image, *(row.mask for row in rows.values() if row.mask)]
        files += map(locate, names)
    return fingerprint(["manifest", VERSION, order, known], files, progress)


def _graded(data: Path | None, grades: tuple[str, ...] | None, *wanted: tuple[str, ...]) -> Source:
    if grades is None and data is None:
        raise DataError(f"source manifest needs --data PATH: {SOURCE.what}")
    if grades is not None and len({g.casefold() for g in grades}) < max(2, len(grades)):
        raise UsageError(f"grades must be two or more, all different, found {','.join(grades)}")
    path = nnunet.find(data or Path())
    table = Table() if data is None else read(path)
    order = grades or _scale(path, table, wanted)
    return replace(
        SOURCE,
        load=partial(load, grades=grades, wanted=wanted),
        grades=order,
        high=(len(order) + 1) // 2,
        tested=any(row.split == "test" for row in table.rows.values()),
    )


SOURCE = Source(
    load=load,
    grades=(),
    high=0,
    recipe=held_back(epochs=18, batch_size=8),
    what="a CSV file with a row per image and reader (`mtbench data template` writes one), or a "
    "folder in nnU-Net's layout",
    graded=_graded,
)


def _cells(table: Table) -> list[str]:
    """Return the categories, row by row."""
    return [row.category for row in table.rows.values() if row.category]


def _unknown(path: Path, cells: Sequence[str], why: str) -> str:
    """Return why categories are of no known scale, and what to do."""
    counts = Counter({cell.casefold(): cell for cell in cells}[cell.casefold()] for cell in cells)
    shown = ", ".join(f"{cell} ({count})" for cell, count in counts.most_common(12))
    scales = "; ".join(" ".join(grades) for grades in SCALES)
    return (
        f"{path}: the categories {why}: {shown}. The known scales are {scales}. Mend them, or give "
        "--grades A,B,... from benign to malignant; of two scales in one file, write all in one"
    )


def _patients(path: Path, table: Table, owners: Mapping[str, str]) -> Iterator[str]:
    """Yield what is odd about the patients' names."""
    spellings = defaultdict[str, list[str]](list)
    for name, first in owners.items():
        spellings[first].append(name)
    for names in spellings.values():
        if len(names) > 1:
            spelt = ", ".join(map(repr, names))
            yield f"{path}: patients {spelt} are spelt alike: their images are kept together"
    parts = defaultdict[str, set[str]](set)
    for row in table.rows.values():
        if row.patient:
            parts[owners[row.patient]].add(row.split or "train")
    if divided := [name for name, own in parts.items() if len(own) > 1]:
        yield (
            f"{path}: patient {divided[0]!r} (of {len(divided)} such) has rows of several splits: "
            "all their images are of the last, of train, val, test"
        )
    unsaid = sum(not row.split for row in table.rows.values())
    if unsaid and any(row.split == "test" for row in table.rows.values()):
        yield f"{path}: {unsaid} of {len(table.rows)} rows say no split: they count as train"
    for name in owners:
        if re.fullmatch(r"\d([.,]\d+)?[eE]\+?\d+", name):
            yield (
                f"{path}: patient {name!r} is a number that a spreadsheet has shortened: several "
                "patients may have become one"
            )
    unnamed = sum(not row.patient for row in table.rows.values())
    if table.rows and not owners:
        yield f"{path}: no patients are named: each image counts as one patient"
    elif unnamed:
        yield (
            f"{path}: {unnamed} of {len(table.rows)} rows name no patient: each of their images "
            "counts as a patient of its own"
        )


def _readers(path: Path, table: Table) -> Iterator[str]:
    """Yield what is odd about the readers' names."""
    first = spelt_alike(row.reader for row in table.rows.values())
    for name, other in first.items():
        if name != other:
            yield f"{path}: readers {other!r} and {name!r} are spelt alike, and count as two"
    read = [row for row in table.rows.values() if row.mask or row.category]
    unnamed = sum("reader" not in row.model_fields_set for row in read)
    if 0 < unnamed < len(read):
        yield (
            f"{path}: {unnamed} of {len(read)} readings name no reader: they count as those of "
            "one, called 'reader'"
        )


def _shared(path: Path, images: Images) -> Iterator[str]:
    """Yield masks of several images, which seldom look alike, and images that count as two."""
    uses = Counter(
        mask for rows in images.values() for mask in {row.mask for row in rows.values() if row.mask}
    )
    for mask, number in uses.items():
        if number > 1:
            yield f"{path}: {mask} is the mask of {number} images"
    for file, frame in images:
        if frame is None and (file, 1) in images:
            yield (
                f"{path}: {file} has rows of frame 1 and rows of no frame, which count as two "
                "images: say the same in all"
            )


def _names(folder: Path) -> dict[str, str]:
    """Return what a folder holds, by its names in small letters without suffix."""
    try:
        return {f.stem.casefold(): f.name for f in folder.iterdir()}
    except OSError:  # it is not there, or is too long a name
        return {}


def _near(file: Path, names: Callable[[Path], Mapping[str, str]]) -> Path | None:
    """Return what is there under almost the same path: in other letters, or of another suffix."""
    folder = file.parent
    if folder != file and not names(folder):
        folder = _near(folder, names) or folder
    other = names(folder).get(file.stem.casefold())
    return folder / other if other else None


def _fault(locate: Locate, names: Callable[[Path], Mapping[str, str]], row: Row) -> str | None:
    """Return what is wrong with a row, as far as its files need not be opened."""
    for name in filter(None, (row.image, row.mask)):
        file = locate(name)
        parts = Path(name.replace("\\", "/")).parts
        if ".." in parts:
            return f"{name}: '..' may lead out of the CSV's folder; give an absolute path"
        try:
            there = file.is_file()
        except OSError:  # such as a name that is too long
            there = False
        if not there:
            near = _near(file, names)
            found = near and near != file and Path(*near.parts[-len(parts) :])
            hint = f"; there is {found}" if found else ""
            return f"{name}: there is no such file ({file}){hint}"
    return None


def _case(
    path: Path,
    rows: Mapping[int, Row],
    grades: Sequence[str],
    owners: Mapping[str, str],
    groups: Mapping[int, Mapping[str, str]],
    locate: Locate,
) -> tuple[Case, list[str], str]:
    """Return the case of one image from its rows, by line; what is odd; the header's patient."""
    image, frame = next((row.image, row.frame) for row in rows.values())
    where = f"{path} line {' and '.join(map(str, rows))}: {image}"
    patients = list(dict.fromkeys(owners[row.patient] for row in rows.values() if row.patient))
    spacings = list(dict.fromkeys(row.spacing for row in rows.values() if row.spacing))
    split = list(dict.fromkeys(row.split for row in rows.values() if row.split))
    for what, values in (("patient", patients), ("spacing", spacings), ("split", split)):
        if len(values) > 1:
            raise DataError(f"{where} has one {what}, found {', '.join(map(str, values))}")
    by_reader = defaultdict[str, list[Row]](list)
    for row in rows.values():
        by_reader[row.reader].append(row)
    file, doubts = locate(image), list[str]()
    readings = []
    for reader, own in by_reader.items():
        found = {place(row.category, grades) for row in own if row.category}
        drawn = list(dict.fromkeys((row.mask, row.mask_value) for row in own if row.mask))
        if len(found) > 1 or (len(own) > 1 and not drawn):
            raise DataError(
                f"{where} has one row per reader, found {reader!r} twice; remove one, or tell "
                "readers apart in column 'reader'"
            )
        if len(own) > 1:
            so = "their masks unite" if len(drawn) > 1 else "they say the same"
            doubts.append(f"{where} has {len(own)} rows of reader {reader!r}: {so}")
        masks = tuple(MaskFile(locate(m or ""), file, value) for m, value in drawn)
        contour = None if not masks else masks[0] if len(masks) == 1 else United(masks)
        readings.append(Reading(reader, contour, next(iter(found), None)))
    lies = read_geometry(file)
    spacing, odd = _spacing(where, lies, next(iter(spacings), None))
    more = {name: own[0] for name, own in _about(rows, groups).items() if len(own) == 1}
    case = Case(
        name=image if frame is None else f"{image} frame {frame}",
        patient=next(iter(patients), image),
        pixels=ImageFile(file, frame),
        readings=tuple(readings),
        spacing=spacing,
        part=next(iter(split), None),
        groups=more,
        descriptors={name: cell.casefold() for name, cell in more.items()},
    )
    return case, doubts + odd, "" if lies is None else lies.patient


def _about(rows: Iterable[int], groups: Mapping[int, Mapping[str, str]]) -> dict[str, list[str]]:
    """Return what an image's rows, by their lines, say in further columns: an empty cell nothing.

    Cells that differ in case alone say the same.
    """
    found = defaultdict[str, dict[str, str]](dict)
    for line in rows:
        for name, cell in groups[line].items():
            found[name].setdefault(visible(cell).casefold(), cell)
    return {name: list(cells.values()) for name, cells in found.items()}


def _headers(path: Path, by_header: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """Yield that one patient of the headers is several here; who that is, is not told.

    Where all images with a name have one, somebody has put it in the place of all.

    Args:
        path: the CSV file.
        by_header: by the headers' patients, an image of each patient of the file.
    """
    known = defaultdict[str, dict[str, str]](dict)
    for name, first in spelt_alike(filter(None, by_header)).items():
        known[first] |= by_header[name]
    several = [names for names in known.values() if len(names) > 1]
    if several and len(known) > 1:
        (a, first), (b, second), *_ = several[0].items()
        yield (
            f"{path}: {first} and {second} have one PatientID in their headers, and are patients "
            f"{a} and {b} here (the first of {len(several)} such IDs): give them one name in "
            "column patient, unless two hospitals number alike"
        )


def _differing(
    path: Path, images: Images, groups: Mapping[int, Mapping[str, str]]
) -> Iterator[str]:
    """Yield the further columns in which rows of one image differ: it has nothing of these."""
    first: dict[str, str] = {}
    counts = Counter[str]()
    for (image, _), rows in images.items():
        for name, cells in _about(rows, groups).items():
            if len(cells) > 1:
                counts[name] += 1
                first.setdefault(name, f"{image.name}: {', '.join(cells)}")
    for name, count in counts.items():
        yield (
            f"{path}: column {name!r} differs between rows of one image in {count} of "
            f"{len(images)} images, and is left out there: make it one; the first: {first[name]}"
        )


def _spacing(
    where: str, lies: Geometry | None, said: float | None
) -> tuple[float | None, list[str]]:
    """Return an image's spacing, its own before the CSV's, and what is odd about it."""
    own = lies.scale if lies is not None else None
    if own is None:
        return said, [f"{where}: {text}" for text in implausible(said)]
    if said is None or abs(said - own) <= 0.02 * own:
        return own, []
    return own, [f"{where}: spacing {said:g} is given, its header says {own:g}, which is taken"]


def _report(
    cases: Sequence[Case], grades: Sequence[str], rows: int, bare: int
) -> Iterator[tuple[int, str, str]]:
    """Yield what was found and used."""
    readings = [reading for case in cases for reading in case.readings]
    readers = sorted({reading.reader for reading in readings})
    yield rows, "rows found", ""
    yield bare, "rows without mask and category", "left out: nothing to learn from"
    yield len(cases), "images used", ""
    yield len({case.patient for case in cases}), "patients", "the unit that is split"
    yield len(readers), "readers", ", ".join(readers[:8]) + ", ..." * (len(readers) > 8)
    yield sum(len(case.readings) > 1 for case in cases), "images with several readers", ""
    yield sum(case.spacing is not None for case in cases), "images of known spacing", ""
    yield sum(reading.contour is not None for reading in readings), "readings with a mask", ""
    for i, grade in enumerate(grades):
        yield sum(reading.category == i for reading in readings), f"readings of {grade}", ""
