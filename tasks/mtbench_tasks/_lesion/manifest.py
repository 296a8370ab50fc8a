"""Anybody's images: a CSV of image, mask, category, patient, reader and spacing."""

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mtbench.errors import DataError, UsageError, did_you_mean
from mtbench.training.data import regular
from mtbench.training.task import Progress, Recipe
from mtbench_tasks._lesion.cases import Case, Collection, Reading
from mtbench_tasks._lesion.files import fingerprint, read_image, read_mask, read_spacing
from mtbench_tasks._lesion.source import Source

VERSION = 1  # part of the fingerprint: raise it when the same files give other cases

COLUMNS = {
    "image": "the image file: PNG, JPEG, TIFF, BMP, DICOM or NIfTI, one 2-D image, grey or colour",
    "mask": "the lesion's mask: what is not zero, of the image's size; empty: not outlined",
    "category": "the reader's category, such as TR4, 4a or malignant; empty: not graded",
    "patient": "whose image it is: a patient's images stay together; empty: the image is a patient",
    "reader": "who drew and graded; an image may have several rows, one for each reader",
    "spacing": "millimetres per pixel; empty: as a DICOM's or NIfTI's header says, else unknown",
}

SCALES = (
    ("TR1", "TR2", "TR3", "TR4", "TR5"),
    ("1", "2", "3", "4", "5"),
    ("2", "3", "4a", "4b", "4c", "5"),
    ("1", "2", "3", "4a", "4b", "4c", "5"),
    ("benign", "malignant"),
    ("low", "high"),
    ("0", "1"),
)
"""The known scales, from benign to malignant; the first that holds all categories is meant."""


class Row(BaseModel):
    """What one reader says of one image."""

    model_config = ConfigDict(frozen=True)

    image: str
    mask: str | None = None
    category: str | None = None
    patient: str | None = None
    reader: str = "reader"
    spacing: float | None = Field(default=None, gt=0, allow_inf_nan=False)


@dataclass
class _Table:
    """The rows that are valid by themselves, by their line in the file, and what is not."""

    rows: dict[int, Row] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)


def template() -> str:
    """Return a CSV to fill in: comments on the columns, the header, two readings of one image."""
    comments = [f"# {name}: {what}" for name, what in COLUMNS.items()]
    more = "# Only image is needed. Paths are relative to this file. Lines with a # are left out."
    rows = [f"images/001.png,masks/001_{r}.png,TR{g},P01,{r},0.08" for r, g in (("a", 4), ("b", 3))]
    return "\n".join([*comments, more, ",".join(COLUMNS), *rows, ""])


def scale(path: Path) -> tuple[str, ...]:
    """Return the grades of a file's categories, from benign to malignant.

    Raises:
        DataError: the file is absent or broken, or its categories fit no known scale.
    """
    found = _categories(_read(path))
    if (known := _known_scale(found)) is None:
        scales = "; ".join(" ".join(grades) for grades in SCALES)
        raise DataError(
            f"{path}: categories {', '.join(found)} fit no known scale ({scales}); mend them, or "
            "give --grades A,B,... from benign to malignant"
        )
    return known


def load(path: Path, progress: Progress, grades: tuple[str, ...] | None = None) -> Collection:
    """Read a CSV with a row per image and reader; the files are read when they are needed.

    Columns are `COLUMNS`, in any order; others are left out, unless they look like one misspelt.
    A relative path begins at the CSV's folder and has no ``..``, so that a CSV from elsewhere
    reaches other files by an absolute path only, which one sees. A row that is broken, or whose
    files are not there, is a problem and left out; a row with neither mask nor category is left
    out and counted.

    Args:
        path: the CSV file, UTF-8, with commas, semicolons or tabs.
        progress: is told how many files have been read for the fingerprint.
        grades: the categories from benign to malignant; None: the known scale that they fit, or,
            for a look at the data, in alphabetical order.

    Raises:
        DataError: the file is no such CSV, or there is nothing in it to learn from.
    """
    table = _read(path)
    found = _categories(table)
    known = grades or _known_scale(found)
    order = known or tuple(found)
    problems = list(table.problems)
    images: dict[Path, dict[int, Row]] = {}
    bare = 0
    for line, row in table.rows.items():
        if fault := _fault(path.parent, row, order):
            problems.append(f"{path} line {line}: {fault}")
        elif row.mask or row.category:
            images.setdefault(_locate(path.parent, row.image), {})[line] = row
        else:
            bare += 1
    cases: list[Case] = []
    said: list[list[object]] = []
    files: list[Path] = []
    for rows in images.values():
        try:
            case = _case(path, rows, order)
        except DataError as error:
            problems.append(str(error))
            continue
        readings = [(r.reader, r.category, r.contour is not None) for r in case.readings]
        said.append([case.name, case.patient, case.spacing, readings])
        names = [case.name, *(row.mask for row in rows.values() if row.mask)]
        files += [_locate(path.parent, name) for name in names]
        cases.append(case)
    if not cases and not problems:
        raise DataError(f"{path}: has no row with a mask or a category: nothing to learn from")
    remarks = [] if known else ["the grades are in alphabetical order: train with --grades A,B,..."]
    if not any(row.patient for row in table.rows.values()):
        remarks.append("no patients are named: each image counts as one patient")
    if others := [name for name in table.columns if name and name not in COLUMNS]:
        remarks.append(f"columns that are not used: {', '.join(others)}")
    return Collection(
        cases=tuple(cases),
        grades=order,
        fingerprint=fingerprint(["manifest", VERSION, order, said], files, progress),
        report=tuple(_report(cases, order, len(table.rows) + len(table.problems), bare)),
        problems=tuple(problems),
        remarks=tuple(remarks),
    )


def _graded(data: Path | None, grades: tuple[str, ...] | None) -> Source:
    if grades is None and data is None:
        raise DataError(f"source manifest needs --data PATH: {SOURCE.what}")
    if grades is not None and len({g.casefold() for g in grades}) < max(2, len(grades)):
        raise UsageError(f"grades must be two or more, all different, found {','.join(grades)}")
    order = grades or scale(data or Path())
    return replace(
        SOURCE, load=partial(load, grades=order), grades=order, high=(len(order) + 1) // 2
    )


SOURCE = Source(
    load=load,
    grades=(),
    high=0,
    # As for DDTI: few graded cases, learnt longer, held back.
    recipe=Recipe(
        epochs=18, batch_size=8, lr=1e-3, encoder_lr=0.3, weight_decay=0.05, select="last"
    ),
    what="a CSV file with a row per image and reader (`mtbench data template` writes one)",
    graded=_graded,
)


def _read(path: Path) -> _Table:
    """Read the rows of a CSV, each as far as it can be judged without its files."""
    try:
        text = regular(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is no UTF-8 text; save it as 'CSV UTF-8'") from error
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); --data is a CSV file"
        ) from error
    try:
        lines = list(_lines(text))
    except csv.Error as error:
        raise DataError(f"{path}: is no CSV ({error})") from error
    if not lines:
        raise DataError(f"{path}: is empty; its first line names columns: {', '.join(COLUMNS)}")
    table = _Table(columns=[cell.lower() for cell in lines[0][1]])
    _check_columns(path, table.columns)
    for line, cells in lines[1:]:
        if len(cells) > len(table.columns):
            fault = f"has {len(cells)} cells, the header {len(table.columns)}; quote commas"
            table.problems.append(f"{path} line {line}: {fault}")
            continue
        given = {c: v for c, v in zip(table.columns, cells, strict=False) if v and c in COLUMNS}
        if "category" in given:  # a spreadsheet's 4.0 is 4
            given["category"] = re.sub(r"^(\d+)\.0$", r"\1", given["category"])
        if "spacing" in given:
            given["spacing"] = given["spacing"].replace(",", ".")
        try:
            table.rows[line] = Row.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            where = str(first["loc"][0])
            fault = f"{where}: {first['msg']}, found {given.get(where, '')!r}"
            table.problems.append(f"{path} line {line}: {fault}")
    return table


def _lines(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield number and cells of the lines that are neither empty nor comments."""
    lines = text.splitlines(keepends=True)
    header = next((line for line in lines if line.strip() and line.lstrip('"')[:1] != "#"), "")
    reader = csv.reader(lines, delimiter=max(",;\t", key=header.count), strict=True)
    for row in reader:
        cells = [cell.strip() for cell in row]
        if any(cells) and not cells[0].startswith("#"):
            yield reader.line_num, cells


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    if twice := [name for name in COLUMNS if columns.count(name) > 1]:
        raise DataError(f"{path}: has column {twice[0]!r} twice")
    absent = COLUMNS.keys() - set(columns)
    for name in set(columns) - COLUMNS.keys():
        if get_close_matches(name, absent, n=1):
            raise DataError(
                f"{path}: has no column {name!r}: {did_you_mean(name, absent)} If it is another "
                "thing, name it otherwise"
            )
    if "image" in absent:
        raise DataError(f"{path}: has no column 'image', found: {', '.join(columns)}")


def _categories(table: _Table) -> list[str]:
    """Return the categories that occur, sorted, each spelling of upper and lower case once."""
    spelt = {row.category.casefold(): row.category for row in table.rows.values() if row.category}
    return sorted(spelt.values())


def _known_scale(found: Sequence[str]) -> tuple[str, ...] | None:
    """Return the scale that categories are of; without any, low and high."""
    if not found:
        return ("low", "high")
    wanted = {category.casefold() for category in found}
    return next((s for s in SCALES if wanted <= {grade.casefold() for grade in s}), None)


def _locate(folder: Path, name: str) -> Path:
    """Return a file of the CSV; Windows' separators are understood."""
    return folder / name.replace("\\", "/")


def _fault(folder: Path, row: Row, grades: Sequence[str]) -> str | None:
    """Return what is wrong with a row, as far as its files need not be opened."""
    for name in filter(None, (row.image, row.mask)):
        file = _locate(folder, name)
        if ".." in Path(name.replace("\\", "/")).parts:
            return f"{name}: '..' may lead out of the CSV's folder; give an absolute path"
        try:
            there = file.is_file()
        except OSError:  # such as a name that is too long
            there = False
        if not there:
            return f"{name}: there is no such file ({file})"
    if row.category and _grade(row.category, grades) is None:
        return (
            f"category {row.category!r} is not on the scale: {did_you_mean(row.category, grades)}"
        )
    return None


def _grade(category: str, grades: Sequence[str]) -> int | None:
    """Return a category's place on the scale, upper or lower case; None if it has none."""
    wanted = category.casefold()
    return next((i for i, grade in enumerate(grades) if grade.casefold() == wanted), None)


def _case(path: Path, rows: dict[int, Row], grades: Sequence[str]) -> Case:
    """Return the case of one image from its rows, by line."""
    image = next(iter(rows.values())).image
    where = f"{path} line {' and '.join(map(str, rows))}: {image}"
    said = {
        what: list(dict.fromkeys(v for row in rows.values() if (v := getattr(row, what))))
        for what in ("patient", "spacing")
    }
    for what, values in said.items():
        if len(values) > 1:
            raise DataError(f"{where} has one {what}, found {', '.join(map(str, values))}")
    readers = [row.reader for row in rows.values()]
    if len(set(readers)) < len(readers):
        twice = max(readers, key=readers.count)
        raise DataError(
            f"{where} has one row per reader, found {twice!r} twice; remove one, or tell readers "
            "apart in column 'reader'"
        )
    file = _locate(path.parent, image)
    readings = []
    for row in rows.values():
        contour = partial(read_mask, _locate(path.parent, row.mask)) if row.mask else None
        category = _grade(row.category, grades) if row.category else None
        readings.append(Reading(row.reader, contour, category))
    return Case(
        name=image,
        patient=(said["patient"] or [image])[0],
        pixels=partial(read_image, file),
        readings=tuple(readings),
        spacing=said["spacing"][0] if said["spacing"] else read_spacing(file),
    )


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
