"""Multi-target regression on a table of one's own: ARFF or CSV, K targets."""

import io
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import numpy as np

from mtbench.balancing.model import MultitaskModel
from mtbench.errors import DataError, UsageError, did_you_mean
from mtbench.training.task import Progress, Recipe, Splits
from mtbench_tasks import _tabular as tabular
from mtbench_tasks._folds import checked

KNOWN = {
    "andro": 6, "atp1d": 6, "atp7d": 6, "edm": 2, "enb": 2, "jura": 3, "oes10": 16, "oes97": 16,
    "osales": 12, "rf1": 8, "rf2": 8, "scm1d": 16, "scm20d": 16, "scpf": 3, "sf1": 3, "sf2": 3,
    "slump": 3, "wq": 14,
}  # fmt: skip
"""How many of the last columns are targets, by file name: the Mulan repository's files
(Spyromitros-Xioufis et al. 2016, table 1)."""

MOST = 100
"""Different texts that a CSV column may hold to be nominal; more is a name or a remark."""


class Multitarget(tabular.Regression):
    """Regression of K targets from a table, each by squared error on its unit scale.

    A row whose target is missing (empty, ``?``, ``NA``, ``n/a``, ``-`` and the like) trains the
    other targets. Inputs are standardised
    on the training rows, where a missing one is the mean; a nominal input is one indicator a value.
    A fifth of the rows tests, of the others a fifth validates; `group` keeps rows together.

    The primary metric is the relative root mean squared error, 1 for a constant prediction; the
    mean over targets is the aRRMSE of Spyromitros-Xioufis et al., Machine Learning 104 (2016), who
    report it by cross-validation. The Mulan repository's files (enb, wq, jura, atp1d, ...) need no
    `targets`.

    Args:
        data: an ``.arff`` file, or a ``.csv`` file with a header. A CSV column without a number in
            it is nominal.
        targets: the columns to be predicted; by default, for a known file name, its last ones.
        group: a column whose equal values are kept in one split (a patient, a site); no input.
        fold: which fifth of the rows or groups is tested, 0 to 4; those of validation are drawn by
            the seed.
        strict: refuse a file with broken rows, rather than leave them out.
        width: of the network's layers.
        dropout: of the shared layers.
    """

    objectives: tuple[str, ...] = ()
    recipe = Recipe(epochs=100, batch_size=64, lr=3e-3, weight_decay=0.1, select="best")

    def __init__(
        self,
        *,
        data: Path | None = None,
        targets: tuple[str, ...] | None = None,
        group: str | None = None,
        fold: int = 0,
        strict: bool = False,
        width: int = 128,
        dropout: float = 0.0,
    ) -> None:
        tabular.check_network(width, dropout)
        self.data, self.group, self.strict = data, group, strict
        self.fold = checked(fold)
        self.width, self.dropout = width, dropout
        if data is not None:
            targets = _targets(data, list(read_columns(data)[0]), targets, group)
        elif targets is None:  # without its data, a recorded cell still tells its targets
            tabular.required("multitarget", data)
        assert targets is not None
        self.objectives = targets
        self.dependent = {"targets": targets}
        self.metrics = tabular.regression_metrics(targets, primary="rrmse")

    @cached_property
    def table(self) -> tabular.Table:
        """The file's rows."""
        path = tabular.required("multitarget", self.data)
        return load(path, group=self.group, strict=self.strict)

    @property
    def inputs(self) -> list[str]:
        """The columns that are neither target nor group."""
        return [name for name in self.table.columns if name not in (*self.objectives, self.group)]

    def setup(self, seed: int, progress: Progress) -> Splits:
        """Read the file and split it."""
        path, table = tabular.required("multitarget", self.data), self.table
        _refuse_nominal(path, table, self.objectives)
        columns = {name: name for name in self.objectives}
        return tabular.regression_splits(
            path, table, self.inputs, columns, self.group, self.fold, seed
        )

    def model(self) -> MultitaskModel:
        """Return the network."""
        inputs = sum(len(self.table.columns[name] or (name,)) for name in self.inputs)
        return tabular.network(inputs, len(self.objectives), width=self.width, dropout=self.dropout)

    @classmethod
    def inspect(
        cls,
        source: str,
        data: Path | None,
        *,
        targets: tuple[str, ...] | None = None,
        group: str | None = None,
    ) -> list[tuple[str, str, str]]:
        """Return the rows used and left out, and the columns.

        Args:
            source: of this task.
            data: where its data lies.
            targets: the columns to be predicted, as in training.
            group: the column whose equal values are kept in one split, as in training.
        """
        path = tabular.only_source(source, "multitarget", data)
        if group is not None:
            _refuse_absent(path, list(read_columns(path)[0]), "group", [group])
        table = load(path, group=group, strict=False)
        said = "of the Mulan repository's file" if targets is None else ""
        if targets is None and path.stem not in KNOWN:
            targets, said = (), "say --targets a,b"
        else:
            targets = _targets(path, list(table.columns), targets, group)
            _refuse_nominal(path, table, targets)
        columns = {name: values for name, values in table.columns.items() if name != group}
        numeric = [name for name, values in columns.items() if values is None]
        nominal = [name for name, values in columns.items() if values is not None]
        count = len(table.values) if group is None else len(np.unique(table.members(path, group)))
        tabular.refuse_few(path, count)
        groups = [] if group is None else [(str(count), "groups", group)]
        return [
            *table.report(),
            (str(len(numeric)), "numeric columns", tabular.shown(numeric)),
            (str(len(nominal)), "nominal columns", tabular.shown(nominal)),
            *groups,
            (str(len(targets)), "targets", f"{tabular.shown(targets)} {said}".strip()),
        ]


def _refuse_absent(path: Path, columns: Sequence[str], kind: str, names: Sequence[str]) -> None:
    for name in names:
        if name not in columns:
            raise UsageError(f"{path}: has no {kind} {name!r}: {did_you_mean(name, columns)}")


def _refuse_nominal(path: Path, table: tabular.Table, targets: Sequence[str]) -> None:
    for name in targets:
        if table.columns[name] is not None:
            raise DataError(f"{path}: target {name!r} is nominal; targets must be numbers")


def _targets(
    path: Path, columns: Sequence[str], given: tuple[str, ...] | None, group: str | None
) -> tuple[str, ...]:
    """Return the targets, checked.

    Raises:
        UsageError: they are not said, or not in the file.
    """
    if given is None:
        if path.stem not in KNOWN:
            raise UsageError(
                f"{path}: say which columns are the targets, as in --targets {columns[-1]}; "
                f"columns: {tabular.shown(columns)}"
            )
        given = tuple(columns[-KNOWN[path.stem] :])
    _refuse_absent(path, columns, "target", given)
    if group is not None:
        _refuse_absent(path, columns, "group", [group])
    for name in set(tabular.RESERVED) & set(given):
        raise UsageError(f"{path}: no target can be called {name!r}; rename the column")
    if not given or len(set(given)) < len(given):
        raise UsageError(f"targets must be one or more different columns, found {','.join(given)}")
    if not set(columns) - {*given, group}:
        raise UsageError(f"{path}: no column is left as an input besides the targets")
    return given


def read_columns(path: Path) -> tuple[dict[str, tuple[str, ...] | None], list[str], int]:
    """Return the columns of an ARFF or CSV file, the lines after its header, and their number.

    The number is that of the first of these lines. CSV columns are numeric as far as it is known.

    Raises:
        DataError: the file is absent, empty, or neither.
    """
    lines = tabular.read_lines(path)
    if path.suffix.lower() == ".csv":
        names = tabular.read_header(path, lines[0])
        if len(names) < 2:
            raise DataError(
                f"{path}: its first line must name two or more columns, divided by commas, "
                f"found {lines[0]!r}: save it so, with points in its numbers"
            )
        return dict.fromkeys(names), lines[1:], 2
    if path.suffix.lower() != ".arff":
        raise DataError(f"{path}: must be an .arff file, or a .csv file with a header")
    from scipy.io import arff

    begin = next((i for i, x in enumerate(lines, 1) if x.strip().lower() == "@data"), None)
    if begin is None:
        raise DataError(f"{path}: is no ARFF file: it has no line @data")
    try:
        _, meta = arff.loadarff(io.StringIO("\n".join([*lines[:begin], ""])))
        kinds = [meta[name] for name in meta.names()]
    except (ValueError, arff.ArffError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(f"{path}: its ARFF header cannot be read: {reason}") from error
    for name, (kind, _) in zip(meta.names(), kinds, strict=True):
        if kind not in ("numeric", "nominal"):
            raise DataError(f"{path}: attribute {name!r} is a {kind}; remove it")
    names = tabular.checked_names(path, meta.names())
    rest = ["" if line.startswith("%") else line for line in lines[begin:]]
    return dict(zip(names, (v for _, v in kinds), strict=True)), rest, begin + 1


def load(path: Path, *, group: str | None, strict: bool) -> tabular.Table:
    """Return the table of an ARFF or CSV file.

    Raises:
        DataError: the file is absent or broken.
    """
    columns, lines, first = read_columns(path)
    quote = "'"
    if path.suffix.lower() == ".csv":
        columns |= _nominal(path, lines, list(columns), group)
        quote = '"'
    return tabular.read_rows(path, lines, columns, first=first, strict=strict, quote=quote)


def _nominal(
    path: Path, lines: Sequence[str], names: Sequence[str], group: str | None
) -> dict[str, tuple[str, ...]]:
    """Return the values of those CSV columns that hold no number, and of the group."""
    texts: list[set[str]] = [set() for _ in names]
    for line in lines:
        with suppress(ValueError):  # a broken row is for `read_rows` to tell
            for found, text in zip(texts, tabular.fields(line), strict=True):
                found.add(text)
    nominal = {}
    for name, found in zip(names, texts, strict=True):
        values = tuple(sorted(found - set(tabular.MISSING)))
        if name == group or (values and not any(map(_is_number, values))):
            if name != group and len(values) > MOST:
                raise DataError(
                    f"{path}: column {name!r} holds {len(values)} different texts (at most {MOST});"
                    " remove it, or say --group if it names what rows belong to"
                )
            nominal[name] = values
    return nominal


def _is_number(text: str) -> bool:
    try:
        tabular.as_number(text)
    except ValueError:
        return False
    return True
