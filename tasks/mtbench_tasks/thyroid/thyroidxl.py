"""ThyroidXL: 11,635 images of 4,093 patients, outlined, with ACR TI-RADS (MICCAI 2025).

The layout as two programs that read it describe it, since its archive is behind a form:
`train/images`, `train/masks`, `test/images` and `test/masks` hold `PATIENT_HASH_N.png`, a mask
under its image's name; `stats/id2info_eng.json` (or `id2info_eng_clean.json`) has a record per
patient:

    {"00000058": {"nodule_1": {"TIRADS": 4, "Position": "Left lobe", ...}, "images": [...], ...}}

The category is `TIRADS` of `nodule_1`: an image shows one nodule, the most suspicious one. Whether
it is benign by cytology or histology is recorded too, in codes that we found described nowhere: it
is not used. The published test part, by patient, is the test split.
"""

from collections import Counter, defaultdict
from pathlib import Path

from pydantic import BaseModel, TypeAdapter, ValidationError

from mtbench.errors import DataError, first_fault
from mtbench.training.data import regular
from mtbench.training.task import Progress
from mtbench_tasks._lesion.cases import Case, Collection, Reading
from mtbench_tasks._lesion.files import ImageFile, MaskFile, fingerprint
from mtbench_tasks.thyroid.ultrasound import GRADES

PARTS = ("train", "test")
VERSION = 1  # part of the fingerprint: raise it when the same files give other cases

_WHY = {
    "images found": "PNG files in train/images and test/images",
    "images of two patients": "dropped: the JSON lists them for both",
    "images without a record": "kept for their masks: the JSON does not name them",
    "images without a category": "kept for their masks",
    "categories outside the scale": "taken as missing: TIRADS is a number from 1 to 5",
    "images without a mask": "kept for their category: no file of the same name",
    "images with neither": "dropped: nothing to learn from",
    "records of an image that is not there": "dropped",
    "patients in both parts": "all their images are in the test",
    "images used": "the cases of this collection",
    "patients": "the unit that is split",
    "images of the test part": "the test split; seeds divide the others in training and validation",
    **dict.fromkeys(GRADES, ""),
}


class Nodule(BaseModel):
    """What is used of a nodule's record."""

    TIRADS: int | str | None = None


class Patient(BaseModel):
    """What is used of a patient's record."""

    images: list[str]
    nodule_1: Nodule | None = None


def load(path: Path, progress: Progress) -> Collection:
    """Read ThyroidXL from its folder, or one that holds it; images are decoded when needed.

    Raises:
        DataError: it has another layout, or its JSON is broken.
    """
    root, table = _root(path)
    problems: list[str] = []
    count: Counter[str] = Counter()
    record_of: dict[str, tuple[str, Nodule | None]] = {}
    owners = defaultdict[str, dict[str, None]](dict)
    for patient, record in _patients(table, problems).items():
        for name in record.images:
            owners[name][patient] = None
            record_of[name] = patient, record.nodule_1
    disputed = {name: own for name, own in owners.items() if len(own) > 1}
    problems += [
        f"{table}: {name} is listed for patients {' and '.join(own)}: left out"
        for name, own in disputed.items()
    ]
    cases: list[Case] = []
    files: list[Path] = []
    there = set[str]()
    for part in PARTS:
        images = sorted((root / part / "images").glob("*.png"))
        masks = {file.name: file for file in (root / part / "masks").glob("*.png")}
        count["images found"] += len(images)
        there |= {image.name for image in images}
        for image in images:
            if image.name in disputed:
                count["images of two patients"] += 1
                continue
            patient, nodule = record_of.get(image.name, (image.name.split("_")[0], None))
            count["images without a record"] += image.name not in record_of
            category, mask = _category(nodule, count), masks.get(image.name)
            if category is None and mask is None:
                count["images with neither"] += 1
                continue
            count["images without a category"] += category is None
            count["images without a mask"] += mask is None
            contour = MaskFile(mask, image) if mask else None
            reading = Reading("thyroidxl", contour, category)
            pixels = ImageFile(image)
            case = Case(
                image.stem, patient, pixels, (reading,), part="test" if part == "test" else None
            )
            cases.append(case)
            files += [image, mask] if mask else [image]
            if category is not None:
                count[GRADES[category]] += 1
    if not cases:
        raise DataError(f"{root}: has no PNG files in train/images or test/images")
    count["records of an image that is not there"] = len(record_of.keys() - there - disputed.keys())
    tested, learnt = ({c.patient for c in cases if c.part == part} for part in ("test", None))
    count["patients in both parts"] = len(tested & learnt)
    count["patients"] = len(tested | learnt)
    count["images used"] = len(cases)
    count["images of the test part"] = sum(case.part == "test" for case in cases)
    index = [(case.name, case.patient, case.readings[0].category) for case in cases]
    return Collection(
        cases=tuple(cases),
        grades=GRADES,
        fingerprint=fingerprint(["thyroidxl", VERSION, index], files, progress),
        report=tuple((count[what], what, why) for what, why in _WHY.items()),
        problems=tuple(problems),
    )


def _root(path: Path) -> tuple[Path, Path]:
    """Return the folder of the layout, the path itself or one below it, and its JSON."""
    needed = [f"{part}/{kind}" for part in PARTS for kind in ("images", "masks")]
    for folder in (path, *sorted(p.parent for p in path.glob("*/stats"))):
        tables = sorted((folder / "stats").glob("id2info_eng*.json"))
        missing = [name for name in needed if not (folder / name).is_dir()]
        if tables and not missing:
            return folder, tables[0]
    raise DataError(
        f"{path} is no ThyroidXL folder: it must hold {', '.join(needed)} and "
        f"stats/id2info_eng.json; found: {_listing(path)}"
    )


def _listing(path: Path) -> str:
    if not path.is_dir():
        return "no folder"
    names = sorted(p.name for p in path.iterdir())
    return (", ".join(names[:8]) or "nothing") + ", ..." * (len(names) > 8)


def _patients(table: Path, problems: list[str]) -> dict[str, Patient]:
    """Return the records that are valid; the others are problems."""
    try:
        records = TypeAdapter(dict[str, object]).validate_json(regular(table).read_bytes())
    except (OSError, ValidationError) as error:
        why = first_fault(error) if isinstance(error, ValidationError) else error
        raise DataError(f"{table}: is no JSON object of patients ({why})") from error
    patients: dict[str, Patient] = {}
    for patient, record in records.items():
        try:
            patients[patient] = Patient.model_validate(record)
        except ValidationError as error:
            problems.append(f"{table}: patient {patient}: {first_fault(error)}")
    return patients


def _category(nodule: Nodule | None, count: Counter[str]) -> int | None:
    if nodule is None or nodule.TIRADS is None:
        return None
    grade = f"TR{nodule.TIRADS}".strip()
    count["categories outside the scale"] += grade not in GRADES
    return GRADES.index(grade) if grade in GRADES else None
