"""How often images that are not DDTI's are told: `python benchmarks/familiar.py ddti/ breast/`.

What is familiar is fitted on the views of 60 % of DDTI's patients; the others' are turned,
inverted, replaced.
"""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mtbench_tasks import breast
from mtbench_tasks._lesion.familiar import Familiar
from mtbench_tasks._lesion.grid import to_input
from mtbench_tasks.thyroid import ddti

SIZE = 96

ddti_folder, breast_folder = map(Path, sys.argv[1:3])
rng = np.random.default_rng(0)
cases = ddti.load(ddti_folder).cases
patients = sorted({case.patient for case in cases})
known = set(rng.permutation(patients)[: round(0.6 * len(patients))])
own = [case.image for case in cases if case.patient in known]
others = [case.image for case in cases if case.patient not in known]
familiar = Familiar.fit([to_input(image, SIZE)[0].numpy() for image in own])


def told(name: str, images: Iterable[Any]) -> None:
    grids = [to_input(np.ascontiguousarray(image), SIZE)[0].numpy() for image in images]
    print(f"{name:24} {np.mean([familiar.doubt(grid) is not None for grid in grids]):6.1%}")


changes: dict[str, Callable[[Any], Any]] = {
    "as they are": lambda image: image,
    "mirrored": lambda image: image[:, ::-1],
    "upside down": lambda image: image[::-1],
    "on their side": np.rot90,
    "inverted": lambda image: 255 - image,
    "white noise": lambda image: rng.integers(0, 256, image.shape).astype(np.uint8),
    "blank": lambda image: np.full_like(image, int(image.mean())),
}
for name, change in changes.items():
    told(name, map(change, others))
found = breast.load(breast_folder, lambda *_: None, "BIRADS").cases
told("BrEaST", (case.image for case in found))
