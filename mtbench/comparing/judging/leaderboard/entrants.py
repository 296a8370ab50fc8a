"""Who takes part: from cells in a folder to the rows of a board, and the units that they share.

Rows of a suite are what the suite says they are; whatever else lies in the folder is shown beside
them and marked. Without a suite, every method and setting that is there is a row.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mtbench.comparing.claim import Claim
from mtbench.comparing.judging.deciding import MARGIN
from mtbench.comparing.judging.leaderboard.cells import (
    Recorded,
    group_key,
    in_short,
    labels,
    titles,
)


@dataclass
class Row:
    """A row's cells that have a result.

    Attributes:
        units: the final ones, by what is compared: a repetition of the study, or a seed.
        trials: those that its parameters were chosen by, by repetition and number.
        why_not: why it takes no part; empty if it does.
    """

    units: dict[int, list[Recorded]] = field(default_factory=dict)
    trials: dict[tuple[int, int], Recorded] = field(default_factory=dict)
    why_not: str = ""

    @property
    def official(self) -> bool:
        """Whether it takes part."""
        return not self.why_not

    @property
    def finals(self) -> list[Recorded]:
        """The final cells, by unit."""
        return [cell for unit in sorted(self.units) for cell in self.units[unit]]

    @property
    def diverged(self) -> int:
        """How many final cells diverged."""
        return sum(cell.diverged for cell in self.finals)

    @property
    def repeats(self) -> bool:
        """Whether most final cells measured the same: its units are none of their own."""
        measured = [cell.measured for cell in self.finals if not cell.diverged]
        return 2 * len(set(measured)) < len(measured)

    @property
    def tried(self) -> int:
        """How many trials have chosen its parameters, here or, as its cells say, elsewhere."""
        return max(
            len(self.trials), *(sum(c.chosen.trials.values()) for c in self.finals if c.chosen), 0
        )

    def take(self, other: "Row") -> None:
        """Add the cells of another row, as where each repetition has data of its own."""
        for unit, cells in other.units.items():
            self.units.setdefault(unit, []).extend(cells)
        for (repetition, _), trial in other.trials.items():
            self.trials[repetition, len(self.trials)] = trial


@dataclass
class Group:
    """Cells that may be compared: one task and one suite; or one task, data, budget and precision.

    Attributes:
        title: what they have in common.
        suite: one of the suite's claims, None without a suite.
        rows: by label.
        pending: unfinished final cells.
        stale: final cells in whose place another one counts.
        surplus: final cells of seeds that the suite does not have.
        contradicted: whether claims say otherwise than most what the suite plans.
    """

    title: str = ""
    suite: Claim | None = None
    rows: dict[str, Row] = field(default_factory=dict)
    pending: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    surplus: list[str] = field(default_factory=list)
    contradicted: bool = False

    @property
    def unit(self) -> str:
        """What is compared: a ``repetition`` of the whole study, or a ``seed``."""
        return "repetition" if self.suite is not None and self.suite.study_is_unit else "seed"

    @property
    def per_unit(self) -> int:
        """How many final cells a unit has."""
        return self.suite.seeds if self.suite is not None and self.suite.study_is_unit else 1

    @property
    def margin(self) -> float:
        """Of equivalence, percent of delta-m."""
        return MARGIN if self.suite is None else self.suite.margin

    @property
    def test_train_ratio(self) -> float:
        """The ratio of test to training samples where units split one collection again, else 0."""
        return 0.0 if self.suite is None else self.suite.resplit or 0.0

    @property
    def chosen_once(self) -> bool:
        """Whether all units share parameters that were chosen once."""
        if self.suite is not None:
            return self.suite.chosen_once
        return any(row.tried for row in self.rows.values() if row.official)

    @property
    def reused(self) -> list[str]:
        """Rows with a seed that a trial of their parameters had, which a suite cannot have."""
        if self.suite is not None:
            return []
        found = []
        for label, row in self.rows.items():
            tried = [
                (t.spec.method_params, t.spec.recipe, t.spec.seed) for t in row.trials.values()
            ]
            seeds = [
                c.spec.seed
                for c in row.finals
                if (c.spec.method_params, c.spec.recipe, c.spec.seed) in tried
            ]
            found += [f"{label} (seed {seeds[0]})"] if seeds else []
        return found

    @property
    def late(self) -> list[str]:
        """Rows with trials that finished after a test of the group had been opened.

        A suite's trials are fixed beforehand: whatever has been seen cannot change them.
        """
        if self.suite is not None:
            return []
        finals = [cell for row in self.rows.values() for cell in row.finals]
        opened = [when for cell in finals if (when := cell.run.opened()) is not None]
        return sorted(
            label
            for label, row in self.rows.items()
            if any(trial.ended > min(opened, default=math.inf) for trial in row.trials.values())
        )


def groups(cells: Sequence[Recorded]) -> list[Group]:
    """Return the groups of a folder's cells that have final cells, those of suites first."""
    of_suites: dict[tuple[str, str], list[tuple[Claim, Recorded]]] = {}
    free: dict[str, list[Recorded]] = {}
    for cell in cells:
        for claim in cell.claims:
            of_suites.setdefault(claim.board, []).append((claim, cell))
        if not cell.claims:
            free.setdefault(group_key(cell.spec), []).append(cell)
    parts = [part for claims in of_suites.values() for part in _of_one_data(claims)]
    found = [_claimed(claims, data) for data, claims in parts]
    homes: dict[str, Group] = {}
    for group, (_, claims) in zip(found, parts, strict=True):
        for _, cell in claims:
            homes.setdefault(group_key(cell.spec), group)
    alone = []
    for key, others in free.items():
        made = _unclaimed(others)
        if key not in homes:
            finals = [cell for cell in others if cell.spec.stage == "final"]
            # Some may say more than others of which parameters change nothing.
            alone.append((made, min(finals, key=lambda cell: len(cell.setting), default=None)))
            continue
        for label, row in made.rows.items():
            shown = f"{label} (not of the suite)"
            beside = homes[key].rows.setdefault(shown, Row(why_not="not of the suite"))
            if not beside.official:  # a suite may call a row so
                beside.take(row)
    kept = [(group, cell) for group, cell in alone if cell is not None]
    for (group, _), title in zip(kept, titles([cell for _, cell in kept]), strict=True):
        group.title = title
    return [*(g for g in found if g.rows or g.pending), *(group for group, _ in kept)]


def _of_one_data(
    claims: Sequence[tuple[Claim, Recorded]],
) -> list[tuple[str, list[tuple[Claim, Recorded]]]]:
    """Return a board's claims apart by data, where the data has changed: with a word for each.

    A seed may have data of its own; what shows a change is a seed that has two.
    """
    by_seed: dict[int, set[str]] = {}
    by_data: dict[str, list[tuple[Claim, Recorded]]] = {}
    for claim, cell in claims:
        by_seed.setdefault(cell.spec.seed, set()).add(cell.spec.data)
        by_data.setdefault(cell.spec.data, []).append((claim, cell))
    if all(len(data) == 1 for data in by_seed.values()):
        return [("", list(claims))]
    shown = in_short(by_data)
    return [(f" data={shown[data]}", some) for data, some in by_data.items()]


def _claimed(claims: Sequence[tuple[Claim, Recorded]], data: str) -> Group:
    plans = Counter(claim.plan for claim, _ in claims)
    [(plan, _)] = plans.most_common(1)
    # Claims of one suite may differ in the number of rows, as `all` methods do: the most are meant.
    suite = max((c for c, _ in claims if c.plan == plan), key=lambda claim: claim.rows)
    group = Group(f"{suite.task} suite={suite.tag}{data}", suite)
    group.contradicted = len(plans) > 1
    rivals: dict[tuple[str, int, int], dict[Recorded, Claim]] = {}
    pending: dict[tuple[str, int, int], Recorded] = {}
    for claim, cell in sorted(claims, key=lambda one: one[1].ended if one[1].result else 0.0):
        if cell.spec.stage == "trial":
            if cell.result is not None and claim.draw is not None:
                row = group.rows.setdefault(claim.label, Row())
                row.trials[claim.repetition, claim.draw] = cell
        elif cell.result is None:
            pending[claim.label, claim.repetition, cell.spec.seed] = cell
        else:
            rivals.setdefault((claim.label, claim.repetition, cell.spec.seed), {})[cell] = claim
    own = _within_the_seeds(rivals, suite.seeds)
    for (label, repetition, seed), finals in sorted(rivals.items()):
        row = group.rows.setdefault(label, Row())
        taken = _best_draw(row, repetition)
        # The last that ended of those with the best trial's parameters; a mended trial, or a plugin
        # that was changed, leaves others.
        *stale, kept = sorted(finals, key=lambda cell: finals[cell].draw == taken)
        group.stale += [f"{label} {cell.run.path.name}" for cell in stale]
        if (label, repetition, seed) in own:
            row.units.setdefault(repetition if suite.study_is_unit else seed, []).append(kept)
        else:
            group.surplus.append(f"{label} {kept.run.path.name}")
    group.pending = [
        f"{place[0]} {cell.run.path.name}" for place, cell in pending.items() if place not in rivals
    ]
    group.rows = {label: row for label, row in group.rows.items() if row.units}
    return group


def _within_the_seeds(
    places: Iterable[tuple[str, int, int]], seeds: int
) -> set[tuple[str, int, int]]:
    """Return which final cells a suite has: of more than its seeds, those that most rows have.

    Args:
        places: the row, the repetition and the seed of each.
        seeds: that a repetition has.
    """
    by_study: dict[tuple[str, int], list[tuple[str, int, int]]] = {}
    for place in places:
        by_study.setdefault(place[:2], []).append(place)
    had = Counter(place[1:] for study in by_study.values() for place in study)
    return {
        place
        for study in by_study.values()
        for place in sorted(study, key=lambda place: (-had[place[1:]], place[2]))[:seeds]
    }


def _best_draw(row: Row, repetition: int) -> int | None:
    """Return the number of the best trial of a repetition, the first of equals."""
    scores = {
        draw: -math.inf if math.isnan(trial.score) else trial.score
        for (of, draw), trial in sorted(row.trials.items())
        if of == repetition
    }
    return max(scores, key=scores.__getitem__, default=None)


def _unclaimed(cells: Sequence[Recorded]) -> Group:
    group = Group()
    finals = [cell for cell in cells if cell.spec.stage == "final"]
    for cell, label in zip(finals, labels(finals), strict=True):
        if cell.result is None:
            group.pending.append(f"{label} {cell.run.path.name}")
        else:
            group.rows.setdefault(label, Row()).units.setdefault(cell.spec.seed, []).append(cell)
    origins: dict[str, list[Recorded]] = {}
    for cell in cells:
        if cell.spec.stage == "trial" and cell.result is not None:
            origins.setdefault(_origin(cell), []).append(cell)
    for row in group.rows.values():
        trials = origins.get(_origin(row.finals[0]), [])
        row.trials = {(0, number): trial for number, trial in enumerate(trials)}
        if any(c.chosen and c.chosen.ruleset == "exploratory" for c in row.finals):
            row.why_not = "its parameters were chosen by exploratory tuning"
    return group


def _origin(cell: Recorded) -> str:
    """Return what a row has in common with the trials that chose its parameters."""
    return json.dumps([cell.spec.method, cell.spec.plugins, cell.spec.init], sort_keys=True)


def largest_block(there: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return the rows and the units of a complete block: the one of most cells that is looked at.

    Looked at are the units of each row, and those that are left
    to share as the rows with fewest are dropped one by one. Of rows whose units are nested, as
    those of a sweep are, that is every block that counts. So one unit more of a row, or a row with
    few, changes nothing for the others.

    Args:
        there: (rows, units).

    Returns:
        which rows, and which units.

    Example:
        >>> there = np.array([[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]], dtype=bool)
        >>> rows, units = largest_block(there)
        >>> rows.tolist(), units.tolist()
        ([True, True, False], [True, True, True, False])
    """

    def size(units: NDArray[np.bool_]) -> tuple[int, int]:
        return int(there[:, units].all(axis=1).sum() * units.sum()), int(units.sum())

    most_first = there[np.argsort(-there.sum(axis=1), kind="stable")]
    shared = np.logical_and.accumulate(most_first, axis=0)
    units = max([*np.unique(there, axis=0), *shared], key=size)
    return there[:, units].all(axis=1) & units.any(), units
