"""How often images of another kind are told: `python benchmarks/ood.py RUN ddti/ breast/`.

RUN is a finished run of `thyroid` or `breast`. The images of its test are asked about as they are,
mirrored, turned and inverted; beside them noise, blank images, scikit-image's photographs, the
other organ, and phantoms; and with a coloured box, as of Doppler and of an elastogram. What is
told is fitted anew: on the pictures alone, with the encoder's second level, which is what a run
keeps, and with its deepest level in the place of that.
"""

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
import torch
from numpy.typing import NDArray
from PIL import Image as Pil

from mtbench.training.cell.request import reload
from mtbench.training.cell.rundir import RunDirectory
from mtbench.training.trained.model import load_trained
from mtbench_tasks import breast
from mtbench_tasks._lesion.cases import Image
from mtbench_tasks._lesion.files import read_picture
from mtbench_tasks._lesion.grid import to_input
from mtbench_tasks._lesion.network import texture
from mtbench_tasks._lesion.ood import COUNT, OutOfDistribution, features
from mtbench_tasks._lesion.splits import CaseSplit
from mtbench_tasks._lesion.task import LesionTask
from mtbench_tasks.thyroid import ddti, phantom

Seen = dict[str, NDArray[np.float64]]

path, ddti_folder, breast_folder = map(Path, sys.argv[1:4])
run = RunDirectory(path)
task, method = reload(run.spec(), path)
assert isinstance(task, LesionTask)
folders = {"ddti": ddti_folder, "birads": breast_folder, "malignancy": breast_folder}
task.data = folders.get(task.source)
splits = task.setup(run.spec().seed, lambda *_: None)
model = load_trained(run, task, method).model.eval()


def described(images: Sequence[Image]) -> Seen:
    """Return what images are like, (N, D), in three ways."""
    found: dict[str, list[Any]] = {"alone": [], "second level": [], "deepest": []}
    for image in images:
        grid = to_input(np.ascontiguousarray(image), task.image_size)
        with torch.no_grad():
            levels = model.encode(grid[None])
        for how, level in (("second level", levels[1]), ("deepest", levels[-1])):
            rows = level.repeat_interleave(3, 2)  # the deepest may have fewer than three
            found[how].append(features(grid[0], texture(rows)[0]))
        found["alone"].append(found["deepest"][-1][:COUNT])
    return {how: np.array(rows) for how, rows in found.items()}


def of(split: Any) -> list[Image]:
    assert isinstance(split, CaseSplit)
    return [case.image for case in split.cases]


def told_by_colour(image: Image, share: float) -> bool:
    """Return whether an image of which a share is coloured, saved and read, is told."""
    side = round((share * image.size) ** 0.5)
    picture = np.repeat(image[..., None], 3, 2)
    picture[:side, :side] = (200, 60, 40)
    with tempfile.TemporaryDirectory() as folder:
        Pil.fromarray(picture).save(Path(folder) / "a.jpg", quality=90)
        return any("coloured" in text for text in read_picture(Path(folder) / "a.jpg").told)


train, val = described(of(splits.train)), described(of(splits.val))
known = {how: OutOfDistribution.fit(train[how], val[how]) for how in train}
print(f"{'':20}" + "".join(f"{how:>14}" for how in known))


def count(name: str, images: Sequence[Image]) -> None:
    rates = [
        np.mean([known[how].doubt(row) is not None for row in rows])
        for how, rows in described(images).items()
    ]
    print(f"{name:20}" + "".join(f"{rate:14.0%}" for rate in rates))


rng = np.random.default_rng(0)
test = of(splits.test)
changes: dict[str, Callable[[Image], Any]] = {
    "as they are": lambda image: image,
    "mirrored": lambda image: image[:, ::-1],
    "upside down": lambda image: image[::-1],
    "on their side": np.rot90,
    "inverted": lambda image: 255 - image,
    "white noise": lambda image: rng.integers(0, 256, image.shape).astype(np.uint8),
    "blank": lambda image: np.full_like(image, int(image.mean())),
}
for name, change in changes.items():
    count(name, [change(image) for image in test])
shown = ("chelsea", "camera", "page", "text", "coins", "moon", "coffee", "astronaut", "grass")
photographs = [Pil.fromarray(getattr(skimage.data, name)()).convert("L") for name in shown]
count("photographs", [np.asarray(picture) for picture in photographs])
if task.source != "ddti":
    count("DDTI", [case.image for case in ddti.load(ddti_folder).cases])
if "breast" not in type(task).__module__:
    others = breast.load(breast_folder, lambda *_: None, "BIRADS").cases
    count("BrEaST", [case.image for case in others])
if task.source != "phantom":
    count("phantoms", [case.image for case in phantom.load(size=60, readers=1).cases])
for name, share in (("Doppler, 3.5 %", 0.035), ("elastogram, 30 %", 0.3)):
    print(f"{name:20}{np.mean([told_by_colour(image, share) for image in test]):14.0%} by colour")
