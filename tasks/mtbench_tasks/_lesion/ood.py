"""Whether an image is of the kind that a model was trained on.

Told by what a picture is like, and by what the encoder's second level makes of its top, middle and
bottom third. The deepest level would tell less than either: it has learnt to see lesions, and not
what kind of image it is.
"""

from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Vector = NDArray[np.float64]
F4 = "<f4"

COUNT = 16  # statistics
DARK, LIGHT = 0.03, 0.97  # grey values, of 1, that count as black and as white
SMALLEST = 8  # pixels of the grid: less shows nothing
LEAST = 0.01  # deviation of a statistic: one that hardly varies in training may do so a little
LIMIT = 99.0  # percentile of distances: what lies beyond is told
KEY = "kind"  # of what `LesionTask.fit` writes; a new one where `features` change
UNKNOWN = (
    "the model does not know what its training's images are like, for other code has made it: an "
    "image of another kind or organ is not told; a model trained by this mtbench tells it"
)


def describe(grid: NDArray[np.float32]) -> Vector:
    """Return what a picture on the network's grid (S, S) is like, (COUNT,).

    Of the part that is not black border: mean, logarithm of the deviation, 5th, 25th, 75th and 95th
    percentile, share of black and of white, correlation of neighbours and of pixels three apart
    down and across (speckle lies along scan lines), how much brighter the top and the middle third
    are than the bottom (attenuation), the middle than the sides, and the logarithm of the mean
    second difference. All zero where nothing is lit.
    """
    lit = grid > 0.02
    rows, columns = (np.flatnonzero(lit.mean(axis=axis) > 0.05) for axis in (1, 0))
    if min(len(rows), len(columns)) < SMALLEST:
        return np.zeros(COUNT)
    seen = grid[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float64)
    deviation = seen.std() + 1e-3
    apart = (seen - seen.mean()) / deviation
    alike = [
        float((a * b).mean())
        for step in (1, 3)
        for a, b in ((apart[step:], apart[:-step]), (apart[:, step:], apart[:, :-step]))
    ]
    top, middle, bottom = (part.mean() for part in np.array_split(seen, 3, axis=0))
    left, centre, right = (part.mean() for part in np.array_split(seen, 3, axis=1))
    inner = seen[1:-1, 1:-1]
    around = seen[:-2, 1:-1] + seen[2:, 1:-1] + seen[1:-1, :-2] + seen[1:-1, 2:]
    return np.array(
        [
            seen.mean(), np.log(deviation), *np.percentile(seen, (5, 25, 75, 95)),
            (seen < DARK).mean(), (seen > LIGHT).mean(), *alike,
            top - bottom, middle - bottom, centre - (left + right) / 2,
            np.log(np.abs(4 * inner - around).mean() + 1e-3),
        ]
    )  # fmt: skip


def features(grid: Tensor, texture: Tensor) -> Vector:
    """Return what a picture (S, S) is like, and what the encoder makes of it, (COUNT + 3 C,)."""
    return np.concatenate([describe(grid.numpy()), texture.float().cpu().numpy()])


@dataclass(frozen=True)
class OutOfDistribution:
    r"""What training's pictures are like.

    A picture's distance is Mahalanobis',
    :math:`\sqrt{(x - \mu)^\top \Sigma^{-1} (x - \mu)} = \|W (x - \mu)\|`, with the covariance
    shrunk as Ledoit and Wolf (2004) do.

    Attributes:
        mean: (D,), of the training's `features`.
        whitening: W, (D, D), lower triangular.
        limit: the distance within which `LIMIT` per cent of the training's lie, and of the
            validation's: what mean and covariance are of is nearer than others.
    """

    mean: Vector
    whitening: Vector
    limit: float

    @classmethod
    def fit(cls, found: Vector, others: Vector) -> Self:
        """Fit on `features` of the training's pictures, (N, D), and the validation's, (M, D)."""
        from sklearn.covariance import LedoitWolf

        scale = np.maximum(found.std(axis=0), LEAST)  # shrinking is towards equal variances
        covariance = LedoitWolf().fit(found / scale).covariance_ + np.diag((LEAST / scale) ** 2)
        whitening = np.tril(np.linalg.inv(np.linalg.cholesky(covariance))) / scale
        made = cls(found.mean(axis=0), whitening, 0.0)
        ends = [np.percentile([*map(made._distance, rows)], LIMIT) for rows in (found, others)]
        return replace(made, limit=float(max(ends)))

    @classmethod
    def of(cls, fitted: Mapping[str, Any]) -> Self | None:
        """Return what `LesionTask.fit` wrote; None where it has not."""
        if (said := fitted.get(KEY)) is None:
            return None
        mean = np.array(said["mean"])
        whitening = np.zeros((len(mean), len(mean)))
        whitening[np.tril_indices_from(whitening)] = np.frombuffer(b64decode(said["whitening"]), F4)
        return cls(mean, whitening, said["limit"])

    def to_json(self) -> dict[str, Any]:
        """Return it as what JSON holds; digits would take ten times the room, 18 MB at D = 784."""
        lower = self.whitening[np.tril_indices_from(self.whitening)].astype(F4)
        return {
            "mean": self.mean.tolist(),
            "whitening": b64encode(lower.tobytes()).decode(),
            "limit": self.limit,
        }

    def doubt(self, row: Vector) -> str | None:
        """Return what speaks against a picture being of the training's kind, if anything."""
        distance = self._distance(row)
        if distance <= self.limit:
            return None
        return (
            f"it does not look like the training's images (distance {distance:.3g}, "
            f"{LIMIT:g} % of theirs are within {self.limit:.3g}): is it an ultrasound image of the "
            "same organ, the right way up?"
        )

    def _distance(self, row: Vector) -> float:
        return float(np.linalg.norm(self.whitening @ (row - self.mean)))
