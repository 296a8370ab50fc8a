"""What the tasks on tables share: reading rows, splits by group, the network, losses, meters."""

import csv
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from mtbench.balancing.model import MultitaskModel
from mtbench.errors import DataError, UsageError
from mtbench.training.data import TensorSplit, known, labelled_loss, regular
from mtbench.training.task import Batch, Meter, Metric, Splits, Task
from mtbench_tasks._bounds import at_least, check_dropout
from mtbench_tasks._folds import divide
from mtbench_tasks._names import spelt_alike
from mtbench_tasks._sources import only

Floats = NDArray[np.float64]

Columns = Mapping[str, tuple[str, ...] | None]
"""By name, in the file's order: the values of a nominal column, None for a numeric one."""

LEAST = 20
"""Groups that a table must have to be split in three."""

LARGEST = float(np.finfo(np.float32).max)
"""Of a number; the square of a larger one may be infinite in float64."""

SCALE = "_scale"

RESERVED = ("inputs", "groups", "self", SCALE)
"""Names that no objective can have: a batch, or what makes a split, uses them."""

MISSING = ("", "?", "NA", "na", "NaN", "nan")
NO_NUMBER = {*MISSING, "N/A", "n/a", "#N/A", "NULL", "null", "None", "none", "-"}
"""What stands for a number that is missing; among words, some of these are values."""


@dataclass(frozen=True)
class Table:
    """Rows of a file as numbers.

    Attributes:
        columns: what the columns are.
        values: (N, C); the index of its value for a nominal cell, NaN where a value is missing.
        broken: the rows left out, as (line number, what is wrong).
    """

    columns: Columns
    values: Floats
    broken: tuple[tuple[int, str], ...]

    def __getitem__(self, column: str) -> Floats:
        return self.values[:, list(self.columns).index(column)]

    def spelt(self, group: str) -> dict[str, str]:
        """Return the first spelling of each name in a column; of numbers there are none."""
        return spelt_alike(self.columns[group] or ())

    def members(self, path: Path, group: str) -> Floats:
        """Return what each row (N,) belongs to; names that are spelt alike are one.

        Raises:
            DataError: a row belongs to nothing.
        """
        member = self[group]
        if np.isnan(member).any():
            raise DataError(f"{path}: a row has no {group}, by which the data is split")
        if first := self.spelt(group):
            names = list(first)
            owner = np.array([names.index(one) for one in first.values()], float)
            member = owner[member.astype(int)]
        return member

    def encode(self, names: Iterable[str]) -> tuple[Floats, NDArray[np.bool_]]:
        """Return columns as inputs (N, D), and which of the D are indicators of a nominal value.

        A missing nominal value has no indicator set.
        """
        parts, indicator = [], []
        for name in names:
            values = self.columns[name]
            if values is None:
                parts.append(self[name][:, None])
            else:
                parts.append((self[name][:, None] == np.arange(len(values))).astype(np.float64))
            indicator += [values is not None] * parts[-1].shape[1]
        return np.concatenate(parts, axis=1), np.array(indicator)

    def doubts(self, names: Iterable[str]) -> list[tuple[int, str]]:
        """Return what is odd about the numbers of columns, each with how many rows have it."""
        return [
            (
                count,
                f"{name}: {value:g} lies outside of all others, {low:g} to {high:g}: if it says "
                "that a value is missing, leave these cells empty",
            )
            for name in names
            if self.columns[name] is None
            for value, count, low, high in stand_ins(self[name])
        ]

    @property
    def fingerprint(self) -> str:
        """The sha256 of the columns and values."""
        digest = hashlib.sha256(repr(dict(self.columns)).encode())
        digest.update(np.ascontiguousarray(self.values).tobytes())
        return digest.hexdigest()

    def report(self) -> list[tuple[str, str, str]]:
        """Return (count, what, why) of the rows and their missing values."""
        unknown = np.isnan(self.values)
        names = list(self.columns)
        some = [names[i] for i in np.flatnonzero(unknown.any(axis=0))]
        rows = [(str(len(self.values)), "rows used", "")]
        if self.broken:
            line, reason = self.broken[0]
            rows.append(
                (str(len(self.broken)), "rows left out", f"the first: line {line}: {reason}")
            )
        rows.append(
            (str(int(unknown.sum())), "values missing", f"in {shown(some)}" if some else "")
        )
        rows += [(str(count), "values look odd", why) for count, why in self.doubts(names)]
        constant = [
            name
            for name, values in self.columns.items()
            if values is None and len(np.unique(_given(self[name]))) < 2
        ]
        if constant:
            rows.append((str(len(constant)), "columns of one number, or none", shown(constant)))
        return rows


def stand_ins(values: Floats) -> list[tuple[float, int, float, float]]:
    """Return numbers that may stand for a missing value, as in (number, count, least, most of all).

    Such a number is written in nines alone (-9, -99.9, -999, 999, 9999) or is -1, and three rows or
    more have it. The others, those that are not so written, all lie on one side of it:

    - Below 0, it is further from them than they are apart, or it is the only one below 0.
    - Above 0, where prices and limits end in nines, it is three times as far.
    - -1 is one step below 0 in many a scale. So it counts only beside ten different others or more;
      and as the only one below 0, only if not all others are whole numbers.

    >>> stand_ins(np.array([-999.0, 3.2, 1.5, -999.0, 8.0, -999.0]))
    [(-999.0, 3, 1.5, 8.0)]
    >>> stand_ins(np.array([-1.0, 0.0, 1.0, -1.0, 0.0, -1.0]))
    []
    """
    distinct, counts = np.unique(_given(values), return_counts=True)
    written = (distinct < 0) | (distinct >= 99)  # an image has many others
    written[written] = [_stands_in(value) for value in distinct[written]]
    rest = distinct[~written]
    if not len(rest):
        return []
    low, high = float(rest[0]), float(rest[-1])
    found = []
    for value, count in zip(distinct[written].tolist(), counts[written].tolist(), strict=True):
        if value < 0:
            alone = low >= 0 and (value != -1 or bool((rest % 1).any()))
            far = (low - value > high - low or alone) and (value != -1 or len(rest) >= 10)
            far = far and value < low
        else:
            far = value - high > 3 * (high - low)
        if count >= 3 and far:
            found.append((value, count, low, high))
    return found


def _given(values: Floats) -> Floats:
    """Return the values that are not missing."""
    return values[~np.isnan(values)]


def _stands_in(value: float) -> bool:
    """Return whether a number is written as those are that stand for a missing one."""
    if value < 0:  # -99.9 in float32 is so to seven digits
        texts = f"{-value:.7g}", f"{-value:.12g}"
        return value == -1 or any(set(text) <= {"9", "."} for text in texts)
    text = f"{value:.12g}"
    return set(text) == {"9"} and len(text) >= 3


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file.

    Raises:
        DataError: it is absent, no text, or empty.
    """
    try:
        lines = regular(path).read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: is no text file (byte {error.start} is not UTF-8): save a table as UTF-8"
        ) from error
    if not any(map(str.strip, lines)):
        raise DataError(f"{path}: is empty")
    return lines


def read_header(path: Path, line: str) -> list[str]:
    """Return the column names of a CSV file's first line.

    Raises:
        DataError: it is none, or a name is empty or occurs twice.
    """
    try:
        return checked_names(path, fields(line))
    except ValueError as error:
        raise DataError(f"{path}: its first line is no header ({error})") from error


def checked_names(path: Path, names: Iterable[str]) -> list[str]:
    """Return column names without the blanks and quotes around them.

    Raises:
        DataError: a name is empty or occurs twice.
    """
    found = [name.strip(" \t'\"") for name in names]
    for i, name in enumerate(found):
        if not name:
            raise DataError(f"{path}: column {i + 1} has no name")
        if name in found[:i]:
            raise DataError(f"{path}: two columns are called {name!r}; rename one")
    return found


def read_rows(
    path: Path,
    lines: Sequence[str],
    columns: Columns,
    *,
    first: int,
    strict: bool,
    quote: str = '"',
) -> Table:
    """Return the rows of a comma-separated text; broken ones are left out and counted.

    A row is broken if its number of fields is not that of the columns, a numeric cell is no finite
    number of float32's range, or a nominal cell is none of the values. Blank lines are no rows.

    Args:
        path: the file, for messages.
        lines: the text from its first row on.
        columns: what the rows must hold.
        first: the line number of the first of `lines`.
        strict: whether a broken row is an error.
        quote: the quotation mark.

    Raises:
        DataError: no row is left, or `strict` and one is broken.
    """
    kinds = [
        (name, None if values is None else {value: i for i, value in enumerate(values)})
        for name, values in columns.items()
    ]
    rows: list[list[float]] = []
    broken: list[tuple[int, str]] = []
    for number, line in enumerate(lines, first):
        if not line.strip():
            continue
        try:
            cells = fields(line, quote)
            if len(cells) != len(kinds):
                raise ValueError(f"{len(cells)} fields, expected {len(kinds)}")
            rows.append([_cell(text, *column) for text, column in zip(cells, kinds, strict=True)])
        except ValueError as error:
            if strict:
                raise DataError(f"{path}, line {number}: {error} (strict)") from error
            broken.append((number, str(error)))
    if not rows:
        why = f"; the first: line {broken[0][0]}: {broken[0][1]}" if broken else ""
        raise DataError(f"{path}: has no row that can be used, {len(broken)} broken ones{why}")
    return Table(columns, np.array(rows), tuple(broken))


def fields(line: str, quote: str = '"') -> list[str]:
    """Return the cells of a comma-separated line.

    Raises:
        ValueError: it cannot be divided.
    """
    try:
        return [
            text.strip()
            for text in next(csv.reader([line], skipinitialspace=True, quotechar=quote))
        ]
    except csv.Error as error:
        raise ValueError(str(error)) from error


def as_number(text: str) -> float:
    """Return the number that a text is; Python takes 10_14 as 1014, a table means an age band.

    Raises:
        ValueError: it is none.
    """
    if "_" in text:
        raise ValueError(text)
    return float(text)


def _cell(text: str, name: str, values: Mapping[str, int] | None) -> float:
    if text in (NO_NUMBER if values is None else MISSING) and text not in (values or ()):
        return math.nan
    if values is not None:
        if text not in values:
            raise ValueError(f"{name}: {text!r} is none of its values")
        return values[text]
    try:
        number = as_number(text)
    except ValueError:
        raise ValueError(f"{name}: {text!r} is no number") from None
    if not math.isfinite(number):
        raise ValueError(f"{name}: {text!r} is not finite")
    if abs(number) > LARGEST:
        raise ValueError(f"{name}: {text!r} is above {LARGEST:.2g}")
    return number


def shown(names: Sequence[str]) -> str:
    """Return names for one line, the middle left out if there are many.

    >>> shown(["a", "b"]), shown([*"abcdefghij"])
    ('a, b', 'a, b, c, ..., h, i, j')
    """
    return ", ".join(names if len(names) < 8 else [*names[:3], "...", *names[-3:]])


def only_source(source: str, task: str, data: Path | None) -> Path:
    """Return where the data of a task with one source lies.

    Raises:
        UsageError: another source, or no place.
    """
    only(source, task)
    return required(task, data)


def required(task: str, data: Path | None) -> Path:
    """Return where a task's data lies.

    Raises:
        UsageError: it is not said.
    """
    if data is None:
        raise UsageError(f"task {task} needs --data PATH; `mtbench info {task}` says of what")
    return data


def refuse_few(path: Path, groups: int) -> None:
    """Refuse a table of fewer groups, or rows where there are none, than can be split.

    Raises:
        DataError: there are too few.
    """
    if groups < LEAST:
        raise DataError(
            f"{path}: {groups} rows or groups are too few to be split in three; "
            f"at least {LEAST} are needed"
        )


def split_groups(
    path: Path, groups: Sequence[Any] | NDArray[Any], fold: int, seed: int
) -> list[NDArray[np.intp]]:
    """Return the rows of training, validation and test, no group in two of them.

    Args:
        path: the file, for messages.
        groups: (N,) what each row belongs to.
        fold: which groups are tested.
        seed: draws those that validate.

    Raises:
        DataError: there are too few groups.
    """
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    refuse_few(path, len(names))
    return [np.flatnonzero(np.isin(member, part)) for part in divide(len(names), fold, seed)]


def unit_scale(train: Floats) -> tuple[Floats, Floats]:
    """Return the mean and standard deviation of columns, missing values left out.

    A column without a spread has deviation 1, one without a value also mean 0.

    Args:
        train: (N, D) the training rows.
    """
    count = np.maximum((~np.isnan(train)).sum(0), 1)
    mean = np.nansum(train, 0) / count
    deviation = np.sqrt(np.nansum(np.square(train - mean), 0) / count)
    spread = deviation > 1e-9 * np.abs(mean)  # a constant's deviation is rounding
    return mean, np.where(spread, deviation, 1.0)


def regression_splits(
    path: Path,
    table: Table,
    inputs: Iterable[str],
    targets: Mapping[str, str],
    group: str | None,
    fold: int,
    seed: int,
) -> Splits:
    """Return a table split by group, inputs and targets standardised on the training rows.

    A batch holds ``inputs`` (B, D), each objective's target (B,), NaN where unknown, and under
    `SCALE` what an error in them is to be multiplied with to have the target's unit, (B, K).

    Args:
        path: the file, for messages.
        table: its rows.
        inputs: columns.
        targets: each objective's column.
        group: the column whose equal values stay together; None if rows are independent.
        fold: which groups are tested.
        seed: draws those that validate.

    Raises:
        DataError: too few groups, a row without, or a target without a value in training.
    """
    groups = np.arange(len(table.values)) if group is None else table.members(path, group)
    parts = split_groups(path, groups, fold, seed)
    x, indicator = table.encode(inputs)
    centre, scale = unit_scale(x[parts[0]])
    x = np.nan_to_num(np.where(indicator, x, (x - centre) / scale))
    y = np.stack([table[column] for column in targets.values()], axis=1)
    columns = [name for name in table.columns if name != group]
    odd = [f"{why} ({count} rows)" for count, why in table.doubts(columns)]
    for column, values in zip(targets.values(), y[parts[0]].T, strict=True):
        distinct = np.unique(_given(values))
        if not len(distinct):
            raise DataError(f"{path}: target {column!r} has no value in the training rows")
        if len(distinct) == 1:
            odd.append(f"{column}: is {distinct[0]:g} in all training rows: nothing to learn")
    centre, scale = unit_scale(y[parts[0]])
    y = (y - centre) / scale
    train, val, test = (
        TensorSplit(
            torch.from_numpy(x[part]).float(),
            groups=None if group is None else groups[part].tolist(),
            **dict(zip(targets, torch.from_numpy(y[part]).float().unbind(1), strict=True)),
            **{SCALE: torch.from_numpy(scale).float().expand(len(part), -1)},
        )
        for part in parts
    )
    notes: dict[str, Any] = {"rows": [len(part) for part in parts], "left_out": len(table.broken)}
    if table.broken:
        line, why = table.broken[0]
        notes["because"] = f"line {line}: {why}"
    if group is not None:
        odd += [
            f"{group} {name!r} and {first!r} are spelt alike: they count as one"
            for name, first in table.spelt(group).items()
            if name != first
        ]
        notes["groups"] = [len(np.unique(groups[part])) for part in parts]
    if odd:
        notes["looks odd"] = "; ".join(odd)
    return Splits(train, val, test, fingerprint=table.fingerprint, notes=notes)


def network(inputs: int, heads: int, *, width: int, dropout: float) -> MultitaskModel:
    """Return a multilayer perceptron: two shared layers, and one hidden layer in each head.

    Args:
        inputs: D.
        heads: K; each gives one number a row, (B,).
        width: of the shared layers; the heads' are half as wide.
        dropout: of the shared layers.
    """
    trunk = nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), nn.Dropout(dropout),
        nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout),
    )  # fmt: skip
    half = width // 2
    return MultitaskModel.single_feature(
        trunk,
        [
            nn.Sequential(nn.Linear(width, half), nn.ReLU(), nn.Linear(half, 1), nn.Flatten(0))
            for _ in range(heads)
        ],
    )


def check_network(width: int, dropout: float) -> None:
    """Check the parameters of `network`.

    Raises:
        UsageError: one is out of range.
    """
    at_least(2, width=width)
    check_dropout(dropout)


class Collector(Meter):
    """Keeps each objective's outputs and labels of the rows that have a label.

    Args:
        objectives: their names.
    """

    def __init__(self, objectives: Sequence[str]) -> None:
        self.pairs: dict[str, list[Tensor]] = {name: [] for name in objectives}

    def update(self, outputs: Sequence[Any], batch: Batch) -> None:
        """Take in one batch."""
        for (name, kept), output in zip(self.pairs.items(), outputs, strict=True):
            here = known(batch[name])
            kept.append(torch.stack([output[here].double(), batch[name][here].double()]).cpu())

    def collected(self) -> dict[str, Tensor]:
        """Return for each objective its outputs and labels, (2, n)."""
        return {name: torch.cat(kept, dim=1) for name, kept in self.pairs.items()}


REGRESSION = {
    "rrmse": (False, 1.0),
    "rmse": (False, None),
    "mae": (False, None),
    "r2": (True, None),
}
"""The scores of a regression, whether higher is better, and what a constant has on any data."""


def regression_metrics(objectives: Sequence[str], primary: str) -> dict[str, Metric]:
    """Return what `RegressionMeter` measures, by name."""
    return {
        f"{score}_{objective}": Metric(objective, higher, score == primary, chance)
        for objective in objectives
        for score, (higher, chance) in REGRESSION.items()
    }


class RegressionMeter(Collector):
    r"""Four scores of each target :math:`y` with predictions :math:`\hat y`.

    .. math::
        \mathrm{RRMSE} &= \sqrt{\frac{\sum_i (y_i - \hat y_i)^2}{\sum_i (y_i - \bar y)^2}} \\
        \mathrm{RMSE} &= \sqrt{\tfrac{1}{n} \textstyle\sum_i (y_i - \hat y_i)^2} \\
        \mathrm{MAE} &= \tfrac{1}{n} \textstyle\sum_i |y_i - \hat y_i| \\
        R^2 &= 1 - \frac{\sum_i (y_i - \hat y_i)^2}{\sum_i (y_i - \bar y_\mathrm{split})^2}

    :math:`\bar y` is the mean of the *training* rows, so an RRMSE of 1 is that of a constant. RRMSE
    and R2 have no unit, RMSE and MAE that of the target. RRMSE: Spyromitros-Xioufis et al., Machine
    Learning 104 (2016), whose aRRMSE is its mean over the targets.

    Args:
        objectives: the targets' names.

    >>> meter = RegressionMeter(["y"])
    >>> meter.update(
    ...     [torch.tensor([1.0, 0.0])],
    ...     {"y": torch.tensor([2.0, 0.0]), SCALE: torch.tensor([[10.0], [10.0]])},
    ... )
    >>> {name: round(value, 3) for name, value in meter.compute().items()}
    {'rrmse_y': 0.5, 'rmse_y': 7.071, 'mae_y': 5.0, 'r2_y': 0.5}
    """

    def __init__(self, objectives: Sequence[str]) -> None:
        super().__init__(objectives)
        self.scale = torch.ones(len(objectives))

    def update(self, outputs: Sequence[Any], batch: Batch) -> None:
        """Take in one batch."""
        super().update(outputs, batch)
        self.scale = batch[SCALE][0]

    def compute(self) -> dict[str, float]:
        """Return every metric of `regression_metrics`."""
        found: dict[str, float] = {}
        for scale, (name, (output, target)) in zip(
            self.scale.tolist(), self.collected().items(), strict=True
        ):
            # Targets are standardised: zero is the training rows' mean.
            squares = float((output - target).square().sum())
            about_train = float(target.square().sum())
            about_own = float((target - target.mean()).square().sum())
            n = len(target)
            found |= {
                f"rrmse_{name}": math.sqrt(squares / about_train) if about_train else math.nan,
                f"rmse_{name}": scale * math.sqrt(squares / n) if n else math.nan,
                f"mae_{name}": scale * float((output - target).abs().mean()) if n else math.nan,
                f"r2_{name}": 1 - squares / about_own if about_own else math.nan,
            }
        return found


class Regression(Task):
    """A task whose K objectives are numbers, each learnt by squared error on the unit scale."""

    def losses(self, outputs: Sequence[Any], batch: Batch) -> list[Tensor]:
        """Return each target's mean squared error, in units of its training variance."""
        return [
            labelled_loss(F.mse_loss, output, batch[name])
            for name, output in zip(self.objectives, outputs, strict=True)
        ]

    def meter(self) -> Meter:
        """Return a fresh meter."""
        return RegressionMeter(self.objectives)
