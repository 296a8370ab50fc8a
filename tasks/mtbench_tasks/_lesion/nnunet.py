"""nnU-Net's folder layout (version 2), out and in.

As its documentation describes it (MIC-DKFZ/nnUNet, ``documentation/dataset_format.md``):
``dataset.json`` beside ``imagesTr/CASE_0000.png`` and ``labelsTr/CASE.png``, and likewise
``imagesTs`` and ``labelsTs`` for the test. It has no place for categories, patients, spacing,
descriptors and whatever else is known of a case: they go into a CSV beside it, which source
``manifest`` reads.
"""

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pil
from pydantic import BaseModel, ValidationError

from mtbench.errors import DataError
from mtbench.training.data import regular
from mtbench_tasks._lesion.cases import Case, look
from mtbench_tasks._lesion.consensus import with_consensus

INDEX, TABLE = "dataset.json", "cases.csv"
ENDING, CHANNEL, LESION = ".png", "_0000", 1
FOLDERS = {"train": "Tr", "val": "Tr", "test": "Ts"}


class _Index(BaseModel):
    """What is needed of ``dataset.json``."""

    labels: dict[str, int | list[int]]
    file_ending: str


def write(cases: Sequence[Case], grades: Sequence[str], to: Path) -> tuple[int, list[str]]:
    """Write cases with a mask; return how many, and a line for each that is left out.

    Images are what was scanned, upright, grey, of square pixels. A case of several readers has
    their consensus, unless its truth is known.

    Args:
        cases: their images and masks are read one after the other.
        grades: the categories.
        to: an empty folder, or one that is to be made.
    """
    problems = list[str]()
    rows = list[dict[str, Any]]()
    names: set[str] = set()
    count = {"Tr": 0, "Ts": 0}
    for case in cases:
        best = (case if case.truth else with_consensus(case)).said[-1]
        if best.contour is None:
            problems.append(f"{case.name}: has no mask: left out")
            continue
        try:
            image = look(case.pixels)[0]
            mask = case.mask(best, image)[0]
        except DataError as error:
            problems.append(str(error))
            continue
        name = _unique(case.name, names)
        side = FOLDERS[case.part or "train"]
        files = f"images{side}/{name}{CHANNEL}{ENDING}", f"labels{side}/{name}{ENDING}"
        for file, values in zip(files, (image, mask.astype(np.uint8) * LESION), strict=True):
            (to / file).parent.mkdir(parents=True, exist_ok=True)
            Pil.fromarray(values).save(to / file)
        count[side] += 1
        category = None if best.category is None else grades[best.category]
        row = {
            "image": files[0], "mask": files[1], "mask_value": LESION, "category": category,
            "patient": case.patient, "reader": best.reader, "spacing": case.spacing,
            "split": case.part,
        }  # fmt: skip
        rows.append({**row, **case.descriptors, **case.groups, **row})
    if rows:
        index = {
            "channel_names": {"0": "ultrasound"},
            "labels": {"background": 0, "lesion": LESION},
            "numTraining": count["Tr"],
            "file_ending": ENDING,
        }
        (to / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        columns = dict.fromkeys(name for row in rows for name in row)
        with (to / TABLE).open("w", encoding="utf-8", newline="") as table:
            writer = csv.DictWriter(table, columns)
            writer.writeheader()
            writer.writerows(rows)
    return len(rows), problems


def _unique(name: str, taken: set[str]) -> str:
    """Return a case's identifier, of letters, digits and hyphens."""
    plain = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-") or "case"
    found, number = plain, 1
    while found.casefold() in taken:
        number += 1
        found = f"{plain}-{number}"
    taken.add(found.casefold())
    return found


def find(path: Path) -> Path:
    """Return the file that describes a folder in this layout; another path as it is."""
    return next((path / name for name in (TABLE, INDEX) if (path / name).is_file()), path)


def rows(index: Path) -> list[dict[str, Any]]:
    """Return a manifest's rows for a folder that has no CSV.

    Raises:
        DataError: it has another layout, several channels, not one label, or no ending of files.
    """
    try:
        said = _Index.model_validate_json(regular(index).read_bytes())
    except (OSError, ValidationError) as error:
        raise DataError(
            f"{index}: is no dataset.json of nnU-Net's version 2: it must have labels, such as "
            f"{{'background': 0, 'lesion': 1}}, and file_ending"
        ) from error
    labels = {name: value for name, value in said.labels.items() if value != 0}
    value = next(iter(labels.values()), None)
    if len(labels) != 1 or not isinstance(value, int) or value < 1:
        raise DataError(
            f"{index}: one label beside the background is read, of a whole number from 1 on, "
            f"found {labels}"
        )
    if not re.fullmatch(r"\.[A-Za-z0-9.]+", said.file_ending):
        raise DataError(
            f"{index}: file_ending must be a dot and letters or digits, such as .png or .nii.gz, "
            f"found {said.file_ending!r}"
        )
    found = []
    for side in ("Tr", "Ts"):
        if several := sorted(index.parent.glob(f"images{side}/*_0001{said.file_ending}")):
            raise DataError(f"{several[0]}: one channel is read, and this is a second")
        for image in sorted(index.parent.glob(f"images{side}/*{CHANNEL}{said.file_ending}")):
            name = image.name.removesuffix(CHANNEL + said.file_ending)
            mask = f"labels{side}/{name}{said.file_ending}"
            drawn = (index.parent / mask).is_file()
            row = {"image": f"images{side}/{image.name}", "split": "test" if side == "Ts" else None}
            found.append({**row, "mask": mask, "mask_value": value} if drawn else row)
    if not found:
        raise DataError(f"{index.parent}: has no imagesTr/*{CHANNEL}{said.file_ending}")
    return found
