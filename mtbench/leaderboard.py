"""From finished cells to a table."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from mtbench import params
from mtbench.errors import RunError
from mtbench.rundir import RunDirectory


@dataclass(frozen=True)
class Board:
    """Cells that may be compared: one task, data, budget and precision.

    Attributes:
        title: what they have in common.
        primary: the metrics that are compared, with whether higher is better.
        rows: one per method and parameters, best mean rank first.
        pending: unfinished cells.
    """

    title: str
    primary: dict[str, bool]
    rows: pd.DataFrame
    pending: list[str]


def boards(runs: Sequence[RunDirectory]) -> list[Board]:
    """Return a board for each group of comparable cells.

    Raises:
        RunError: there is no run, or a record does not parse.
    """
    groups: dict[str, list[tuple[RunDirectory, dict[str, Any] | None]]] = {}
    titles: dict[str, str] = {}
    seen: dict[str, RunDirectory] = {}
    for run in runs:  # a cell counts once, however many folders hold it
        known = seen.setdefault(run.spec().hash, run)
        if known.result() is None and run.result() is not None:
            seen[run.spec().hash] = run
    for run in seen.values():
        spec = run.spec()
        if spec.stage != "final":
            continue
        recipe = {k: spec.recipe[k] for k in ("epochs", "batch_size")}
        common = [spec.task, spec.task_params, spec.data, recipe, spec.precision]
        key = json.dumps(common, sort_keys=True)
        titles[key] = f"{spec.task} {params.own_keys({**spec.task_params, **recipe})}"
        groups.setdefault(key, []).append((run, run.result()))
    if not groups:
        raise RunError("no runs found: `mtbench run` makes some")
    return [_board(titles[key], cells) for key, cells in groups.items()]


def _board(title: str, cells: list[tuple[RunDirectory, dict[str, Any] | None]]) -> Board:
    labels = _labels([run for run, _ in cells])
    pending = [f"{labels[run.path]} {run.path.name}" for run, result in cells if result is None]
    records = []
    primary: dict[str, bool] = {}
    directions: dict[str, bool] = {}
    for run, result in cells:
        if result is None:
            continue
        try:
            for name, metric in result["metrics"].items():
                directions[name] = metric["higher_is_better"]
                if metric["primary"]:
                    primary[name] = metric["higher_is_better"]
            records.append(_record(labels[run.path], result, run.open_test()))
        except (KeyError, TypeError, AttributeError) as error:
            raise RunError(
                f"{run.path / 'result.json'}: is no result of version 1 ({error}); delete it to "
                "finish the cell again"
            ) from error
    if not records:
        return Board(title, primary, pd.DataFrame(), pending)
    table = pd.DataFrame(records)
    for name in directions:
        if name not in table:
            table[name] = math.nan
    rows = _summarise(table, list(directions), primary)
    return Board(title, primary, rows, pending)


def _record(label: str, result: dict[str, Any], test: dict[str, float]) -> dict[str, Any]:
    """Return a cell's line of the table."""
    return {
        "method": label,
        "reference": result["reference"],
        "seed": result["seed"],
        "diverged": result["status"] == "diverged",
        **test,
        "seconds_per_step": result["cost"]["seconds_per_step"],
        "peak_mib": result["cost"]["peak_mib"],
    }


def _labels(runs: Sequence[RunDirectory]) -> dict[Any, str]:
    """Return each run's row: its method, and the parameters by which runs of it differ."""
    specs = {run.path: run.spec() for run in runs}
    settings = {
        path: {
            **spec.method_params,
            **{k: v for k, v in spec.recipe.items() if k not in ("epochs", "batch_size")},
            "device": spec.device,
            "init": spec.init and spec.init[:8],
            **spec.plugins,
        }
        for path, spec in specs.items()
    }
    labels = {}
    for path, spec in specs.items():
        peers = [settings[p] for p, other in specs.items() if other.method == spec.method]
        differing = {
            k: v for k, v in settings[path].items() if any(peer.get(k) != v for peer in peers)
        }
        labels[path] = f"{spec.method} {params.own_keys(differing)}".strip()
    return labels


def _summarise(table: pd.DataFrame, metrics: list[str], primary: dict[str, bool]) -> pd.DataFrame:
    """Return one row per method: means and standard deviations over seeds, delta-m, rank, cost."""
    seeds = set(table["seed"])
    reference = table[table["reference"]].set_index("seed")
    # Several single-task rows (two learning rates, say) leave no single reference.
    has_reference = len(reference) > 0 and reference["method"].nunique() == 1
    rows = []
    for method, cells in table.groupby("method", sort=True):
        finished = cells[~cells["diverged"]]
        row: dict[str, Any] = {
            "method": method,
            "seeds": len(finished),
            "diverged": int(cells["diverged"].sum()),
            "complete": set(finished["seed"]) == seeds,
        }
        for name in metrics:
            row[name], row[f"{name}_sd"] = finished[name].mean(), finished[name].std()
        deltas = _delta_m(finished.set_index("seed"), reference, primary) if has_reference else []
        row["delta_m"] = pd.Series(deltas, dtype=float).mean()
        row["delta_m_sd"] = pd.Series(deltas, dtype=float).std()
        row["seconds_per_step"] = finished["seconds_per_step"].median()
        row["peak_mib"] = finished["peak_mib"].max()
        rows.append(row)
    summary = pd.DataFrame(rows)
    ranked = summary["complete"]
    ranks = pd.DataFrame(
        {
            name: summary.loc[ranked, name].rank(ascending=not higher)
            for name, higher in primary.items()
        }
    )
    summary["mean_rank"] = ranks.mean(axis=1, skipna=False)
    return summary.sort_values(["mean_rank", "method"], na_position="last", ignore_index=True)


def _delta_m(cells: pd.DataFrame, reference: pd.DataFrame, primary: dict[str, bool]) -> list[float]:
    r"""Return delta-m in percent at each seed that both have, lower is better.

    .. math:: \Delta m = \frac{100}{|M|} \sum_{m \in M} (-1)^{h_m} \frac{m - m_{stl}}{m_{stl}},

    with :math:`h_m = 1` where higher is better (Maninis et al. 2019, eq. 4, the sign papers use).
    """
    names = list(primary)
    common = cells.index.intersection(reference.index)
    ours, theirs = cells.loc[common, names], reference.loc[common, names]
    signs = pd.Series({name: -1.0 if higher else 1.0 for name, higher in primary.items()})
    return (100 * signs * (ours - theirs) / theirs.abs()).mean(axis=1, skipna=False).tolist()


def readable(board: Board) -> pd.DataFrame:
    """Return the board's primary columns as text: mean ± standard deviation over seeds."""
    rows = board.rows
    if rows.empty:
        return rows
    shown = pd.DataFrame({"method": rows["method"], "seeds": rows["seeds"].astype(str)})
    shown.loc[rows["diverged"] > 0, "seeds"] += [
        f" (+{n} diverged)" for n in rows.loc[rows["diverged"] > 0, "diverged"]
    ]
    for name, higher in board.primary.items():
        title = f"{name} {'↑' if higher else '↓'}"
        shown[title] = [
            _spread(a, b, 3) for a, b in zip(rows[name], rows[f"{name}_sd"], strict=True)
        ]
    shown["Δm % ↓"] = [
        _spread(a, b, 2) for a, b in zip(rows["delta_m"], rows["delta_m_sd"], strict=True)
    ]
    shown["mean rank ↓"] = [_number(value, 2) for value in rows["mean_rank"]]
    shown["s/step"] = [_number(value, 3) for value in rows["seconds_per_step"]]
    shown["peak MiB"] = [_number(value, 0) for value in rows["peak_mib"]]
    return shown


def _number(value: float, digits: int) -> str:
    return "-" if pd.isna(value) else f"{value:.{digits}f}"


def _spread(mean: float, deviation: float, digits: int) -> str:
    spread = "" if pd.isna(deviation) else f" ± {deviation:.{digits}f}"
    return _number(mean, digits) + spread


def notes(board: Board) -> list[str]:
    """Return what a reader must know of the table."""
    lines = []
    if board.pending:
        lines.append(f"unfinished, not in the table: {', '.join(sorted(board.pending))}")
    if board.rows.empty:
        return lines
    if board.rows["delta_m"].isna().all():
        lines.append("no Δm: it needs exactly one locally run single-task row")
    if (board.rows["seeds"].max()) < 2:
        lines.append("one seed: no spread, and no order can be concluded from it")
    if not board.rows["complete"].all():
        lines.append("rows that lack a seed that others have are shown, not ranked")
    return lines


def to_markdown(board: Board) -> str:
    """Return the readable table as Markdown, with title and notes."""
    shown = readable(board)
    lines = [f"### {board.title}", ""]
    if not shown.empty:
        lines.append("| " + " | ".join(shown.columns) + " |")
        lines.append("|" + "---|" * len(shown.columns))
        lines += [
            "| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |"
            for row in shown.itertuples(index=False)
        ]
        lines += ["", "Mean ± standard deviation over seeds, test split."]
    lines += [f"- {note}" for note in notes(board)]
    return "\n".join(lines) + "\n"


def to_csv(found: Sequence[Board]) -> str:
    """Return every number of every board as CSV, one line a method."""
    parts = [board.rows.assign(board=board.title) for board in found if not board.rows.empty]
    text: str = pd.concat(parts).to_csv(index=False) if parts else ""
    return text


def to_json(found: Sequence[Board]) -> str:
    """Return every number of every board as JSON; undefined ones are null."""
    return json.dumps(
        [
            {
                "title": board.title,
                "primary": board.primary,
                "pending": board.pending,
                "rows": json.loads(board.rows.to_json(orient="records")),
            }
            for board in found
        ],
        indent=2,
    )
