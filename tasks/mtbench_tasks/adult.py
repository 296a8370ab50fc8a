"""Census income: income, marital status and education of one person, from the rest."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mtbench import seeding
from mtbench.balancing.model import MultitaskModel
from mtbench.errors import DataError
from mtbench.training.data import TensorSplit, labelled_loss
from mtbench.training.task import Batch, Meter, Metric, Progress, Recipe, Splits, Task
from mtbench_tasks import _tabular as tabular

FILES = {"train": ("adult-train.csv", "adult.data"), "test": ("adult-test.csv", "adult.test")}

COLUMNS: tabular.Columns = {
    "age": None,
    "workclass": (
        "Private", "Self-emp-not-inc", "Self-emp-inc", "Federal-gov", "Local-gov", "State-gov",
        "Without-pay", "Never-worked",
    ),
    "fnlwgt": None,
    "education": (
        "Preschool", "1st-4th", "5th-6th", "7th-8th", "9th", "10th", "11th", "12th", "HS-grad",
        "Some-college", "Assoc-voc", "Assoc-acdm", "Bachelors", "Masters", "Prof-school",
        "Doctorate",
    ),
    "education-num": None,
    "marital-status": (
        "Married-civ-spouse", "Divorced", "Never-married", "Separated", "Widowed",
        "Married-spouse-absent", "Married-AF-spouse",
    ),
    "occupation": (
        "Tech-support", "Craft-repair", "Other-service", "Sales", "Exec-managerial",
        "Prof-specialty", "Handlers-cleaners", "Machine-op-inspct", "Adm-clerical",
        "Farming-fishing", "Transport-moving", "Priv-house-serv", "Protective-serv", "Armed-Forces",
    ),
    "relationship": (
        "Wife", "Own-child", "Husband", "Not-in-family", "Other-relative", "Unmarried",
    ),
    "race": ("White", "Asian-Pac-Islander", "Amer-Indian-Eskimo", "Other", "Black"),
    "sex": ("Female", "Male"),
    "capital-gain": None,
    "capital-loss": None,
    "hours-per-week": None,
    "native-country": (
        "United-States", "Cambodia", "England", "Puerto-Rico", "Canada", "Germany",
        "Outlying-US(Guam-USVI-etc)", "India", "Japan", "Greece", "South", "China", "Cuba", "Iran",
        "Honduras", "Philippines", "Italy", "Poland", "Jamaica", "Vietnam", "Mexico", "Portugal",
        "Ireland", "France", "Dominican-Republic", "Laos", "Ecuador", "Taiwan", "Haiti", "Columbia",
        "Hungary", "Guatemala", "Nicaragua", "Scotland", "Thailand", "Yugoslavia", "El-Salvador",
        "Trinadad&Tobago", "Peru", "Hong", "Holand-Netherlands",
    ),
    "income": ("<=50K", ">50K"),
}  # fmt: skip
"""As published, in the order of the files, which have no header."""

INPUTS = (
    "age", "workclass", "occupation", "race", "sex", "capital-gain", "capital-loss",
    "hours-per-week", "native-country",
)  # fmt: skip

BINS = 64
"""Pieces that a numeric input is encoded in."""

COLLEGE = "Some-college"

VALIDATION = 0.15
"""Of the published training file."""


class Adult(Task):
    """Three facts of a person in the 1994 census, each by binary cross-entropy.

    ``income``: above 50,000 dollars a year. ``marital``: never married. ``college``: at least some
    college. The three label definitions are those of MMoE (Ma et al., KDD 2018), who took them from
    a larger extract of the same census (299,285 persons; here 48,842), so that their figures do not
    compare. Published training and test file; 15 % of the former validate, by seed.

    What is no input: ``marital-status`` and ``relationship`` (a husband is married: a copy of the
    label), ``education`` and ``education-num`` (the label), ``fnlwgt`` (a sampling weight, no
    property of the person). Nominal inputs are one indicator a value, none where missing; numeric
    ones are encoded by `piecewise_linear`.

    Kohavi and Becker 1996; UCI, dataset 2.

    Args:
        data: the folder of ``adult.data`` and ``adult.test`` as published, or of the same as
            ``adult-train.csv`` and ``adult-test.csv``.
        strict: refuse a file with broken rows, rather than leave them out.
        width: of the network's layers.
        dropout: of the shared layers.
    """

    objectives = ("income", "marital", "college")
    metrics = {  # noqa: RUF012
        f"{score}_{objective}": Metric(objective, primary=chance is not None, chance=chance)
        for objective in objectives
        for score, chance in (("auroc", 0.5), ("accuracy", None))
    }
    recipe = Recipe(epochs=10, batch_size=256, lr=2e-3, weight_decay=0.05, select="last")

    def __init__(
        self,
        *,
        data: Path | None = None,
        strict: bool = False,
        width: int = 128,
        dropout: float = 0.2,
    ) -> None:
        tabular.check_network(width, dropout)
        self.data, self.strict, self.width, self.dropout = data, strict, width, dropout

    def setup(self, seed: int, progress: Progress) -> Splits:
        """Read both files and take the validation rows from the training file."""
        path = tabular.required("adult", self.data)
        tables = load(path, strict=self.strict)
        count = len(tables[0].values)
        order = np.random.default_rng(seeding.derive(seed, "split")).permutation(count)
        held = round(VALIDATION * count)
        encoded = [table.encode(INPUTS) for table in tables]
        rows, nominal = np.concatenate([x for x, _ in encoded]), encoded[0][1]
        numeric = [piecewise_linear(column, column[order[held:]]) for column in rows.T[~nominal]]
        x = torch.from_numpy(np.concatenate([rows[:, nominal], *numeric], axis=1)).float()
        y = torch.from_numpy(np.concatenate([_labels(table) for table in tables])).float()
        parts = [order[held:], order[:held], np.arange(count, len(x))]
        train, val, test = (
            TensorSplit(
                x[part], groups=None, **dict(zip(self.objectives, y[part].unbind(1), strict=True))
            )
            for part in parts
        )
        notes = {
            "rows": [len(part) for part in parts],
            "left_out": sum(len(table.broken) for table in tables),
        }
        fingerprint = "-".join(table.fingerprint for table in tables)
        return Splits(train, val, test, fingerprint=fingerprint, notes=notes)

    def model(self) -> MultitaskModel:
        """Return the network."""
        inputs = sum(len(COLUMNS[name] or range(BINS)) for name in INPUTS)
        return tabular.network(inputs, len(self.objectives), width=self.width, dropout=self.dropout)

    def losses(self, outputs: Sequence[Any], batch: Batch) -> list[Tensor]:
        """Return each objective's binary cross-entropy."""
        return [
            labelled_loss(F.binary_cross_entropy_with_logits, output, batch[name])
            for name, output in zip(self.objectives, outputs, strict=True)
        ]

    def meter(self) -> Meter:
        """Return a fresh meter."""
        return AdultMeter(self.objectives)

    @classmethod
    def inspect(cls, source: str, data: Path | None) -> list[tuple[str, str, str]]:
        """Return the rows used and left out, and how frequent each label is."""
        tables = load(tabular.only_source(source, "adult", data), strict=False)
        rows = []
        for part, table in zip(FILES, tables, strict=True):
            rows += [(count, f"{part}: {what}", why) for count, what, why in table.report()]
            for name, label in zip(cls.objectives, _labels(table).T, strict=True):
                share = np.nanmean(label)
                rows.append((f"{share:.1%}", f"{part}: {name}", "share of the positive label"))
        return rows


class AdultMeter(tabular.Collector):
    """AUROC, and accuracy at one half, of each objective."""

    def compute(self) -> dict[str, float]:
        """Return every metric of `Adult`."""
        from torchmetrics.functional.classification import binary_accuracy, binary_auroc

        found = {}
        for name, (logit, target) in self.collected().items():
            defined = len(target.unique()) == 2
            label = target.long()
            found[f"auroc_{name}"] = float(binary_auroc(logit, label)) if defined else np.nan
            found[f"accuracy_{name}"] = (
                float(binary_accuracy(logit.sigmoid(), label)) if len(label) else np.nan
            )
        return found


def piecewise_linear(values: tabular.Floats, train: tabular.Floats) -> tabular.Floats:
    r"""Return numbers x, (N,), as T shares of pieces passed, (N, T); zero where missing.

    .. math:: e_t = \operatorname{clip}\left(\frac{x - b_{t-1}}{b_t - b_{t-1}}, 0, 1\right)

    A network resolves thresholds in it as trees do, here those of capital gains, most of which are
    zero. Gorishniy et al., NeurIPS 2022, arXiv 2203.05556, equation 1; deviations: edges b are
    quantiles of the *different* training values, since a quantile of all would nearly always be
    zero, and the outer pieces do not extrapolate.

    >>> piecewise_linear(np.array([0.0, 96.0, 128.0]), np.array([0.0, 64.0, 128.0])).sum(1)
    array([ 0., 48., 64.])
    """
    different = np.unique(train[~np.isnan(train)])
    if len(different) == 0:
        return np.zeros((len(values), BINS))
    edges = np.quantile(different, np.linspace(0, 1, BINS + 1))
    width = np.maximum(np.diff(edges), 1e-9)
    return np.nan_to_num(np.clip((values[:, None] - edges[:-1]) / width, 0, 1))


def _labels(table: tabular.Table) -> tabular.Floats:
    education, marital = COLUMNS["education"], COLUMNS["marital-status"]
    assert education is not None
    assert marital is not None
    facts = {
        "income": table["income"] > 0,
        "marital-status": table["marital-status"] == marital.index("Never-married"),
        "education": table["education"] >= education.index(COLLEGE),
    }
    return np.stack([np.where(np.isnan(table[k]), np.nan, v) for k, v in facts.items()], axis=1)


def load(path: Path, *, strict: bool) -> list[tabular.Table]:
    """Return the published training and test table.

    Raises:
        DataError: a file is absent or broken, or training has too few rows to be split.
    """
    tables = []
    for names in FILES.values():
        file = next((path / name for name in names if (path / name).is_file()), None)
        if file is None:
            raise DataError(
                f"{path}: holds neither {names[0]} nor {names[1]}; --data takes the folder of both "
                "the training and the test file"
            )
        # adult.test begins with a line of its own and ends its labels with a full stop.
        lines = [
            "" if line.startswith("|") else line.rstrip().removesuffix(".")
            for line in tabular.read_lines(file)
        ]
        tables.append(tabular.read_rows(file, lines, COLUMNS, first=1, strict=strict))
    if round(VALIDATION * (count := len(tables[0].values))) == 0:
        raise DataError(f"{path}: {count} training rows are too few to be split")
    return tables
