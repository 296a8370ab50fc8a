"""Parkinson's telemonitoring: motor and total UPDRS from voice measures, split by subject."""

from pathlib import Path

import numpy as np

from mtbench.balancing.model import MultitaskModel
from mtbench.errors import DataError
from mtbench.training.task import Progress, Recipe, Splits
from mtbench_tasks import _tabular as tabular
from mtbench_tasks._folds import checked

FILE = "parkinsons_updrs.data"

SUBJECT = "subject#"

TARGETS = {"motor": "motor_UPDRS", "total": "total_UPDRS"}

INPUTS = (
    "age", "sex", "test_time", "Jitter(%)", "Jitter(Abs)", "Jitter:RAP", "Jitter:PPQ5",
    "Jitter:DDP", "Shimmer", "Shimmer(dB)", "Shimmer:APQ3", "Shimmer:APQ5", "Shimmer:APQ11",
    "Shimmer:DDA", "NHR", "HNR", "RPDE", "DFA", "PPE",
)  # fmt: skip


class Parkinsons(tabular.Regression):
    """Two scores of Parkinson's disease (UPDRS, motor part and total) from a voice recording.

    5,875 recordings of 42 subjects, some 140 each over six months. Nearly all of the scores'
    variance lies between subjects, and a subject is recognised by age, sex and voice: a split by
    recording, as most published figures have it, measures that recognition. Here no subject is in
    two splits (26 or 27 train, 7 validate, 8 or 9 test), and what is measured is a new subject's
    score. Scores between clinic visits were interpolated by the data's authors.

    Tsanas et al., IEEE Trans. Biomed. Eng. 57 (2010), doi 10.1109/TBME.2009.2036000; UCI, dataset
    189.

    Args:
        data: ``parkinsons_updrs.data`` as published, or the folder that it lies in.
        fold: which fifth of the subjects is tested, 0 to 4; those of validation are drawn by the
            seed.
        strict: refuse a file with broken rows, rather than leave them out.
        width: of the network's layers.
        dropout: of the shared layers.
    """

    objectives = tuple(TARGETS)
    metrics = tabular.regression_metrics(objectives, primary="rmse")
    recipe = Recipe(epochs=6, batch_size=64, lr=1e-3, weight_decay=1.0, select="last")

    def __init__(
        self,
        *,
        data: Path | None = None,
        fold: int = 0,
        strict: bool = False,
        width: int = 64,
        dropout: float = 0.5,
    ) -> None:
        tabular.check_network(width, dropout)
        self.fold = checked(fold)
        self.data, self.strict, self.width, self.dropout = data, strict, width, dropout

    def setup(self, seed: int, progress: Progress) -> Splits:
        """Read the file and split it by subject."""
        path = tabular.required("parkinsons", self.data)
        table = load(path, strict=self.strict)
        return tabular.regression_splits(path, table, INPUTS, TARGETS, SUBJECT, self.fold, seed)

    def model(self) -> MultitaskModel:
        """Return the network."""
        return tabular.network(
            len(INPUTS), len(self.objectives), width=self.width, dropout=self.dropout
        )

    @classmethod
    def inspect(cls, source: str, data: Path | None) -> list[tuple[str, str, str]]:
        """Return the rows used and left out, and the subjects."""
        path = tabular.only_source(source, "parkinsons", data)
        table = load(path, strict=False)
        subjects = len(np.unique(table[SUBJECT]))
        tabular.refuse_few(path, subjects)
        return [*table.report(), (str(subjects), "subjects", "each in one split only")]


def load(path: Path, *, strict: bool) -> tabular.Table:
    """Return the published table.

    Raises:
        DataError: it is absent, broken, or another one.
    """
    file = path / FILE if path.is_dir() else path
    lines = tabular.read_lines(file)
    names = tabular.read_header(file, lines[0])
    for name in (SUBJECT, *TARGETS.values(), *INPUTS):
        if name not in names:
            raise DataError(
                f"{file}: has no column {name!r}, found {tabular.shown(names)}; --data takes "
                f"{FILE} as published"
            )
    return tabular.read_rows(file, lines[1:], dict.fromkeys(names), first=2, strict=strict)
