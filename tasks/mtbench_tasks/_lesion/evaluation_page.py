"""An evaluation for a person: tables, a page, files."""

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mtbench.training.task import Evaluation, Table
from mtbench_tasks._lesion import sheets
from mtbench_tasks._lesion.bootstrap import RESAMPLES
from mtbench_tasks._lesion.categories import and_above
from mtbench_tasks._lesion.evaluation_numbers import Judged
from mtbench_tasks._lesion.ood import UNKNOWN
from mtbench_tasks._lesion.page import BAR, INK, LINE, QUIET, WARNING, fill, svg
from mtbench_tasks._lesion.reading import USE

TITLE = "Evaluation of a trained model"
INTERVALS = (
    f"Intervals are of 95 %: percentiles over {RESAMPLES:,} draws of as many patients as there "
    "are, with replacement. Where there is none, the images are too few or too much alike. The "
    "calibration error has none: on few images it is too large, and draws make it larger still."
)
NAMES = {
    "dice": "Dice", "iou": "IoU", "hd95": "95 % Hausdorff distance, pixels",
    "hd95_mm": "95 % Hausdorff distance, mm", "auroc_high": "AUROC of high risk",
    "auroc": "AUROC, mean over grades", "balanced_accuracy": "Balanced accuracy",
    "kappa": "Kappa, quadratic weights", "brier": "Brier score of high risk",
    "calibration_error_high": "Calibration error of high risk",
    "observed / expected": "High risk: observed / expected",
}  # fmt: skip
RATES = ("sensitivity", "specificity", "PPV", "NPV")
FEW = 20  # patients
Record = Mapping[str, Any]


def write(record: Record, judged: Judged, to: Path) -> Evaluation:
    """Write ``index.html``, ``evaluation.json``, ``metrics.csv`` and ``cases.csv``.

    Args:
        record: of `evaluation_numbers.judge`, with ``models``, ``data``, ``reference``, ``high``,
            ``high_risk`` and ``notes``.
        judged: the answers.
        to: the folder.
    """
    tables = list(_tables(record))
    files = [to / name for name in ("index.html", "evaluation.json", "metrics.csv", "cases.csv")]
    files[0].write_text(_page(record, tables), encoding="utf-8")
    files[1].write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    sheets.write(pd.DataFrame(_flat(record)), files[2], "%.6g")
    sheets.write(judged.frame.join(judged.groups.add_prefix("column ")), files[3])
    return Evaluation(tables, record["notes"], files)


def notes(
    record: Record,
    *,
    silent: tuple[str | None, int],
    left_out: int,
    merged: int,
    problems: int,
    doubts: int,
    known: bool,
    started: bool,
    unworded: Sequence[str],
    ungrouped: Sequence[str],
    scattered: Mapping[str, int],
    unlike: int | None,
    reduced: tuple[Sequence[str], int, Sequence[str], int] | None,
) -> Iterator[str]:
    """Yield what a person should know before they believe the numbers.

    Args:
        record: the numbers.
        silent: the reader whose word is the truth, and of how many images they said nothing.
        left_out: how many images are of patients whom the model has seen.
        merged: how many patients fewer there are, as some share an image.
        problems: how much could not be read.
        doubts: how much looks odd and was used.
        known: whether the model knows its training's images.
        started: whether it started from another model's weights.
        unworded: the data's words for descriptors that are no terms.
        ungrouped: its words where subgroups are of numbers.
        scattered: its columns that would make a group of nearly each patient, and how many groups.
        unlike: how many images do not look like the training's; None where that is not known.
        reduced: the data's grades and which of them is the first of high risk, and the model's,
            where both are reduced to low and high.
    """
    if reduced is not None:
        grades, at, own, from_ = reduced
        model = f", and {and_above(own, from_)} of the model's {', '.join(own)}"
        yield (
            f"grades are reduced to low and high: high is {and_above(grades, at)} of the data's "
            f"{', '.join(grades)}{model * (len(own) > 2)}"
        )
    if silent[1]:
        yield f"{silent[1]} images are left out: {silent[0]} says nothing of them"
    if left_out:
        yield (
            f"{left_out} images are left out: the model was trained or chosen on images of their "
            "patients, or on ones that look alike"
        )
    if record["missed"]:
        yield (
            f"in {record['missed']} of {record['outlined']} outlined images the model found no "
            "lesion: their Dice is 0, their distance the image's diagonal, and they have no size"
        )
    if merged:
        yield (
            f"{merged} patients have an image that another has too, or a copy of it: they count as "
            "that one"
        )
    measured = next((m["images"] for m in record["metrics"] if m["name"] == "hd95_mm"), 0)
    if 0 < measured < record["outlined"]:
        yield (
            f"spacing is known of {measured} of {record['outlined']} outlined images: what is in "
            "mm is of these, axes in px are of the others, the distance in pixels is of all"
        )
    if not known:
        yield "the model does not know what it was trained on: see that none of it is here"
    if started:
        yield (
            "the model started from another's weights (--init), and does not know what that one "
            "was trained on: see that none of it is here"
        )
    for words, what in (
        (unworded, "words for descriptors that are none of the model's terms are left out"),
        (ungrouped, "words in columns of numbers are in no subgroup"),
    ):
        if words:
            more = f" and {len(words) - 3} more" * (len(words) > 3)
            yield f"{what}: {', '.join(words[:3])}{more}"
    for name, count in scattered.items():
        yield (
            f"column {name} makes no subgroups, for it has {count} different values of "
            f"{record['patients']} patients: put those of one kind into one word, such as a decade"
        )
    if unlike is None:
        yield UNKNOWN
    elif unlike:
        yield (
            f"{unlike} of {record['images']} images do not look like the training's: are they of "
            "the same organ, the right way up?"
        )
    # A page goes to others, and these lines name patients and files.
    if problems:
        yield f"{problems} cases or rows could not be used: `mtbench data verify` names them"
    if doubts:
        yield f"what looks odd is used (found {doubts}): `mtbench data verify` names it"
    if record["patients"] < FEW:
        few = f"patients: {record['patients']}, which is few"
        yield f"{few}: intervals are too narrow, or cannot be given"
    if not record["graded"]:
        yield "no image is graded: there is no ROC curve, no operating point and no calibration"
    elif record["roc"] is None:
        risk = "high" if record["positive"] else "low"
        yield f"all graded images are of {risk} risk: there is no AUROC and no curve"
    if record["graded"] and not record["operating"]:
        yield "no threshold was fixed on validation, where both low and high risk are needed"
    if record["readers"] and "consensus" in record["reference"]:
        yield "each reader is part of the consensus that they are compared with, the model is not"


def _tables(record: Record) -> Iterator[Table]:
    yield Table(
        "Metrics",
        ("metric", "value (95 % interval)", "images"),
        [(NAMES[m["name"]], _with(m), str(m["images"])) for m in record["metrics"]],
    )
    if points := record["operating"]:
        yield Table(
            "Operating points, fixed on validation",
            ("", *(f"{p['rule']}: from {p['threshold']:.4g} on" for p in points)),
            [
                *((rate, *(_with(p["here"][rate]) for p in points)) for rate in RATES),
                *(
                    (f"{rate} on validation", *(_plain(p[rate]) for p in points))
                    for rate in RATES[:2]
                    if rate in points[0]  # of one model
                ),
            ],
        )
    if record["readers"]:
        yield Table(
            "Readers: against the reference, and the model against each",
            ("reader", "graded", *RATES[:2], "model's kappa", "model's Dice"),
            [
                (
                    r["reader"], str(r["graded"]), *(_with(r[rate]) for rate in RATES[:2]),
                    _plain(r["model"]["kappa"]), _plain(r["model"]["dice"]),
                )
                for r in record["readers"]
            ],
        )  # fmt: skip
    if record["descriptors"]:
        yield Table(
            "Descriptors: the model's likeliest term against the data's",
            ("descriptor", "accuracy", "the most frequent term's", "kappa", "images"),
            [
                (
                    d["descriptor"], _with(d["accuracy"]), _plain(d["most_frequent"]),
                    _with(d["kappa"]), str(d["images"]),
                )
                for d in record["descriptors"]
            ],
        )  # fmt: skip
    if record["sizes"]:
        yield Table(
            "Sizes: model minus reference (Bland-Altman)",
            ("axis", "bias", "lower limit of agreement", "upper limit", "images"),
            [
                (
                    f"{s['axis']}, {s['unit']}",
                    *(_with(s[key]) for key in ("bias", "lower", "upper")),
                    str(s["images"]),
                )
                for s in record["sizes"]
            ],
        )
    if record["subgroups"]:
        measured = ("auroc_high", *RATES[:2], "dice")
        yield Table(
            "Subgroups",
            ("subgroup", "images", "patients", "high risk", "AUROC", *RATES[:2], "Dice"),
            [
                (
                    f"{g['column']}: {g['value']}",
                    *(str(g[key]) for key in ("images", "patients", "positive")),
                    *(_with(g.get(name)) for name in measured),
                )
                for g in record["subgroups"]
            ],
        )


def _flat(record: Record) -> Iterator[dict[str, Any]]:
    """Yield a row for each number with its interval."""

    def row(group: str, metric: str, found: Record) -> dict[str, Any]:
        numbers = {key: found[key] for key in ("value", "low", "high")}
        return {"group": group, "metric": metric, **numbers}

    for metric in record["metrics"]:
        yield row("all", metric["name"], metric)
    for point in record["operating"]:
        for rate, found in point["here"].items():
            yield row("all", f"{rate} by {point['rule']}", found)
    for size in record["sizes"]:
        for key in ("bias", "lower", "upper"):
            yield row("all", f"{size['axis']} {size['unit']} {key}", size[key])
    for found in record["descriptors"]:
        for key in ("accuracy", "kappa"):
            yield row("all", f"{found['descriptor']} {key}", found[key])
    for reader in record["readers"]:
        for rate in RATES:
            yield row(f"reader {reader['reader']}", rate, reader[rate])
    for group in record["subgroups"]:
        for name, found in group.items():
            if isinstance(found, dict):
                yield row(f"{group['column']}: {group['value']}", name, found)


def _with(found: Record | None) -> str:
    """Return an estimate and its interval."""
    if found is None or found["value"] is None:
        return "–"
    if found["low"] is None:
        return _plain(found["value"])
    return f"{_plain(found['value'])} ({_plain(found['low'])} to {_plain(found['high'])})"


def _plain(value: float | None) -> str:
    if value is None:
        return "–"
    return (f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}").replace("-", "−")


def _page(record: Record, tables: Sequence[Table]) -> str:
    facts = [
        ("Model", "; ".join(record["models"])),
        ("Data", record["data"]),
        ("Images", f"{record['images']} of {record['patients']} patients"),
        (
            "Graded",
            f"{record['graded']}, {record['positive']} of high risk ({record['high_risk']})",
        ),
        ("Outlined", str(record["outlined"])),
        ("Reference", record["reference"]),
    ]
    return fill(
        "evaluation.html",
        title=TITLE,
        use=USE,
        facts=facts,
        notes=record["notes"],
        tables=tables,
        figures=list(_figures(record)),
        intervals=INTERVALS,
    )


def _figures(record: Record) -> Iterator[tuple[str, Markup]]:
    if record["roc"]:
        yield (
            "ROC curve of high risk. Dots: the operating points that were fixed on validation. "
            "Other marks: readers.",
            _roc(record),
        )
        yield (
            "Calibration: how often the risk was high among images of about equal probability. "
            "On the line it is what the model says.",
            _calibration(record["calibration"]),
        )
        yield (
            "Decision curve: the net benefit of acting on those above a threshold, with its "
            "interval (band), against acting on all or on nobody.",
            _decision(record["decision"]),
        )
    for number, size in enumerate(record["sizes"]):
        yield (
            f"{size['axis'].capitalize()} in {size['unit']}: model minus reference, against their "
            "mean. Lines: bias and limits of agreement.",
            _bland_altman(size, f"size{number}"),
        )


def _axes(across: str, down: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.2, 3.4), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(across, color=INK)
    axes.set_ylabel(down, color=INK)
    axes.tick_params(colors=QUIET)
    axes.grid(color=LINE, linewidth=0.6)
    axes.spines[:].set_color(LINE)
    return figure, axes


def _roc(record: Record) -> Markup:
    figure, axes = _axes("1 − specificity", "sensitivity")
    axes.plot([0, 1], [0, 1], color=QUIET, linewidth=0.8, linestyle=":")
    axes.plot(*record["roc"].values(), color=BAR, linewidth=1.8)
    for point in record["operating"]:
        axes.plot(*_place(point["here"]), "o", color=BAR, markersize=5)
    for reader, marker in zip(record["readers"], itertools.cycle("Ds^vPX"), strict=False):
        axes.plot(
            *_place(reader), marker, color=WARNING, markersize=4.5,
            label=reader["reader"].lstrip("_"),
        )  # fmt: skip
    if record["readers"]:
        for text in axes.legend(fontsize=8, frameon=False, labelcolor=INK).get_texts():
            text.set_parse_math(False)
    return svg(figure, "roc")


def _place(rates: Record) -> tuple[float, float]:
    """Return where a sensitivity and a specificity are; NaN, which is not drawn, without both."""
    up, across = (rates[name]["value"] for name in RATES[:2])
    return (math.nan, math.nan) if None in (up, across) else (1 - across, up)


def _calibration(curve: Record) -> Markup:
    figure, axes = _axes("probability said", "frequency seen")
    axes.plot([0, 1], [0, 1], color=QUIET, linewidth=0.8, linestyle=":")
    axes.plot(curve["predicted"], curve["observed"], "o-", color=BAR, markersize=4)
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    return svg(figure, "calibration")


def _decision(curve: Record) -> Markup:
    figure, axes = _axes("threshold", "net benefit")
    at = curve["threshold"]
    if curve["low"] is not None:
        axes.fill_between(at, curve["low"], curve["high"], color=BAR, alpha=0.2, linewidth=0)
    axes.plot(at, curve["model"], color=BAR, linewidth=1.8, label="model")
    axes.plot(at, curve["all"], color=QUIET, linewidth=1, linestyle="--", label="all")
    axes.axhline(0, color=INK, linewidth=0.8, label="nobody")
    top = max(*(curve["high"] or curve["model"]), 0.05)
    axes.set(xlim=(0, 1), ylim=(-0.5 * top, 1.1 * top))
    axes.legend(fontsize=8, frameon=False, labelcolor=INK)
    return svg(figure, "decision")


def _bland_altman(size: Record, name: str) -> Markup:
    figure, axes = _axes(f"mean, {size['unit']}", f"difference, {size['unit']}")
    axes.plot(size["mean"], size["difference"], ".", color=BAR, alpha=0.6, markersize=5)
    for key, style in (("bias", "-"), ("lower", "--"), ("upper", "--")):
        if (value := size[key]["value"]) is not None:
            axes.axhline(value, color=INK, linewidth=1, linestyle=style)
    axes.margins(y=0.1)
    axes.set_xlim(0, 1.05 * float(np.max(size["mean"])))
    return svg(figure, name)
