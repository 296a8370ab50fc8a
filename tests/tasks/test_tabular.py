"""The tasks on tables: what is read, what is left out, what is measured, runs to the end."""

import csv
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from mtbench.errors import DataError, UsageError
from mtbench.testing import TaskContract
from mtbench.training.task import Batch, Splits, Task
from mtbench_tasks import _tabular as tabular
from mtbench_tasks._folds import FOLDS, divide
from mtbench_tasks.adult import COLUMNS, Adult
from mtbench_tasks.digits import Digits
from mtbench_tasks.multitarget import KNOWN, Multitarget, load
from mtbench_tasks.parkinsons import INPUTS, Parkinsons
from tests.refusals import refused

Mtbench = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("MTBENCH_DATA", ROOT.parent / "shared" / "data")) / "tabular"


def setup(task: Task, seed: int = 0) -> Splits:
    return task.setup(seed, lambda *_: None)


def whole(splits: Splits, part: str = "train") -> Batch:
    split = getattr(splits, part)
    batch: Batch = split.batch(torch.arange(len(split)))
    return batch


# --- small files in the published formats --------------------------------------------------------


def person(rng: np.random.Generator, **fixed: object) -> dict[str, object]:
    row = {
        name: int(rng.integers(1, 60)) if values is None else str(rng.choice(values))
        for name, values in COLUMNS.items()
    }
    return row | fixed


def adult_line(row: dict[str, object], stop: str = "") -> str:
    return ", ".join(str(row[name]) for name in COLUMNS) + stop


def write_adult(folder: Path, train: int = 80, test: int = 40) -> Path:
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    lines = [adult_line(person(rng)) for _ in range(train)]
    (folder / "adult.data").write_text("\n".join(lines) + "\n\n")
    lines = ["|1x3 Cross validator", *(adult_line(person(rng), ".") for _ in range(test))]
    (folder / "adult.test").write_text("\n".join(lines) + "\n")
    return folder


PARKINSONS = ["subject#", *INPUTS[:3], "motor_UPDRS", "total_UPDRS", *INPUTS[3:]]


def write_parkinsons(folder: Path, subjects: int = 24, each: int = 5) -> Path:
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    lines = [",".join(PARKINSONS)]
    for subject in range(1, subjects + 1):
        for _ in range(each):
            cells = [str(subject), *(f"{x:.5g}" for x in rng.uniform(0, 50, 21))]
            lines.append(",".join(cells))
    (folder / "parkinsons_updrs.data").write_text("\n".join(lines))
    return folder


def write_arff(folder: Path, name: str = "slump.arff", rows: int = 60) -> Path:
    """A known name with three targets, a nominal input, missing values, quotes, comments."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    head = """% a comment
@relation 'made up'
@attribute "'water'" numeric
@attribute 'the kind' {A, 'B c', D}
@attribute SP REAL
@attribute SLUMP numeric
@attribute FLOW numeric
@ATTRIBUTE Strength numeric
@DATA
% another
"""
    body = []
    for i in range(rows):
        water, sp = rng.normal(size=2)
        kind = ["A", "'B c'", "D"][i % 3]
        flow = "?" if i % 4 == 0 else f"{water - sp:.4f}"
        body.append(f"{water:.4f}, {kind}, {sp:.4f}, {water:.4f}, {flow}, {i % 3}")
    path = folder / name
    path.write_text(head + "\n".join(body) + "\n")
    return path


def write_csv(path: Path, rows: int = 60, header: str = "patient,colour,x1,x2,a,b") -> Path:
    rng = np.random.default_rng(0)
    lines = [header]
    for i in range(rows):
        x = rng.normal(size=2)
        lines.append(f"P{i // 2},{'red' if i % 2 else 'blue'},{x[0]:.3f},{x[1]:.3f},{x[0]:.3f},{i}")
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tables")
    write_adult(made)
    write_parkinsons(made)
    write_arff(made)
    return made


# --- the contract, and every task to a finished record -------------------------------------------


@pytest.fixture(scope="module")
def makers(folder: Path) -> dict[str, Callable[[], Task]]:
    write_learnable_adult(folder / "learnable")
    return {
        "adult": partial(Adult, data=folder / "learnable", width=16),
        "multitarget": partial(Multitarget, data=folder / "slump.arff", width=16),
        "parkinsons": partial(Parkinsons, data=folder, width=16),
    }


Makers = dict[str, Callable[[], Task]]


class TestAdultContract(TaskContract):
    @pytest.fixture
    def make(self, makers: Makers) -> Callable[[], Task]:
        return makers["adult"]


class TestMultitargetContract(TaskContract):
    @pytest.fixture
    def make(self, makers: Makers) -> Callable[[], Task]:
        return makers["multitarget"]


class TestParkinsonsContract(TaskContract):
    @pytest.fixture
    def make(self, makers: Makers) -> Callable[[], Task]:
        return makers["parkinsons"]


def write_learnable_adult(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(1)
    for name, count in (("adult.data", 200), ("adult.test", 60)):
        lines = []
        for _ in range(count):
            sex, race, work = rng.integers(0, 2, 3)
            facts = {
                "sex": ("Female", "Male")[sex],
                "income": ("<=50K", ">50K")[sex],
                "race": ("White", "Black")[race],
                "marital-status": ("Never-married", "Divorced")[race],
                "occupation": ("Sales", "Tech-support")[work],
                "education": ("10th", "Masters")[work],
            }
            lines.append(adult_line(person(rng, **facts)))
        (folder / name).write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("task", "file", "objectives"),
    [
        ("adult", "", ["income", "marital", "college"]),
        ("parkinsons", "", ["motor", "total"]),
        ("multitarget", "slump.arff", ["SLUMP", "FLOW", "Strength"]),
    ],
)
def test_runs_to_a_finished_record(
    folder: Path, tmp_path: Path, mtbench: Mtbench, task: str, file: str, objectives: list[str]
) -> None:
    methods = ["ew", "uw", "cagrad", "rlar"]
    words = [word for method in methods for word in ("--method", method)]
    code, _, err = mtbench(
        "run", "--task", task, *words, "--data", folder / file, "--epochs", "2",
        "--threads", "1", "--out", tmp_path,
    )  # fmt: skip
    assert code == 0, err
    for method in methods:
        (run,) = (tmp_path / task / method).glob("*/result.json")
        result = json.loads(run.read_text())
        assert result["status"] == "finished"
        assert {metric["objective"] for metric in result["metrics"].values()} == set(objectives)
        epoch = json.loads((run.parent / "epochs.jsonl").read_text().splitlines()[-1])
        assert list(epoch["train_loss"]) == objectives
        assert all(map(math.isfinite, epoch["val_loss"].values()))
    code, text, err = mtbench("leaderboard", tmp_path, "--format", "csv")
    assert code == 0, err
    for name in objectives:
        assert name in text


def test_a_record_tells_the_targets_of_its_file(
    folder: Path, tmp_path: Path, mtbench: Mtbench
) -> None:
    code, _, err = mtbench(
        "run", "--task", "multitarget", "--method", "ew", "--data", folder / "slump.arff",
        "--targets", "FLOW,SLUMP", "--epochs", "1", "--threads", "1", "--out", tmp_path,
    )  # fmt: skip
    assert code == 0, err
    (spec,) = tmp_path.glob("multitarget/ew/*/spec.json")
    recorded = json.loads(spec.read_text())["task_params"]
    assert recorded["targets"] == ["FLOW", "SLUMP"]
    assert recorded["data"] is None
    assert Multitarget(targets=("FLOW", "SLUMP")).objectives == ("FLOW", "SLUMP")


# --- reading rows --------------------------------------------------------------------------------

COLUMNS_3: tabular.Columns = {"x": None, "kind": ("a", "b"), "y": None}


def read(text: str, *, strict: bool = False) -> tabular.Table:
    return tabular.read_rows(Path("f.csv"), text.splitlines(), COLUMNS_3, first=2, strict=strict)


def test_rows_are_read_as_numbers() -> None:
    table = read('1.5, b, -2e3\n\n?,a,\n" 3","b",NaN\n')
    np.testing.assert_array_equal(
        table.values, [[1.5, 1, -2000], [np.nan, 0, np.nan], [3, 1, np.nan]]
    )
    assert table.broken == ()
    encoded, indicator = table.encode(["kind", "x"])
    np.testing.assert_array_equal(encoded, [[0, 1, 1.5], [1, 0, np.nan], [0, 1, 3]])
    assert indicator.tolist() == [True, True, False]


def test_a_number_may_be_missing_in_many_words() -> None:
    assert np.isnan(read("n/a,a,-\n1,b,NULL\n").values).tolist() == [
        [True, False, True],
        [False, False, True],
    ]
    assert read("1,-,2\n1,a,2\n").broken == ((2, "kind: '-' is none of its values"),)


def test_a_run_says_why_rows_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "f.csv"
    file.write_text("a,b\n" + "".join(f"{i},{i}\n" for i in range(40)) + "1,one\n")
    notes = setup(Multitarget(data=file, targets=("b",))).notes
    assert notes["left_out"] == 1
    assert notes["because"] == "line 42: b: 'one' is no number"


def column(*parts: tuple[float, int], seed: int = 0) -> np.ndarray:
    """Two hundred draws from 20 to 90, and so many of each number."""
    drawn = np.random.default_rng(seed).integers(20, 91, 200).astype(float)
    return np.concatenate([drawn, *(np.full(count, value) for value, count in parts)])


@pytest.mark.parametrize("value", [-999.0, -9999.0, -99.9, -9.0, 999.0, 9999.0])
def test_a_number_that_stands_for_a_missing_one_is_found(value: float) -> None:
    assert tabular.stand_ins(column((value, 3))) == [(value, 3, 20.0, 90.0)]
    assert not tabular.stand_ins(column((value, 2)))  # twice may be chance
    gaps = np.append(column((value, 3)), [np.nan] * 5)
    assert len(tabular.stand_ins(gaps)) == 1


def test_numbers_that_stand_for_missing_ones_do_not_hide_one_another() -> None:
    found = tabular.stand_ins(column((-999.0, 4), (-9999.0, 5), (999.0, 6)))
    assert [(value, count) for value, count, *_ in found] == [(-9999, 5), (-999, 4), (999, 6)]
    assert tabular.stand_ins(np.array([0.0, 1.0] * 9 + [-999.0] * 3))  # the others may be labels
    lab = np.append(np.random.default_rng(0).gamma(2.0, 1.0, 100), [-1.0] * 3)
    assert tabular.stand_ins(lab)  # the only one below 0, beside fractions
    pulse = column() + 100
    assert tabular.stand_ins(np.append(pulse, [-1.0] * 3)) == [(-1.0, 3, 120.0, 190.0)]


@pytest.mark.parametrize(
    "values",
    [
        np.repeat([-1.0, 0.0, 1.0], 50),  # a sentiment
        np.repeat([-1.0, 1.0], 50),
        np.repeat([-1.0, 0.0, 0.5, 1.0], 50),
        np.repeat(np.arange(-1.0, 15.0), 9),  # a score
        np.repeat(np.arange(-9.0, 10.0), 9),  # a change
        np.repeat(np.arange(1.0, 100.0), 3),  # an age, a percentage
        np.repeat([19.0, 49.0, 99.0, 199.0, 499.0, 999.0], 9),  # prices
        np.repeat([4.99, 9.99, 99.99], 9),
        np.minimum(np.random.default_rng(0).normal(900, 80, 500).round(), 999),  # a gauge's end
        np.clip(np.random.default_rng(0).normal(0, 1, 500), -1, 1),
        np.random.default_rng(0).normal(-90, 60, 5000).round(),
        np.floor(np.random.default_rng(0).pareto(1, 20000) * 9),
        np.repeat([999.0, 9999.0], 9),  # nothing else to compare with
        np.full(9, math.nan),
    ],
)
def test_ordinary_numbers_are_no_doubt(values: np.ndarray) -> None:
    assert tabular.stand_ins(values) == []


@given(st.data())
def test_what_lies_among_the_others_is_no_doubt(data: st.DataObject) -> None:
    value = data.draw(st.sampled_from([-999.0, -99.0, -1.0, 999.0, 9999.0]))
    rest = data.draw(st.lists(st.integers(-(10**6), 10**6), min_size=2).map(np.array))
    spread = np.append(rest, [value - 1, value + 1.5])  # one on either side
    assert not [v for v, *_ in tabular.stand_ins(np.append(spread, [value] * 5)) if v == value]


def test_doubtful_numbers_are_told_and_used(tmp_path: Path, mtbench: Mtbench) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "lab.csv"
    lines = [
        f"{rng.integers(20, 90)},{-999 if i % 9 == 0 else rng.gamma(2):.2f},7" for i in range(90)
    ]
    path.write_text("age,tsh,same\n" + "\n".join(lines))
    data = ("--task", "multitarget", "--data", path)
    code, text, err = mtbench("data", "inspect", "multitarget", *data)
    assert (code, err) == (0, "")
    told = " ".join(text.replace("│", " ").split())
    assert "10 values look odd" in told
    assert "tsh: -999 lies outside" in told
    assert "1 columns of one number, or none same" in told
    splits = setup(Multitarget(data=path, targets=("tsh", "same")))
    assert "tsh: -999 lies outside of all others" in splits.notes["looks odd"]
    assert "leave these cells empty (10 rows)" in splits.notes["looks odd"]
    assert "same: is 7 in all training rows: nothing to learn" in splits.notes["looks odd"]
    assert float(whole(splits)["tsh"].min()) < -1  # used all the same
    path.write_text(path.read_text().replace("-999.00", "").replace(",7", ",7.5", 5))
    assert "looks odd" not in setup(Multitarget(data=path, targets=("tsh",))).notes


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("1,a", "2 fields, expected 3"),
        ("1,a,2,3", "4 fields, expected 3"),
        ("one,a,2", "x: 'one' is no number"),
        ("1_0,a,2", "x: '1_0' is no number"),
        ("1,c,2", "kind: 'c' is none of its values"),
        ("1,a,inf", "y: 'inf' is not finite"),
        ("1,a,1e999", "y: '1e999' is not finite"),
        ("1,a,-1e39", "y: '-1e39' is above 3.4e+38"),
    ],
)
def test_broken_rows_are_left_out_and_counted(line: str, reason: str) -> None:
    text = f"1,a,2\n{line}\n3,b,4\n"
    table = read(text)
    assert table.values[:, 0].tolist() == [1, 3]
    assert table.broken == ((3, reason),)
    assert ("1", "rows left out", f"the first: line 3: {reason}") in table.report()
    with pytest.raises(DataError, match=r"f\.csv, line 3: .*\(strict\)"):
        read(text, strict=True)


def test_a_table_without_a_good_row_is_an_error() -> None:
    with pytest.raises(DataError, match=r"no row that can be used, 2 broken .* line 2: 1 fields"):
        read("x\ny\n")
    with pytest.raises(DataError, match="0 broken"):
        read("\n")


def test_a_field_over_the_reader_s_limit(tmp_path: Path) -> None:
    limit = csv.field_size_limit(1000)
    try:
        (tmp_path / "long.csv").write_text("a" * 2000 + ",b\n1,2\n")
        with pytest.raises(DataError, match=r"is no header \(field larger than field limit"):
            Multitarget(data=tmp_path / "long.csv", targets=("b",))
        table = read("1,a,2\n" + "1" * 2000 + ",a,2\n")
        assert table.broken == ((3, "field larger than field limit (1000)"),)
    finally:
        csv.field_size_limit(limit)


# --- splits and scaling --------------------------------------------------------------------------


@settings(max_examples=20)
@given(st.lists(st.integers(0, 60), min_size=40, max_size=200), st.integers(0, 2**31))
def test_groups_lie_in_one_split(groups: list[int], seed: int) -> None:
    if len(set(groups)) < tabular.LEAST:
        with pytest.raises(DataError, match="too few"):
            tabular.split_groups(Path("f"), groups, 0, seed)
        return
    parts = tabular.split_groups(Path("f"), groups, 0, seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(groups)))
    names = [{groups[i] for i in part} for part in parts]
    assert all(names)
    assert sum(map(len, names)) == len(set(groups))
    for found, share in zip(names, (0.64, 0.16, 0.2), strict=True):
        assert abs(len(found) - share * len(set(groups))) < 2


@settings(max_examples=20)
@given(st.integers(20, 300), st.integers(0, 2**31))
def test_each_group_is_tested_in_one_fold_at_every_seed(count: int, seed: int) -> None:
    folds = [divide(count, fold, seed) for fold in range(FOLDS)]
    tested = np.concatenate([test for _, _, test in folds])
    assert sorted(tested.tolist()) == list(range(count))
    for fold, (train, val, test) in enumerate(folds):
        assert sorted([*train, *val, *test]) == list(range(count))
        other = divide(count, fold, seed + 1)
        assert np.array_equal(test, other[2])
        assert not np.array_equal(train, other[0])


def test_tables_and_digits_refuse_a_sixth_fold(folder: Path) -> None:
    for make in (
        partial(Parkinsons, data=folder), partial(Multitarget, data=folder / "slump.arff"), Digits,
    ):  # fmt: skip
        for fold in (-1, 5):
            with pytest.raises(UsageError, match=f"fold must be 0 to 4, found {fold}"):
                make(fold=fold)


def test_a_tables_test_rows_are_those_of_its_fold(folder: Path) -> None:
    def tested(task: Task, seed: int) -> set[float]:
        test = setup(task, seed).test
        return set(test.groups() or ())

    tasks = [Parkinsons(data=folder, fold=fold) for fold in range(FOLDS)]
    subjects = [tested(task, 0) for task in tasks]
    assert sum(map(len, subjects)) == len(set.union(*subjects)) == 24
    assert [tested(task, 1) for task in tasks] == subjects


def test_scaling_is_fitted_on_training_rows_only() -> None:
    path, columns = Path("f"), dict.fromkeys(["x", "y"])
    values = np.random.default_rng(0).normal(3, 2, (80, 2))
    values[5, 0] = np.nan

    def split(values: np.ndarray) -> Splits:
        table = tabular.Table(columns, values, ())
        return tabular.regression_splits(path, table, ["x"], {"target": "y"}, None, 0, 7)

    train = whole(split(values))
    for name in ("inputs", "target"):
        assert float(train[name].mean()) == pytest.approx(0, abs=1e-5)
        assert float(train[name].std(correction=0)) == pytest.approx(1, abs=0.02)
    rows = tabular.split_groups(path, np.arange(80), 0, 7)
    changed = values.copy()
    changed[np.concatenate(rows[1:])] *= 1000
    again = whole(split(changed))
    assert all(torch.equal(train[name], again[name]) for name in train)
    assert not torch.equal(
        whole(split(values), "test")["inputs"], whole(split(changed), "test")["inputs"]
    )


def test_columns_without_a_spread_or_a_value_are_harmless() -> None:
    values = np.column_stack([np.ones(60), np.full(60, np.nan), np.arange(60.0), np.full(60, 4.0)])
    table = tabular.Table(dict.fromkeys(["one", "none", "y", "four"]), values, ())
    splits = tabular.regression_splits(
        Path("f"), table, ["one", "none"], {"y": "y", "z": "four"}, None, 0, 0
    )
    batch = whole(splits)
    assert torch.equal(batch["inputs"], torch.zeros(38, 2))
    assert torch.equal(batch["z"], torch.zeros(38))
    with pytest.raises(DataError, match="'none' has no value"):
        tabular.regression_splits(Path("f"), table, ["one"], {"y": "none"}, None, 0, 0)


# --- losses and metrics --------------------------------------------------------------------------


def test_regression_metrics_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    z, predicted, scale = rng.normal(size=50), rng.normal(size=50), 7.0
    meter = tabular.RegressionMeter(["y"])
    for rows in (slice(0, 20), slice(20, 50)):
        meter.update(
            [torch.from_numpy(predicted[rows])],
            {"y": torch.from_numpy(z[rows]), tabular.SCALE: torch.full((len(z[rows]), 1), scale)},
        )
    found = meter.compute()
    y, y_predicted = 100 + scale * z, 100 + scale * predicted
    assert found["rmse_y"] == pytest.approx(root_mean_squared_error(y, y_predicted))
    assert found["mae_y"] == pytest.approx(mean_absolute_error(y, y_predicted))
    assert found["r2_y"] == pytest.approx(r2_score(y, y_predicted))
    constant = np.full(50, 100.0)  # the training mean
    ratio = root_mean_squared_error(y, y_predicted) / root_mean_squared_error(y, constant)
    assert found["rrmse_y"] == pytest.approx(ratio)


def test_the_training_mean_has_rrmse_one(folder: Path) -> None:
    task = Multitarget(data=folder / "slump.arff")
    for part in ("train", "test"):
        batch = whole(setup(task), part)
        meter = task.meter()
        meter.update([torch.zeros(len(batch["inputs"]))] * 3, batch)
        found = meter.compute()
        for name in task.objectives:
            assert found[f"rrmse_{name}"] == pytest.approx(1)
            assert task.metrics[f"rrmse_{name}"].chance == 1


def test_a_missing_target_trains_the_others(folder: Path) -> None:
    task = Multitarget(data=folder / "slump.arff")
    batch = whole(setup(task))
    assert 0 < batch["FLOW"].isnan().sum() < len(batch["FLOW"])
    outputs = [torch.ones(len(batch["FLOW"]), requires_grad=True) for _ in range(3)]
    losses = task.losses(outputs, batch)
    flow = batch["FLOW"][~batch["FLOW"].isnan()]
    assert losses[1].item() == pytest.approx(float((1 - flow).square().mean()))
    losses[1].backward()  # type: ignore[no-untyped-call]
    assert outputs[1].grad is not None
    assert torch.equal(outputs[1].grad != 0, ~batch["FLOW"].isnan())


# --- adult ---------------------------------------------------------------------------------------


def adult(folder: Path, rows: list[dict[str, object]]) -> Batch:
    folder.mkdir()
    (folder / "adult-train.csv").write_text("\n".join(map(adult_line, rows)))
    (folder / "adult-test.csv").write_text("\n".join(adult_line(row, ".") for row in rows))
    return whole(setup(Adult(data=folder)), "test")


def test_adult_labels_by_hand(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [person(rng) for _ in range(20)]
    first = {"marital-status": "Never-married", "education": "Some-college", "income": ">50K"}
    second = {"marital-status": "Widowed", "education": "HS-grad", "income": "<=50K"}
    third = {"marital-status": "?", "education": "Doctorate", "income": "<=50K"}
    batch = adult(tmp_path / "a", [rows[0] | first, rows[1] | second, rows[2] | third, *rows[3:]])
    assert [batch[name][:2].tolist() for name in Adult.objectives] == [[1, 0]] * 3
    assert math.isnan(batch["marital"][2])
    assert batch["college"][2] == 1


def test_adult_labels_and_their_copies_are_no_inputs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [person(rng) for _ in range(20)]
    plain = adult(tmp_path / "a", rows)["inputs"]
    hidden = {
        "fnlwgt": 1, "education": "Doctorate", "education-num": 16, "income": ">50K",
        "marital-status": "Never-married", "relationship": "Own-child",
    }  # fmt: skip
    assert torch.equal(adult(tmp_path / "b", [row | hidden for row in rows])["inputs"], plain)
    seen = adult(tmp_path / "c", [row | {"sex": "Male"} for row in rows])["inputs"]
    assert not torch.equal(seen, plain)


def test_adult_takes_both_names_and_keeps_the_published_test(folder: Path, tmp_path: Path) -> None:
    splits = setup(Adult(data=folder))
    assert [len(s) for s in (splits.train, splits.val, splits.test)] == [68, 12, 40]
    for old, new in (("adult.data", "adult-train.csv"), ("adult.test", "adult-test.csv")):
        (tmp_path / new).write_bytes((folder / old).read_bytes())
    other = setup(Adult(data=tmp_path), seed=5)
    assert other.fingerprint == splits.fingerprint
    assert torch.equal(whole(splits, "test")["income"], whole(other, "test")["income"])
    assert not torch.equal(whole(splits)["income"], whole(other)["income"])
    assert Adult().model()(whole(splits)["inputs"])[2].shape == (68,)


def test_few_rows_of_adult_are_refused_in_a_run_and_before(
    tmp_path: Path, mtbench: Mtbench
) -> None:
    data = ("--data", write_adult(tmp_path / "a", train=2))
    for line in (
        ("run", "--task", "adult", "-m", "ew"),
        ("data", "inspect", "adult", "--task", "adult"),
    ):
        refused(mtbench(*line, *data), "2 training rows are too few to be split")


def test_adult_metrics_are_undefined_with_one_class() -> None:
    meter = Adult().meter()
    here = torch.tensor([1.0, 1.0, torch.nan])
    both = torch.tensor([1.0, 0.0, 1.0])
    logits = torch.tensor([0.5, -0.5, 0.2])
    meter.update([logits] * 3, {"income": here, "marital": both, "college": here * torch.nan})
    found = meter.compute()
    assert math.isnan(found["auroc_income"])
    assert found["accuracy_income"] == 0.5
    assert found["auroc_marital"] == found["accuracy_marital"] == 1
    assert math.isnan(found["accuracy_college"])
    assert found.keys() == Adult.metrics.keys()


# --- multitarget ---------------------------------------------------------------------------------


def test_arff_is_read_as_it_says(folder: Path) -> None:
    task = Multitarget(data=folder / "slump.arff")
    assert task.objectives == ("SLUMP", "FLOW", "Strength")
    assert task.inputs == ["water", "the kind", "SP"]
    assert task.table.columns["the kind"] == ("A", "B c", "D")
    assert np.isnan(task.table["FLOW"]).sum() == 15
    assert whole(setup(task))["inputs"].shape == (38, 5)
    assert task.model()(torch.zeros(2, 5))[0].shape == (2,)


def test_csv_text_is_nominal_and_groups_stay_together(tmp_path: Path) -> None:
    task = Multitarget(data=write_csv(tmp_path / "t.csv"), targets=("a", "b"), group="patient")
    assert task.inputs == ["colour", "x1", "x2"]
    assert task.table.columns["colour"] == ("blue", "red")
    splits = setup(task)
    groups = [set(split.groups() or ()) for split in (splits.train, splits.val, splits.test)]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 30
    assert splits.notes["groups"] == [19, 5, 6]


def test_bands_are_no_numbers(tmp_path: Path) -> None:
    """Python's float takes 10_14 as 1014."""
    (file := tmp_path / "t.csv").write_text("age,x,y\n0_4,1,2\n5_9,2,3\n10_14,3,4\n")
    assert load(file, group=None, strict=True).columns["age"] == ("0_4", "10_14", "5_9")


def test_a_group_that_is_spelt_in_two_ways_is_one(tmp_path: Path) -> None:
    """Else a patient would train and be tested."""
    rows = [f"{'Pp'[i % 2]}{i // 2:02d},{i},{i % 7}" for i in range(80)]
    (data := tmp_path / "t.csv").write_text("\n".join(["patient,x,y", *rows]))
    splits = setup(Multitarget(data=data, targets=("y",), group="patient"))
    for split in (splits.train, splits.val, splits.test):
        assert set(Counter(split.groups()).values()) == {2}
    assert sum(splits.notes["groups"]) == 40
    assert "patient 'p00' and 'P00' are spelt alike: they count as one" in splits.notes["looks odd"]
    shown = {what: count for count, what, _ in Multitarget.inspect("multitarget", data,
             targets=("y",), group="patient")}  # fmt: skip
    assert shown["groups"] == "40"


def test_every_known_name_has_two_targets_or_more() -> None:
    assert min(KNOWN.values()) >= 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "task multitarget needs --data PATH"),
        (["--data", "t.csv"], "say which columns are the targets, as in --targets b"),
        (["--data", "t.csv", "--targets", "a,bb"], "has no target 'bb': "),
        (["--data", "t.csv", "--targets", "a", "--group", "patien"], "did you mean 'patient'?"),
        (["--data", "t.csv", "--targets", "a,a"], "one or more different columns, found a,a"),
        (["--data", "t.csv", "--targets", "colour"], "target 'colour' is nominal"),
        (["--data", "t.csv", "--targets", "patient,colour,x1,x2,a,b"], "no column is left"),
        (["--data", "t.csv", "--targets", "a", "--width", "1"], "width must be at least 2"),
        (["--data", "t.csv", "--targets", "a", "--dropout", "1"], "dropout must be"),
        (["--data", "absent.csv"], "absent.csv: cannot be read (No such file or directory)"),
        (["--data", "."], "cannot be read (Is a directory)"),
        (["--data", "empty.csv"], "is empty"),
        (["--data", "binary.csv"], "is not UTF-8): save a table as UTF-8"),
        (["--data", "other.txt"], "must be an .arff file, or a .csv file"),
        (["--data", "semicolon.csv"], "divided by commas, found 'a;b': save it so, with points in"),
        (["--data", "blank.csv"], "columns, divided by commas, found ''"),
        (["--data", "twice.csv"], "two columns are called 'x'"),
        (["--data", "nameless.csv"], "column 2 has no name"),
        (["--data", "short.csv", "--targets", "a"], "5 rows or groups are too few"),
        (["--data", "names.csv", "--targets", "a"], "column 'patient' holds 150"),
        (["--data", "broken.csv", "--targets", "a", "--strict", "1"], "line 4: x1: 'oops' is no"),
        (["--data", "reserved.csv", "--targets", "groups"], "no target can be called 'groups'"),
        (["--data", "noheader.arff"], "it has no line @data"),
        (["--data", "bad.arff"], "its ARFF header cannot be read"),
        (["--data", "date.arff"], "is a date; remove it"),
        (["--data", "sparse.arff", "--targets", "y"], "no row that can be used, 2 broken ones"),
    ],
)  # fmt: skip
def test_refusals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mtbench: Mtbench, words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_csv(Path("t.csv"))
    write_csv(Path("short.csv"), 5)
    write_csv(Path("names.csv"), 300)
    lines = write_csv(Path("broken.csv")).read_text().splitlines()
    lines[3] = "P1,red,oops,1,2,3"
    Path("broken.csv").write_text("\n".join(lines))
    write_csv(Path("reserved.csv"), header="patient,colour,x1,x2,a,groups")
    arff = "@relation r\n@attribute x numeric\n@attribute y {}\n@data\n{{0 1}}\n{{1 2}}\n"
    files = {
        "empty.csv": b"\n \n", "binary.csv": b"\xff\xfe\x00a", "other.txt": b"a,b\n1,2\n",
        "semicolon.csv": b"a;b\n1;2\n", "twice.csv": b"x,x\n1,2\n", "nameless.csv": b"x,,y\n",
        "blank.csv": b"\na,b\n1,2\n",
        "noheader.arff": b"1,2\n", "bad.arff": arff.format("nonsense").encode(),
        "date.arff": arff.format('DATE "yyyy-MM-dd"').encode(),
        "sparse.arff": arff.format("numeric").encode(),
    }  # fmt: skip
    for name, content in files.items():
        Path(name).write_bytes(content)
    refused(
        mtbench("run", "--task", "multitarget", "--method", "ew", "--out", "runs", *words), said
    )


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("adult", "holds neither adult-train.csv nor adult.data"),
        ("parkinsons", "parkinsons_updrs.data: cannot be read"),
    ],
)
def test_refusals_without_the_published_files(
    tmp_path: Path, mtbench: Mtbench, task: str, said: str
) -> None:
    run = ["run", "--task", task, "--method", "ew", "--out", tmp_path / "runs"]
    refused(mtbench(*run), f"task {task} needs --data PATH")
    refused(mtbench(*run, "--data", tmp_path), said)
    refused(
        mtbench("data", "inspect", "other", "--task", task, "--data", tmp_path), "no source 'other'"
    )


def test_parkinsons_with_other_columns(tmp_path: Path) -> None:
    path = write_parkinsons(tmp_path) / "parkinsons_updrs.data"
    text = path.read_text()
    path.write_text(text.replace("motor_UPDRS", "motor", 1))
    with pytest.raises(DataError, match="no column 'motor_UPDRS', found subject#, age, sex"):
        setup(Parkinsons(data=path))
    path.write_text(text.replace("\n1,", "\n?,", 1))
    with pytest.raises(DataError, match="has no subject#"):
        setup(Parkinsons(data=path))


def test_inspect(folder: Path, tmp_path: Path, mtbench: Mtbench) -> None:
    lines = write_csv(tmp_path / "t.csv").read_text().splitlines()
    (tmp_path / "t.csv").write_text("\n".join([*lines, "P9,red,1"]))
    sources: list[tuple[str, Path, list[str]]] = [
        ("adult", folder, ["rows used", "train: income"]),
        ("parkinsons", folder, ["120", "24", "subjects"]),
        ("multitarget", folder / "slump.arff", ["15", "values missing", "SLUMP, FLOW, Strength"]),
        ("multitarget", tmp_path / "t.csv", ["line 62: 3 fields, expected 6", "say --targets"]),
    ]
    for task, data, said in sources:
        code, text, err = mtbench("data", "inspect", task, "--task", task, "--data", data)
        assert code == 0, err
        for words in said:
            assert words in text


def test_inspect_takes_the_targets_and_the_group_of_a_run(tmp_path: Path, mtbench: Mtbench) -> None:
    rows = [f"name {i},{i % 7},{i},red" for i in range(101)]
    (data := tmp_path / "t.csv").write_text("\n".join(["who,a,b,colour", *rows]))

    def inspected(*options: str) -> tuple[int, str, str]:
        words = "data", "inspect", "multitarget", "--task", "multitarget", "--data", data
        return mtbench(*words, *options)

    refused(inspected("--targets", "b"), "say --group")
    code, text, err = inspected("--group", "who", "--targets", "b,a")
    assert code == 0, err
    for words in (r"101 .*groups .*who", r"1 .*nominal columns .*colour", r"2 .*targets .*b, a"):
        assert re.search(words, text)
    refused(inspected("--group", "who", "--targets", "c"), "has no target 'c'")
    refused(inspected("--group", "wo"), "has no group 'wo'")
    refused(inspected("--group", "who", "--targets", "colour"), "'colour' is nominal")
    data.write_text("\n".join(data.read_text().splitlines()[:3]))
    refused(inspected("--targets", "b"), "2 rows or groups are too few to be split in three")
    refused(inspected("--targets", "b", "--group", "who"), "2 rows or groups are too few")


# --- the real data -------------------------------------------------------------------------------


@pytest.fixture
def real() -> Path:
    if not DATA.is_dir():
        pytest.skip(f"no tables at {DATA}: set MTBENCH_DATA to the folder that holds tabular/")
    return DATA


SIZES = {
    "atp1d": (337, 411), "edm": (154, 16), "enb": (768, 8), "jura": (359, 15), "oes97": (334, 263),
    "sf1": (323, 10), "sf2": (1066, 10), "slump": (103, 7), "wq": (1060, 16),
}  # fmt: skip
"""Rows and inputs, by Spyromitros-Xioufis et al. 2016, table 1."""


@pytest.mark.parametrize("name", sorted(SIZES))
def test_real_mulan_files(real: Path, name: str) -> None:
    task = Multitarget(data=real / f"{name}.arff", strict=True)
    assert len(task.objectives) == KNOWN[name]
    assert (len(task.table.values), len(task.inputs)) == SIZES[name]
    batch = whole(setup(task))
    assert batch["inputs"].isfinite().all()
    assert all(batch[target].isfinite().all() for target in task.objectives)


def test_real_adult_and_parkinsons(real: Path) -> None:
    splits = setup(Adult(data=real, strict=True))
    assert len(splits.train) + len(splits.val) == 32561
    assert len(splits.test) == 16281
    assert float(whole(splits, "test")["income"].mean()) == pytest.approx(3846 / 16281)
    splits = setup(Parkinsons(data=real, strict=True))
    assert splits.notes["groups"] == [26, 7, 9]
    assert sum(splits.notes["rows"]) == 5875
