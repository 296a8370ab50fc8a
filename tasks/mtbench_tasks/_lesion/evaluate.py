"""A trained model on cases that it has not seen: which they are, what is asked, what is written."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mtbench.errors import DataError, UsageError
from mtbench.training.machine.cache import cache_dir
from mtbench.training.task import Evaluation, Trained
from mtbench_tasks._lesion import evaluation_numbers, evaluation_page, operating
from mtbench_tasks._lesion.categories import and_above
from mtbench_tasks._lesion.ensemble import Ask, Ensemble
from mtbench_tasks._lesion.grid import prepare
from mtbench_tasks._lesion.ood import OutOfDistribution
from mtbench_tasks._lesion.source import Source, graded, load
from mtbench_tasks._lesion.splits import CaseSplit, authority

if TYPE_CHECKING:
    from mtbench_tasks._lesion.task import LesionTask


def evaluate(
    task: "LesionTask",
    trained: Trained,
    data: Path | None,
    to: Path,
    source: str,
    grades: tuple[str, ...] | None,
    high: str | None,
    truth: str | None,
    by: tuple[str, ...] | None,
    mirror: bool,
) -> Evaluation:
    """Do what `LesionTask.evaluate` says."""
    origin = _origin(task, source, data, grades)
    limit, same = _limit(task, origin, high)
    collection = load(source, origin, data, lambda *_: None)
    count, lent = len(collection.cases), set[str]()
    if truth is not None:
        said, lent = evaluation_numbers.with_truth(collection.cases, truth)
        collection = replace(
            collection,
            cases=tuple(said),
            # Not " truth ": under that name a cache may hold all cases, silent ones too.
            fingerprint=f"{collection.fingerprint} of {truth}",
        )
    silent = count - len(collection.cases)
    collection = task.with_consensus(collection)
    prepared = prepare(collection, task.image_size, cache_dir())
    cases, merged = evaluation_numbers.joined(collection.cases, prepared.images, prepared.hashes)
    problems = [*collection.problems, *prepared.broken.values()]
    doubts = [*collection.doubts, *itertools.chain(*prepared.doubts.values())]
    fitted = [model.fitted for model in trained.members]
    seen = [known.get("seen") for known in fitted]
    chosen = evaluation_numbers.unseen(
        cases, prepared.hashes, [h for own in seen for h in own or ()]
    )
    if not chosen:
        broken = len(cases) - len(prepared.hashes)
        why = f"; the first problem: {problems[0]}" if problems else ""
        raise DataError(
            f"{data or source}: there is nothing to judge by: of {len(cases)} cases {broken} "
            f"cannot be read, and the model has seen the patients of the other "
            f"{len(cases) - broken}{why}"
        )
    split = CaseSplit(
        cases, prepared, [(i, len(cases[i].said) - 1) for i in chosen],
        np.zeros((len(chosen), 0)), None if same else limit, 0.0,
    )  # fmt: skip
    ask: Ask = Ensemble(trained, mirror)
    names, from_ = task.grades, task.high
    if not same and len(names) > 2:
        ask, names, from_ = evaluation_numbers.reduced(ask, task.high), ("low", "high"), 1
    lexicon = evaluation_numbers.worded(task.lexicon, origin.lexicon)
    kind = OutOfDistribution.of(trained.fitted)
    judged = evaluation_numbers.ask_all(ask, split, names, from_, lexicon, kind)
    points = operating.shared(fitted)
    drawn = sum(case.name in lent for case in split.cases)
    others = f"; of {drawn} images, which it did not outline, the other readers' outline" * (
        drawn > 0
    )
    record = {
        "models": [model.name for model in trained.members],
        "data": str(data or source),
        "source": source,
        "mirror": mirror,
        "high": origin.grades[limit],
        "high_risk": f"{origin.system} {and_above(origin.grades, limit)}".strip(),
        "reference": authority(split.cases) if truth is None else truth + others,
        "grades": list(names),
        **evaluation_numbers.judge(judged, points, by),
    }
    record["notes"] = list(
        evaluation_page.notes(
            record,
            silent=(truth, silent),
            left_out=len(prepared.hashes) - len(chosen),
            merged=merged,
            problems=len(problems),
            doubts=len(doubts),
            known=all(own is not None for own in seen),
            started=any(model.init for model in trained.members),
            unworded=evaluation_numbers.unworded(split.cases, lexicon),
            ungrouped=evaluation_numbers.ungrouped(judged.groups, by),
            scattered=evaluation_numbers.scattered(judged, by),
            unlike=None if kind is None else int(judged.frame["unlike"].sum()),
            reduced=None if same else (origin.grades, limit, task.grades, task.high),
        )
    )
    found = evaluation_page.write(record, judged, to)
    both = ("the first problem", problems), ("the first that looks odd", doubts)
    first = [f"{what}: {lines[0]}" for what, lines in both if lines]  # they name patients and files
    return found._replace(notes=[*found.notes, *first])


def _origin(
    task: "LesionTask", source: str, data: Path | None, grades: tuple[str, ...] | None
) -> Source:
    """Return a source of data to evaluate on."""
    if source == task.source and task.origin.graded is None and grades is None:
        return task.origin
    origin = task.anywhere(source)
    if origin.graded is not None and grades is None and data is not None:
        return origin.graded(data, None, task.origin.grades, task.grades)
    return graded(source, origin, data, grades)


def _limit(task: "LesionTask", origin: Source, high: str | None) -> tuple[int, bool]:
    """Return the first grade of a source that is high risk, and whether all grades are ours."""
    ours = origin.grades == task.origin.grades
    if high is None:
        limit = task.divide(origin)
    elif ours or high not in origin.grades[1:]:
        named = ", ".join(origin.grades)
        if ours:
            raise UsageError(
                f"--high {high}: leave it out: the data's grades are the model's ({named}), "
                "and its first of high risk holds"
            )
        raise UsageError(f"--high {high}: must be a grade above the first of {named}")
    else:
        limit = origin.grades.index(high)
    return limit, ours and task.target == "grades"
