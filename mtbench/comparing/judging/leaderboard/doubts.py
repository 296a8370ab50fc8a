"""What a reader must know of a board's cells before the numbers are believed, a line each."""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from mtbench.comparing.claim import Claim
from mtbench.comparing.judging.leaderboard.cells import budgets
from mtbench.comparing.judging.leaderboard.entrants import Group, Row
from mtbench.plugins import params
from mtbench.training.trainer.selection import LEAST

EDGE = 0.1
"""The outer share of a range, at either end, in which a best trial says: search further."""

Rows = Mapping[str, Row]


def of_cells(group: Group) -> list[str]:
    """Tell of cells that are not to be believed as they are."""
    cells = [
        cell
        for _, row in sorted(group.rows.items())
        for cell in (*row.finals, *row.trials.values())
    ]
    found = list(dict.fromkeys(line for cell in cells for line in cell.odd))
    remarks = [f"a cell is in doubt: {found[0]}{more(found)}"] if found else []
    if group.contradicted:
        remarks.append(
            "cells do not say alike what the suite plans, so some were edited; what most say is "
            "taken"
        )
    suite, count = group.suite, sum(row.official for row in group.rows.values())
    if suite is not None and count > suite.rows:
        remarks.append(f"{count} rows say that they are of this suite, which has {suite.rows}")
    return remarks


def of_rows(group: Group, primary: Collection[str]) -> list[str]:
    """Tell of rows that are not like the others, and of cells that do not count.

    Args:
        group: whose rows.
        primary: the metrics that are compared.
    """
    rows = dict(sorted(group.rows.items()))
    return [
        *_repeated(rows, group.unit), *_budgets(rows), *_origins(rows, group.suite),
        *_edges(rows, group.suite), *_idle(rows), *_zeros(rows, primary), *_makers(rows),
        *naming(
            "not counted, for a better trial or a later cell has taken their place: ", group.stale
        ),
        *naming("not counted, for the suite does not have their seeds: ", group.surplus),
        *naming(
            "parameters may have been chosen on a seed that is reported, which final seeds must "
            "not be: ", group.reused,
        ),
        *naming(
            "trials finished after a test here had been opened, so their choice may have seen it: ",
            group.late,
        ),
    ]  # fmt: skip


def _repeated(rows: Rows, unit: str) -> list[str]:
    """Name rows of which most cells measured the same: their units are none of their own."""
    said = (
        f"most cells have exactly the same numbers, as copies have, so that many {unit}s say no "
        "more than one, and nothing is told: "
    )
    return naming(said, [name for name, row in rows.items() if row.repeats])


def _budgets(rows: Rows) -> list[str]:
    """Name rows of another budget than most, such as those of equal cost."""
    _, others = budgets({name: row.finals[0].spec for name, row in rows.items()})
    return [
        f"{name} has another budget: epochs={epochs}, batch_size={batch}"
        for name, (epochs, batch) in others.items()
    ]


def _origins(rows: Rows, suite: Claim | None) -> list[str]:
    """Say of rows with another one's weights whose they are."""
    found = []
    for name, row in rows.items():
        claims = [claim for cell in row.finals for claim in cell.claimed(suite, name)]
        counts = Counter(claim.weights_from for claim in claims if claim.weights_from)
        parts = [f"{origin} ({count})" for origin, count in counts.most_common()]
        found += naming(f"{name} has, as constants, the weights that were found by: ", parts)
    return found


def _edges(rows: Rows, suite: Claim | None) -> list[str]:
    """Name rows whose best trials mostly lie at one end of a range: the space is too small."""
    found: dict[tuple[str, str], list[str]] = {}
    known: set[str] = set()
    for name, row in rows.items():
        claims = [c for trial in row.trials.values() for c in trial.claimed(suite, name)]
        known.update(parameter for claim in claims for parameter in claim.places)
        taken = {
            (claim.repetition, claim.draw)
            for cell in row.finals
            for claim in cell.claimed(suite, name)
        }
        ends = Counter(
            (parameter, "lower" if place < EDGE else "upper")
            for claim in claims
            if (claim.repetition, claim.draw) in taken
            for parameter, place in claim.places.items()
            if not EDGE <= place <= 1 - EDGE
        )
        studies = {repetition for repetition, _ in row.trials}
        for key, count in ends.items():
            if 2 * count >= len(studies):
                found.setdefault(key, []).append(f"{name} ({count} of {len(studies)} searches)")
    short = params.plain(known)
    return [
        f"the best trial mostly lies at the {end} end of {short[parameter]}, so a wider range may "
        f"do better: {some(names, 20)}"
        for (parameter, end), names in found.items()
    ]


def _idle(rows: Rows) -> list[str]:
    """Name rows whose method did nothing in some of their cells: they are of the plain sum."""
    found = []
    for name, row in rows.items():
        for kind, cells in (("trials", row.trials.values()), ("final cells", row.finals)):
            acts = [cell.done.acts for cell in cells]
            if count := acts.count(0):
                found.append(
                    f"{name} acted in no step of {count} of its {len(acts)} {kind}: these were "
                    "trained by the plain sum"
                )
    return found


def _zeros(rows: Rows, primary: Collection[str]) -> list[str]:
    """Name rows chosen by a metric of 0: its logarithm outweighs all other metrics."""
    found = []
    for name, row in rows.items():
        vanishing = Counter(
            metric
            for cell in row.finals
            for metric in primary
            if abs(cell.val.get(metric, math.nan)) <= LEAST
        )
        found += [f"{name} ({metric}, {n} of its cells)" for metric, n in vanishing.items()]
    said = (
        "a validation metric of exactly 0 outweighs all others where epochs and trials are chosen: "
    )
    return naming(said, found)


def _makers(rows: Rows) -> list[str]:
    """Say in a line what code and machines have made the cells, where they differ."""
    official = [row for row in rows.values() if row.official]
    cells = [cell for row in official for cell in (*row.finals, *row.trials.values())]
    environments = [cell.done.environment for cell in cells]
    codes = {"mtbench": [made.get("code") for made in environments]}
    for cell in cells:
        for name, digest in cell.spec.plugins.items():
            codes.setdefault(name, []).append(digest)
    parts = []
    if changed := [name for name, digests in codes.items() if len(set(digests)) > 1]:
        parts.append(f"code ({some(changed)})")
    for key in ("torch", "hardware", "threads"):
        counts = Counter(str(made.get(key, "not recorded"))[:60] for made in environments)
        if len(counts) > 1:
            kinds = [f"{kind}: {count}" for kind, count in counts.most_common()]
            parts.append(f"{key} ({some(kinds)})")
    return [f"cells were not all made by the same {' and '.join(parts)}"] if parts else []


def some(names: Sequence[str], most: int = 5) -> str:
    """Return the first of some names."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def naming(said: str, names: Sequence[str]) -> list[str]:
    """Return a remark about some names, or none where there are none."""
    return [said + some(names)] if names else []


def more(lines: Sequence[str]) -> str:
    """Return how many there are beside the first."""
    return f" (and {len(lines) - 1} more)" if lines[1:] else ""
