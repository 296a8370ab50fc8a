"""A simulated thyroid ultrasound collection: B-mode images, ACR descriptors, several readers.

How readers differ (`Style`) is our own assumption, from no publication.
"""

import hashlib
import json
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, cpu_count, delayed, parallel_config
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage

from mtbench.errors import UsageError
from mtbench.training.machine.cache import writing
from mtbench.training.task import Progress
from mtbench_tasks._bounds import at_least
from mtbench_tasks._lesion.cases import Case, Collection, Mask, Reading
from mtbench_tasks.thyroid.ultrasound import (
    GRADES,
    HEIGHT,
    POINTS,
    VERSION,
    WIDTH,
    Descriptors,
    field,
    grade,
    points,
    simulate,
)

TEST_SEED = 2**31 - 1
"""Of the population that is tested."""


@dataclass(frozen=True)
class Style:
    """How one reader departs from the truth, at reader noise 1 (our own assumption).

    Attributes:
        bias: contours drawn this far outwards (mm, negative inwards).
        smooth: low-pass of the contour (mm): the sigma of a Gaussian on the signed distance.
        wobble: rms of a smooth random displacement of the contour (mm).
        shift: added to the points before they are graded: an over- or an under-caller.
        spread: rms of that reader's case-to-case wavering, in points.
        confusion: probability of reading each descriptor as another one of its part.
    """

    bias: float
    smooth: float
    wobble: float
    shift: float
    spread: float
    confusion: float


def style(seed: int, reader: int) -> Style:
    """Draw a reader's style: the same whatever the number of readers and cases."""
    rng = np.random.default_rng([VERSION, seed, 2**32 - 1, reader])
    return Style(
        bias=rng.uniform(0.4, 0.8) * (1, -1, 0.3)[reader % 3],
        smooth=rng.uniform(0.4, 1.2),
        wobble=rng.uniform(0.4, 0.6),
        shift=rng.uniform(0.2, 0.5) * (-1, 1, 0)[reader % 3],
        spread=rng.uniform(0.4, 0.75),
        confusion=rng.uniform(0.03, 0.08),
    )


def read(truth: Mask, words: Descriptors, spacing: float, style: Style, noise: float,
         rng: Generator) -> tuple[Mask, int]:  # fmt: skip
    """Contour and grade a nodule as a reader of that style would; `noise` 0 gives the truth."""
    outside, inside = (ndimage.distance_transform_edt(m) * spacing for m in (~truth, truth))
    hand = noise * min(1.0, inside.max() / 3)  # which is finer where the nodule is small
    contour = ndimage.gaussian_filter(inside - outside, hand * style.smooth / spacing)
    wobble = style.wobble * field(rng, truth.shape, (4 / spacing, 4 / spacing))
    mask = contour + hand * (style.bias + wobble) > 0
    slip, pick = rng.random((2, len(words)))
    heard = Descriptors(*(
        list(words_of)[int(p * len(words_of))] if s < noise * style.confusion else word
        for word, words_of, s, p in zip(words, POINTS.values(), slip, pick, strict=True)
    ))  # fmt: skip
    wavering = noise * (style.shift + style.spread * rng.standard_normal())
    return mask if mask.any() else truth, grade(round(points(heard) + wavering))


Record = dict[str, NDArray[np.generic]]


def _simulated(seed: int, index: int) -> Record:
    """One case without readers as the arrays that are cached."""
    image, truth, words, spacing = simulate(seed, index)
    coded = [list(of).index(word) for of, word in zip(POINTS.values(), words, strict=True)]
    return {
        "images": image,
        "truths": np.packbits(truth, axis=-1),
        "words": np.array(coded, dtype=np.int8),
        "spacing": np.array(spacing),
    }


def _readings(
    seed: int, index: int, truth: Mask, words: Descriptors, spacing: float, readers: int,
    noise: float,
) -> Record:  # fmt: skip
    """What readers say of a case as the arrays that are cached."""
    masks, grades = [], []
    for r in range(readers):
        rng = np.random.default_rng([VERSION, seed, index, 1 + r])
        mask, category = read(truth, words, spacing, style(seed, r), noise, rng)
        masks.append(mask)
        grades.append(category)
    return {
        "masks": np.packbits(np.array(masks), axis=-1), "grades": np.array(grades, dtype=np.int8)
    }  # fmt: skip


def _run(
    what: str, size: int, workers: int, progress: Progress | None, jobs: Iterable[Any]
) -> Record:
    records = []
    with parallel_config("loky", n_jobs=min(workers, size), inner_max_num_threads=1):
        for record in Parallel(return_as="generator")(jobs):
            records.append(record)
            if progress:
                progress(f"simulating {what}", len(records), size)
    return {key: np.stack([record[key] for record in records]) for key in records[0]}


Shapes = dict[str, tuple[int, ...]]
_CASE: Shapes = {
    "images": (HEIGHT, WIDTH), "truths": (HEIGHT, WIDTH // 8), "words": (len(POINTS),),
    "spacing": (),
}  # fmt: skip


def _cached(path: Path | None, shapes: Shapes, size: int, make: Callable[[], Record]) -> Record:
    """Return what a cache file holds; it is made where that is not what its name says."""
    record = _fetch(path, shapes, size) if path else None
    if record is None:
        record = make()
        if path:
            _store(path, record)
    return record


def _fetch(path: Path, shapes: Shapes, size: int) -> Record | None:
    """Read a cache file; None when it is absent, broken or not what its name says."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            record = {key: stored[key] for key in shapes}
    except (
        OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError,
    ):  # fmt: skip
        return None
    right = all(record[key].shape == (size, *shape) for key, shape in shapes.items())
    return record if right else None


def _store(path: Path, record: Record) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with writing(path) as temporary:
            np.savez(temporary, **record)  # type: ignore[arg-type]
    except OSError as error:
        raise UsageError(f"cache must be a folder that can be written, got {path.parent}: "
                         f"{error.strerror}") from error  # fmt: skip


def load(
    *,
    size: int = 600,
    seed: int = 0,
    reader_noise: float = 1.0,
    readers: int = 3,
    cache: Path | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Collection:
    """Simulate a collection, or read it from `cache`; case i depends on `seed` and i alone.

    Args:
        size: number of cases; each is one patient.
        seed: of the cases and of the readers' styles.
        reader_noise: scales everything in which readers differ from the truth; 0: they do not.
        readers: number of simulated readers; all of them read all cases.
        cache: folder for an .npz of the population and one of what readers say of it, which any
            number of reader noises share; a broken file is made anew.
        workers: processes to generate with; None: all cores.
        progress: called with (what, done, total) while generating.
    """
    at_least(1, size=size, readers=readers, workers=workers)
    at_least(0, seed=seed)
    if not 0 <= reader_noise < np.inf:
        raise UsageError(f"reader_noise must be finite and not negative, found {reader_noise}")
    population: dict[str, float] = {"version": VERSION, "size": size, "seed": seed}
    fingerprint = _digest(population | {"reader_noise": float(reader_noise), "readers": readers})
    cases, readings = (
        cache and cache / f"phantom-{part}.npz"
        for part in (f"cases-{_digest(population)}", f"readings-{fingerprint}")
    )
    run = partial(_run, size=size, workers=workers or cpu_count(), progress=progress)
    record = _cached(
        cases, _CASE, size, lambda: run(
            "phantoms", jobs=(delayed(_simulated)(seed, i) for i in range(size))
        ),
    )  # fmt: skip
    said = {"masks": (readers, HEIGHT, WIDTH // 8), "grades": (readers,)}
    record |= _cached(
        readings, said, size, lambda: run("readings", jobs=(
            delayed(_readings)(seed, i, *_truth(i, record), readers, reader_noise)
            for i in range(size)
        )),
    )  # fmt: skip
    return Collection(
        cases=tuple(_case(i, record) for i in range(size)),
        grades=GRADES,
        fingerprint=f"phantom-{fingerprint}",
        report=((size, "simulated", f"phantom version {VERSION}, seed {seed}, {readers} readers "
                                    f"at reader noise {reader_noise:g}"),),
    )  # fmt: skip


def _digest(key: dict[str, float]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


def _mask(packed: NDArray[np.generic]) -> Mask:
    return np.unpackbits(packed.astype(np.uint8), axis=-1).astype(bool)


def _truth(i: int, record: Record) -> tuple[Mask, Descriptors, float]:
    """Return a case's true mask, its descriptors and millimetres per pixel."""
    words = Descriptors(*(
        list(of)[code] for of, code in zip(POINTS.values(), record["words"][i], strict=True)
    ))  # fmt: skip
    return _mask(record["truths"][i]), words, float(record["spacing"][i])


def _case(i: int, record: Record) -> Case:
    mask, words, spacing = _truth(i, record)
    said = zip(_mask(record["masks"][i]), record["grades"][i], strict=True)
    readings = tuple(
        Reading(f"reader-{r}", contour, int(category))
        for r, (contour, category) in enumerate(said, 1)
    )
    return Case(
        name=f"phantom-{i:05d}",
        patient=f"phantom-{i:05d}",
        pixels=record["images"][i].astype(np.uint8, copy=False),
        readings=readings,
        truth=Reading("truth", mask, grade(points(words))),
        spacing=spacing,
        descriptors=words._asdict() | {"points": str(points(words))},
    )
