"""How often copies of an image are told: `python benchmarks/copies.py ddti/ breast/`.

Of each patient of DDTI one screen and one view, and all of BrEaST, are copied in several ways.
"""

import io
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image as Pil

from mtbench_tasks._lesion.cases import Image
from mtbench_tasks._lesion.doubts import NEAR, perceptual
from mtbench_tasks._lesion.files import read_picture
from mtbench_tasks.thyroid import ddti

ddti_folder, breast_folder = map(Path, sys.argv[1:3])
views = {case.patient: case.image for case in reversed(ddti.load(ddti_folder).cases)}
groups = {
    "DDTI, screens": [
        read_picture(file).pixels for file in sorted(ddti_folder.glob("*_1.jpg"))[::2]
    ],
    "DDTI, views": list(views.values())[::2],
    "BrEaST": [
        read_picture(f).pixels for f in sorted(breast_folder.rglob("case[0-9][0-9][0-9].png"))
    ],
}


def copies(image: Image) -> Iterator[tuple[str, Image]]:
    """Yield an image as it may come back."""
    saved = io.BytesIO()
    picture = Pil.fromarray(image)
    picture.save(saved, "JPEG", quality=40)
    half = picture.width // 2, picture.height // 2
    yield "saved again", np.asarray(Pil.open(saved))
    yield "halved", np.asarray(picture.resize(half, Pil.Resampling.BILINEAR))
    yield "mirrored", np.ascontiguousarray(image[:, ::-1])
    yield "padded", np.pad(image, ((37, 11), (23, 61)))
    yield "darkened by 40 %", (image * 0.6).astype(np.uint8)


def apart(one: str, other: str) -> int:
    return (int(one, 16) ^ int(other, 16)).bit_count()


for group, images in groups.items():
    hashes = [perceptual(image) for image in images]
    found: dict[str, list[bool]] = {}
    for image, known in zip(images, hashes, strict=True):
        for how, copy in copies(image):
            again = perceptual(copy)
            bits = min((apart(a, b) for a, b in itertools.product(known, again[:1])), default=256)
            found.setdefault(how, []).append(bits <= NEAR)
    told = ", ".join(f"{how} {np.mean(hits):.1%}" for how, hits in found.items())
    pairs = itertools.combinations([known for known in hashes if known], 2)
    least = sorted(min(apart(a[0], b[0]), apart(a[1], b[0])) for a, b in pairs)[:5]
    print(f"{group} ({len(images)}): told {told}; others differ in {least} bits and more")
