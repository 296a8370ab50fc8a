"""Office-31 and Office-Home: objects in several domains, a batch of each."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mtbench.balancing.model import MultitaskModel
from mtbench.errors import DataError
from mtbench.training.data import PerObjectiveSplit
from mtbench.training.task import Batch, Metric, Progress, Recipe, Split, Splits
from mtbench_tasks._bounds import at_least
from mtbench_tasks._classes import Classification
from mtbench_tasks._folds import checked, divide
from mtbench_tasks._photos import Photos, decode
from mtbench_tasks._sources import only

EXTRA = "dense"

DOMAINS = {
    "office31": ("amazon", "dslr", "webcam"),
    "office_home": ("art", "clipart", "product", "real_world"),
}
CLASSES = {"office31": 31, "office_home": 65}
SUFFIXES = (".jpg", ".jpeg", ".png")
Collection = Literal["office31", "office_home"]


class Domain(Split):
    """Some photos of one domain.

    Args:
        name: of the objective.
        photos: all of the collection.
        labels: their classes, (N,).
        rows: which of them.
    """

    def __init__(
        self, name: str, photos: Photos, labels: NDArray[np.int64], rows: NDArray[np.int64]
    ) -> None:
        self.name, self.pixels, self.labels, self.rows = name, photos.pixels, labels, rows

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Batch:
        """Return ``inputs``, (B, 3, H, W) in [0, 1], half of them mirrored, and the classes."""
        rows = self.rows[indices.numpy()]
        pixels = torch.from_numpy(self.pixels[rows]).permute(0, 3, 1, 2)
        # With channels last, torch 2.13 writes beyond its memory where a strided convolution has
        # few channels and the processor no more than AVX2.
        inputs = pixels.float().contiguous().div_(255)
        if generator is not None:
            mirrored = torch.rand(len(rows), 1, 1, 1, generator=generator) < 0.5
            inputs = torch.where(mirrored, inputs.flip(3), inputs)
        return {"inputs": inputs, self.name: torch.from_numpy(self.labels[rows])}


class Office(Classification):
    """Name an object seen in several domains; each domain is an objective with photos of its own.

    - ``office31`` (Saenko et al., ECCV 2010): 4,110 photos of 31 office objects, in ``amazon``,
      ``dslr`` and ``webcam``
    - ``office_home`` (Venkateswara et al., CVPR 2017): 15,588 photos of 65 objects, in ``art``,
      ``clipart``, ``product`` and ``real_world``

    The folder is as published: a folder for each domain (``Real World``), in it one for each class,
    in Office-31 within ``images``. Photos are squeezed to squares, once; 150 kB each at 224 pixels
    stay in the cache folder. In training half of them are mirrored.

    A fifth of each domain's photos, the same at every seed, tests, and a fifth of the others, by
    seed, validates; the smaller domains begin again until the largest has ended. Published splits
    are 60 : 20 : 20 too, drawn by their authors.

    The network is ResNet-18, of MONAI's blocks and from random weights, with a linear head for each
    domain. Published results begin with ImageNet's weights: its parameters have torchvision's names
    and shapes, so ``--init resnet18.pth`` takes them. Its batch normalisation sees each domain by
    itself in training.

    Args:
        data: the folder.
        collection: ``office31`` or ``office_home``.
        fold: which fifth is tested, 0 to 4.
        image_size: side of the images, at least 32.
        width: channels of the first convolution; 64 is ResNet-18.
        strict: stop at an image that cannot be read instead of dropping it.
    """

    objectives: tuple[str, ...] = DOMAINS["office31"]
    own_inputs = True
    recipe = Recipe(epochs=100, batch_size=64, lr=1e-4, weight_decay=1e-5)

    def __init__(
        self,
        *,
        data: Path | None = None,
        collection: Collection = "office31",
        fold: int = 0,
        image_size: int = 224,
        width: int = 64,
        strict: bool = False,
    ) -> None:
        at_least(32, image_size=image_size)
        at_least(1, width=width)
        self.data, self.collection, self.fold = data, collection, checked(fold)
        self.image_size, self.width, self.strict = image_size, width, strict
        self.objectives, self.classes = DOMAINS[collection], CLASSES[collection]
        self.metrics = {f"accuracy_{name}": Metric(name, primary=True) for name in self.objectives}

    def setup(self, seed: int, progress: Progress) -> Splits:
        """Decode the photos, once, and divide each domain's."""
        photos, domains, labels = self._photos(progress)
        parts: list[dict[str, Split]] = [{}, {}, {}]
        part_of = np.zeros(len(domains), np.int64)
        for number, name in enumerate(self.objectives):
            own = np.flatnonzero(domains == number)
            divided = divide(len(own), self.fold, seed)
            if not all(map(len, divided)):
                raise DataError(
                    f"{self.data}: training, validation and test take a photo of {name} each, "
                    f"found {len(own)} that can be read"
                )
            for place, (part, rows) in enumerate(zip(parts, divided, strict=True)):
                part[name] = Domain(name, photos, labels, own[rows])
                part_of[own[rows]] = place
        train, val, test = parts
        content = f"{photos.sha256} {domains.tolist()} {labels.tolist()}".encode()
        digest = hashlib.sha256(content).hexdigest()[:16]
        notes: dict[str, Any] = {
            "training photos": {name: len(split) for name, split in train.items()},
            "broken": len(photos.broken),
        }
        if copied := _copied(photos, part_of.tolist()):
            notes["looks odd"] = (
                f"{len(copied)} photos are tested that are byte-equal to one that is not, the "
                f"first {copied[0]}: leave one of them"
            )
        return Splits(
            PerObjectiveSplit(train, "cycle"),
            PerObjectiveSplit(val, "once"),
            PerObjectiveSplit(test, "once"),
            fingerprint=f"{self.collection}-2-{self.image_size}-{digest}",
            notes=notes,
        )

    def _photos(self, progress: Progress) -> tuple[Photos, NDArray[np.int64], NDArray[np.int64]]:
        """Return the photos that can be read, and the numbers of their domains and classes."""
        if self.data is None:
            raise DataError("task office needs --data PATH: a folder with one for each domain")
        found = _files(self.data, self.objectives, self.classes)
        photos = decode("office", self.data, list(found), self.image_size, self.strict, progress)
        numbers = np.array([found[name] for name in photos.names], np.int64).reshape(-1, 2)
        return photos, numbers[:, 0], numbers[:, 1]

    @classmethod
    def inspect(
        cls, source: str, data: Path | None, *, collection: Collection = "office31"
    ) -> list[tuple[str, str, str]]:
        """Return how many photos of each domain are used, and what is dropped.

        Args:
            source: office.
            data: the folder.
            collection: office31 or office_home.
        """
        only(source, "office")
        task = cls(data=data, collection=collection)
        photos, domains, _ = task._photos(lambda *_: None)
        return [
            *(
                (str((domains == i).sum()), f"photos of {n}", "")
                for i, n in enumerate(task.objectives)
            ),
            (str(len(photos.broken)), "photos dropped", "; ".join(photos.broken[:5])),
        ]

    def model(self) -> MultitaskModel:
        """Return ResNet-18, and a linear head for each domain."""
        from monai.networks.nets.resnet import ResNet

        planes = [self.width * 2**stage for stage in range(4)]
        encoder = ResNet(
            "basic", [2, 2, 2, 2], planes, spatial_dims=2, conv1_t_stride=2,
            feed_forward=False, bias_downsample=False,
        )  # fmt: skip
        heads = [nn.Linear(planes[-1], self.classes) for _ in self.objectives]
        return MultitaskModel.single_feature(encoder, heads)


def _copied(photos: Photos, parts: Sequence[int]) -> list[str]:
    """Return the test photos that are byte-equal to one that trains or validates.

    Args:
        photos: all.
        parts: of each, 2 in the test.
    """
    names = [photos.copies.get(name, name) for name in photos.names]
    seen = {name for name, part in zip(names, parts, strict=True) if part < 2}
    return [
        own
        for own, name, part in zip(photos.names, names, parts, strict=True)
        if part == 2 and name in seen
    ]


def _files(data: Path, domains: Sequence[str], classes: int) -> Mapping[str, tuple[int, int]]:
    """Return by file, within the folder, the numbers of its domain and class, in order."""
    places = {_plain(path.name): path for path in _folders(data)}
    if lacking := [name for name in domains if _plain(name) not in places]:
        raise DataError(
            f"{data}: must hold a folder for each of {', '.join(domains)}, found no {lacking[0]}"
        )
    roots = [places[_plain(name)] for name in domains]
    roots = [root / "images" if (root / "images").is_dir() else root for root in roots]
    names = [{path.name: path for path in _folders(root)} for root in roots]
    known = sorted(names[0])
    for root, own in zip(roots, names, strict=True):
        if differ := sorted(own.keys() ^ set(known)):
            raise DataError(f"{root}: must hold the classes of {roots[0]}, differs in {differ[0]}")
    if len(known) != classes:
        raise DataError(f"{roots[0]}: must hold {classes} folders, one a class, found {len(known)}")
    return {
        file.relative_to(data).as_posix(): (domain, label)
        for domain, own in enumerate(names)
        for label, name in enumerate(known)
        for file in sorted(own[name].iterdir())
        if file.suffix.lower() in SUFFIXES
    }


def _folders(path: Path) -> list[Path]:
    if not path.is_dir():
        raise DataError(f"{path}: is no folder")
    return sorted(inner for inner in path.iterdir() if inner.is_dir())


def _plain(name: str) -> str:
    """Return a folder's name without what its copies differ in.

    >>> _plain("Real World") == _plain("real_world") == _plain("RealWorld")
    True
    """
    return "".join(letter for letter in name.lower() if letter.isalnum())
