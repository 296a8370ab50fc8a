"""TN3K, thyroid nodules outlined and known to be benign or malignant (Gong et al., ISBI 2021).

As published: the folders `trainval-image`, `trainval-mask`, `test-image` and `test-mask` hold
`NNNN.jpg`, numbered anew in each part; `label4trainval.csv` and `label4test.csv` have a line
`NNNN.jpg,0` (benign) or `NNNN.jpg,1` (malignant) per image, without a header. The tables came later
than the masks, with ACL (github.com/chenghui-666/ACL). No patient is named, though the 3,493 images
are of 2,421 patients: each image counts as one. The published test part is the test split.
"""

from collections import Counter
from pathlib import Path

from mtbench.errors import DataError
from mtbench.training.data import regular
from mtbench.training.task import Progress
from mtbench_tasks._lesion.cases import Case, Collection, Reading
from mtbench_tasks._lesion.files import ImageFile, MaskFile, fingerprint

GRADES = ("benign", "malignant")
PARTS = ("trainval", "test")
VERSION = 1  # part of the fingerprint: raise it when the same files give other cases

_WHY = {
    "images found": "NNNN.jpg in trainval-image and test-image",
    "images without a label": "kept for their masks: no line in the table",
    "images without a mask": "kept for their labels: no file of the same name",
    "images with neither": "dropped: nothing to learn from",
    "labels without an image": "dropped: the table names a file that is not there",
    "masks without an image": "dropped",
    "images used": "the cases of this collection",
    "images of the test part": "the test split; seeds divide the others in training and validation",
    "benign": "",
    "malignant": "",
}


def load(path: Path, progress: Progress) -> Collection:
    """Read TN3K from its folder, or one that holds it; images are decoded when they are needed.

    Raises:
        DataError: it has another layout.
    """
    root = _root(path)
    count: Counter[str] = Counter()
    problems: list[str] = []
    cases: list[Case] = []
    files: list[Path] = []
    for part in PARTS:
        labels = _labels(root / f"label4{part}.csv", problems)
        images = sorted((root / f"{part}-image").glob("*.jpg"))
        masks = {file.name: file for file in (root / f"{part}-mask").glob("*.jpg")}
        names = {file.name for file in images}
        count["images found"] += len(images)
        count["labels without an image"] += len(labels.keys() - names)
        count["masks without an image"] += len(masks.keys() - names)
        for image in images:
            label, mask = labels.get(image.name), masks.get(image.name)
            if label is None and mask is None:
                count["images with neither"] += 1
                continue
            count["images without a label"] += label is None
            count["images without a mask"] += mask is None
            name = f"{part}/{image.stem}"
            contour = MaskFile(mask, image) if mask else None
            reading = Reading("tn3k", contour, label)
            pixels = ImageFile(image)
            cases.append(
                Case(name, name, pixels, (reading,), part="test" if part == "test" else None)
            )
            files += [image, mask] if mask else [image]
            if label is not None:
                count[GRADES[label]] += 1
    if not cases:
        raise DataError(f"{root}: has no NNNN.jpg in trainval-image or test-image")
    count["images used"] = len(cases)
    count["images of the test part"] = sum(case.part == "test" for case in cases)
    index = ["tn3k", VERSION, [(case.name, case.readings[0].category) for case in cases]]
    return Collection(
        cases=tuple(cases),
        grades=GRADES,
        fingerprint=fingerprint(index, files, progress),
        report=tuple((count[what], what, why) for what, why in _WHY.items()),
        problems=tuple(problems),
        remarks=("no patients are named: each image counts as one patient",),
    )


def _root(path: Path) -> Path:
    """Return the folder that has all of the layout: the path itself, or one below it."""
    needed = [f"{part}-{kind}" for part in PARTS for kind in ("image", "mask")]
    needed += [f"label4{part}.csv" for part in PARTS]
    folders = [path, *sorted(p.parent for p in path.glob("*/trainval-image"))]
    missing = [[name for name in needed if not (folder / name).exists()] for folder in folders]
    best = min(range(len(folders)), key=lambda i: len(missing[i]))
    if missing[best]:
        raise DataError(
            f"{folders[best]} is no TN3K folder: it must hold {', '.join(needed)}; missing: "
            f"{', '.join(missing[best])}"
        )
    return folders[best]


def _labels(table: Path, problems: list[str]) -> dict[str, int]:
    """Return the category of each image that a table names."""
    try:
        lines = regular(table).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{table}: cannot be read as text ({error})") from error
    labels: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        name, _, label = (word.strip() for word in line.partition(","))
        if label in ("0", "1") and labels.get(name, int(label)) == int(label):
            labels[name] = int(label)
        elif line.strip():
            problems.append(
                f"{table} line {number}: a line is NNNN.jpg,0 or NNNN.jpg,1, one for each image; "
                f"found {line.strip()[:60]!r}"
            )
    return labels
