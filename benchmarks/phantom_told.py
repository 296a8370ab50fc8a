"""Tell the phantom from real images by plain statistics of the picture, nodule or not.

    python benchmarks/phantom_told.py --data ../shared/data/ddti

On the 16 numbers of `STATISTICS`, a logistic regression learns to tell phantoms from DDTI's views,
in four fifths of the patients; its AUROC on the other fifth, each fifth in turn, is printed: 0.5 is
no telling apart. Boosted trees, which see more than averages, do the same. Before it stand the
statistics' quantiles, and how well each tells alone. All images are brought to the phantom's rows.
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, stats
from skimage.transform import resize
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mtbench_tasks._lesion.cases import Case
from mtbench_tasks.thyroid import ddti, phantom
from mtbench_tasks.thyroid.ultrasound import HEIGHT

Array = NDArray[np.float64]

STATISTICS = (
    "mean", "standard deviation", "1st percentile", "median", "99th percentile", "skewness",
    "entropy", "upper third / mean", "deep third / mean", "grain across, upper third",
    "grain across, middle third", "grain across, deep third", "grain along, deep third",
    "fine / all contrast", "edges down / across (log)", "edges across (log)",
)  # fmt: skip


def grain(image: Array, axis: int) -> float:
    """Return at how many pixels the autocorrelation of the fine texture is one half."""
    fine = np.moveaxis(image - ndimage.gaussian_filter(image, 6), axis, -1)
    fine = fine - fine.mean()
    power, before = (fine**2).mean() + 1e-9, 1.0
    for lag in range(1, 20):
        here = float((fine[:, lag:] * fine[:, :-lag]).mean() / power)
        if here < 0.5:
            return lag - 1 + (before - 0.5) / (before - here)
        before = here
    return 20.0


def describe(case: Case) -> list[float]:
    """Return the statistics of a case's image."""
    shape = (HEIGHT, round(case.image.shape[1] * HEIGHT / case.image.shape[0]))
    image = resize(case.image, shape, anti_aliasing=True, preserve_range=True).round()
    thirds, mean, spread = np.array_split(image, 3), image.mean(), image.std() + 1
    down, across = (np.abs(np.diff(image, axis=axis)).mean() for axis in (0, 1))
    return [
        mean, image.std(), *np.percentile(image, (1, 50, 99)), stats.skew(image, axis=None),
        stats.entropy(np.histogram(image, 32, (0, 256))[0]),
        thirds[0].mean() / (mean + 1), thirds[2].mean() / (mean + 1),
        *(grain(third, 1) for third in thirds), grain(thirds[2], 0),
        (image - ndimage.gaussian_filter(image, 2)).std() / spread,
        np.log(down / across), np.log(across + 1),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="DDTI as published")
    parser.add_argument("--seed", type=int, default=0, help="of the phantom")
    options = parser.parse_args()

    real = ddti.load(options.data).cases
    made = phantom.load(size=len(real), seed=options.seed).cases
    tables = [np.array([describe(case) for case in cases]) for cases in (real, made)]
    X, simulated = np.vstack(tables), np.repeat([0, 1], len(real))
    patients = np.unique([case.patient for case in (*real, *made)], return_inverse=True)[1]
    print("| statistic | DDTI median [5, 95 %] | phantom | alone |")
    print("|---|---|---|---|")
    for k, name in enumerate(STATISTICS):
        cells = ["{1:.2f} [{0:.2f}, {2:.2f}]".format(*np.percentile(t[:, k], (5, 50, 95)))
                 for t in tables]  # fmt: skip
        alone = roc_auc_score(simulated, X[:, k])
        print(f"| {name} | {' | '.join(cells)} | {max(alone, 1 - alone):.2f} |")
    models = {
        "logistic regression": make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
        "boosted trees": HistGradientBoostingClassifier(random_state=0),
    }
    print(f"{len(real)} images of each")
    for name, model in models.items():
        told = cross_val_predict(
            model, X, simulated, groups=patients, cv=GroupKFold(5), method="predict_proba"
        )
        print(f"AUROC of {name}: {roc_auc_score(simulated, told[:, 1]):.3f}")


if __name__ == "__main__":
    main()
