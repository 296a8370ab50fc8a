"""A trained model on data that it has not seen: case by case, then in numbers."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_curve
from torch import Tensor

from mtbench.errors import UsageError
from mtbench_tasks._lesion import bootstrap
from mtbench_tasks._lesion.agreement import MODEL, agreement
from mtbench_tasks._lesion.bootstrap import Flags, Floats
from mtbench_tasks._lesion.cases import Case
from mtbench_tasks._lesion.conformal import LENGTHS, lengths
from mtbench_tasks._lesion.consensus import with_consensus
from mtbench_tasks._lesion.descriptors import Lexicon, by_descriptor
from mtbench_tasks._lesion.doubts import NEAR, copies
from mtbench_tasks._lesion.ensemble import Answer, Ask, regions_of, together, united
from mtbench_tasks._lesion.ood import OutOfDistribution, features
from mtbench_tasks._lesion.scores import overlap
from mtbench_tasks._lesion.splits import TRUTH, CaseSplit, Opinion, join_patients
from mtbench_tasks._names import visible

BATCH = 32
SUBGROUPS = ("scanner", "site", "sex", "age", "size")
"""Columns that are looked at where nobody says which."""

AXES = ("long axis", "short axis")
LONG = "long axis mm, reference"
SIZES = (0.0, 10.0, 20.0, math.inf)
SIZE_NAMES = ("below 10 mm", "10 to 20 mm", "20 mm and more")
"""Subgroups by the reference's long axis, where spacing is known and no column says the size."""
MANY = 6  # different numbers: more of them are cut into thirds
DECISIONS = np.linspace(0.01, 0.99, 99)
CURVE = 10  # bins of equal count of the calibration curve


@dataclass(frozen=True)
class Judged:
    """What a model and the reference say of N images.

    Attributes:
        frame: a row an image: ``case``, ``patient``, ``positive`` (the reference's high risk; NA
            where not graded), ``score`` (the model's probability of it), ``grade`` (the
            reference's; -1 where unknown or of another scale), ``said`` (the model's), the
            probability ``p[GRADE]`` of each grade, for each descriptor ``NAME, said`` (the
            model's term) and ``NAME, known`` (NA where not known), Dice and distances where there
            is an outline, and long and short axes of both.
        groups: what the data says of each image, a column each.
        grades: of the model.
        agreement: how far raters agree: of `agreement.agreement`.
        readers: for each reader, what they said of high risk, by row: 1, 0 or NaN.
        lexicon: the descriptors that the model has learnt.
    """

    frame: pd.DataFrame
    groups: pd.DataFrame
    grades: tuple[str, ...]
    agreement: pd.DataFrame
    readers: Mapping[str, Floats]
    lexicon: Lexicon = ()


def with_truth(cases: Sequence[Case], reader: str) -> tuple[list[Case], set[str]]:
    """Return the cases of which one reader said something: that is the truth, the others readers.

    Those of which nobody else said anything are left as they are. Where the reader drew nothing, as
    pathology does not, the outline is the others', or their consensus: these cases' names are told.

    Raises:
        UsageError: there is no such reader.
    """
    names = {reading.reader for case in cases for reading in case.readings}
    if reader not in names:
        raise UsageError(f"--truth {reader}: is no reader of the data: {', '.join(sorted(names))}")
    found, lent = list[Case](), set[str]()
    for case in cases:
        own = [reading for reading in case.readings if reading.reader == reader]
        others = tuple(reading for reading in case.readings if reading.reader != reader)
        if not own:
            continue
        if not others:
            found.append(case)
            continue
        truth = own[0]
        if truth.contour is None:
            truth = replace(
                truth, contour=with_consensus(replace(case, readings=others)).said[-1].contour
            )
            if truth.contour is not None:
                lent.add(case.name)
        found.append(replace(case, readings=others, truth=truth))
    return found, lent


def joined(
    cases: Sequence[Case], images: Sequence[str], hashes: Mapping[int, Sequence[str]]
) -> tuple[list[Case], int]:
    """Return the cases, patients who share an image made one, and how many patients that joins.

    Equal images are shared, and copies that were saved again or mirrored: `NEAR`.

    Args:
        cases: all.
        images: for each the hash of its image's content.
        hashes: the perceptual ones of those that can be read, by number.
    """
    pairs = [(i, f"copy {n}") for n, both in enumerate(copies(hashes)) for i in both[:2]]
    pairs += [(i, images[i]) for i in hashes]
    found = list(cases)
    numbers = [i for i, _ in pairs]
    one = join_patients([cases[i] for i in numbers], [name for _, name in pairs])
    for i, case in zip(numbers, one, strict=True):
        found[i] = case
    before, after = (len({each[i].patient for i in hashes}) for each in (cases, found))
    return found, before - after


def worded(lexicon: Lexicon, source: Lexicon) -> Lexicon:
    """Return a model's descriptors in a source's words, where it has them, else in their own."""
    known = {(descriptor.name, descriptor.terms): descriptor for descriptor in source}
    return tuple(known.get((own.name, own.terms), own) for own in lexicon)


def unworded(cases: Sequence[Case], lexicon: Lexicon) -> list[str]:
    """Return the words that cases have for descriptors, and that are none of their terms."""
    found = {
        f"{descriptor.name} {word!r}": None
        for descriptor in lexicon
        for case in cases
        if (word := descriptor.word(case.descriptors)) and descriptor.place(case.descriptors) < 0
    }
    return list(found)


def unseen(
    cases: Sequence[Case], hashes: Mapping[int, Sequence[str]], seen: Sequence[str]
) -> list[int]:
    """Return which cases are of patients of whom the model was shown no image in training.

    Images count as the same within `NEAR` bits of their perceptual hashes.

    Args:
        cases: all.
        hashes: of each image and its mirror image, by number.
        seen: of the images that the model was trained or chosen on.
    """
    if not seen:
        return list(hashes)
    known = np.array([np.frombuffer(bytes.fromhex(text), np.uint64) for text in set(seen)])
    met = {
        cases[i].patient
        for i, own in hashes.items()
        for text in own
        if np.bitwise_count(known ^ np.frombuffer(bytes.fromhex(text), np.uint64)).sum(1).min()
        <= NEAR
    }
    return [i for i in hashes if cases[i].patient not in met]


def reduced(ask: Ask, high: int) -> Ask:
    """Return a model that tells low from high risk, of one that gives grades."""

    def two(answer: Answer) -> Answer:
        score = answer.chances[:, high:].double().sum(1).clamp(max=1)
        return answer._replace(chances=torch.stack([1 - score, score], 1))

    return lambda inputs: [two(answer) for answer in ask(inputs)]


def ask_all(
    ask: Ask,
    split: CaseSplit,
    grades: Sequence[str],
    high: int,
    lexicon: Lexicon,
    ood: OutOfDistribution | None,
) -> Judged:
    """Ask a model about each image of a split, and set its answers beside the reference's.

    Args:
        ask: the model.
        split: the images, with the reference's labels.
        grades: of both.
        high: the first of them that counts as high risk.
        lexicon: the descriptors that the model has learnt, as the data words them.
        ood: what the training's images are like, where that is known.
    """
    rows, opinions = [], []
    for positions in torch.split(torch.arange(len(split)), BATCH):
        batch = split.batch(positions)
        answer = together(ask(batch["inputs"]))
        for i, (at, logits) in enumerate(zip(positions.tolist(), answer.logits, strict=True)):
            case, chances = split.cases[at], answer.chances[i].double().numpy()
            grade, said = int(batch["category"][i]), int(chances.argmax())
            drawn = batch["masks"][i] if batch["has_mask"][i] else None
            rows.append(
                {
                    "case": case.name,
                    "patient": case.patient,
                    "grade": grade,
                    "said": said,
                    "positive": grade >= high if grade >= 0 else math.nan,
                    "score": min(1.0, float(chances[high:].sum())),
                    **{f"p[{g}]": float(p) for g, p in zip(grades, chances, strict=True)},
                    "unlike": _unlike(ood, batch["inputs"][i, 0], answer.texture[i]),
                    **_terms(answer.terms[i], case, lexicon),
                    **_outlines(logits, drawn, case.spacing),
                }
            )
            on_grid = torch.from_numpy(united(regions_of(logits, logits.shape), logits.shape))
            opinions.append(split.opinions(at) | {MODEL: Opinion(said, on_grid[None])})
    raters = sorted({name for case in opinions for name in case} - {MODEL, TRUTH})
    several = any(len(case) > 2 for case in opinions)
    return Judged(
        pd.DataFrame(rows).astype({"positive": float}),
        pd.DataFrame([dict(case.groups) for case in split.cases]),
        tuple(grades),
        agreement(opinions, len(grades)) if several else pd.DataFrame(),
        {name: np.array([_high(c.get(name), high) for c in opinions]) for name in raters}
        if several
        else {},
        lexicon,
    )


def _unlike(ood: OutOfDistribution | None, grid: Tensor, texture: Tensor) -> float:
    """Return whether a picture looks otherwise than the training's; NaN where nobody knows."""
    return math.nan if ood is None else ood.doubt(features(grid, texture)) is not None


def _high(opinion: Opinion | None, high: int) -> float:
    return math.nan if opinion is None or opinion.category < 0 else float(opinion.category >= high)


def _terms(logits: Tensor, case: Case, lexicon: Lexicon) -> dict[str, str | None]:
    """Return what a model and the data say of each descriptor."""
    record = dict[str, str | None]()
    if lexicon:
        for descriptor, part in zip(lexicon, by_descriptor(logits, lexicon), strict=True):
            known = descriptor.place(case.descriptors)
            record[f"{descriptor.name}, said"] = descriptor.terms[int(part.argmax())]
            record[f"{descriptor.name}, known"] = descriptor.terms[known] if known >= 0 else None
    return record


def _outlines(logits: Tensor, drawn: Tensor | None, spacing: float | None) -> dict[str, float]:
    """Return how the mask that is handed out and the reference agree, and both their axes."""
    if drawn is None:
        return {}
    found = torch.from_numpy(united(regions_of(logits, drawn.shape), drawn.shape))
    dice, iou, distance = overlap(found, drawn)
    said, known = (lengths(mask.numpy()) for mask in (found, drawn))
    scale = spacing or math.nan
    record = {"dice": dice, "iou": iou, "hd95": distance, "hd95_mm": scale * distance}
    if said and known:
        for name, axis in zip(AXES, LENGTHS, strict=True):
            for unit, size in (("px", 1.0), ("mm", scale)):
                record |= {
                    f"{name} {unit}": size * said[axis],
                    f"{name} {unit}, reference": size * known[axis],
                }
    return record


def judge(
    judged: Judged, points: Sequence[Mapping[str, Any]], by: Sequence[str] | None
) -> dict[str, Any]:
    """Return all numbers, JSON-able; None where one is not defined.

    Args:
        judged: the answers.
        points: the operating points, fixed beforehand: of `operating.points`.
        by: the columns that are looked at by subgroup; None: those of `SUBGROUPS` that are there.

    Raises:
        UsageError: the data has no such column.
    """
    frame = judged.frame
    w = bootstrap.weights(frame["patient"].tolist())
    of = Of.among(frame, w)
    return {
        "images": len(frame),
        "patients": int(frame["patient"].nunique()),
        "graded": len(of.score),
        "positive": int(of.positive.sum()),
        "outlined": _count(frame, "dice"),
        "missed": _count(frame, "dice") - _count(frame, f"{AXES[0]} px"),
        "metrics": list(_metrics(judged, of, w)),
        "operating": [
            {
                **point,
                "here": _said(bootstrap.rates(of.positive, of.score >= point["threshold"], of.w)),
            }
            for point in points
        ],
        "readers": list(_readers(judged, w)),
        "descriptors": list(_descriptors(judged, w)),
        "roc": _roc(of),
        "calibration": _calibration(of),
        "decision": _decision(of),
        "sizes": list(_sizes(frame, w)),
        "subgroups": list(_subgroups(judged, w, points, by)),
    }


class Of(NamedTuple):
    """The graded images: the model's score, the truth and the weights."""

    score: Floats
    positive: Flags
    w: Floats

    @classmethod
    def among(cls, frame: pd.DataFrame, w: Floats) -> Self:
        """Return the graded images of a frame."""
        graded = frame["positive"].notna().to_numpy()
        positive = frame["positive"].to_numpy()[graded] == 1
        return cls(frame["score"].to_numpy()[graded], positive, w[:, graded])

    @property
    def told(self) -> bool:
        """Whether there are both kinds."""
        return bool(self.positive.any() and not self.positive.all())


def _count(frame: pd.DataFrame, column: str) -> int:
    return int(frame[column].notna().sum()) if column in frame else 0


def _number(values: Floats) -> dict[str, float | None]:
    """Return an estimate and its interval."""
    found = bootstrap.interval(values)
    return {k: v if math.isfinite(v) else None for k, v in found._asdict().items()}


def _said(values: Mapping[str, Floats]) -> dict[str, dict[str, float | None]]:
    return {name: _number(one) for name, one in values.items()}


def _metrics(judged: Judged, of: Of, w: Floats) -> Iterator[dict[str, Any]]:
    frame = judged.frame
    for name in ("dice", "iou", "hd95", "hd95_mm"):
        if count := _count(frame, name):
            yield {
                "name": name,
                "images": count,
                **_number(bootstrap.mean(_column(frame, name), w)),
            }
    count = len(of.score)
    if not count:
        return
    found = {"auroc_high": bootstrap.auroc(*of)}
    known = frame[frame["grade"] >= 0]
    truth, said = (known[name].to_numpy() for name in ("grade", "said"))
    chances = known[[f"p[{g}]" for g in judged.grades]].to_numpy()
    table = bootstrap.confusion(truth, said, of.w, len(judged.grades))
    if len(judged.grades) > 2:
        found["auroc"] = bootstrap.macro_auroc(chances, truth, of.w)
    found |= {
        "balanced_accuracy": bootstrap.balanced_accuracy(table),
        "kappa": bootstrap.kappa(table),
        "brier": bootstrap.mean((of.score - of.positive) ** 2, of.w),
        "calibration_error_high": bootstrap.calibration_error(of.score, of.positive, of.w[:1]),
        "observed / expected": bootstrap.ratio(of.w @ of.positive, of.w @ of.score),
    }
    for name, values in found.items():
        yield {"name": name, "images": count, **_number(values)}


def _column(frame: pd.DataFrame, name: str) -> Floats:
    return frame[name].to_numpy(dtype=float)


def _readers(judged: Judged, w: Floats) -> Iterator[dict[str, Any]]:
    """Yield how each reader compares with the reference and with the model."""
    positive = judged.frame["positive"].to_numpy(dtype=float)
    for name, said in judged.readers.items():
        both = np.isfinite(said) & np.isfinite(positive)
        pair = judged.agreement
        row = pair[(pair["rater"] == name) & (pair["other"] == MODEL)]  # the model is the second
        cells = {key: float(row[key].iloc[0]) for key in ("kappa", "graded", "dice", "drawn")}
        against = {key: None if math.isnan(v) else v for key, v in cells.items()}
        rates = bootstrap.rates(positive[both] == 1, said[both] == 1, w[:, both])
        yield {"reader": name, "graded": int(both.sum()), "model": against, **_said(rates)}


def _descriptors(judged: Judged, w: Floats) -> Iterator[dict[str, Any]]:
    """Yield how often the model's terms are the data's, of each descriptor that the data has.

    Beside it stands how often the data's most frequent term would be right. Kappa is Cohen's
    without weights: terms have no order.
    """
    for descriptor in judged.lexicon:
        said, known = (judged.frame[f"{descriptor.name}, {of}"] for of in ("said", "known"))
        here = known.notna().to_numpy()
        if not here.any():
            continue
        at, truth = (
            np.array([descriptor.terms.index(term) for term in column[here]])
            for column in (said, known)
        )
        table = bootstrap.confusion(truth, at, w[:, here], len(descriptor.terms))
        yield {
            "descriptor": descriptor.name,
            "images": int(here.sum()),
            "most_frequent": float(np.bincount(truth).max() / len(truth)),
            **_said(
                {
                    "accuracy": bootstrap.ratio(
                        np.trace(table, axis1=1, axis2=2), table.sum((1, 2))
                    ),
                    "kappa": bootstrap.kappa(table, ordered=False),
                }
            ),
        }


def _roc(of: Of) -> dict[str, list[float]] | None:
    if not of.told:
        return None
    wrong, right, _ = roc_curve(of.positive, of.score)
    return {"1 - specificity": wrong.tolist(), "sensitivity": right.tolist()}


def _calibration(of: Of) -> dict[str, list[float]] | None:
    if not of.told:
        return None
    bins = min(CURVE, max(2, len(of.score) // 10))
    seen, said = calibration_curve(of.positive, of.score, n_bins=bins, strategy="quantile")
    return {"predicted": said.tolist(), "observed": seen.tolist()}


def _decision(of: Of) -> dict[str, list[float] | None] | None:
    """Return the decision curve; its band, as an interval, only where nearly all draws have one."""
    if not of.told:
        return None
    everybody = bootstrap.net_benefit(np.ones_like(of.score), of.positive, DECISIONS, of.w[:1])[0]
    values = bootstrap.net_benefit(of.score, of.positive, DECISIONS, of.w)
    drawn = values[1:][np.isfinite(values[1:, 0])]  # others drew no graded patient
    low = high = None
    if len(drawn) >= bootstrap.DEFINED * (len(values) - 1):
        low, high = np.percentile(drawn, bootstrap.LEVEL, axis=0).tolist()
    return {
        "threshold": DECISIONS.tolist(), "model": values[0].tolist(), "low": low, "high": high,
        "all": everybody.tolist(),
    }  # fmt: skip


def _sizes(frame: pd.DataFrame, w: Floats) -> Iterator[dict[str, Any]]:
    """Yield how the model's lengths compare with the reference's, in each unit that is known."""
    if not _count(frame, f"{AXES[0]} px"):
        return
    measured = np.isfinite(_column(frame, f"{AXES[0]} mm"))
    for name in AXES:
        for unit, here in (("mm", measured), ("px", ~measured)):
            said, true = (_column(frame, f"{name} {unit}{of}") for of in ("", ", reference"))
            known = np.isfinite(said) & here
            if not known.any():
                continue
            yield {
                "axis": name, "unit": unit, "images": int(known.sum()),
                **_said(bootstrap.agreement((said - true)[known], w[:, known])),
                "mean": ((said + true) / 2)[known].tolist(),
                "difference": (said - true)[known].tolist(),
            }  # fmt: skip


def _subgroups(
    judged: Judged, w: Floats, points: Sequence[Mapping[str, Any]], by: Sequence[str] | None
) -> Iterator[dict[str, Any]]:
    frame = judged.frame
    groups = {str(name): _grouped(column) for name, column in judged.groups.items()}
    if "size" not in groups and _count(frame, LONG):
        groups["size"] = pd.cut(frame[LONG], SIZES, right=False, labels=SIZE_NAMES)
    if absent := [name for name in by or () if name not in groups]:
        raise UsageError(f"--by {absent[0]}: the data has no such column: {', '.join(groups)}")
    left_out = scattered(judged, by)
    for name in by or [name for name in SUBGROUPS if name in groups]:
        if name in left_out:
            continue
        for value in groups[name].cat.categories:
            chosen = (groups[name] == value).to_numpy()
            if chosen.any():
                yield {"column": name, "value": str(value)} | _subgroup(
                    frame[chosen], w[:, chosen], points
                )


def scattered(judged: Judged, by: Sequence[str] | None) -> dict[str, int]:
    """Return the columns that have more groups than half as many as patients, and how many.

    A birth date or a number of the examination would make a group of nearly each patient.

    Args:
        judged: the answers.
        by: the columns that subgroups are made of; None for `SUBGROUPS`.
    """
    columns = [name for name in by or SUBGROUPS if name in judged.groups]
    counts = {name: len(_grouped(judged.groups[name]).cat.categories) for name in columns}
    most = max(MANY, judged.frame["patient"].nunique() / 2)
    return {name: count for name, count in counts.items() if count > most}


def ungrouped(groups: pd.DataFrame, by: Sequence[str] | None) -> list[str]:
    """Return the words that columns have among their numbers, and that are in no subgroup.

    Args:
        groups: what the data says of each image, a column each.
        by: the columns that subgroups are made of; None for `SUBGROUPS`.
    """
    found: dict[str, None] = {}
    for name in by or SUBGROUPS:
        if name in groups and (numbers := _numbers(groups[name])) is not None:
            words = groups[name][numbers.isna()].dropna()
            found |= {f"{name} {word!r}": None for word in words}
    return list(found)


def _numbers(column: pd.Series) -> pd.Series | None:
    """Return a column's numbers, NaN for its words; None if it is of words, or of few numbers."""
    numbers = pd.to_numeric(column.str.replace(",", ".", regex=False), errors="coerce")
    numbers = numbers.where(np.isfinite(numbers))
    mostly = 2 * numbers.count() > column.count()
    return numbers if mostly and numbers.nunique() > MANY else None


def _grouped(column: pd.Series) -> pd.Series:
    """Return a column as categories: many numbers as thirds, words whatever their case."""
    numbers = _numbers(column)
    if numbers is None:
        first: dict[str, str] = {}
        alike = {word: " ".join(visible(word).casefold().split()) for word in column.dropna()}
        return column.map({w: first.setdefault(k, w) for w, k in alike.items()}).astype("category")
    ordered = numbers.dropna().sort_values()  # quantiles in floats put ends here or there
    cuts = [ordered.iloc[-(-k * len(ordered) // 3) - 1] for k in (1, 2)]
    thirds: pd.Series = ((numbers > cuts[0]).astype(int) + (numbers > cuts[1])).where(
        numbers.notna()
    )
    ends = numbers.groupby(thirds).agg(["min", "max"])
    names = {third: f"{low:.15g} to {high:.15g}" for third, low, high in ends.itertuples()}
    return thirds.astype("category").cat.rename_categories(names)


def _subgroup(
    frame: pd.DataFrame, w: Floats, points: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    of = Of.among(frame, w)
    found = {"auroc_high": bootstrap.auroc(*of)} if len(of.score) else {}
    if _count(frame, "dice"):
        found["dice"] = bootstrap.mean(_column(frame, "dice"), w)
    if points:
        rates = bootstrap.rates(of.positive, of.score >= points[0]["threshold"], of.w)
        found |= {name: rates[name] for name in ("sensitivity", "specificity")}
    return {
        "images": len(frame),
        "patients": int(frame["patient"].nunique()),
        "positive": int(of.positive.sum()),
        **_said(found),
    }
