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

import numpy as np
from rlar_figure import draw
from rlar_study import (
    AGAINST,
    INTEREST,
    LOSS,
    METHOD,
    PLAIN,
    STUDIES,
    Study,
    course,
    rows,
    studies,
)

from mtbench.comparing.judging.deciding import FIRST, beats_guess
from mtbench.comparing.judging.leaderboard import boards
from mtbench.training.cell.rundir import find_runs

GUESS = 0.5
"""The AUROC of no knowledge."""
CATEGORY_WORDS = {
    "better": "improves the category",
    "worse": "makes the category worse",
    f"no difference of {INTEREST}": f"changes the category by less than {INTEREST}",
    "in doubt": "has the better category, which does not count",
    "undecided": "may help or harm the category",
}
MASK_WORDS = {
    "kept": "keeps the mask",
    "lost": f"makes the mask worse by more than {LOSS}",
    "undecided": "may or may not keep the mask",
}


def say(study: Study) -> str:
    """Return in words what came out of a study, a paragraph."""
    said = []
    for q in study.questions:
        n = f"{len(q.gains)} of {study.planned} repetitions"
        if q.early:
            said.append(
                f"`{q.row}` against `{q.other}`: {n} are there, and nothing is answered before "
                f"{FIRST}."
            )
            continue
        said.append(
            f"Against `{q.other}`, `{q.row}` {CATEGORY_WORDS[q.answer.category_told]} (AUROC "
            f"{q.answer.category}), and {MASK_WORDS[q.answer.mask_told]} (Dice {q.answer.mask}; "
            f"{n})."
        )
    if not math.isnan(least := max(q.least for q in study.questions)):
        able = (
            f"After all {study.planned} repetitions a difference in AUROC of {least:.3f} is found "
            "four times in five"
        )
        if max(q.limit for q in study.questions) > INTEREST:
            able += f"; one of {INTEREST} never as often, by any number of repetitions on this data"
        said.append(f"{able}.")
    name = study.name[:1].upper() + study.name[1:]
    return f"**{name}.** " + " ".join([*said, *_doubts(study), *_level(study)])


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
    is_told = beats_guess(values[:, 0] - GUESS, study.board.suite.resplit or 0.0)
    guess = "" if is_told else f", **which cannot be told from a guess ({GUESS})**"
    auroc, dice = values.mean(axis=0)
    return [f"`{PLAIN}` itself has an AUROC of {auroc:.3f}{guess}, and a Dice of {dice:.3f}."]


def _penalty(study: Study) -> str:
    """Say what the penalty of the chosen trials was, on how many samples, and where it was none."""
    said = []
    for row in rows(study):
        chosen = [cell for cell in study.board.cells[row] if cell.done.acts is not None]
        trials = [t.done.acts for t in study.board.trials[row].values() if t.done.acts is not None]
        if not chosen or not trials:
            continue
        weights = np.array([cell.spec.method_params["weight"] for cell in chosen])
        where = Counter(cell.spec.method_params["where"] for cell in chosen).most_common()
        acts = 100 * np.array([cell.done.acts for cell in chosen])
        cosines = np.concatenate([course(cell) for cell in chosen])
        said.append(
            f"- {study.name}: the {len(chosen)} final cells of `{row}` have lambda "
            f"{weights.min():.2g} to {weights.max():.2g} (median {np.median(weights):.2g}), and "
            f"look at: {', '.join(f'{place} ({n})' for place, n in where)}. The penalty acted on "
            f"{acts.min():.0f} to {acts.max():.0f} % of their samples, and the mean cosine of an "
            f"epoch lay between {cosines.min():+.3f} and {cosines.max():+.3f}. The penalty was 0 "
            f"throughout in {trials.count(0) or 'none'} of its {len(trials)} trials."
        )
    return "\n".join(said)


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
        "| data | row | against | pairs | AUROC | Dice | answer |", "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for study in found:
        for q in study.questions:
            shown = [str(q.answer.category), str(q.answer.mask), q.answer.told]
            lines.append(
                f"| {study.name} | {q.row} | {q.other} | {len(q.gains)} of {study.planned} | "
                f"{' | '.join(['', '', 'too early'] if q.early else shown)} |"
            )
    asked = " or ".join(map(str, sorted({study.comparisons for study in found})))
    lines += [
        "",
        f"95 % intervals; those of AUROC hold for the {asked} questions of a data set together, "
        "and so do those of Dice.",
    ]
    if any(q.answer.category_told.startswith("no diff") for s in found for q in s.questions):
        lines.append(
            '"No difference" is the answer of two one-sided tests. Their interval is shorter than '
            "the one shown, which may reach a little further."
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
