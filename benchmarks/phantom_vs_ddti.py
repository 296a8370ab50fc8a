"""Hold the phantom against real images: two pictures for docs/img and a table of overlaps.

    python benchmarks/phantom_vs_ddti.py --data ../shared/data/ddti

Both sides are brought to the phantom's 160 rows; radiomics are PyRadiomics' (binWidth 25, 2-D)
inside the nodule. The overlap coefficient of a feature is the area shared by its two normalised
histograms (10 bins over the pooled 1st to 99th percentile): 1 for equal distributions, 0 for
disjoint ones.
What two random halves of DDTI reach is printed beside it: as good as this sample size lets it get.
"""

import argparse
import io
import logging
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import SimpleITK
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image as Pillow
from radiomics.featureextractor import RadiomicsFeatureExtractor
from scipy import ndimage
from skimage.transform import resize

from mtbench_tasks._lesion.cases import Case, Image, Mask
from mtbench_tasks.thyroid import ddti, phantom
from mtbench_tasks.thyroid.ultrasound import HEIGHT

View = tuple[Image, Mask]
FEATURES = {
    "firstorder_10Percentile": "10th percentile",
    "firstorder_90Percentile": "90th percentile",
    "contrast": "mean against ring",
    "firstorder_Entropy": "entropy",
    "firstorder_Kurtosis": "kurtosis (log)",
    "glrlm_RunLengthNonUniformityNormalized": "run-length non-uniformity, norm.",
    "glszm_SmallAreaHighGrayLevelEmphasis": "small area high grey emphasis (log)",
    "shape2D_Elongation": "elongation",
    "shape2D_Sphericity": "sphericity",
}


def view(case: Case) -> View | None:
    """Image and nodule at the phantom's scale; None where there is no nodule of a usable size."""
    reading = case.truth or case.readings[0]
    if reading.mask is None or not reading.mask.any():
        return None
    shape = (HEIGHT, round(case.image.shape[1] * HEIGHT / case.image.shape[0]))
    image = resize(case.image, shape, anti_aliasing=True, preserve_range=True).round()
    mask = resize(reading.mask.astype(float), shape) > 0.5
    return (image.astype(np.uint8), mask) if mask.sum() >= 150 else None


def features(image: Image, mask: Mask, extractor: RadiomicsFeatureExtractor) -> list[float]:
    volume = [SimpleITK.GetImageFromArray(a[None].astype(np.float64)) for a in (image, mask)]
    found = extractor.execute(volume[0], SimpleITK.Cast(volume[1], SimpleITK.sitkUInt8))
    ring = ndimage.binary_dilation(mask, iterations=14) ^ ndimage.binary_dilation(
        mask, iterations=2
    )
    found["original_contrast"] = image[mask].mean() - image[ring].mean()
    values = {key: float(found[f"original_{key}"]) for key in FEATURES}
    return [
        np.log(value) if FEATURES[key].endswith("(log)") else value for key, value in values.items()
    ]


def overlap(a: NDArray[np.float64], b: NDArray[np.float64], bins: int = 10) -> float:
    edges = np.linspace(*np.percentile(np.concatenate((a, b)), (1, 99)), bins + 1)
    share = [np.histogram(np.clip(v, edges[0], edges[-1]), edges)[0] / v.size for v in (a, b)]
    return float(np.minimum(*share).sum())


def montage(rows: dict[str, list[View]]) -> Figure:
    """Two rows for each source; the lower of them with its contours."""
    count = len(next(iter(rows.values()))) // 2
    figure, axes = plt.subplots(
        2 * len(rows), count, figsize=(2.4 * count, 4.1 * len(rows)), squeeze=False
    )
    for k, (name, views) in enumerate(rows.items()):
        for i, (image, mask) in enumerate(views[: 2 * count]):
            ax = axes[2 * k + i // count, i % count]
            ax.imshow(image, cmap="gray", vmin=0, vmax=255, aspect="equal")
            if i >= count:
                ax.contour(mask, [0.5], colors="gold", linewidths=0.8)
            ax.set_axis_off()
        note = "different images in the two rows; the second with its contours"
        axes[2 * k, 0].set_title(f"{name} ({note})", loc="left", fontsize=10)
    figure.subplots_adjust(0.003, 0.003, 0.997, 0.95, wspace=0.02, hspace=0.12)
    return figure


def distributions(tables: dict[str, NDArray[np.float64]]) -> tuple[Figure, list[float]]:
    figure, axes = plt.subplots(3, 3, figsize=(9.5, 7.5))
    found = []
    (a, first), (b, second) = tables.items()
    for k, (ax, title) in enumerate(zip(axes.flat, FEATURES.values(), strict=True)):
        found.append(overlap(first[:, k], second[:, k]))
        edges = np.linspace(
            *np.percentile(np.concatenate((first[:, k], second[:, k])), (1, 99)), 19
        )
        for name, values, colour in ((a, first, "tab:gray"), (b, second, "tab:orange")):
            inside = np.clip(values[:, k], edges[0], edges[-1])
            ax.hist(inside, edges, density=True, alpha=0.55, label=name, color=colour)
        ax.set_title(f"{title}: overlap {found[-1]:.2f}", fontsize=9)
        ax.set_yticks([])
    axes[0, 0].legend(fontsize=8)
    figure.tight_layout()
    return figure, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="DDTI as published")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "img")
    parser.add_argument("--count", type=int, default=120, help="nodules of each source")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.getLogger("radiomics").setLevel(logging.ERROR)
    mpl.use("Agg")

    rng = np.random.default_rng(options.seed)
    real = ddti.load(options.data).cases
    sources = {
        "DDTI": [real[i] for i in rng.permutation(len(real))],
        "Phantom": list(phantom.load(size=options.count + 20, seed=options.seed).cases),
    }
    extractor = RadiomicsFeatureExtractor(binWidth=25, force2D=True, label=1)
    extractor.disableAllFeatures()
    for group in ("firstorder", "glrlm", "glszm", "shape2D"):
        extractor.enableFeatureClassByName(group)
    views, tables = {}, {}
    for name, cases in sources.items():
        usable = [v for v in map(view, cases) if v][: options.count]
        tables[name] = np.array([features(*v, extractor) for v in usable])
        # The montage shows whole-width views: half of a split screen has another shape.
        views[name] = [v for v in usable if v[0].shape[1] > 1.1 * HEIGHT][:12]
    figure, found = distributions(tables)
    options.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out / "phantom_radiomics.png", dpi=80)
    buffer = io.BytesIO()
    montage(views).savefig(buffer, dpi=75)
    # A palette is half the size; maximum coverage keeps the few coloured pixels coloured.
    pixels = Pillow.open(buffer).convert("RGB").quantize(64, Pillow.Quantize.MAXCOVERAGE)
    pixels.save(options.out / "phantom_vs_ddti.png", optimize=True)

    halves = [rng.permutation(tables["DDTI"]) for _ in range(50)]
    print(f"| feature | {' | '.join(f'{n} median [10, 90 %]' for n in tables)} | overlap | DDTI |")
    print("|---|---|---|---|---|")
    for k, title in enumerate(FEATURES.values()):
        spread = [np.percentile(table[:, k], (50, 10, 90)) for table in tables.values()]
        cells = [f"{m:.2f} [{low:.2f}, {high:.2f}]" for m, low, high in spread]
        best = np.mean([overlap(*np.array_split(half[:, k], 2)) for half in halves])
        print(f"| {title} | {' | '.join(cells)} | {found[k]:.2f} | {best:.2f} |")
    print(f"mean overlap {np.mean(found):.2f}, {len(tables['DDTI'])} nodules of each source")


if __name__ == "__main__":
    main()
