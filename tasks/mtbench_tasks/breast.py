"""Breast ultrasound: lesion mask, and BI-RADS category or malignancy, from one image.

BrEaST-Lesions (Pawłowska et al. 2024, doi 10.1038/s41597-024-02984-z): a spreadsheet of 256
patients, and a folder of PNG files: one image a patient, a mask of its tumour, and masks of other
lesions, which are not used. The four normal images have no lesion and are left out.
"""

from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from mtbench.errors import DataError
from mtbench.training.task import Progress
from mtbench_tasks._lesion.cases import Case, Collection, Reading
from mtbench_tasks._lesion.descriptors import Descriptor, Lexicon
from mtbench_tasks._lesion.files import ImageFile, MaskFile, by_name, fingerprint, must_unpack
from mtbench_tasks._lesion.pixels import implausible
from mtbench_tasks._lesion.source import Source, held_back
from mtbench_tasks._lesion.task import LesionTask

EXTRA = "thyroid"

GRADES = {"BIRADS": ("2", "3", "4a", "4b", "4c", "5"), "Classification": ("benign", "malignant")}
"""What may be learnt, by its column, from benign to malignant."""
DESCRIPTORS = ("Shape", "Margin", "Echogenicity", "Posterior_features", "Halo", "Calcifications")
_NONE = {"no": "none"}
LEXICON: Lexicon = (
    Descriptor("shape", ("oval", "round", "irregular"), "shape"),
    Descriptor("margin", ("circumscribed", "not circumscribed"), "margin"),
    Descriptor(
        "echo pattern",
        ("anechoic", "hyperechoic", "complex cystic/solid", "hypoechoic", "isoechoic",
         "heterogeneous"),
        "echogenicity",
    ),
    Descriptor(
        "posterior features",
        ("none", "enhancement", "shadowing", "combined"),
        "posterior_features",
        _NONE,
    ),
    Descriptor("echogenic halo", ("none", "present"), "halo", {**_NONE, "yes": "present"}),
    Descriptor("calcifications", ("none", "in a mass", "intraductal"), "calcifications", _NONE),
)  # fmt: skip
"""In BI-RADS's terms; how a margin is not circumscribed is left out: several may hold."""
NEEDED = ("Image_filename", "Mask_tumor_filename", "Pixel_size", *GRADES, *DESCRIPTORS)
MOST = 10_000  # rows
VERSION = 1  # part of the fingerprint: raise it when the same files give other cases


def load(path: Path, progress: Progress, column: str) -> Collection:
    """Read BrEaST-Lesions; its images are decoded when they are needed.

    Raises:
        DataError: `path` has no such spreadsheet, a file or an image's row is there twice, or none
            of the rows can be used.
    """
    import pandas as pd  # takes a second

    tables = sorted(path.glob("*.xlsx"))
    if len(tables) != 1:
        raise DataError(f"{path}: must hold one spreadsheet, *.xlsx; found {len(tables)}")
    try:
        must_unpack(tables[0])
        # A row's number may be anything: all rows before it would be made.
        table: Any = pd.read_excel(tables[0], dtype=str, keep_default_na=False, nrows=MOST + 1)
    except DataError:
        raise
    except Exception as error:  # of zip, XML and spreadsheet: openpyxl lets them all through
        raise DataError(f"{tables[0]}: cannot be read as a spreadsheet ({error})") from error
    if len(table) > MOST:
        raise DataError(f"{tables[0]}: has more than {MOST} rows; BrEaST-Lesions has 256")
    if absent := [name for name in NEEDED if name not in table]:
        raise DataError(f"{tables[0]}: must have columns {', '.join(absent)}")
    wanted = {*table["Image_filename"], *table["Mask_tumor_filename"]}
    found = [f for f in (*path.glob("*.png"), *path.glob("*/*.png")) if f.name in wanted]
    there = by_name(path, sorted(file.relative_to(path).as_posix() for file in found))
    grades, count = GRADES[column], Counter[str]()
    problems, doubts = list[str](), list[str]()
    cases, files, lines = list[Case](), list[Path](), dict[Path, int]()
    for line, row in enumerate(table.to_dict("records"), 2):
        names = [row["Image_filename"], row["Mask_tumor_filename"]]
        if row["Classification"] == "normal":
            count["normal"] += 1
        elif missing := [name for name in names if name not in there]:
            problems.append(f"{tables[0]} line {line}: there is no file {' and '.join(missing)!r}")
        else:
            image, mask = (path / there[name] for name in names)
            if image in lines:
                raise DataError(
                    f"{tables[0]} line {line}: an image has one row, and {image.name} has line "
                    f"{lines[image]} too; remove one"
                )
            lines[image] = line
            files += [image, mask]
            grade = row[column].strip().lower()
            count[grade if grade in grades else "ungraded"] += 1
            category = grades.index(grade) if grade in grades else None
            size = 10 * pd.to_numeric(row["Pixel_size"], errors="coerce")  # from centimetres
            spacing = float(size) if size > 0 else None
            odd = implausible(spacing)
            if spacing is None and (said := row["Pixel_size"].strip()):
                odd = [f"Pixel_size {said!r} is no length in centimetres: it counts as unknown"]
            doubts += [f"{tables[0]} line {line}: {text}" for text in odd]
            cases.append(
                Case(
                    name=image.stem,
                    patient=image.stem,
                    pixels=ImageFile(image),
                    readings=(Reading("radiologist", MaskFile(mask, image), category),),
                    spacing=spacing,
                    descriptors={name.lower(): row[name] for name in DESCRIPTORS},
                )
            )
    if not cases:
        why = f"; the first problem: {problems[0]}" if problems else ""
        raise DataError(f"{tables[0]}: none of its {len(table)} rows can be used{why}")
    report = [
        (len(table), "patients found", "rows of the spreadsheet, one image each"),
        (count["normal"], "normal images", "dropped: no lesion to outline and grade"),
        (count["ungraded"], "images without a category", f"kept for their masks: {column}"),
        (len(cases), "images used", "the cases of this collection, all with a mask"),
        *((count[grade], f"images of {grade}", column) for grade in grades),
    ]
    labels = [(case.name, case.readings[0].category, case.spacing) for case in cases]
    content = fingerprint(["breast", VERSION, column, labels], files, progress)
    return Collection(tuple(cases), grades, content, tuple(report), tuple(problems), tuple(doubts))


def _source(column: str, high: int) -> Source:
    return Source(
        load=partial(load, column=column),
        grades=GRADES[column],
        high=high,
        recipe=held_back(epochs=30, batch_size=8),
        guide=2.0,
        lexicon=LEXICON,
        system="BI-RADS" if column == "BIRADS" else "",
        what="the folder of BrEaST-Lesions' spreadsheet and images",
    )


class Breast(LesionTask):
    """Lesion mask, and BI-RADS category or malignancy, by the thyroid task's model and losses.

    Args:
        source: what the category is: ``birads``, the radiologist's, or ``malignancy``, by biopsy or
            follow-up.
        data: the folder of the spreadsheet and the images.
        target: ``grades``, or ``low-high`` (BI-RADS 2 and 3 against 4a to 5, which call for a
            biopsy).
    """

    organ = "Breast"
    words = {  # noqa: RUF012 - a ClassVar of the base
        "composition": "texture",
        "echogenicity": "echo pattern",
        "echogenic foci": "calcifications",
    }
    sources = {  # noqa: RUF012 - a ClassVar of the base
        "birads": _source("BIRADS", high=2),
        "malignancy": _source("Classification", high=1),
    }

    def __init__(
        self, *, source: Literal["birads", "malignancy"] = "birads", **common: Any
    ) -> None:
        super().__init__(source=source, **common)

    def collection(self, progress: Progress) -> Collection:
        """Return the cases; where their words are learnt, the fingerprint is of these too."""
        found = super().collection(progress)
        if not self.lexicon:
            return found
        words = [sorted(case.descriptors.items()) for case in found.cases]
        return replace(found, fingerprint=fingerprint([found.fingerprint, words], (), progress))
