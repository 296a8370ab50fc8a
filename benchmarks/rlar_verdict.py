"""RLAR's verdict: is the category better than with a plain and a tuned sum, and the mask no worse?

What counts was stated before anything was run. The question is the difference in macro AUROC to
`ew` and to tuned `ls`, of which 0.02 is the smallest of interest, while Dice is not lower by more
than 0.01. Differences are paired by repetition; folds are judged by Nadeau and Bengio's corrected
test (`mtbench.comparing.judging.deciding`). Intervals hold for all questions of a board together,
at any look, those of AUROC and those of Dice each by themselves: the text says how many questions
these are, for other ROWs are other ones. What cannot be told is said, and so is what these
repetitions could have told at all.

Usage: python benchmarks/rlar_verdict.py RUNS [ROW ...] [--figure PNG] [--into PAGE ...]

ROWs are other rows to compare with than `ew` and `ls`. A PAGE has places for parts of the text,
`<!-- rlar_verdict: answer -->` to `<!-- rlar_verdict. -->`, likewise `questions`, `levels`,
`penalty` and `figure`: what is between is replaced. Without a PAGE all parts are printed.
"""

import argparse
import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from mtbench.comparing.judging.deciding import ALPHA, FIRST, decide, smallest_effect
from mtbench.comparing.judging.leaderboard import Board, Cell, boards
from mtbench.training.cell.rundir import find_runs

METHOD, PLAIN, AGAINST = "rlar", "ew", ("ew", "ls")
CATEGORY, MASK = "auroc", "dice"
GUESS = 0.5
"""The AUROC of no knowledge."""
INTEREST = 0.02
"""The smallest difference in AUROC that matters."""
LOSS = 0.01
"""The largest loss of Dice that does not."""
POWER = 0.8
PLACES = {"bottleneck": "tab:blue", "pooled": "tab:orange", "both": "tab:green"}
"""Where RLAR looks, in colours."""
WATCHED = 1e-6
"""A penalty of less weight does nothing: it is there for what it records."""
STUDIES = {
    "rlar_phantom": "the phantom", "rlar_readers": "the phantom by reader noise",
    "rlar_ddti": "DDTI", "rlar_breast": "BrEaST-Lesions",
}  # fmt: skip
"""Suites that have to be there for the whole answer, and what they are of."""
CATEGORY_WORDS = {
    "better": "improves the category",
    "worse": "makes the category worse",
    f"no difference of {INTEREST}": f"changes the category by less than {INTEREST}",
    "in doubt": "has the better category, which does not count",
    "not told": "may help or harm the category",
}
MASK_WORDS = {
    "kept": "keeps the mask",
    "lost": f"makes the mask worse by more than {LOSS}",
    "not told": "whether it keeps the mask is not told",
}


class Interval(NamedTuple):
    """A mean and its confidence interval, infinite where it is too early for one."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


class Answer(NamedTuple):
    """What is said of one question.

    Attributes:
        category: the difference in AUROC, positive where RLAR is higher.
        mask: that in Dice.
        category_told: of `CATEGORY_WORDS`.
        mask_told: of `MASK_WORDS`.
    """

    category: Interval
    mask: Interval
    category_told: str
    mask_told: str

    @property
    def told(self) -> str:
        """Both, in a few words."""
        return f"category {self.category_told}, mask {self.mask_told}"


class Question(NamedTuple):
    """A row of RLAR against another one.

    Attributes:
        row: RLAR's.
        other: the one that it is compared with.
        gains: (repetitions, 2), RLAR's AUROC and Dice minus the other's.
        answer: what they say.
        least: the difference in AUROC that is told with probability `POWER` after all repetitions.
        limit: the same after any number of them.
    """

    row: str
    other: str
    gains: NDArray[np.float64]
    answer: Answer
    least: float
    limit: float

    @property
    def early(self) -> bool:
        """Whether nothing is told yet."""
        return len(self.gains) < FIRST


class Study(NamedTuple):
    """A board, and what is asked of it.

    Attributes:
        name: what it is of.
        board: whose it is.
        tested: by row and repetition, AUROC and Dice.
        questions: one for each pair that is there.
        comparisons: how many are asked together.
    """

    name: str
    board: Board
    tested: dict[str, dict[int, tuple[float, float]]]
    questions: list[Question]
    comparisons: int

    @property
    def planned(self) -> int:
        """How many repetitions are planned."""
        return self.board.suite.planned if self.board.suite else 0


def answer(
    category: ArrayLike,
    mask: ArrayLike,
    planned: int | None = None,
    resplit: float = 0.0,
    comparisons: int = len(AGAINST),
    *,
    doubted: bool = False,
) -> Answer:
    """Return what paired differences say, positive where RLAR is higher.

    Args:
        category: (units,), of AUROC.
        mask: (units,), of Dice.
        planned: units; None where they are looked at once.
        resplit: the ratio of test to training samples where units are folds of one collection.
        comparisons: questions that are asked beside it, itself included.
        doubted: whether the other row's tuning did not even find the plain sum.
    """
    found, words = [], []
    for gains, margin in ((category, INTEREST), (mask, LOSS)):
        told = decide(
            -np.asarray(gains, float), margin=margin, most=planned, comparisons=comparisons,
            resplit=resplit,
        )  # fmt: skip
        found.append(Interval(-float(told.difference), -float(told.high), -float(told.low)))
        words.append(str(told.told))
    category_told = words[0]
    if category_told == "equivalent":
        category_told = f"no difference of {INTEREST}"
    elif category_told == "not told apart":
        category_told = "not told"
    elif category_told == "better" and doubted:
        category_told = "in doubt"
    kept = found[1].low > -LOSS
    mask_told = "kept" if kept else "lost" if found[1].high < -LOSS else "not told"
    return Answer(found[0], found[1], category_told, mask_told)


def tested(board: Board, row: str) -> dict[int, tuple[float, float]]:
    """Return AUROC and Dice of each repetition, the mean of its cells; none of a diverged one."""
    cells: dict[int, list[tuple[float, float]]] = {}
    for cell in board.cells[row]:
        if not cell.diverged:
            pair = (cell.test.get(CATEGORY, np.nan), cell.test.get(MASK, np.nan))
            # Equal rows, or earlier code, may have claimed it too: for the same repetition.
            own = next(o for o in cell.claims if board.suite and o.board == board.suite.board)
            cells.setdefault(own.repetition, []).append(pair)
    means = {unit: np.mean(pairs, axis=0) for unit, pairs in cells.items()}
    return {unit: (mean[0], mean[1]) for unit, mean in means.items() if np.isfinite(mean).all()}


def studies(found: Sequence[Board], against: Sequence[str]) -> list[Study]:
    """Return what is asked of each board of a suite that has rows to ask about."""
    made = []
    for board in found:
        if board.suite is None:
            continue
        suite = board.suite.suite
        alike = [set(b.title.split()) for b in found if b.suite and b.suite.suite == suite]
        own = [word for word in board.title.split() if word not in set.intersection(*alike)]
        name = " ".join([STUDIES.get(suite, suite), *own]).replace("=", " ").replace("_", " ")
        known = {row: tested(board, row) for row in board.cells}
        ours = [row for row, cells in board.cells.items() if cells[0].spec.method == METHOD]
        pairs = [(row, other) for row in ours for other in against if other in known]
        if not pairs:
            continue
        questions = [_ask(board, known, *pair, len(pairs)) for pair in pairs]
        made.append(Study(name, board, known, questions, len(pairs)))
    return made


def _ask(
    board: Board, known: dict[str, dict[int, tuple[float, float]]], row: str, other: str, asked: int
) -> Question:
    assert board.suite is not None
    units = sorted(known[row].keys() & known[other].keys())
    gains = np.array([np.subtract(known[row][u], known[other][u]) for u in units]).reshape(-1, 2)
    planned, resplit = board.suite.planned, board.suite.resplit or 0.0
    said = answer(*gains.T, planned, resplit, asked, doubted=other in board.doubted)
    least = limit = math.nan
    if len(units) >= FIRST:
        deviation = gains[:, 0].std(ddof=1)
        least = deviation * smallest_effect(planned, asked, POWER, resplit=resplit)
        reach = stats.norm.isf(ALPHA / asked / 2) + stats.norm.isf(1 - POWER)
        limit = float(deviation * reach * math.sqrt(resplit))
    return Question(row, other, gains, said, least, limit)


def say(study: Study) -> str:
    """Return in words what came out of a study, a paragraph."""
    said = []
    for q in study.questions:
        n = f"{len(q.gains)} of {study.planned} repetitions"
        if q.early:
            said.append(
                f"`{q.row}` against `{q.other}`: {n} are there, and nothing is told before {FIRST}."
            )
            continue
        said.append(
            f"Against `{q.other}`, `{q.row}` {CATEGORY_WORDS[q.answer.category_told]} (AUROC "
            f"{q.answer.category}), and {MASK_WORDS[q.answer.mask_told]} (Dice {q.answer.mask}; "
            f"{n})."
        )
    if not math.isnan(least := max(q.least for q in study.questions)):
        able = (
            f"After all {study.planned} repetitions a difference in AUROC of {least:.3f} is told "
            "four times in five"
        )
        if max(q.limit for q in study.questions) > INTEREST:
            able += f"; one of {INTEREST} could not be, by any number of repetitions on this data"
        said.append(f"{able}.")
    return f"**{study.name}.** " + " ".join([*said, *_doubts(study), *_level(study)])


def _doubts(study: Study) -> list[str]:
    """Say which cells diverged, so that no pair has their repetitions, and what is in doubt."""
    counts = {row: sum(cell.diverged for cell in cells) for row, cells in study.board.cells.items()}
    diverged = [f"{n} of `{row}`" for row, n in counts.items() if n]
    said = [
        f"The tuned `{row}` validates below `{PLAIN}`, so nothing is called better than it."
        for row in study.board.doubted
    ]
    if diverged:
        said.append(
            f"Cells that diverged are left out, which flatters their rows: {', '.join(diverged)}."
        )
    return said


def _level(study: Study) -> list[str]:
    """Say how good the plain sum is: where nobody grades, none can grade better."""
    values = np.array(list(study.tested.get(PLAIN, {}).values())).reshape(-1, 2)
    if len(values) < FIRST or study.board.suite is None:
        return []
    above = decide(GUESS - values[:, 0], resplit=study.board.suite.resplit or 0.0)
    is_told = above.difference < 0 and above.p <= 2 * ALPHA  # one-sided, as boards do
    guess = "" if is_told else f", **which is not told from a guess ({GUESS})**"
    auroc, dice = values.mean(axis=0)
    return [f"`{PLAIN}` itself has an AUROC of {auroc:.3f}{guess}, and a Dice of {dice:.3f}."]


def _penalty(study: Study) -> str:
    """Say what the penalty of the chosen trials was, on how many samples, and where it was none."""
    said = []
    for row in _rows(study):
        chosen = [cell for cell in study.board.cells[row] if "acts" in cell.done]
        trials = [t.done["acts"] for t in study.board.trials[row].values() if "acts" in t.done]
        if not chosen or not trials:
            continue
        weights = np.array([cell.spec.method_params["weight"] for cell in chosen])
        where = Counter(cell.spec.method_params["where"] for cell in chosen).most_common()
        acts = 100 * np.array([cell.done["acts"] for cell in chosen])
        cosines = np.concatenate([_course(cell) for cell in chosen])
        said.append(
            f"- {study.name}: the {len(chosen)} final cells of `{row}` have lambda "
            f"{weights.min():.2g} to {weights.max():.2g} (median {np.median(weights):.2g}), and "
            f"look at: {', '.join(f'{place} ({n})' for place, n in where)}. The penalty acted on "
            f"{acts.min():.0f} to {acts.max():.0f} % of their samples, and the mean cosine of an "
            f"epoch lay between {cosines.min():+.3f} and {cosines.max():+.3f}. The penalty was 0 "
            f"throughout in {trials.count(0) or 'none'} of its {len(trials)} trials."
        )
    return "\n".join(said)


def _rows(study: Study) -> list[str]:
    """Return RLAR's rows."""
    return list(dict.fromkeys(q.row for q in study.questions))


def _course(cell: Cell) -> NDArray[np.float64]:
    """Return the mean cosine of each epoch."""
    notes = [epoch.get("notes", {}) for epoch in cell.run.history()]
    return np.array([note["alignment"] for note in notes if "alignment" in note])


def text(found: Sequence[Study]) -> dict[str, str]:
    """Return the parts of the text by name."""
    there = {s.board.suite.suite for s in found if s.board.suite is not None}
    said = [say(study) for study in found]
    if there & STUDIES.keys() and (lacking := STUDIES.keys() - there):
        said.append(f"**Not run:** {', '.join(STUDIES[suite] for suite in sorted(lacking))}.")
    return {
        "answer": "\n\n".join(said),
        "questions": _questions(found),
        "levels": "\n\n".join(_levels(study) for study in found),
        "penalty": "\n".join(filter(None, map(_penalty, found))),
    }


def _questions(found: Sequence[Study]) -> str:
    lines = [
        "| data | row | against | pairs | AUROC | Dice | told |", "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for study in found:
        for q in study.questions:
            shown = [str(q.answer.category), str(q.answer.mask), q.answer.told]
            lines.append(
                f"| {study.name} | {q.row} | {q.other} | {len(q.gains)} of {study.planned} | "
                f"{' | '.join(['', '', 'too early'] if q.early else shown)} |"
            )
    lines += ["", *(
        f"{study.name}: 95 % intervals; those of AUROC hold for {study.comparisons} questions "
        "together, and so do those of Dice." for study in found
    )]  # fmt: skip
    if any(q.answer.category_told.startswith("no diff") for s in found for q in s.questions):
        lines.append(
            "That there is no difference is told by two one-sided tests; the interval, which is of "
            "a two-sided one, may reach a little further."
        )
    return "\n".join(lines)


def _levels(study: Study) -> str:
    """Return each row's mean AUROC and Dice over the repetitions that all rows have."""
    units = set.intersection(*(set(found) for found in study.tested.values()))
    if not units:
        return f"{study.name}: no repetition has a number for each row."
    lines = [
        f"| {study.name}, {len(units)} repetitions | AUROC | Dice |", "|---|---|---|",
    ]  # fmt: skip
    values_of = {
        row: np.array([found[unit] for unit in sorted(units)])
        for row, found in study.tested.items()
    }
    for row, values in sorted(values_of.items(), key=lambda item: -item[1][:, 0].mean()):
        spread = values.std(axis=0, ddof=1) if len(units) > 1 else [math.nan] * 2
        shown = [f"{m:.3f} ± {sd:.3f}" for m, sd in zip(values.mean(axis=0), spread, strict=True)]
        lines.append(f"| {row} | {' | '.join(shown)} |")
    return "\n".join(lines)


def draw(found: Sequence[Study], file: Path) -> None:
    """Draw, a line a study: pairs and intervals, the chosen trials, and alignment by epoch."""
    heights = [1.7 + 0.22 * max(0, len(study.questions) - 4) for study in found]
    figure = Figure(figsize=(9, sum(heights)), layout="constrained")
    grid = figure.add_gridspec(len(found), 4, height_ratios=heights)
    for line, study in enumerate(found):
        axes = [figure.add_subplot(grid[line, column]) for column in range(4)]
        for one in axes:
            one.tick_params(labelsize=7)
            one.spines[["top", "right"]].set_visible(False)
        axes[0].axvspan(-INTEREST, INTEREST, color="0.9", linewidth=0)
        axes[1].axvline(-LOSS, color="0.4", linewidth=0.8, linestyle="--")
        _pairs(axes[0], study, 0)
        _pairs(axes[1], study, 1)
        axes[1].set_yticklabels([])
        axes[0].set_title(study.name, fontsize=8, loc="left")
        axes[0].set_xlabel("AUROC higher by", fontsize=7)
        axes[1].set_xlabel("Dice higher by", fontsize=7)
        _chosen(axes[2], study)
        _alignment(axes[3], study)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)


def _pairs(axes: Axes, study: Study, column: int) -> None:
    """Draw each question's pairs, their mean, and its interval where there is one."""
    axes.axvline(0, color="0.4", linewidth=0.8)
    for y, q in enumerate(study.questions):
        values = q.gains[:, column]
        interval = q.answer[column]
        axes.plot(values, np.full(len(values), y + 0.22), ".", color="0.6", markersize=3)
        if not q.early:
            axes.plot(interval[1:], [y, y], color="tab:blue", linewidth=1.3)
            axes.plot(interval.mean, y, "o", color="tab:blue", markersize=4)
    names = [f"{q.row} − {q.other}" for q in study.questions]
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_ylim(len(names) - 0.4, -0.6)


def _chosen(axes: Axes, study: Study) -> None:
    """Draw lambda and the share of samples beyond tau, of all trials and of the chosen ones."""
    trials = [cell for row in _rows(study) for cell in study.board.trials[row].values()]
    for marker, size, cells in ((".", 3, trials), ("o", 4, _finals(study))):
        for place, color in PLACES.items():
            own = [c for c in cells if c.spec.method_params["where"] == place and "acts" in c.done]
            x, y = [c.spec.method_params["weight"] for c in own], [c.done["acts"] for c in own]
            axes.plot(x, y, marker, color=color, markersize=size)
    axes.set_xscale("log")
    axes.set_ylim(-0.05, 1.25)  # with room for the legend
    axes.set_yticks([0, 0.5, 1])
    axes.set_xlabel("lambda (small dots: not chosen)" if trials else "lambda", fontsize=7)
    axes.set_title("share beyond tau", fontsize=8)
    for place, color in PLACES.items():
        axes.plot([], [], "o", color=color, markersize=4, label=place)
    axes.legend(fontsize=6, frameon=False, loc="upper center", ncols=3, columnspacing=0.8,
                handletextpad=0)  # fmt: skip


def _alignment(axes: Axes, study: Study) -> None:
    """Draw the mean cosine by epoch: of each cell, and the mean of those that look at one place."""
    courses: dict[tuple[str, bool], list[NDArray[np.float64]]] = {}
    for cell in _finals(study):
        own = cell.spec.method_params
        courses.setdefault((own["where"], own["weight"] < WATCHED), []).append(_course(cell))
    longest = max((len(one) for some in courses.values() for one in some), default=0)
    for (place, watched), some in courses.items():
        whole = np.array([one for one in some if len(one) == longest])
        style = "--" if watched else "-"
        axes.plot(range(1, longest + 1), whole.T, style, color=PLACES[place], linewidth=0.4,
                  alpha=0.3)  # fmt: skip
        axes.plot(range(1, longest + 1), whole.mean(axis=0), style, color=PLACES[place])
    axes.axhline(0, color="0.4", linewidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch" + " (dashed: no penalty)" * any(w for _, w in courses), fontsize=7)
    axes.set_title("mean cosine", fontsize=8)


def _finals(study: Study) -> list[Cell]:
    return [cell for row in _rows(study) for cell in study.board.cells[row] if not cell.diverged]


def fill(page: Path, parts: dict[str, str], figure: Path | None) -> None:
    """Replace what a page has between its marks.

    Raises:
        SystemExit: it has none, or names a part that there is not.
    """
    before = page.read_text(encoding="utf-8")
    if figure is not None:
        path = Path(os.path.relpath(figure, page.parent)).as_posix()
        caption = (
            "pairs of repetitions and the interval of their mean; grey: differences of no "
            "interest, dashed: the loss of Dice that is allowed; lambda and the share of samples "
            "on which the penalty acts; the mean cosine of the directions by epoch"
        )
        parts = parts | {"figure": f"![RLAR: {caption}]({path})"}

    def replaced(found: re.Match[str]) -> str:
        if found[2] not in parts:
            raise SystemExit(f"{page}: {found[1]!r}: there is {', '.join(parts)}")
        return f"{found[1]}\n\n{parts[found[2]]}\n\n<!-- rlar_verdict. -->"

    mark = r"(<!-- rlar_verdict: (\w+) -->).*?<!-- rlar_verdict\. -->"
    after, count = re.subn(mark, replaced, before, flags=re.DOTALL)
    if not count:
        raise SystemExit(f"{page}: has no place for it: <!-- rlar_verdict: answer --> to "
                         "<!-- rlar_verdict. -->")  # fmt: skip
    page.write_text(after, encoding="utf-8")


def main() -> None:
    """Print the parts, or put them into pages."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("rows", nargs="*", default=AGAINST)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--into", type=Path, nargs="+", default=[])
    given = parser.parse_args()
    found = studies(boards(list(find_runs([given.runs])), plain=PLAIN), given.rows)
    if not found:
        raise SystemExit(
            f"{given.runs}: no board of a suite has {METHOD} beside {' or '.join(given.rows)}: "
            "finish some repetitions of each, or name another ROW"
        )
    parts = text(found)
    if given.figure is not None:
        draw(found, given.figure)
    for page in given.into:
        fill(page, parts, given.figure)
    if not given.into:
        print("\n\n".join(filter(None, parts.values())))


if __name__ == "__main__":
    main()
