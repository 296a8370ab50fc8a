"""``mtbench evaluate``: what a model is worth on other data, against independent arithmetic."""

import contextlib
import csv
import io
import json
import re
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import (
    balanced_accuracy_score,
    brier_score_loss,
    cohen_kappa_score,
    roc_auc_score,
)
from torch import Tensor

from mtbench import cli
from mtbench.errors import DataError, UsageError
from mtbench.training.machine.cache import cache_dir
from mtbench.training.task import Evaluation, Trained
from mtbench_tasks._lesion import bootstrap, evaluation_numbers, evaluation_page, operating
from mtbench_tasks._lesion.cases import Case, Reading, digest
from mtbench_tasks._lesion.doubts import perceptual
from mtbench_tasks._lesion.ensemble import Ensemble, together
from mtbench_tasks._lesion.grid import prepare, to_input
from mtbench_tasks._lesion.network import Described, Risk
from mtbench_tasks._lesion.ood import KEY, OutOfDistribution, features
from mtbench_tasks._lesion.scores import overlap
from mtbench_tasks.thyroid import Thyroid, acr, phantom, ultrasound
from tests.conftest import Mtbench
from tests.refusals import refused

SMALL = ("--image-size", 32, "--width", 4, "--epochs", 1, "--threads", 1)
Drawn = st.lists(
    st.tuples(st.integers(0, 5), st.booleans(), st.integers(0, 3)), min_size=2, max_size=30
)


# The arithmetic


@given(Drawn)
def test_auroc_is_that_of_scikit_learn(drawn: list[tuple[int, bool, int]]) -> None:
    score, positive, weight = (np.array(part) for part in zip(*drawn, strict=True))
    w = np.stack([np.ones(len(score)), weight.astype(float)])
    found = bootstrap.auroc(score.astype(float), positive, w)
    for value, row in zip(found, w, strict=True):
        seen = row > 0
        if positive[seen].all() or not positive[seen].any():
            assert np.isnan(value)
        else:
            assert value == pytest.approx(roc_auc_score(positive, score, sample_weight=row))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=3, max_size=30))
def test_grades_are_judged_as_by_scikit_learn(drawn: list[tuple[int, int]]) -> None:
    truth, said = (np.array(part) for part in zip(*drawn, strict=True))
    table = bootstrap.confusion(truth, said, np.ones((1, len(truth))), 4)
    [accuracy], [kappa] = bootstrap.balanced_accuracy(table), bootstrap.kappa(table)
    [nominal] = bootstrap.kappa(table, ordered=False)
    present = set(truth)  # scikit-learn warns of grades that are only said
    recall = np.mean([(said[truth == g] == g).mean() for g in present])
    assert accuracy == pytest.approx(recall)
    if set(said) <= present and len(present) > 1:
        assert accuracy == pytest.approx(balanced_accuracy_score(truth, said))
    if len({*truth, *said}) > 1:
        assert kappa == pytest.approx(
            cohen_kappa_score(truth, said, labels=range(4), weights="quadratic")
        )
        assert nominal == pytest.approx(cohen_kappa_score(truth, said, labels=range(4)))
    else:
        assert np.isnan([kappa, nominal]).all()


def test_net_benefit_by_hand() -> None:
    """At 1/4, a false alarm costs a third of what a hit gains."""
    score, positive = np.array([0.1, 0.3, 0.6, 0.9]), np.array([False, False, True, True])
    [found] = bootstrap.net_benefit(score, positive, np.array([0.25, 0.5]), np.ones((1, 4)))
    assert found == pytest.approx([(2 - 1 / 3) / 4, 2 / 4])
    [everybody] = bootstrap.net_benefit(np.ones(4), positive, np.array([0.5]), np.ones((1, 4)))
    assert everybody == pytest.approx([0])


def test_limits_of_agreement_by_hand() -> None:
    difference = np.array([1.0, 2.0, 3.0, 4.0])
    found = bootstrap.agreement(difference, np.ones((1, 4)))
    spread = 1.96 * np.std(difference, ddof=1)
    assert [v.item() for v in found.values()] == pytest.approx([2.5, 2.5 - spread, 2.5 + spread])


def test_more_images_of_the_same_patients_do_not_narrow_an_interval() -> None:
    rng = np.random.default_rng(1)
    value = rng.normal(size=40)
    patients = [f"p{i}" for i in range(40)]
    once = bootstrap.interval(bootstrap.mean(value, bootstrap.weights(patients)))
    thrice = bootstrap.interval(
        bootstrap.mean(value.repeat(3), bootstrap.weights(sorted(patients * 3)))
    )
    by_name = value[np.argsort(patients)]  # the draws are by the patients' names
    again = bootstrap.interval(bootstrap.mean(by_name, bootstrap.weights(sorted(patients))))
    other = bootstrap.interval(
        bootstrap.mean(by_name.repeat(3), bootstrap.weights(sorted(patients * 3)))
    )
    assert other == pytest.approx(again)
    assert thrice.high - thrice.low == pytest.approx(once.high - once.low, rel=0.3)
    alone = bootstrap.weights([str(i) for i in range(120)])
    naive = bootstrap.interval(bootstrap.mean(value.repeat(3), alone))
    assert naive.high - naive.low < 0.7 * (once.high - once.low)


def test_an_interval_covers_what_it_says() -> None:
    """Of 200 samples of 60 patients, near 95 % of the intervals hold the mean."""
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(200):
        effect = rng.normal(size=60).repeat(rng.integers(1, 4, 60))
        patients = [str(v) for v in effect]
        noise = effect + 0.3 * rng.normal(size=len(effect))
        found = bootstrap.interval(bootstrap.mean(noise, bootstrap.weights(patients, 400, seed)))
        held += found.low < 0 < found.high
    assert 0.9 < held / 200 < 0.985


@pytest.mark.parametrize("same", [1.0, 135.7645019878171])  # sums of the second differ in a bit
def test_no_interval_where_no_draw_differs(same: float) -> None:
    found = bootstrap.interval(
        bootstrap.mean(np.full(10, same), bootstrap.weights([*"abcdefghij"]))
    )
    assert found.value == pytest.approx(same)
    assert np.isnan([found.low, found.high]).all()


@pytest.mark.parametrize(("holders", "known"), [(1, False), (6, True)])
def test_an_interval_over_grades_is_of_all_of_them(holders: int, known: bool) -> None:
    """Of 60 patients, a draw holds none with a grade that one has in 36 %, that six have in 0.2 %.

    Where draws had lacked it, the mean had been over the others.
    """
    truth = np.array([2] * holders + [i % 2 for i in range(60 - holders)])
    said = np.where(np.arange(60) % 3 > 0, truth, 0)
    w = bootstrap.weights([f"{i:02}" for i in range(60)])
    for found in (
        bootstrap.balanced_accuracy(bootstrap.confusion(truth, said, w, 4)),
        bootstrap.macro_auroc(np.eye(4)[said], truth, w),
    ):
        assert np.isfinite(found[0])
        np.testing.assert_array_equal(np.isnan(found), w[:, :holders].sum(1) == 0)
        assert np.isfinite(bootstrap.interval(found).low) == known


def test_operating_points() -> None:
    score = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    positive = np.array([0, 0, 1, 0, 0, 1, 1, 1]) > 0
    youden, kept = operating.points(score, positive)
    assert (youden["threshold"], youden["sensitivity"], youden["specificity"]) == (0.6, 0.75, 1)
    assert (kept["threshold"], kept["sensitivity"], kept["specificity"]) == (0.3, 1, 0.5)
    assert operating.points(score, np.ones(8) > 0) == []
    [mean, _] = operating.shared([{"operating": [youden, kept]}, {"operating": [kept, kept]}])
    # What the mean threshold gives on validation, nobody has measured.
    assert mean == {"rule": operating.YOUDEN, "threshold": pytest.approx(0.45)}
    assert operating.shared([{"operating": [youden, kept]}]) == [youden, kept]
    assert operating.shared([{"operating": [youden, kept]}, {}]) == []


# Which images


def case(name: str, patient: str, image: Any, *said: tuple[str, int]) -> Case:
    readings = tuple(Reading(reader, None, grade) for reader, grade in said)
    return Case(name, patient, image, readings or (Reading("a", None, 0),))


def test_patients_that_the_model_has_seen_are_left_out() -> None:
    images = [c.image for c in phantom.load(size=4, readers=1).cases]
    shown = np.ascontiguousarray(images[0][:, ::-1] * 0.9).astype(np.uint8)  # mirrored, darker
    cases = [case("again", "p", shown), case("new", "p", images[1]), case("other", "q", images[2])]
    hashes = {i: perceptual(c.image) for i, c in enumerate(cases)}
    seen = [perceptual(images[0])[0]]
    assert evaluation_numbers.unseen(cases, hashes, seen) == [2]
    assert evaluation_numbers.unseen(cases, hashes, [perceptual(images[3])[0]]) == [0, 1, 2]
    assert evaluation_numbers.unseen(cases, hashes, []) == [0, 1, 2]


def test_patients_that_training_starts_from_are_told() -> None:
    task = Thyroid(cases=20, test_cases=4, image_size=32, width=2)
    splits = task.setup(0, lambda *_: None)
    train, val, test = (getattr(splits, part) for part in ("train", "val", "test"))
    task.begin({"seen": train.hashes()})
    assert task.setup(0, lambda *_: None).notes == splits.notes
    task.begin({"seen": train.hashes() + test.hashes()[:1] + val.hashes()})
    told = task.setup(0, lambda *_: None).notes["doubts"]
    assert told[0].startswith("1 of 4 test images are of patients whom what it starts from")
    assert told[1].startswith(f"{len(val)} of {len(val)} val images")
    task.strict = True
    with pytest.raises(DataError, match=r"1 of 4 test images .* --strict stops"):
        task.setup(0, lambda *_: None)


def test_patients_who_share_an_image_are_one() -> None:
    """Equal images, and copies: an interval would count them as independent, and half be seen."""
    images = [c.image for c in phantom.load(size=4, readers=1).cases]
    copy = np.ascontiguousarray(images[1][:, ::-1] * 0.9).astype(np.uint8)  # mirrored, darker
    shown = [*images, images[0], copy]
    names = ["a", "b", "c", "d", "e", "f"]
    cases = [case(str(i), name, shown[i]) for i, name in enumerate(names)]
    hashes = {i: perceptual(image) for i, image in enumerate(shown)}
    found, merged = evaluation_numbers.joined(cases, [digest(image) for image in shown], hashes)
    assert [c.patient for c in found] == ["a", "b", "c", "d", "a", "b"]
    assert merged == 2
    assert evaluation_numbers.unseen(found, hashes, [hashes[4][0]]) == [1, 2, 3, 5]
    broken, joined = evaluation_numbers.joined(
        cases, [""] * 6, {}
    )  # what cannot be read has no image
    assert (broken, joined) == (cases, 0)


def test_one_reader_may_be_the_truth() -> None:
    cases = [
        case("a", "a", np.zeros((4, 4)), ("x", 1), ("pathology", 0)),
        case("b", "b", np.zeros((4, 4)), ("x", 1)),
    ]
    cases.append(case("c", "c", np.zeros((4, 4)), ("pathology", 1)))
    [both, alone], lent = evaluation_numbers.with_truth(cases, "pathology")
    assert not lent
    assert both.truth is not None
    assert (both.truth.category, [r.reader for r in both.readings]) == (0, ["x"])
    assert alone == cases[2]
    with pytest.raises(UsageError, match="--truth y: is no reader of the data: pathology, x"):
        evaluation_numbers.with_truth(cases, "y")


def test_a_truth_without_an_outline_takes_the_other_readers() -> None:
    """Pathology grades and does not draw: its images had no Dice and no size."""
    mask, image = np.zeros((40, 40), dtype=bool), np.zeros((40, 40), np.uint8)
    mask[5:25, 5:25] = True
    graded = Reading("pathology", None, 1)
    x, y, own = (Reading(name, mask, 0) for name in ("x", "y", "pathology"))
    of = {"two": (x, graded, y), "one": (x, graded), "own": (x, own), "none": (graded,)}
    cases = [Case(name, name, image, readings) for name, readings in of.items()]
    found, lent = evaluation_numbers.with_truth(cases, "pathology")
    assert lent == {"two", "one"}
    for case_ in found[:3]:
        assert case_.truth is not None
        assert (case_.truth.reader, case_.truth.category) == ("pathology", int(case_.name != "own"))
        np.testing.assert_array_equal(case_.truth.mask, mask)


# A model on another centre's data


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another centre: 30 dark ellipses of 15 patients, two readers, pathology, more columns."""
    folder = tmp_path_factory.mktemp("clinic")
    rng = np.random.default_rng(0)
    y, x = np.indices((64, 80))
    rows = []
    for i in range(30):
        image, mask = f"{i}.png", f"{i}_mask.png"
        inside = ((x - 40) / rng.uniform(8, 16)) ** 2 + ((y - 30) / rng.uniform(8, 16)) ** 2 < 1
        grade = int(rng.integers(5))
        light = rng.normal(140, 12, inside.shape) - inside * (100 - 10 * grade)
        Image.fromarray(light.clip(0, 255).astype(np.uint8)).save(folder / image)
        Image.fromarray(inside.astype(np.uint8) * 255).save(folder / mask)
        about = {"patient": f"P{i // 2}", "scanner": "AB"[i % 2], "sex": "fm"[i // 15], "age": i}
        known = {"image": image, "mask": mask, **about, "spacing": 0.5 if i % 3 else ""}
        said = {"x": max(grade - 1, 0), "y": min(grade + i % 2, 4), "pathology": grade}
        rows += [known | {"reader": n, "category": ultrasound.GRADES[g]} for n, g in said.items()]
    write(folder / "cases.csv", rows)
    return folder / "cases.csv"


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def dark(inputs: Tensor) -> list[Any]:
    """A model that segments what is dark, and grades by how dark it is, with some noise."""
    logits = 40 * (0.4 - inputs)
    inside = (logits > 0) & (inputs > 0)
    level = (inputs * inside).sum((1, 2, 3)) / inside.sum((1, 2, 3)).clamp(min=1)
    grade = 15 * level - 1.5 + inputs[:, 0, 5:8, 5:8].std((1, 2)) * 20
    logit = -((grade[:, None] - torch.arange(5)) ** 2)
    risk = Risk(logit, torch.zeros(len(inputs), 13), torch.zeros(len(inputs), 0))
    return [torch.where(inputs > 0, logits, -1.0), risk]


TERMS = sum(len(descriptor.terms) for descriptor in acr.LEXICON)
FITTED = {
    "operating": [
        {"rule": rule, "threshold": t, "sensitivity": 0.8, "specificity": 0.7}
        for rule, t in ((operating.YOUDEN, 0.6), (operating.KEPT, 0.3))
    ],
    "seen": [],
}


@pytest.fixture
def _undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation_page, "_figures", lambda _: iter(()))


undrawn = pytest.mark.usefixtures("_undrawn")
"""For what is read in the numbers: the page's seven figures take most of an evaluation's time."""


def evaluated(clinic: Path, to: Path, **how: Any) -> tuple[Evaluation, dict[str, Any]]:
    """Judge `dark` on a manifest; return what is said and what is written."""
    task = Thyroid(image_size=64, width=2)
    found = task.evaluate(Trained(dark, "dark", FITTED), clinic, to, **how)
    return found, json.loads((to / "evaluation.json").read_text())


def test_a_model_is_judged_on_another_centres_data(clinic: Path, tmp_path: Path) -> None:
    found, record = evaluated(clinic, tmp_path, truth="pathology")
    titles = [table.title.split()[0] for table in found.tables]
    assert titles == ["Metrics", "Operating", "Readers:", "Sizes:", "Subgroups"]
    assert [file.name for file in found.files] == [
        "index.html", "evaluation.json", "metrics.csv", "cases.csv"
    ]  # fmt: skip
    frame = pd.read_csv(tmp_path / "cases.csv")
    assert (record["images"], record["patients"], record["graded"]) == (30, 15, 30)
    assert record["reference"] == "pathology"
    metrics = {m["name"]: m["value"] for m in record["metrics"]}
    y, p = frame["positive"], frame["score"]
    assert 0.5 < metrics["auroc_high"] == pytest.approx(roc_auc_score(y, p), abs=1e-5)
    assert metrics["brier"] == pytest.approx(brier_score_loss(y, p), abs=1e-5)
    assert metrics["dice"] == pytest.approx(frame["dice"].mean(), abs=1e-5)
    assert metrics["dice"] > 0.8
    assert all(m["low"] is None or m["low"] <= m["value"] <= m["high"] for m in record["metrics"])
    lows = {m["name"]: m["low"] for m in record["metrics"]}
    assert lows["brier"] is not None
    assert lows["calibration_error_high"] is None  # a draw adds to its bias
    for point, known in zip(record["operating"], FITTED["operating"], strict=True):
        assert point["threshold"] == known["threshold"]  # fixed there, not here
        flagged = p >= known["threshold"]
        assert point["here"]["sensitivity"]["value"] == pytest.approx(flagged[y == 1].mean())
        assert point["here"]["specificity"]["value"] == pytest.approx(1 - flagged[y == 0].mean())
    tidy = pd.read_csv(tmp_path / "metrics.csv").set_index(["group", "metric"])["value"]
    assert tidy["all", "auroc_high"] == pytest.approx(metrics["auroc_high"], abs=1e-5)


@undrawn
def test_rates_on_validation_are_of_one_model(clinic: Path, tmp_path: Path) -> None:
    """Of several that are asked together, nobody has measured them."""
    task, one = Thyroid(image_size=64, width=2), Trained(dark, "dark", FITTED)
    for trained, count in ((one, 2), (replace(one, others=(one,)), 0)):
        found = task.evaluate(trained, clinic, tmp_path, truth="pathology")
        rows = [row[0] for row in found.tables[1].rows]
        assert rows[:4] == list(evaluation_page.RATES)
        assert len(rows[4:]) == count


@undrawn
def test_what_a_model_was_trained_with_changes_no_truth(clinic: Path, tmp_path: Path) -> None:
    """Grids are kept, and those of cases with a consensus are others."""
    found = []
    for labels in ("reader", "consensus"):
        task = Thyroid(image_size=64, width=2, labels=labels)
        task.evaluate(Trained(dark, "dark", FITTED), clinic, tmp_path, truth="pathology")
        found.append(json.loads((tmp_path / "evaluation.json").read_text())["metrics"])
    assert found[0] == found[1]


@undrawn
def test_subgroups_sizes_and_readers(clinic: Path, tmp_path: Path) -> None:
    _, record = evaluated(clinic, tmp_path, truth="pathology")
    frame = pd.read_csv(tmp_path / "cases.csv")
    groups = {(g["column"], g["value"]): g for g in record["subgroups"]}
    assert groups["scanner", "A"]["images"] == 15
    own = frame[frame["column scanner"] == "A"]
    found = groups["scanner", "A"]["auroc_high"]["value"]
    assert found == pytest.approx(roc_auc_score(own["positive"], own["score"]), abs=1e-5)
    assert [name for name, _ in groups] == [*["scanner"] * 2, *["sex"] * 2, *["age"] * 3,
                                            *["size"] * 2]  # fmt: skip
    assert [value for name, value in groups if name == "age"] == ["0 to 9", "10 to 19", "20 to 29"]
    assert sum(g["images"] for (name, _), g in groups.items() if name == "age") == 30
    sizes = {(s["axis"], s["unit"]): s for s in record["sizes"]}
    known = frame["long axis mm"].notna()
    assert sizes["long axis", "mm"]["images"] == known.sum() == 20
    assert sizes["long axis", "px"]["images"] == 10
    apart = (frame["long axis mm"] - frame["long axis mm, reference"])[known]
    limits = apart.mean() - 1.96 * apart.std(), apart.mean() + 1.96 * apart.std()
    for key, value in zip(("bias", "lower", "upper"), (apart.mean(), *limits), strict=True):
        assert sizes["long axis", "mm"][key]["value"] == pytest.approx(value, abs=1e-3)
    # x calls one grade less than the truth, y as much or one more.
    x, y = record["readers"]
    assert (x["reader"], y["reader"]) == ("x", "y")
    assert x["specificity"]["value"] == 1 == y["sensitivity"]["value"]
    assert x["sensitivity"]["value"] < 1 > y["specificity"]["value"]
    assert x["model"]["graded"] == 30


@undrawn
def test_subgroups_are_found_in_what_people_type(clinic: Path, tmp_path: Path) -> None:
    frame = pd.read_csv(clinic)
    i = frame.index // 3
    frame["age"] = np.where(i == 0, "n. k.", np.where(i == 1, "45 y", i.astype(str) + ",5"))
    frame["sex"] = np.where(i % 3 == 0, "F", frame["sex"])
    data = clinic.with_name("typed.csv")
    frame.to_csv(data, index=False)
    _, record = evaluated(data, tmp_path, truth="pathology")
    groups = {(g["column"], g["value"]): g["images"] for g in record["subgroups"]}
    assert [value for name, value in groups if name == "age"] == [
        "2.5 to 11.5", "12.5 to 20.5", "21.5 to 29.5"
    ]  # fmt: skip
    assert groups["sex", "F"] + groups["sex", "m"] == 30
    [told] = [note for note in record["notes"] if "columns of numbers" in note]
    assert told.endswith("are in no subgroup: age 'n. k.', age '45 y'")


@undrawn
def test_a_column_of_birth_dates_makes_no_subgroups(clinic: Path, tmp_path: Path) -> None:
    frame = pd.read_csv(clinic)
    frame["born"] = [f"19{40 + int(patient[1:])}-05-03" for patient in frame["patient"]]
    frame["town"] = [f"town {int(patient[1:]) % 7}" for patient in frame["patient"]]
    data = clinic.with_name("dates.csv")
    frame.to_csv(data, index=False)
    _, record = evaluated(data, tmp_path, truth="pathology", by=("born", "town"))
    assert {group["column"] for group in record["subgroups"]} == {"town"}
    [told] = [note for note in record["notes"] if "no subgroups" in note]
    assert told.startswith(
        "column born makes no subgroups, for it has 15 different values of 15 patients: put"
    )


@undrawn
@pytest.mark.parametrize("told", ["1 and 2 only", "numbers up to 3"])
def test_another_scale_in_the_same_numbers_is_told(clinic: Path, tmp_path: Path, told: str) -> None:
    """The model's own scale is tried first, and another centre's numbers may mean other things."""
    least = {"1 and 2 only": 3, "numbers up to 3": 2}[told]
    frame = pd.read_csv(clinic)
    frame["category"] = [max(1, int(grade[2]) - least) for grade in frame["category"]]
    data = clinic.with_name("numbers.csv")
    frame.to_csv(data, index=False)
    found, _ = evaluated(data, tmp_path, truth="pathology")
    assert sum(told in note for note in found.notes) == 1
    found, _ = evaluated(data, tmp_path, truth="pathology", grades=ultrasound.GRADES)
    assert not any(told in note for note in found.notes)


@undrawn
def test_spacing_of_some_images_only_is_told(clinic: Path, tmp_path: Path) -> None:
    _, record = evaluated(clinic, tmp_path, truth="pathology")
    images = {m["name"]: m["images"] for m in record["metrics"]}
    assert (images["hd95"], images["hd95_mm"]) == (30, 20)
    assert any(n.startswith("spacing is known of 20 of 30 outlined") for n in record["notes"])
    frame = pd.read_csv(tmp_path / "cases.csv")
    known = frame["hd95_mm"].notna()
    assert frame["hd95_mm"][known].to_numpy() == pytest.approx(0.5 * frame["hd95"][known])
    rows = list(csv.DictReader(io.StringIO(clinic.read_text())))
    write(clinic.with_name("unknown.csv"), [row | {"spacing": ""} for row in rows])
    _, record = evaluated(clinic.with_name("unknown.csv"), tmp_path, truth="pathology")
    assert "hd95_mm" not in {m["name"] for m in record["metrics"]}
    assert {size["unit"] for size in record["sizes"]} == {"px"}
    assert not any("spacing is known" in note for note in record["notes"])


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        (range(20240101, 20240110), ["20240101 to 20240103", "20240104 to 20240106",
                                     "20240107 to 20240109"]),
        ([*"1234567", "inf"], ["1 to 3", "4 to 5", "6 to 7"]),
        ([*"123456", "inf"], [*"123456", "inf"]),
    ],
)  # fmt: skip
def test_subgroups_of_numbers_are_told_apart(cells: Iterable[object], names: list[str]) -> None:
    """Dates have more digits than `g` shows; what is infinite has no third."""
    assert (
        evaluation_numbers._grouped(pd.Series([*map(str, cells)])).cat.categories.tolist() == names
    )


@undrawn
def test_descriptors_are_compared_with_the_datas(clinic: Path, tmp_path: Path) -> None:
    """A column of a manifest that is called as a descriptor is; terms are those of scikit-learn."""
    rows = list(csv.DictReader(io.StringIO(clinic.read_text())))
    said = ["Solid", "cystic", "mixed", "", "what?"]
    more = [row | {"composition": said[i // 3 % 5]} for i, row in enumerate(rows)]
    write(clinic.with_name("described.csv"), more)

    def model(inputs: Tensor) -> list[Any]:
        logits, risk = dark(inputs)
        terms = torch.stack([inputs.mean((1, 2, 3)) * k % 1 for k in range(7, 7 + TERMS)], 1)
        return [logits, Described(*risk, terms)]

    task = Thyroid(image_size=64, width=2, descriptors=1.0)
    trained = Trained(model, "model", FITTED)
    found = task.evaluate(trained, clinic.with_name("described.csv"), tmp_path)
    record = json.loads((tmp_path / "evaluation.json").read_text())
    [entry] = record["descriptors"]
    frame = pd.read_csv(tmp_path / "cases.csv").dropna(subset="composition, known")
    assert entry["images"] == len(frame) == 18
    own, known = frame["composition, said"], frame["composition, known"]
    assert entry["accuracy"]["value"] == pytest.approx((own == known).mean())
    assert entry["accuracy"]["low"] < entry["accuracy"]["value"] < entry["accuracy"]["high"]
    assert entry["kappa"]["value"] == pytest.approx(cohen_kappa_score(known, own))
    assert entry["most_frequent"] == pytest.approx(1 / 3)
    assert "are left out: composition 'what?'" in " ".join(record["notes"])
    assert any(table.title.startswith("Descriptors") for table in found.tables)
    assert "composition accuracy" in (tmp_path / "metrics.csv").read_text()


@undrawn
def test_where_the_truth_is_silent_nothing_is_judged(clinic: Path, tmp_path: Path) -> None:
    """Another reader's word is no pathology; nor is a cache read from when it was."""
    rows = list(csv.DictReader(io.StringIO(clinic.read_text())))
    some = [row for row in rows if int(row["age"]) < 12 or row["reader"] == rows[0]["reader"]]
    for row in some[:30]:
        row["mask"] = row["mask"] * (row["reader"] != "pathology")
    write(file := clinic.with_name("some.csv"), some)
    task = Thyroid(source="manifest", data=file)
    every = task.origin.load(file, lambda *_: None)
    both = (*evaluation_numbers.with_truth(every.cases, "pathology")[0], *every.cases[12:])
    kept = replace(every, cases=both, fingerprint=f"{every.fingerprint} truth pathology")
    prepare(task.with_consensus(kept), 64, cache_dir())
    _, record = evaluated(file, tmp_path, truth="pathology")
    said = "pathology; of 10 images, which it did not outline, the other readers' outline"
    assert (record["images"], record["outlined"], record["reference"]) == (12, 12, said)
    assert "18 images are left out: pathology says nothing of them" in record["notes"]


@undrawn
def test_without_a_truth_it_is_the_consensus(clinic: Path, tmp_path: Path) -> None:
    _, record = evaluated(clinic, tmp_path)
    assert record["reference"] == "consensus of readers (STAPLE, majority)"
    assert len(record["readers"]) == 3
    assert any("part of the consensus" in note for note in record["notes"])


@undrawn
def test_other_grades_are_reduced_to_low_and_high(clinic: Path, tmp_path: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(clinic.read_text())))
    for row in rows:
        row["category"] = "malignant" if row["category"] >= "TR4" else "benign"
    write(clinic.with_name("other.csv"), rows)
    both = []
    for data in (clinic, clinic.with_name("other.csv")):
        _, record = evaluated(data, tmp_path, truth="pathology")
        both.append({m["name"]: m["value"] for m in record["metrics"]})
    a, b = both
    said = "grades are reduced to low and high: high is malignant of the data's"
    assert record["notes"][0].startswith(said)
    assert "auroc" in a.keys() - b.keys()
    assert a["auroc_high"] == pytest.approx(b["auroc_high"])


@undrawn
def test_numbers_are_those_of_the_models_own_scale(clinic: Path, tmp_path: Path) -> None:
    """A file of 1 to 5 is TI-RADS where the model's grades are."""
    rows = list(csv.DictReader(io.StringIO(clinic.read_text())))
    for row in rows:
        row["category"] = row["category"].removeprefix("TR")
    write(clinic.with_name("plain.csv"), rows)
    _, record = evaluated(clinic.with_name("plain.csv"), tmp_path)
    assert record["grades"] == list(ultrasound.GRADES)
    assert record["high"] == "TR4"


def test_the_page_stands_alone(clinic: Path, tmp_path: Path) -> None:
    evaluated(clinic, tmp_path)
    page = (tmp_path / "index.html").read_text()
    assert page.count("<svg") == 7
    assert "Research use only" in page
    assert "http" not in page.replace("http://www.w3.org", "").replace("http-equiv", "")
    named = re.findall(r'<clipPath id="([^"]+)"', page)
    assert len(named) == len(set(named))  # one figure does not clip another
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(named)


def test_what_is_odd_or_absent_is_told(clinic: Path, tmp_path: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(clinic.read_text())))
    odd = [rows[0] | {"patient": "Jones, Ann"}, rows[1] | {"patient": "JONES ANN"}]
    absent = rows[3] | {"image": "smith.png"}
    write(clinic.with_name("odd.csv"), [*odd, absent, *rows[6:]])
    found, record = evaluated(clinic.with_name("odd.csv"), tmp_path)
    for what in ("looks odd is used", "1 cases or rows could not be used"):
        assert any(what in note for note in record["notes"])
    for what in ("the first problem: .*smith", "the first that looks odd: .*Jones"):
        assert any(re.match(what, note) for note in found.notes)  # on the terminal alone
    for name in ("index.html", "evaluation.json"):
        assert not re.search("jones|smith", (tmp_path / name).read_text(), re.IGNORECASE)
    write(clinic.with_name("gone.csv"), [row | {"image": f"no{row['image']}"} for row in rows])
    with pytest.raises(DataError, match=r"the first problem: .*no0.png: there is no such file"):
        evaluated(clinic.with_name("gone.csv"), tmp_path)


@undrawn
def test_what_the_model_may_have_seen_or_not_know_is_told(clinic: Path, tmp_path: Path) -> None:
    """Weights of another model have seen what it was trained on; another organ looks otherwise."""
    grids = [to_input(c.image, 64)[0] for c in phantom.load(size=30, readers=1).cases]
    known = np.array([features(grid, grid[0, :0]) for grid in grids])
    fitted = FITTED | {KEY: OutOfDistribution.fit(known, known).to_json()}
    task = Thyroid(image_size=64, width=2)
    found = task.evaluate(Trained(dark, "dark", fitted, init="abc"), clinic, tmp_path)
    assert any("started from another's weights" in note for note in found.notes)
    assert any(note.startswith("30 of 30 images do not look like") for note in found.notes)
    with (tmp_path / "cases.csv").open() as file:
        assert {row["unlike"] for row in csv.DictReader(file)} == {"True"}
    earlier = {"mean": [0.0] * 16, "precision": np.eye(16).tolist(), "limit": 1.0}
    before = FITTED | {"sight": earlier, "likeness": earlier}  # other statistics, by earlier code
    found = task.evaluate(Trained(dark, "dark", before), clinic, tmp_path)
    assert any(
        note.startswith("the model does not know what its training's") for note in found.notes
    )
    with (tmp_path / "cases.csv").open() as file:
        assert {row["unlike"] for row in csv.DictReader(file)} == {""}  # nobody knows
    of_its_kind = OutOfDistribution.of(fitted)
    assert of_its_kind is not None
    assert sum(of_its_kind.doubt(seen) is not None for seen in known) <= 1


@undrawn
def test_lesions_that_were_missed_are_told(clinic: Path, tmp_path: Path) -> None:
    """They have no size, so that the table of sizes is of the others."""

    def half(inputs: Tensor) -> list[Any]:
        logits, risk = dark(inputs)
        logits[::2] = -1
        return [logits, risk]

    found = Thyroid(image_size=64, width=2).evaluate(Trained(half, "", FITTED), clinic, tmp_path)
    record = json.loads((tmp_path / "evaluation.json").read_text())
    assert (record["outlined"], record["missed"]) == (30, 15)
    assert sum(s["images"] for s in record["sizes"] if s["axis"] == "long axis") == 15
    assert any(note.startswith("in 15 of 30 outlined images") for note in found.notes)


def test_images_of_one_kind_of_risk_have_no_curve(clinic: Path, tmp_path: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(clinic.read_text())))
    write(clinic.with_name("benign.csv"), [r for r in rows if r["category"] in ("TR1", "TR2")])
    _, record = evaluated(clinic.with_name("benign.csv"), tmp_path)
    assert any(note.startswith("all graded images are of low risk") for note in record["notes"])
    assert record["roc"] is record["calibration"] is record["decision"] is None
    assert record["operating"][0]["here"]["sensitivity"]["value"] is None


@pytest.mark.parametrize(("graded", "band"), [(2, False), (4, True)])
def test_few_graded_images_have_a_curve_and_a_band_only_where_nearly_all_draws_have_one(
    graded: int, band: bool, tmp_path: Path
) -> None:
    """Of 40 patients, a draw holds none of 2 graded ones in 13 % of cases, of 4 in 2 %."""
    positive = np.full(40, np.nan)
    positive[:graded] = np.arange(graded) % 2
    score = np.linspace(0, 1, 40)
    frame = pd.DataFrame(
        {
            "case": map(str, range(40)), "patient": map(str, range(40)), "positive": positive,
            "grade": np.nan_to_num(positive, nan=-1).astype(int), "said": 0, "score": score,
            "p[low]": 1 - score, "p[high]": score,
        }
    )  # fmt: skip
    nothing = pd.DataFrame(index=range(40))
    judged = evaluation_numbers.Judged(frame, nothing, ("low", "high"), pd.DataFrame(), {})
    about = {"models": [], "data": "", "reference": "", "high_risk": "", "notes": []}
    record = evaluation_numbers.judge(judged, [], None)
    evaluation_page.write(about | record, judged, tmp_path)
    assert np.isfinite(record["decision"]["model"]).all()
    assert (record["decision"]["low"] is not None) == band


def test_a_mirrored_look_is_the_mean_of_two(clinic: Path) -> None:
    inputs = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    trained = Trained(dark, "dark", {})
    plain, turned = Ensemble(trained, mirror=True)(inputs)
    logits, risk = dark(inputs.flip(-1))
    assert torch.equal(turned.logits, logits[:, 0].flip(-1))
    assert torch.equal(turned.chances, risk.logits.softmax(1))
    both = together([plain, turned])
    assert torch.allclose(both.chances, (plain.chances + turned.chances) / 2)
    assert together([plain]) is plain


# The command


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on phantoms."""
    out = tmp_path_factory.mktemp("run")
    words = ["mtbench", "run", "-m", "ew", "--cases", "20", *map(str, SMALL), "--out", str(out)]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as leaving:
            cli.main()
    assert leaving.value.code == 0
    [result] = out.rglob("result.json")
    return result.parent


def test_what_is_evaluated_is_what_predict_says(
    mtbench: Mtbench, run: Path, clinic: Path, tmp_path: Path
) -> None:
    assert mtbench("evaluate", run, "--data", clinic, "--out", tmp_path / "e")[0] == 0
    frame = pd.read_csv(tmp_path / "e" / "cases.csv").set_index("case")
    names = [clinic.parent / f"{i}.png" for i in (0, 3)]
    line = ("--views", "whole", "--report", "none", "--out", tmp_path / "p")
    assert mtbench("predict", run, *names, *line)[0] == 0
    for record in json.loads((tmp_path / "p" / "predictions.json").read_text()):
        [view] = record["views"]
        row = frame.loc[Path(record["image"]).name]
        for grade, chance in view["probabilities"].items():
            assert row[f"p[{grade}]"] == pytest.approx(chance, abs=1e-4)


@undrawn
def test_the_mask_that_is_judged_is_the_one_that_predict_writes(
    clinic: Path, tmp_path: Path
) -> None:
    """Without small regions, in the table of readers too."""

    def specked(inputs: Tensor) -> list[Any]:
        logits, risk = dark(inputs)
        logits[:, 0, 10:15, 2:7] = 9
        return [logits, risk]

    task, records = Thyroid(image_size=64, width=2), []
    for model in (dark, specked):
        task.evaluate(Trained(model, "", FITTED), clinic, tmp_path, truth="pathology")
        records.append(json.loads((tmp_path / "evaluation.json").read_text()))
    assert records[0] == records[1]
    [dice, *_] = pd.read_csv(tmp_path / "cases.csv")["dice"]
    image = clinic.with_name("0.png")
    task.predict(Trained(specked, "", {}), image, tmp_path / "0", report="none")
    written, drawn = (
        torch.from_numpy(np.array(Image.open(file)) > 0)
        for file in (tmp_path / "0_mask.png", clinic.with_name("0_mask.png"))
    )
    assert overlap(written, drawn)[0] == pytest.approx(dice, abs=1e-5)


def test_names_of_another_centre_cannot_act_on_a_terminal_or_a_spreadsheet(
    mtbench: Mtbench, run: Path, clinic: Path, tmp_path: Path
) -> None:
    data = clinic.with_name("evil.csv")
    data.write_text(clinic.read_text().replace(",A,", ",=1 \x1b[2J a long name,"))
    code, printed, _ = mtbench("evaluate", run, "--data", data, "--out", tmp_path)
    assert code == 0
    assert "\x1b" not in printed
    assert "…" not in printed  # nor are they cut
    for name in ("cases.csv", "metrics.csv"):
        lines = (tmp_path / name).read_text().splitlines()
        cells = [cell for row in csv.reader(lines) for cell in row]
        assert any("=1 " in cell for cell in cells)
        assert not any(cell.startswith("=") for cell in cells)


def test_its_own_test_part_is_what_is_left_of_its_own_data(
    mtbench: Mtbench, run: Path, tmp_path: Path
) -> None:
    line = ("evaluate", run, "--source", "phantom", "--out", tmp_path)
    code, said, _ = mtbench(*line)
    assert code == 0
    assert "20 images are left out" in said
    result = json.loads((run / "result.json").read_text())
    assert json.loads((tmp_path / "evaluation.json").read_text())["images"] == 20
    test = json.loads((run / "test.json").read_text())["metrics"]
    metrics = json.loads((tmp_path / "evaluation.json").read_text())["metrics"]
    found = {m["name"]: m["value"] for m in metrics}
    assert result["notes"]["images"][2] == 20
    for name in ("dice", "hd95_mm", "auroc_high", "balanced_accuracy"):
        assert found[name] == pytest.approx(test[name], abs=1e-5)


def test_mistakes_are_one_line(mtbench: Mtbench, run: Path, clinic: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path)
    data = ("--data", clinic)
    for line, said in (
        ((run, *out), "source manifest needs --data PATH"),
        ((run, *data, *out, "--by", "hospital"), "--by hospital: the data has no such column"),
        ((run, *data, *out, "--high", "TR2"), "--high TR2: leave it out: the data's grades are"),
        ((run, *data, *out, "--source", "phantom"), "--data: source phantom makes its own data"),
        ((run, *data, *out, "--source", "mine"), "there is no source 'mine'"),
        ((run, *data, *out, "--colour", "red"), "evaluate has no option --colour"),
        ((run, *data, *out, "--plugins", "x"), "no option --plugins: did you mean '--plugin'?"),
        ((tmp_path, *data, *out), "no run directory"),
        ((tmp_path / "absent", *data, *out), "absent: no such folder: give a finished run"),
    ):
        refused(mtbench("evaluate", *line), said)


def test_a_task_that_cannot(mtbench: Mtbench, tmp_path: Path) -> None:
    line = ("run", "--task", "quadratic", "-m", "ew", "--epochs", 1, "--out", tmp_path / "runs")
    assert mtbench(*line)[0] == 0
    [result] = (tmp_path / "runs").rglob("result.json")
    said = "task quadratic does not evaluate on other data"
    refused(mtbench("evaluate", result.parent, "--out", tmp_path / "e"), said)
