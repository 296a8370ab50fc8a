"""What `mtbench data verify` costs beside reading: `python benchmarks/verifying.py ddti/ [COUNT]`.

COUNT pairs of image and mask (500) are made of DDTI's views, as PNG of three sizes. Processor time
of 1,000 pairs, the median of three in turns: decoding alone; what a run reads and checks
(`Case.image`, `Case.mask`); what a run does before it learns (`prepare`, without its cache);
`verify`.
"""

import itertools
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image as Pil

from mtbench_tasks._lesion import manifest
from mtbench_tasks._lesion.cases import Collection
from mtbench_tasks._lesion.grid import prepare
from mtbench_tasks.thyroid import Thyroid, ddti

GRID = 256  # the network's, as for DDTI

folder, count = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 500
views = [
    (case.image, mask)
    for case in ddti.load(folder).cases
    if (mask := case.readings[0].mask) is not None
]


def write(to: Path, size: tuple[int, int]) -> Path:
    """Write the pairs, each shifted a little, and their CSV."""
    rows = ["image,mask,category,patient"]
    for number, (image, mask) in enumerate(itertools.islice(itertools.cycle(views), count)):
        shift = number // len(views)
        for name, pixels in (("image", image), ("mask", mask.astype(np.uint8) * 255)):
            how = Pil.Resampling.BILINEAR if name == "image" else Pil.Resampling.NEAREST
            picture = Pil.fromarray(np.ascontiguousarray(pixels[shift:])).resize(size, how)
            picture.save(to / f"{number}_{name}.png")
        rows.append(f"{number}_image.png,{number}_mask.png,TR{2 + number % 4},P{number}")
    (to / "cases.csv").write_text("\n".join(rows), encoding="utf-8")
    return to / "cases.csv"


def decode(to: Path) -> None:
    for file in to.glob("*.png"):
        with Pil.open(file) as picture:
            np.asarray(picture)


def load(csv: Path) -> Collection:
    return manifest.load(csv, lambda *_: None)


def read(csv: Path) -> None:
    for case in load(csv).cases:
        image = case.image
        for reading in case.readings:
            case.mask(reading, image)


for size in ((224, 160), (320, 240), (560, 360)):
    with tempfile.TemporaryDirectory() as name:
        csv = write(Path(name), size)
        jobs: dict[str, Callable[[], object]] = {
            "decoding alone": lambda to=csv.parent: decode(to),
            "reading as a run does": lambda csv=csv: read(csv),
            "preparing as a run does": lambda csv=csv: prepare(load(csv), GRID, None),
            "verify": lambda csv=csv: Thyroid.verify("manifest", csv),
        }
        taken: dict[str, list[float]] = {what: [] for what in jobs}
        for _ in range(3):
            for what, job in jobs.items():
                start = time.process_time()
                job()
                taken[what].append(time.process_time() - start)
        said = ", ".join(f"{what} {1000 * median(t) / count:.2f} s" for what, t in taken.items())
        print(f"{size[0]} x {size[1]}: {said}")
