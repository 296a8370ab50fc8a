"""The CSV of images, masks and readings that people write: its columns, its dialects, its rows."""

import codecs
import csv
import io
import re
import textwrap
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from mtbench.errors import DataError, first_fault
from mtbench.training.data import regular
from mtbench_tasks._lesion import nnunet
from mtbench_tasks._lesion.cases import Part
from mtbench_tasks._lesion.categories import NONE, said

COLUMNS = {
    "image": "the image file: PNG, JPEG, TIFF, BMP, DICOM or NIfTI, one 2-D image, grey or colour",
    "mask": "the lesion's mask: zero and one other value, of the image's size; empty: not outlined",
    "category": "the reader's category, such as TR4, 4a or malignant; empty: not graded",
    "patient": "whose image it is: a patient's images stay together; empty: the image is a patient",
    "reader": "who drew and graded; an image may have rows of several readers; masks of one unite",
    "spacing": "millimetres per pixel, where the image's own header (DICOM, NIfTI) does not say",
    "mask_value": "which value of a mask of several, from 1 on, is the lesion; may be left out",
    "frame": "which frame of a DICOM of several is meant, from 1; may be left out",
    "split": "train, val or test, where you hold patients out yourself; may be left out",
}
RARE = ("mask_value", "frame", "split")
"""Columns that few files have: another one's name may look like theirs."""
SURE = 0.75
"""How much like ``reader`` another name must be: ``gender`` and ``year`` are less."""
WORDS = {"grade": "category", "rater": "reader"}
"""What else people call a column."""


WORKBOOKS = b"PK\x03\x04", b"\xd0\xcf\x11\xe0"
"""How Excel's and LibreOffice's files begin."""

SEPARATOR = re.compile(r"sep=([,;\t|])[\s,;]*", re.IGNORECASE)
"""Excel's first line of a CSV that says what parts its cells."""
FORMULA = re.compile(r'^="(.*)"$')
"""How a spreadsheet keeps the zeros of a number: it is the text."""

PART: Mapping[str, Part] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "holdout", "hold-out"), "test"),
}
"""How a part may be spelt."""


class Row(BaseModel):
    """What one reader says of one image."""

    model_config = ConfigDict(frozen=True)

    image: str
    mask: str | None = None
    category: str | None = None
    patient: str | None = None
    reader: str = "reader"
    spacing: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    mask_value: int | None = None
    frame: int | None = Field(default=None, ge=1)
    split: Part | None = None

    @field_validator("spacing", "mask_value", "frame", mode="before")
    @classmethod
    def _is_a_number(cls, value: object) -> object:
        if isinstance(value, str) and "_" in value:  # pydantic takes 1_2 as 12, as Python does
            raise ValueError("must be a number without '_'")
        return value

    @field_validator("mask_value")
    @classmethod
    def _is_a_lesion(cls, value: int | None) -> int | None:
        if value is not None and value < 1:
            raise ValueError(
                "0 is the background: leave the cell empty; where the lesion is black, invert the "
                "mask"
            )
        return value


@dataclass
class Table:
    """What a file says, as far as it can be judged without the files that it names.

    Attributes:
        rows: those that are valid, by their line.
        groups: what else is said in each, by column.
        problems: rows that are left out.
        doubts: what looks odd.
        columns: the header's, in small letters.
    """

    rows: dict[int, Row] = field(default_factory=dict)
    groups: dict[int, dict[str, str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)


def read(path: Path) -> Table:
    """Read a CSV, or nnU-Net's ``dataset.json``.

    Raises:
        DataError: it cannot be read, or is no such file.
    """
    if path.name == nnunet.INDEX:
        rows = dict(enumerate(map(Row.model_validate, nnunet.rows(path)), 1))
        return Table(rows, {line: {} for line in rows})
    text = _text(path)
    lines = list[tuple[int, list[str]]]()
    try:
        lines += _lines(text)
    except csv.Error as error:
        after = f" after line {lines[-1][0]}" if lines else ""
        raise DataError(f"{path}: is no CSV{after} ({error}): is a quote not closed?") from error
    if not lines:
        raise DataError(f"{path}: is empty; its first line names columns: {', '.join(COLUMNS)}")
    table = Table(columns=[cell.lower() for cell in lines[0][1]])
    _check_columns(path, table.columns)
    for line, cells in lines[1:]:
        if cells[0].startswith("#"):
            named = dict(zip(table.columns, cells, strict=False)).get("image")
            if named and locate_in(path.parent, named).is_file():
                fault = f"begins with # and is left out, but there is an image {named}"
                table.doubts.append(f"{path} line {line}: {fault}; begin with ./# to have it read")
            continue
        while len(cells) > len(table.columns) and not cells[-1]:
            cells.pop()
        if len(cells) > len(table.columns):
            fault = f"has {len(cells)} cells, the header {len(table.columns)}; quote commas"
            table.problems.append(f"{path} line {line}: {fault}")
            continue
        filled = {
            column: cell
            for column, cell in zip(table.columns, cells, strict=False)
            if _says(column, cell)
        }
        given = {column: cell for column, cell in filled.items() if column in COLUMNS}
        table.groups[line] = {c: cell for c, cell in filled.items() if c and c not in COLUMNS}
        if "split" in given:
            given["split"] = PART.get(given["split"].casefold(), given["split"])
        if "category" in given:
            given["category"] = said(given["category"]) or ""
        if "spacing" in given:
            given["spacing"] = re.sub(r" *mm$", "", given["spacing"].replace(",", "."))
        try:
            table.rows[line] = Row.model_validate(given)
        except ValidationError as error:
            where = str(error.errors()[0]["loc"][0])
            fault = f"{first_fault(error)}, found {given.get(where, '')!r}"
            table.problems.append(f"{path} line {line}: {fault}")
    return table


def _text(path: Path) -> str:
    """Return a file's text: UTF-8, or what else its first bytes say."""
    try:
        content = regular(path).read_bytes()
    except OSError as error:
        what = "give a CSV file, or say --source NAME if it is another source's"
        raise DataError(f"{path}: cannot be read ({error.strerror}); {what}") from error
    if content.startswith(WORKBOOKS):
        raise DataError(f"{path}: is a workbook; save the sheet that is meant as 'CSV UTF-8'")
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is no UTF-8 text; save it as 'CSV UTF-8'") from error
    if text.lstrip()[:1] in ("{", "[", "<"):
        raise DataError(
            f"{path}: is JSON or XML, as COCO's and CVAT's annotations are, and a CSV is needed: "
            "save the contours as masks, and name image and mask in a row (`mtbench data template`)"
        )
    if "\0" in text:
        raise DataError(f"{path}: holds characters of code 0; save it as 'CSV UTF-8'")
    return io.StringIO(text, newline=None).read()


def _says(column: str, cell: str) -> bool:
    """Return whether a cell says something: of calcifications, and the like, ``none`` does."""
    words = {"."} if column == "image" else set[str]() if column in COLUMNS else {"none"}
    return cell.casefold() not in NONE - words


def _lines(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield number and cells of the lines that are not empty, from the header on."""
    lines = list(io.StringIO(text))  # splitlines parts text at vertical tabs and U+2028, too
    parted = SEPARATOR.fullmatch(lines[0]) if lines else None
    header = next((line for line in lines if line.strip() and line.lstrip('"')[:1] != "#"), "")
    delimiter = parted[1] if parted else max(",;\t|", key=header.count)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    begun = False
    for row in reader:
        if parted and reader.line_num == 1:
            continue
        cells = [FORMULA.sub(r"\1", cell.strip()) for cell in row]
        begun = begun or (any(cells) and not cells[0].startswith("#"))
        if begun and any(cells):
            yield reader.line_num, cells


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    if twice := [name for name in columns if name and columns.count(name) > 1]:
        raise DataError(f"{path}: has column {twice[0]!r} twice")
    absent = COLUMNS.keys() - set(columns) - set(RARE)
    for name in (name for name in columns if name not in COLUMNS):
        near = get_close_matches(name, absent - {"reader"}, n=1)
        near += get_close_matches(name, absent & {"reader"}, n=1, cutoff=SURE)
        if likely := [column for column in (WORDS.get(name), *near) if column in absent]:
            raise DataError(
                f"{path}: has no column {name!r}: did you mean {likely[0]!r}? If it is another "
                "thing, name it otherwise"
            )
    if "image" in absent:
        found = textwrap.shorten(", ".join(columns), 160, placeholder=" ...")
        raise DataError(f"{path}: has no column 'image', found: {found}")


def locate_in(folder: Path, name: str) -> Path:
    """Return a file of the CSV; Windows' separators and another Unicode form are understood."""
    file = folder / name.replace("\\", "/")
    if not name.isascii() and not file.exists():
        forms: tuple[Literal["NFC", "NFD"], ...] = "NFC", "NFD"
        for form in forms:
            other = folder / unicodedata.normalize(form, name.replace("\\", "/"))
            if other.exists():
                return other
    return file
