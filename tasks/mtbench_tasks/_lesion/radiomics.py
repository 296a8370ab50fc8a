"""The radiomics target: what a nodule looks like, in numbers, by ACR TI-RADS descriptor.

Thirteen features of one image inside one mask, 2-D, most of them PyRadiomics 3.0.1's. Where the
spacing is known, image and mask are resampled to `STEP` by PyRadiomics first: otherwise ring, edge,
runs and perimeter measure the size of pixels too. Lengths are in pixels, of `STEP` where they are
known, and intensities in grey levels of the 8-bit image. A B-mode image is log-compressed, so a
difference of grey levels is a ratio of echo amplitudes, whatever the gain: contrasts are
differences here, not quotients. Textures are computed on grey levels binned by `BIN_WIDTH`.
"""

import itertools
import math
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from joblib import Parallel, cpu_count, delayed, parallel_config
from numpy.typing import NDArray
from scipy import ndimage

from mtbench.errors import DataError
from mtbench.training.task import Progress
from mtbench_tasks._lesion.cases import Image, Mask, digest, read
from mtbench_tasks._lesion.doubts import SMALLEST, parts
from mtbench_tasks._lesion.pixels import SQUARE, implausible

Vector = NDArray[np.float64]

VERSION = 2  # part of every cache key: raise it when the same input gives other numbers
LARGEST = 4_000_000  # pixels around a mask: more is no ultrasound, and takes minutes
STEP = 0.1  # millimetres per pixel at which textures are compared
BIN_WIDTH = 8  # grey levels: 32 bins over the 8-bit range, the same for every image
RING = 8  # pixels: how far the surrounding tissue reaches from the mask
EDGE = 3  # pixels: how far to each side of the contour the edge is looked at
CLIP = 4.0  # standard deviations: what is further out counts as this far
WORTH = 128  # images that repay starting a worker, which takes seconds


class Feature(NamedTuple):
    """One number of an outline.

    Attributes:
        name: what it is called.
        descriptor: the ACR descriptor that it stands for.
        pyradiomics: its PyRadiomics name, if it has one.
        sized: whether it measures the size of pixels where no spacing is known. On BrEaST these
            move by 0.3 to 0.8 deviations then (median), the others by less than 0.1.
    """

    name: str
    descriptor: str
    pyradiomics: str | None = None
    sized: bool = False


FEATURES = (
    Feature("entropy", "composition", "Entropy"),
    Feature("percentile_10", "composition", "10Percentile"),
    # Normalised by the squared number of runs: the plain one mostly counts pixels, i.e. size.
    Feature(
        "run_length_nonuniformity", "composition", "RunLengthNonUniformityNormalized", sized=True
    ),
    Feature("mean_contrast", "echogenicity"),
    Feature("median_contrast", "echogenicity"),
    Feature("elongation", "shape", "Elongation"),
    Feature("taller_than_wide", "shape"),
    Feature("sphericity", "margin", "Sphericity"),
    Feature("perimeter_surface_ratio", "margin", "PerimeterSurfaceRatio", sized=True),
    Feature("edge_sharpness", "margin", sized=True),
    Feature("percentile_90", "echogenic foci", "90Percentile"),
    Feature("kurtosis", "echogenic foci", "Kurtosis"),
    Feature("small_area_high_grey", "echogenic foci", "SmallAreaHighGrayLevelEmphasis", sized=True),
)


def usable(spacing: float | None) -> bool:
    """Return whether a spacing, in millimetres per pixel, is known and an ultrasound image's."""
    return spacing is not None and not implausible(spacing)


def extract(image: Image, mask: Mask, spacing: float | None = None) -> Vector:
    """Compute the radiomics of one mask, of its largest part where it has several.

    With A the pixels of the mask and R its ring (pixels at most `RING` px from the mask, Euclidean,
    not in it, inside the image), besides PyRadiomics' own definitions:

    - mean_contrast = mean(A) - mean(R), median_contrast likewise (grey levels);
    - elongation = sqrt(lambda_minor / lambda_major): 1 for a disk, towards 0 for a line;
    - taller_than_wide = height / width of the mask's bounding box in image axes;
    - sphericity = 2 sqrt(pi area) / perimeter; perimeter_surface_ratio = perimeter / area (1/px);
    - edge_sharpness = mean over contour pixels p, with outward unit normal n, of
      |mean_{t=1..3} I(p + t n) - mean_{t=0..2} I(p - t n)| (grey levels).

    Args:
        image: (H, W) grey levels.
        mask: (H, W).
        spacing: millimetres per pixel; unknown if None, or if no ultrasound image has such.

    Returns:
        (len(FEATURES),); all NaN for a mask of fewer than `SMALLEST` pixels, less than three wide
        or high, without surroundings, or with more than `LARGEST` pixels around it.
    """
    nothing = np.full(len(FEATURES), np.nan)
    mask = next(iter(parts(mask)), mask)
    if np.count_nonzero(mask) < SMALLEST:
        return nothing
    scale = spacing / STEP if spacing is not None and usable(spacing) else 1.0
    margin = math.ceil((RING + 1) / scale)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    crop = [slice(max(int(at[0]) - margin, 0), int(at[-1]) + margin + 1) for at in (rows, columns)]
    if image[*crop].size * scale**2 > LARGEST:
        return nothing
    grey, mask = image[*crop].astype(np.float64), mask[*crop].astype(bool)
    if abs(scale - 1) > SQUARE:
        grey, mask = _resampled(grey, mask, scale)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    height, width = (int(np.ptp(at)) + 1 if len(at) else 0 for at in (rows, columns))
    if min(height, width) < 3 or np.count_nonzero(mask) < SMALLEST:
        return nothing
    distance = ndimage.distance_transform_edt(~mask)
    inside, ring = grey[mask], grey[(distance > 0) & (distance <= RING)]
    if not ring.size:
        return nothing
    found = _pyradiomics(grey, mask) | {
        "mean_contrast": inside.mean() - ring.mean(),
        "median_contrast": np.median(inside) - np.median(ring),
        "taller_than_wide": height / width,
        "edge_sharpness": _edge_sharpness(grey, mask),
    }
    vector = np.array([found[feature.pyradiomics or feature.name] for feature in FEATURES])
    return vector if np.isfinite(vector).all() else nothing


def extract_all(
    images: Sequence[Image | Callable[[], Image]],
    masks: Sequence[Mask | Callable[[], Mask]],
    keys: Sequence[str] | None = None,
    spacings: Sequence[float | None] | None = None,
    *,
    cache: Path | None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Vector:
    """Compute the radiomics of N masks, (N, len(FEATURES)), in parallel and once for all.

    Args:
        images: (H, W) each, of any sizes, or what reads them.
        masks: of their images' shapes, or what reads them.
        keys: for each pair what its content is known by; by default hashes of both.
        spacings: millimetres per pixel of each; None: none is known.
        cache: folder of `radiomics.sqlite`, which knows the keys; None computes everything.
        workers: processes; None is one a core.
        progress: called with (what, done, N) at the start and after each.

    Raises:
        DataError: the cache folder cannot be written, or is full.
    """
    if keys is None:
        pairs = zip(images, masks, strict=True)
        keys = [f"{digest(read(image))} {digest(read(mask))}" for image, mask in pairs]
    spacings = spacings or [None] * len(keys)
    keys = [f"{VERSION} {s} {key}" for s, key in zip(spacings, keys, strict=True)]
    with _explained(cache), closing(_open(cache)) as store:
        select = "SELECT key, vector FROM features WHERE key = ? AND length(vector) = ?"
        rows = (store.execute(select, (key, 8 * len(FEATURES))).fetchone() for key in keys)
        known = {row[0]: np.frombuffer(row[1]) for row in rows if row}
        missing = list({k: i for i, k in enumerate(keys) if k not in known}.values())
        report = progress or (lambda what, done, total: None)
        report("radiomics", done := len(keys) - len(missing), len(keys))
        fresh = _in_any_order(images, masks, spacings, missing, workers)
        for count, (i, vector) in enumerate(fresh, done + 1):
            known[keys[i]] = vector
            store.execute("INSERT OR REPLACE INTO features VALUES (?, ?)", (keys[i], vector.data))
            store.commit()
            report("radiomics", count, len(keys))
    return np.array([known[key] for key in keys]).reshape(len(keys), len(FEATURES))


@dataclass(frozen=True)
class Standardiser:
    """Scales each feature to mean 0 and deviation 1 of the training rows, clipped at +-4."""

    mean: Vector  # (F,)
    scale: Vector  # (F,); 1 for a feature that does not vary

    @classmethod
    def fit(cls, features: Vector) -> Self:
        """Fit on the training rows (N, F); rows with a NaN do not count."""
        rows = features[~np.isnan(features).any(axis=1)]
        if not len(rows):
            return cls(np.zeros(features.shape[1]), np.ones(features.shape[1]))
        mean, deviation = rows.mean(axis=0), rows.std(axis=0)
        # Rounding leaves a constant column a deviation of some 1e-16 of its size.
        varies = deviation > 1e-9 * np.maximum(np.abs(mean), 1e-12)
        return cls(mean, np.where(varies, deviation, 1.0))

    def __call__(self, features: Vector) -> Vector:
        """Standardise (..., F); NaN stays NaN."""
        return np.clip((features - self.mean) / self.scale, -CLIP, CLIP)


def _resampled(image: Vector, mask: Mask, scale: float) -> tuple[Vector, Mask]:
    """Return image and mask with `scale` times as many pixels a side, by PyRadiomics.

    Its way: B-splines for the image, the nearest neighbour for the mask.
    """
    import SimpleITK as sitk  # noqa: N813
    from radiomics.imageoperations import resampleImage

    pair = (sitk.GetImageFromArray(array[None]) for array in (image, mask.astype(np.uint8)))
    volume, region = resampleImage(
        *pair, resampledPixelSpacing=[1 / scale, 1 / scale, 1], padDistance=RING + 2
    )
    return sitk.GetArrayFromImage(volume)[0], sitk.GetArrayFromImage(region)[0] > 0


def _pyradiomics(image: Vector, mask: Mask) -> dict[str, float]:
    """Run PyRadiomics' feature classes, without the checks and logging of its extractor."""
    import SimpleITK as sitk  # noqa: N813
    from radiomics import firstorder, glrlm, glszm, shape2D

    volume = sitk.GetImageFromArray(image[None])  # one slice, which is what `force2D` wants
    region = sitk.GetImageFromArray(mask[None].astype(np.uint8))
    found: dict[str, float] = {}
    families = firstorder.RadiomicsFirstOrder, shape2D.RadiomicsShape2D
    for family in (*families, glrlm.RadiomicsGLRLM, glszm.RadiomicsGLSZM):
        calculator = family(volume, region, binWidth=BIN_WIDTH, force2D=True, force2Ddimension=0)
        for feature in FEATURES:
            if feature.pyradiomics in calculator.featureNames:
                calculator.enableFeatureByName(feature.pyradiomics)
        found |= {name: float(value) for name, value in calculator.execute().items()}
    return found


def _edge_sharpness(image: Vector, mask: Mask) -> float:
    # border_value: the edge of the image is no edge of the nodule.
    contour = np.argwhere(mask & ~ndimage.binary_erosion(mask, border_value=1)).T
    # The gradient of the smoothed mask points inwards.
    smooth = ndimage.gaussian_filter(mask.astype(np.float64), 2.0, mode="nearest")
    normal = -np.stack(np.gradient(smooth))[:, contour[0], contour[1]]
    normal /= np.maximum(np.hypot(*normal), 1e-12)

    def mean_at(steps: range) -> Vector:
        points = contour[:, None] + np.array(steps)[:, None] * normal[:, None]
        profiles = ndimage.map_coordinates(image, points, order=1, mode="nearest")
        return np.asarray(profiles.mean(axis=0))

    edge = mean_at(range(1, EDGE + 1)) - mean_at(range(0, -EDGE, -1))
    return float(np.abs(edge).mean())


def _in_any_order(
    images: Sequence[Image | Callable[[], Image]],
    masks: Sequence[Mask | Callable[[], Mask]],
    spacings: Sequence[float | None],
    wanted: list[int],
    workers: int | None,
) -> Iterator[tuple[int, Vector]]:
    """Extract the wanted ones, in this process or in several."""
    jobs = ((i, images[i], masks[i], spacings[i]) for i in wanted)
    workers = min(workers or cpu_count(), len(wanted) // WORTH)
    if workers < 2:
        yield from itertools.starmap(_numbered, jobs)
        return
    with parallel_config("loky", n_jobs=workers, inner_max_num_threads=1):
        run = Parallel(return_as="generator_unordered", batch_size=8)
        yield from run(itertools.starmap(delayed(_numbered), jobs))


def _numbered(
    i: int,
    image: Image | Callable[[], Image],
    mask: Mask | Callable[[], Mask],
    spacing: float | None,
) -> tuple[int, Vector]:
    return i, extract(read(image), read(mask), spacing)


@contextmanager
def _explained(folder: Path | None) -> Iterator[None]:
    """Say of which store it is that it cannot be written.

    Raises:
        DataError: it is locked, full or not writable.
    """
    try:
        yield
    except sqlite3.OperationalError as error:
        raise DataError(
            f"the radiomics cache {folder}/radiomics.sqlite cannot be written ({error}); make room "
            "or access for it"
        ) from error


def _open(folder: Path | None) -> sqlite3.Connection:
    """Open the store, which processes may share; a broken one is made anew.

    Raises:
        sqlite3.OperationalError: it cannot be written.
    """
    if folder is None:
        return _connect(":memory:")
    path = folder / "radiomics.sqlite"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _connect(str(path))
    except OSError as error:
        raise sqlite3.OperationalError(str(error)) from error
    except sqlite3.OperationalError:  # nothing is wrong with what is in it
        raise
    except sqlite3.DatabaseError:
        path.unlink(missing_ok=True)
        return _connect(str(path))


def _connect(path: str) -> sqlite3.Connection:
    store = sqlite3.connect(path, timeout=60)  # seconds, while another process writes
    try:
        store.execute("CREATE TABLE IF NOT EXISTS features (key TEXT PRIMARY KEY, vector BLOB)")
        store.execute(f"PRAGMA user_version = {VERSION}")  # shows whether it can be written
        store.execute("PRAGMA synchronous = OFF")  # a cache need not outlive a power cut
        if store.execute("PRAGMA quick_check").fetchone() != ("ok",):
            raise sqlite3.DatabaseError("damaged")
    except sqlite3.Error:
        store.close()
        raise
    return store
