"""The thyroid task: splits, grid, augmentation, losses, guidance, scores, and all of it at once."""

import csv
import dataclasses
import io
import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from PIL import Image as Pil
from scipy import ndimage
from torch import Tensor

import mtbench_tasks.thyroid as thyroid
from mtbench import Splits
from mtbench.errors import DataError, UsageError
from mtbench.training.cell.request import Request
from mtbench_tasks._lesion import grid
from mtbench_tasks._lesion.augment import augment
from mtbench_tasks._lesion.cases import Case, Collection, Part, Reading
from mtbench_tasks._lesion.doubts import survey
from mtbench_tasks._lesion.grid import Placement, Prepared, prepare, to_input
from mtbench_tasks._lesion.network import Risk
from mtbench_tasks._lesion.scores import LesionMeter, overlap
from mtbench_tasks._lesion.splits import VALIDATION, CaseSplit, split_patients
from mtbench_tasks.thyroid import ddti, phantom, ultrasound

Mtbench = Callable[..., tuple[int, str, str]]
GRADES = ("1", "2", "3", "4")
NOTHING = torch.zeros(1, 0)


@pytest.fixture(scope="module")
def population(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    return phantom.load(size=24, workers=1)


def on_grid(cases: list[Case], size: int) -> Prepared:
    return prepare(Collection(tuple(cases), GRADES, "made up"), size, cache=None)


def silent(what: str, done: int, total: int) -> None: ...


def blank(patient: str, category: int | None, name: str = "") -> Case:
    image = np.zeros((2, 2), np.uint8)
    return Case(name or patient, patient, image, (Reading("r", None, category),))


# Splits


@settings(max_examples=75, derandomize=True)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 30),
            st.none() | st.integers(0, 5),
            st.none() | st.sampled_from(("train", "val", "test")),
        ),
        max_size=80,
    ),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_no_patient_is_in_two_parts(
    said: list[tuple[int, int | None, Part | None]], named: bool, seed: int
) -> None:
    cases = [
        dataclasses.replace(blank(f"p{patient}", category), part=part if named else None)
        for patient, category, part in said
    ]
    parts = split_patients(cases, np.random.default_rng(seed), "2/3")
    assert sorted(i for part in parts for i in part) == list(range(len(cases)))
    patients = [{cases[i].patient for i in part} for part in parts]
    assert sum(map(len, patients)) == len({case.patient for case in cases})
    if named and any(case.part == "test" for case in cases):
        assert patients[2] == {case.patient for case in cases if case.part == "test"}


@settings(max_examples=50, derandomize=True)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(2, 6))
def test_each_patient_is_tested_in_one_fold(sizes: list[int], folds: int) -> None:
    cases = [blank(f"{grade}-{i}", grade) for grade, n in enumerate(sizes) for i in range(n)]
    tested = [
        split_patients(cases, np.random.default_rng(k), f"{k + 1}/{folds}")[2] for k in range(folds)
    ]
    assert sorted(i for part in tested for i in part) == list(range(len(cases)))
    for part in tested:
        assert abs(len(part) - len(cases) / folds) < 1
        found = Counter(cases[i].readings[0].category for i in part)
        for grade, size in enumerate(sizes):
            assert abs(found[grade] - size / folds) < 1


def test_seeds_draw_the_validation_patients_and_nobody_else() -> None:
    cases = [blank(f"p{i}", i % 3) for i in range(60)]
    parts = [split_patients(cases, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert parts[0] == parts[1]
    assert parts[0][1] != parts[2][1]
    assert parts[0][2] == parts[2][2]


@pytest.mark.parametrize("size", [1, 9, 12])
def test_a_fifth_of_each_grade_validates_in_expectation(size: int) -> None:
    test = dataclasses.replace(blank("test", 0), part="test")
    cases = [test, *(blank(f"p{i}", 0) for i in range(size))]
    draws = [len(split_patients(cases, np.random.default_rng(s))[1]) for s in range(2000)]
    assert np.mean(draws) == pytest.approx(VALIDATION * size, abs=3 * 0.5 / math.sqrt(2000))
    assert max(draws) - min(draws) <= 1


@pytest.mark.parametrize("grades", [1, 2, 6])
def test_few_patients_are_split_at_every_seed(grades: int) -> None:
    cases = [blank(f"p{i}", i % grades) for i in range(6)]
    for seed in range(50):
        train, val, test = split_patients(cases, np.random.default_rng(seed), "1/6")
        assert len(test) == 1
        assert 1 <= len(val) < 4
        assert train


def test_a_patient_counts_by_the_most_suspicious_case() -> None:
    cases = [blank(f"p{i}", 0, f"{i}a") for i in range(20)]
    high = [blank(f"p{i}", 3, f"{i}b") for i in range(10)]  # of the same patients
    cases = [*high[:5], *cases, *high[5:]]
    for k in range(1, 6):
        parts = split_patients(cases, np.random.default_rng(k), f"{k}/5")
        assert [sum(cases[i].readings[0].category == 3 for i in part) for part in parts[2:]] == [2]


@pytest.mark.parametrize("text", ["0/5", "6/5", "1/1", "1", "a/b", "1/0", "-1/5"])
def test_a_fold_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=f"fold must be k/K.*found '{text}'"):
        thyroid.Thyroid(source="ddti", fold=text)


def test_where_the_source_says_who_is_tested_there_are_no_folds() -> None:
    for parameters in ({}, {"source": "tn3k"}, {"source": "ddti", "split": "public"}):
        with pytest.raises(UsageError, match="leave out --fold"):
            thyroid.Thyroid(fold="1/5", **parameters)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="split public is one of DDTI's"):
        thyroid.Thyroid(split="public")
    for fold in (None, "1/5"):
        assert thyroid.Thyroid(source="ddti", fold=fold).dependent["fold"] == "1/5"


def test_what_the_test_source_takes_is_not_idle() -> None:
    on_phantoms, on_clips = (
        thyroid.Thyroid(source="ddti", target="low-high", encoder="unet", test_source=source)
        for source in ("phantom", "aimi")
    )
    assert on_phantoms.idle == {"frames"}
    assert "frames" not in on_clips.idle
    assert {"cases", "test_cases"} < on_clips.idle


def test_phantoms_are_tested_on_a_population_of_their_own(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MTBENCH_CACHE", str(tmp_path))
        found = [
            thyroid.Thyroid(cases=20, test_cases=9, image_size=32, phantom_seed=p).setup(s, silent)
            for p, s in ((0, 0), (0, 1), (1, 0))
        ]
    names = []
    for splits in found:
        train, val, test = splits.train, splits.val, splits.test
        assert isinstance(train, CaseSplit)
        assert isinstance(val, CaseSplit)
        assert isinstance(test, CaseSplit)
        assert (len(train) + len(val), len(test)) == (20, 9)
        assert all(r is c.truth for c, r in zip(test.cases, test.readings, strict=True))
        names.append([c.name for c in val.cases])
    images = [splits.test.batch(torch.arange(9))["inputs"] for splits in found]
    assert torch.equal(images[0], images[1])
    assert torch.equal(images[0], images[2])
    assert names[0] != names[1]
    fingerprints = [splits.fingerprint for splits in found]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]
    with pytest.raises(UsageError, match="is that of the test"):
        thyroid.Thyroid(phantom_seed=phantom.TEST_SEED)


# The network's grid


@settings(max_examples=75, derandomize=True)
@given(st.integers(1, 150), st.integers(1, 150), st.sampled_from([32, 48, 96]))
def test_the_aspect_ratio_is_kept(height: int, width: int, size: int) -> None:
    placement = Placement((height, width), size)
    rows, columns = placement.box
    assert 0 <= rows.start < rows.stop <= size
    assert 0 <= columns.start < columns.stop <= size
    scale = size / max(height, width)
    for found, side in ((rows, height), (columns, width)):
        assert abs((found.stop - found.start) - max(1, side * scale)) <= 0.5
        assert abs(found.start - (size - found.stop)) <= 1  # centred
    grid = placement.to_grid(np.ones((height, width), np.float32))
    assert grid.shape == (size, size)
    assert torch.allclose(grid[placement.box], torch.ones(()))
    grid[placement.box] = 0
    assert not grid.any()  # zero outside
    back = placement.from_grid(placement.to_grid(np.full((height, width), 0.3, np.float32)))
    assert back.shape == (height, width)
    assert torch.allclose(back, torch.tensor(0.3))


@pytest.mark.parametrize("shape", [(60, 100), (100, 60), (80, 80)])
@pytest.mark.parametrize("size", [48, 96])
def test_a_mask_finds_its_way_back(shape: tuple[int, int], size: int) -> None:
    y, x = np.indices(shape)
    mask = np.hypot(y - 25, x - 30) < 14  # off the centre
    placement = Placement(shape, size)
    back = placement.from_grid(placement.to_grid(mask.astype(np.float32))).numpy() > 0.5
    assert 2 * (back & mask).sum() / (back.sum() + mask.sum()) > 0.95


def test_two_processes_may_prepare_the_same_cases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = Collection((blank("a", 1),), GRADES, "made up")
    removed = grid.shutil.rmtree

    def meanwhile(*what: Any, **how: Any) -> None:
        removed(*what, **how)
        monkeypatch.setattr(grid.shutil, "rmtree", removed)
        prepare(some, 8, tmp_path)

    monkeypatch.setattr(grid.shutil, "rmtree", meanwhile)
    assert prepare(some, 8, tmp_path).images == prepare(some, 8, tmp_path).images


def test_a_file_that_could_not_be_read_once_is_not_broken_for_ever(tmp_path: Path) -> None:
    healthy = blank("a", 1)
    there = False

    def flaky() -> Any:
        if there:
            return healthy.image
        raise DataError("does not decode as an image (Stale file handle)")

    some = Collection((dataclasses.replace(healthy, pixels=flaky),), GRADES, "made up")
    assert prepare(some, 8, tmp_path).broken.keys() == {0}
    there = True
    assert not prepare(some, 8, tmp_path).broken


@pytest.mark.parametrize(
    ("name", "left"),
    [("inputs.npy", b""), ("index.json", b"[]"), ("index.json", b'{"broken": []}')],
)
def test_a_broken_grid_is_made_anew(tmp_path: Path, name: str, left: bytes) -> None:
    some = Collection((blank("a", 1),), GRADES, "made up")
    images = prepare(some, 8, tmp_path).images
    [file] = tmp_path.glob(f"grids/*/{name}")
    file.write_bytes(left)
    assert prepare(some, 8, tmp_path).images == images


def test_a_grid_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what a killed process left half-made goes a day later."""
    flushed = list[str]()
    monkeypatch.setattr(np.memmap, "flush", lambda self: flushed.append(self.filename.parts[-3]))
    old, new = tmp_path / "grids" / "tmp_old", tmp_path / "grids" / "tmp_new"
    for folder in (old, new):
        folder.mkdir(parents=True)
    os.utime(old, (0, 0))
    prepare(Collection((blank("a", 1),), GRADES, "made up"), 8, tmp_path)
    assert [name[:3] for name in flushed] == ["tmp"]
    assert (old.exists(), new.exists()) == (False, True)


def test_threads_prepare_and_tell_what_one_does(
    population: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(case: Case) -> Any:
        time.sleep(0.1)  # others are done by then
        return case.image

    def gone() -> Any:
        raise DataError("no picture")

    first, second, *others = population.cases
    cases = (
        dataclasses.replace(first, pixels=gone),
        dataclasses.replace(second, pixels=lambda: late(second)),
        *others[:9],
        dataclasses.replace(others[9], pixels=gone),
    )
    some = dataclasses.replace(population, cases=cases)
    found = []
    for count in ("1", "4"):
        monkeypatch.setenv("LOKY_MAX_CPU_COUNT", count)
        made = vars(prepare(some, 16, cache=None))
        arrays = {key: value.tolist() for key, value in made.items() if hasattr(value, "tolist")}
        found.append((repr(made | arrays), survey(some)))
    assert found[0] == found[1]
    assert found[0][1][2] == 2  # cases that cannot be used


def test_image_and_mask_lie_on_each_other() -> None:
    mask = np.zeros((50, 90), dtype=bool)
    mask[5:20, 60:80] = True
    image = np.where(mask, 255, 0).astype(np.uint8)
    case = Case("a", "a", image, (Reading("r", mask, 2),))
    split = CaseSplit([case], on_grid([case], 96), [(0, 0)], np.zeros((1, 3)), None, 0.0)
    batch = split.batch(torch.tensor([0]))
    assert batch["inputs"].shape == batch["mask"].shape == (1, 1, 96, 96)
    assert torch.equal(batch["inputs"] > 0.5, batch["mask"] > 0.5)
    assert batch["mask"].sum() == pytest.approx(mask.sum() * (96 / 90) ** 2, rel=0.1)
    assert 0 <= to_input(image, 96).min() <= to_input(image, 96).max() <= 1


def test_missing_labels_in_a_batch() -> None:
    image, mask = np.full((20, 20), 90, np.uint8), np.ones((20, 20), dtype=bool)
    readings = [Reading("r", mask, 2), Reading("r", None, 3), Reading("r", mask, None)]
    cases = [Case(str(i), str(i), image, (r,)) for i, r in enumerate(readings)]
    samples = [(i, 0) for i in range(3)]
    for high, categories in ((None, [2, 3, -1]), (3, [0, 1, -1])):
        split = CaseSplit(cases, on_grid(cases, 32), samples, np.zeros((3, 2)), high, 0.0)
        batch = split.batch(torch.arange(3), torch.Generator())
        assert batch["category"].tolist() == categories
        assert batch["has_mask"].tolist() == [True, False, True]
        assert not batch["mask"][1].any()


# Augmentation


def spot(count: int, row: int = 15, column: int = 14) -> tuple[Tensor, Tensor]:
    """Bright disks, away from the middle, on tissue; and their masks."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    mask = (torch.hypot(y - row, x - column) < 8).float().expand(count, 1, 64, 64)
    return 0.2 + 0.7 * mask, mask


def centroid(masks: Tensor) -> tuple[Tensor, Tensor]:
    steps = torch.arange(64.0)
    rows = (masks.sum((1, 3)) * steps).sum(1) / masks.sum((1, 2, 3))
    columns = (masks.sum((1, 2)) * steps).sum(1) / masks.sum((1, 2, 3))
    return rows, columns


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_up_stays_up_and_left_may_become_right(strength: float) -> None:
    images, masks = spot(128)
    images, masks = augment(images, masks, strength, torch.Generator().manual_seed(0))
    rows, columns = centroid(masks)
    assert (rows < 32).all()
    assert 32 < (columns > 32).sum() < 96  # mirrored, half of them
    line = torch.zeros(64, 1, 64, 64)
    line[:, :, 12:15] = 1
    lines, _ = augment(line, line, strength, torch.Generator().manual_seed(1))
    assert (centroid(lines)[0] < 32).all()


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_the_mask_moves_with_the_image(strength: float) -> None:
    images, masks = spot(128)
    images, masks = augment(images, masks, strength, torch.Generator().manual_seed(2))
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    assert images.min() >= 0
    assert images.max() <= 1
    assert masks.sum((1, 2, 3)).min() > 50
    near = torch.nn.functional.max_pool2d(masks, 7, 1, 3) - masks
    inside = (images * masks).sum((1, 2, 3)) / masks.sum((1, 2, 3))
    around = (images * near).sum((1, 2, 3)) / near.sum((1, 2, 3))
    assert (inside > around + 0.15).all()


def test_augmentation_has_one_source_of_randomness() -> None:
    images, masks = spot(8)

    def run(seed: int) -> tuple[Tensor, Tensor]:
        return augment(images, masks, 1.0, torch.Generator().manual_seed(seed))

    before = torch.get_rng_state()
    first, again, other = run(0), run(0), run(1)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[0][0], first[0][1])  # each sample has its own
    assert torch.equal(images, spot(8)[0])  # the originals are left alone


def test_no_strength_only_mirrors() -> None:
    images, masks = spot(16)
    found, moved = augment(images, masks, 0.0, torch.Generator().manual_seed(3))
    for i in range(16):
        mirrored = not torch.equal(moved[i], masks[i])
        wanted = [x.flip(-1) if mirrored else x for x in (images[i], masks[i])]
        assert torch.equal(moved[i], wanted[1])
        assert torch.allclose(found[i], wanted[0], atol=1e-5)


def test_what_is_black_outside_the_sector_stays_black() -> None:
    images = torch.zeros(32, 1, 64, 64)
    images[:, :, 8:56] = 0.5
    found, _ = augment(images, (images > 0).float(), 1.0, torch.Generator().manual_seed(4))
    assert ((found == 0).float().mean((1, 2, 3)) > 0.02).all()
    assert (found[:, :, 32] > 0).float().mean() > 0.9


# Losses


@pytest.fixture(scope="module")
def task() -> thyroid.Thyroid:
    return thyroid.Thyroid(image_size=32, width=4, guide=0.5)


def outputs(count: int = 4, grades: int = 4, guided: int = 3) -> tuple[Tensor, Risk]:
    g = torch.Generator().manual_seed(0)
    planes = torch.randn(count, 1, 8, 8, generator=g).requires_grad_()
    logits = torch.randn(count, grades, generator=g).requires_grad_()
    e_r = torch.randn(count, guided, generator=g).requires_grad_()
    return planes, Risk(logits, e_r, torch.zeros(count, 0))


def labels(count: int = 4, guided: int = 3) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    return {
        "mask": (torch.rand(count, 1, 8, 8, generator=g) > 0.5).float(),
        "has_mask": torch.ones(count, dtype=torch.bool),
        "category": torch.arange(count) % 4,
        "radiomics": torch.randn(count, guided, generator=g),
    }


@pytest.mark.parametrize("kind", ["ce", "emd"])
@pytest.mark.parametrize("missing", ["segmentation", "risk"])
def test_missing_labels_leave_their_objective_out(kind: str, missing: str) -> None:
    task = thyroid.Thyroid(risk_loss=kind)  # type: ignore[arg-type]
    out, batch = outputs(), labels()
    whole = task.losses(out, batch)
    if missing == "segmentation":
        batch["has_mask"][:] = False
    else:
        batch["category"][:] = -1
        batch["radiomics"][:] = torch.nan
    losses = task.losses(out, batch)
    gone = task.objectives.index(missing)
    assert losses[gone].item() == 0
    assert torch.equal(losses[1 - gone], whole[1 - gone])
    losses[gone].backward()  # it is on the graph
    touched = [out[0]] if missing == "segmentation" else [out[1].logits, out[1].guided]
    for leaf in touched:
        assert leaf.grad is not None
        assert not leaf.grad.any()


@pytest.mark.parametrize("kind", ["ce", "emd"])
def test_some_missing_labels_leave_their_samples_out(kind: str) -> None:
    task = thyroid.Thyroid(risk_loss=kind)  # type: ignore[arg-type]
    (planes, risk), batch = outputs(), labels()
    batch["has_mask"][2:] = False
    batch["category"][2:] = -1
    batch["radiomics"][2:] = torch.nan
    found = task.losses((planes, risk), batch)
    half = {k: v[:2] for k, v in batch.items()}
    wanted = task.losses((planes[:2], Risk(risk.logits[:2], risk.guided[:2], risk.texture)), half)
    torch.testing.assert_close(found, wanted)
    sum(found).backward()  # type: ignore[attr-defined]
    for leaf in (planes, risk.logits, risk.guided):
        assert leaf.grad is not None
        assert leaf.grad[:2].any()
        assert not leaf.grad[2:].any()


def test_losses_by_hand() -> None:
    # One image, two pixels, p = (1/2, 1/2), truth (1, 0): cross-entropy log 2,
    # Dice loss 1 - (2 * 1/2 + 1) / (1/2 + 1/2 + 1 + 1) = 1/3.
    batch = {
        "mask": torch.tensor([[[[1.0, 0.0]]]]), "has_mask": torch.tensor([True]),
        "category": torch.tensor([2]), "radiomics": torch.tensor([[1.0, torch.nan]]),
    }  # fmt: skip
    logits = torch.tensor([[0.0, 0.0, math.log(2), -torch.inf]])
    risk = Risk(logits, torch.tensor([[3.0, 100.0]]), NOTHING)  # p = 1/4, 1/4, 1/2, 0
    out = torch.zeros(1, 1, 1, 2), risk
    segmentation, ce = thyroid.Thyroid(guide=0.5).losses(out, batch)
    assert segmentation.item() == pytest.approx(math.log(2) + 1 / 3)
    assert ce.item() == pytest.approx(math.log(2) + 0.5 * 4)
    _, emd = thyroid.Thyroid(guide=0.0, risk_loss="emd").losses(out, batch)
    # Cumulated: (1/4, 1/2, 1, 1) against (0, 0, 1, 1).
    assert emd.item() == pytest.approx(1 / 16 + 1 / 4)


def test_being_off_by_more_grades_costs_more_by_earth_movers_distance() -> None:
    task = thyroid.Thyroid(guide=0.0, risk_loss="emd")
    costs = []
    for said in range(4):
        risk = Risk(50 * torch.eye(4)[[said]], torch.zeros(1, 3), NOTHING)
        batch = labels(1) | {"category": torch.tensor([0])}
        costs.append(task.losses((torch.zeros(1, 1, 8, 8), risk), batch)[1].item())
    assert costs == pytest.approx([0, 1, 2, 3])


# Guided embedding


def test_guidance_reaches_the_known_entries_alone() -> None:
    batch = labels()
    batch["radiomics"][0] = torch.nan
    batch["radiomics"][1, 2] = torch.nan
    known = ~batch["radiomics"].isnan()
    grads = {}
    for guide in (0.0, 1.0, 3.0):
        out = outputs()
        thyroid.Thyroid(guide=guide).losses(out, batch)[1].backward()
        grad = out[1].guided.grad
        assert grad is not None
        assert not grad[~known].any()
        grads[guide] = grad
    assert not grads[0.0].any()
    assert (grads[1.0][known] != 0).all()
    torch.testing.assert_close(grads[3.0], 3 * grads[1.0])


def small_splits(collection: Collection, **parameters: Any) -> tuple[thyroid.Thyroid, Splits]:
    """The task at its smallest, on a collection, without a cache."""
    task = thyroid.Thyroid(image_size=32, width=4, **parameters)
    task.origin = dataclasses.replace(task.origin, tested=False)  # the collection names nobody
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(thyroid.Thyroid, "collection", lambda *_: collection)
        return task, task.setup(0, silent)


def test_guidance_teaches_the_radiomics(population: Collection) -> None:
    errors = {}
    for guide in (0.0, 1.0):
        task, splits = small_splits(population, guide=guide)
        torch.manual_seed(0)
        model = task.model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        batch = splits.train.batch(torch.arange(len(splits.train)))
        for _ in range(40):
            optimizer.zero_grad()
            guided = model(batch["inputs"])
            torch.stack(task.losses(guided, batch)).sum().backward()
            optimizer.step()
        known = ~batch["radiomics"].isnan()
        error = (guided[1].guided - batch["radiomics"])[known].square().mean()
        errors[guide] = error.item()
    assert errors[1.0] < 0.5 * errors[0.0]


def test_the_radiomics_target_is_fitted_on_training_alone(population: Collection) -> None:
    _, before = small_splits(population)
    train = before.train
    assert isinstance(train, CaseSplit)
    assert isinstance(before.test, CaseSplit)
    assert isinstance(before.val, CaseSplit)
    known = train.radiomics[~train.radiomics.isnan().any(1)].double()
    assert known.clamp(-3.9, 3.9).equal(known)  # nothing clipped: mean and deviation are exact
    torch.testing.assert_close(
        known.mean(0), torch.zeros(known.shape[1]).double(), atol=1e-5, rtol=0
    )
    assert (known.std(0, correction=0) - 1).abs().max() < 1e-4
    assert before.test.radiomics.isnan().all()  # nobody may look at the test cases' radiomics

    def changed(names: set[str]) -> Collection:
        cases = [
            dataclasses.replace(
                case,
                pixels=255 - case.image,
                readings=tuple(
                    dataclasses.replace(r, contour=np.roll(r.mask, 7, 1)) for r in case.readings
                ),
            )
            if case.name in names
            else case
            for case in population.cases
        ]
        return dataclasses.replace(population, cases=tuple(cases), fingerprint=str(names))

    for part, moves in ((before.test, False), (before.val, False), (before.train, True)):
        assert isinstance(part, CaseSplit)
        _, after = small_splits(changed({part.cases[0].name}))
        assert isinstance(after.train, CaseSplit)
        assert [c.name for c in after.train.cases] == [c.name for c in train.cases]
        same = torch.equal(after.train.radiomics[1:], train.radiomics[1:])
        assert same is not moves


def test_labels_come_from_readers_but_test_labels_are_the_truth(population: Collection) -> None:
    _, splits = small_splits(population)
    for part in (splits.train, splits.val, splits.test):
        assert isinstance(part, CaseSplit)
        for case, reading in zip(part.cases, part.readings, strict=True):
            if part is splits.test:
                assert reading is case.truth
            else:
                assert any(reading is one for one in case.readings)
    assert isinstance(splits.train, CaseSplit)
    assert len({reading.reader for reading in splits.train.readings}) > 1


def test_setup_is_paired_by_seed(population: Collection) -> None:
    _, one = small_splits(population)
    _, two = small_splits(population)
    index = torch.arange(len(one.train))
    first = one.train.batch(index, torch.Generator().manual_seed(5))
    second = two.train.batch(index, torch.Generator().manual_seed(5))
    assert first.keys() == second.keys()
    for key in first:
        torch.testing.assert_close(first[key], second[key], rtol=0, atol=0, equal_nan=True)
    task = thyroid.Thyroid(image_size=32, width=4)
    task.origin = dataclasses.replace(task.origin, tested=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(thyroid.Thyroid, "collection", lambda *_: population)
        other = task.setup(1, silent)
    assert isinstance(one.test, CaseSplit)
    assert isinstance(other.test, CaseSplit)
    assert isinstance(one.val, CaseSplit)
    assert isinstance(other.val, CaseSplit)
    assert [c.name for c in one.test.cases] == [c.name for c in other.test.cases]
    assert [c.name for c in one.val.cases] != [c.name for c in other.val.cases]
    assert one.fingerprint == other.fingerprint


def test_low_and_high(population: Collection) -> None:
    task, splits = small_splits(population, target="low-high")
    assert task.grades == ("low", "high")
    assert isinstance(splits.train, CaseSplit)
    for reading, category in zip(splits.train.readings, splits.train.category, strict=True):
        assert reading.category is not None
        assert category == (reading.category >= ultrasound.GRADES.index("TR4"))
    out = task.model()(splits.train.batch(torch.arange(2))["inputs"])
    assert out[1].logits.shape == (2, 2)
    ours = thyroid.Thyroid(source="ddti", target="low-high")
    assert ours.grades == ("low", "high")
    assert ddti.GRADES.index("4b") == thyroid.HIGH  # 2, 3, 4a against 4b, 4c, 5


def test_too_few_cases_are_refused(population: Collection) -> None:
    few = dataclasses.replace(population, cases=population.cases[:2], fingerprint="few")
    with pytest.raises(DataError, match="2 cases are too few to be split in three"):
        small_splits(few)


# The network


def test_samples_do_not_mix(task: thyroid.Thyroid) -> None:
    torch.manual_seed(0)
    model = task.model()
    model.train()
    batch = torch.rand(4, 1, 32, 32)
    other = torch.cat([batch[:1], 5 * torch.rand(3, 1, 32, 32)])
    found = []
    for inputs in (batch, other):
        torch.manual_seed(1)
        planes, risk = model(inputs)
        found.append([planes[0], risk.logits[0], risk.guided[0]])
        assert planes.shape == inputs.shape
        assert not torch.equal(risk.logits[0], risk.logits[1])
    torch.testing.assert_close(found[0], found[1])


def test_the_texture_is_of_the_second_level_and_teaches_nothing(task: thyroid.Thyroid) -> None:
    model = task.model()
    features = model.encode(torch.rand(3, 1, 32, 32))
    risk = model.decode(features)[1]
    level = features[1].detach().double()
    height = level.shape[2]
    thirds = [rows.tolist() for rows in np.array_split(np.arange(height), 3)]
    wanted = torch.cat([level[:, :, rows].mean((2, 3)) for rows in thirds], 1)
    torch.testing.assert_close(risk.texture.double(), wanted, rtol=1e-5, atol=1e-6)
    assert not risk.texture.requires_grad


def test_both_objectives_reach_the_encoder(task: thyroid.Thyroid) -> None:
    torch.manual_seed(0)
    model = task.model()
    batch = labels(guided=model(torch.zeros(1, 1, 32, 32))[1].guided.shape[1])
    batch["mask"] = (torch.rand(4, 1, 32, 32) > 0.5).float()
    batch["category"] = torch.tensor([0, 1, 2, 3])
    for k in range(2):
        model.zero_grad()
        task.losses(model(torch.rand(4, 1, 32, 32)), batch)[k].backward()
        assert all(
            p.grad is not None and p.grad.any() for p in model.encoder.parameters() if p.ndim > 1
        )
        assert not any(p.grad is not None and p.grad.any() for p in model.heads[1 - k].parameters())


# Scores


def measure(
    probabilities: Any, categories: Any, planes: Any = None, masks: Any = None,
    grades: tuple[str, ...] = GRADES, high: int = 3, batches: int = 1,
    spacing: tuple[float | None, ...] | None = None,
) -> dict[str, float]:  # fmt: skip
    p, y = torch.tensor(probabilities, dtype=torch.float64), torch.tensor(categories)
    truth = np.ones((len(y), 2, 2)) if masks is None else np.asarray(masks)
    said = torch.tensor(truth if planes is None else planes)[:, None].float()
    mm = torch.tensor([math.nan if v is None else v for v in spacing or (None,) * len(y)])
    meter = LesionMeter(grades, high)
    for rows in torch.arange(len(y)).chunk(batches):
        risk = Risk(p[rows].log(), torch.zeros(len(rows), 1), NOTHING)
        has_mask = torch.ones(len(rows), dtype=torch.bool)
        batch = {
            "has_mask": has_mask, "category": y[rows], "spacing": mm[rows],
            "masks": [torch.from_numpy(truth[i] > 0) for i in rows.tolist()],
        }  # fmt: skip
        meter.update((2 * said[rows] - 1, risk), batch)
    return meter.compute()


def auroc(score: np.ndarray, positive: np.ndarray) -> float:
    """Of all pairs of a positive and a negative: the share in order, ties half (Mann-Whitney)."""
    pairs = np.sign(score[positive][:, None] - score[~positive][None])
    return float((1 + pairs.mean()) / 2)


def test_auroc_of_perfect_reversed_and_useless_scores() -> None:
    y = [0, 0, 1, 1]
    p = np.array([0.1, 0.2, 0.7, 0.9])
    two = ("low", "high")
    for scores, wanted in ((p, 1.0), (1 - p, 0.0), (np.full(4, 0.5), 0.5)):
        found = measure(np.stack([1 - scores, scores], 1), y, grades=two, high=1)
        assert found["auroc"] == wanted
        assert found["auroc_high"] == wanted
        assert not any(name.startswith("auroc[") for name in found)


def test_auroc_by_counting_pairs() -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(4), 60).round(2) + 0.01  # rounded: there are ties
    p /= p.sum(1, keepdims=True)
    y = rng.integers(0, 4, 60)
    found = measure(p, y)
    rounded = torch.tensor(p).log().float().softmax(1)  # as there, or ties would differ
    each = [auroc(rounded.numpy()[:, c], y == c) for c in range(4)]
    assert [found[f"auroc[{g}]"] for g in GRADES] == pytest.approx(each)
    assert found["auroc"] == pytest.approx(np.mean(each))
    assert found["auroc_high"] == pytest.approx(each[3])
    upper = rounded[:, 2:].double().sum(1).numpy()
    assert measure(p, y, high=2)["auroc_high"] == pytest.approx(auroc(upper, y >= 2))
    for batches in (3, 60):
        assert measure(p, y, batches=batches) == pytest.approx(found, nan_ok=True)


def test_a_sum_above_one_is_no_logit() -> None:
    """torchmetrics takes a sigmoid of scores above 1, which made the scores near 0 one."""
    p = np.random.default_rng(0).dirichlet(np.full(4, 0.02), 300)
    p = np.maximum(p, 1e-12) / np.maximum(p, 1e-12).sum(1, keepdims=True)
    y = np.random.default_rng(1).integers(0, 4, 300)
    said = torch.tensor(p).log().float().softmax(1)[:, 1:]
    assert said.sum(1).max() > 1
    wanted = auroc(said.double().sum(1).clamp(max=1).numpy(), y >= 1)
    assert measure(p, y, high=1)["auroc_high"] == pytest.approx(wanted, abs=1e-6)


def test_a_grade_that_does_not_occur_is_left_out() -> None:
    p = np.array([[0.7, 0.1, 0.1, 0.1], [0.6, 0.2, 0.1, 0.1], [0.2, 0.1, 0.6, 0.1]])
    found = measure(p, [0, 0, 2])
    assert found["auroc[1]"] == found["auroc[3]"] == found["auroc"] == 1
    assert math.isnan(found["auroc[2]"])
    assert math.isnan(found["auroc_high"])
    found = measure(p, [0, 0, 0])  # only one grade at all
    assert math.isnan(found["auroc"])
    assert found["kappa"] == 0  # as `evaluate` has it: chance would agree as often
    assert math.isnan(measure(p[:2], [0, 0])["kappa"])
    assert found["balanced_accuracy"] == pytest.approx(2 / 3)


def test_scores_of_decisions_by_hand() -> None:
    y = [0, 0, 1, 1, 3]  # grade 2 does not occur
    said = [0, 1, 1, 3, 3]
    p = np.full((5, 4), 0.05)
    p[np.arange(5), said] = 0.85
    found = measure(p, y)
    assert found["balanced_accuracy"] == pytest.approx((1 / 2 + 1 / 2 + 1) / 3)
    # F1 of grade 0: 2 / (2 + 1), of 1: 2 / (2 + 2), of 3: 2 / (2 + 1).
    assert found["macro_f1"] == pytest.approx((2 / 3 + 1 / 2 + 2 / 3) / 3)
    # Squared errors: 1 + 4 = 5 observed; over all pairs of truth and answer / 5 expected.
    expected = sum((a - b) ** 2 for a in y for b in said) / 5
    assert found["kappa"] == pytest.approx(1 - 5 / expected)
    assert found["calibration_error"] == pytest.approx(abs(3 / 5 - 0.85))


def test_cases_without_a_label_are_left_out_of_the_scores() -> None:
    p = [[0.7, 0.1, 0.1, 0.1], [0.1, 0.7, 0.1, 0.1], [0.1, 0.7, 0.1, 0.1]]
    assert measure(p, [0, 1, -1]) == pytest.approx(measure(p[:2], [0, 1]), nan_ok=True)
    found = measure(p, [-1, -1, -1])
    assert math.isnan(found["auroc"])
    assert math.isnan(found["balanced_accuracy"])
    assert found["dice"] == 1
    meter = LesionMeter(GRADES, 3)
    batch = {
        "has_mask": torch.tensor([False]), "category": torch.tensor([1]),
        "masks": [torch.zeros(0, 0)], "spacing": torch.zeros(1),
    }  # fmt: skip
    risk = Risk(torch.zeros(1, 4), torch.zeros(1, 1), NOTHING)
    meter.update((torch.ones(1, 1, 4, 4), risk), batch)
    found = meter.compute()
    assert all(math.isnan(found[name]) for name in ("dice", "iou", "hd95", "hd95_mm"))


def planes(*boxes: tuple[int, int, int, int] | None) -> np.ndarray:
    found = np.zeros((len(boxes), 30, 40), dtype=np.float32)
    for plane, box in zip(found, boxes, strict=True):
        if box:
            plane[box[0] : box[1], box[2] : box[3]] = 1
    return found


def on_a_square(planes: np.ndarray) -> np.ndarray:
    """Planes of 30 x 40 as they lie on the network's grid of 40 x 40."""
    return np.pad(planes, ((0, 0), (5, 5), (0, 0)))


@pytest.mark.parametrize(
    ("said", "truth", "dice", "iou", "hd95"),
    [
        ((5, 15, 5, 15), (5, 15, 5, 15), 1, 1, 0),
        ((5, 15, 10, 20), (5, 15, 5, 15), 0.5, 1 / 3, 5),  # half of it, moved by 5
        ((5, 6, 5, 6), (8, 9, 9, 10), 0, 0, 5),  # single pixels, 3 and 4 apart
        (None, (5, 15, 5, 15), 0, 0, 50),  # empty: the diagonal of 30 x 40
    ],
)
def test_overlap_by_hand(said: Any, truth: Any, dice: float, iou: float, hd95: float) -> None:
    found = measure([[0.25] * 4], [0], on_a_square(planes(said)), planes(truth))
    assert found["dice"] == pytest.approx(dice)
    assert found["iou"] == pytest.approx(iou)
    assert found["hd95"] == pytest.approx(hd95)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # MONAI calls itself as it should not
@pytest.mark.parametrize("seed", range(5))
def test_the_distance_is_monais(seed: int) -> None:
    field = ndimage.gaussian_filter(
        np.random.default_rng(seed).normal(size=(2, 1, 30, 40)), (0, 0, 2, 2)
    )
    said, truth = torch.as_tensor(field > 0.05)  # several parts, that touch the rim
    expected = compute_hausdorff_distance(
        said[None], truth[None], include_background=True, percentile=95
    ).item()
    found = overlap(said[0], truth[0])[2]
    assert found == pytest.approx(expected)


def test_a_mask_that_is_not_there_is_as_far_away_as_can_be() -> None:
    some, none = torch.zeros(2, 30, 40, dtype=torch.bool)
    some[5:9, 5:9] = True
    for one, other in ((some, none), (none, some), (none, none)):
        assert overlap(one, other)[2] == 50


def test_overlap_is_a_mean_over_images() -> None:
    said = planes((5, 15, 10, 20), (5, 15, 5, 15), None)
    truth = planes((5, 15, 5, 15), (5, 15, 5, 15), (5, 15, 5, 15))
    for batches in (1, 3):
        found = measure(
            [[0.25] * 4] * 3, [0, 1, 2], on_a_square(said), truth,
            batches=batches, spacing=(0.1, 0.2, None),
        )  # fmt: skip
        assert found["dice"] == pytest.approx(0.5)
        assert found["iou"] == pytest.approx(4 / 9)
        assert found["hd95"] == pytest.approx(55 / 3)
        assert found["hd95_mm"] == pytest.approx((0.1 * 5 + 0) / 2)


def test_overlap_is_that_of_the_image_and_not_of_the_grid() -> None:
    # On a grid of half the resolution the lesion's columns are 4 wide; in the image, 8.
    truth = np.zeros((1, 40, 40), np.float32)
    truth[:, 8:24, 8:16] = 1
    said = truth[:, ::2, ::2]
    found = measure([[0.25] * 4], [0], said, truth)
    assert found["dice"] == pytest.approx(1, abs=0.02)
    moved = np.roll(said, 1, 2)  # a grid's pixel is two of the image's
    found = measure([[0.25] * 4], [0], moved, truth)
    assert found["hd95"] == pytest.approx(2)
    assert found["dice"] == pytest.approx(6 / 8, abs=0.02)


def test_every_metric_is_announced(task: thyroid.Thyroid) -> None:
    grades = task.grades
    found = measure(np.eye(len(grades)) + 0.01, list(range(len(grades))), grades=grades)
    assert list(found) == list(task.metrics)
    primary = {m.objective for m in task.metrics.values() if m.primary}
    assert primary == set(task.objectives)


# All of it


SMALL = ("--image-size", 32, "--width", 4, "--epochs", 1, "--threads", 1)


@pytest.fixture(scope="module")
def rlar_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run of RLAR on 24 phantoms, and what was printed."""
    import contextlib
    import sys

    from mtbench import cli

    out = tmp_path_factory.mktemp("rlar")
    line = ["mtbench", "run", "--method", "rlar", "--cases", 24, *SMALL, "--out", out]
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sys, "argv", list(map(str, line)))
        patch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as leaving:
            cli.main()
    assert leaving.value.code == 0
    [result] = out.rglob("result.json")
    return result.parent, printed.getvalue()


def test_rlar_on_the_phantom_from_start_to_end(rlar_run: tuple[Path, str]) -> None:
    run, printed = rlar_run
    result = json.loads((run / "result.json").read_text())
    assert result["status"] == "finished"
    test = json.loads((run / "test.json").read_text())["metrics"]
    assert 0 <= test["dice"] <= 1
    assert math.isfinite(test["hd95"])
    assert sum(result["notes"]["images"]) == 24 + 24
    assert "patients" in printed
    with Pil.open(run / "predictions.png") as picture:
        assert min(picture.size) > 300
        assert np.asarray(picture.convert("L")).std() > 20
    report = (run.parents[1] / "report.md").read_text()
    assert f"rlar/{run.name}/predictions.png" in report
    rows = list(csv.DictReader(io.StringIO((run / "steps.csv").read_text())))
    assert rows
    assert all(math.isfinite(float(row["loss_segmentation"])) for row in rows)


def test_a_new_image_is_read(
    mtbench: Mtbench, rlar_run: tuple[Path, str], population: Collection, tmp_path: Path
) -> None:
    run, _ = rlar_run
    case = population.cases[3]
    Pil.fromarray(case.image).save(tmp_path / "new.png")
    Pil.fromarray(case.image[:100, :90]).save(tmp_path / "other.png")
    line = ["predict", run, tmp_path / "new.png", tmp_path / "other.png"]
    code, out, err = mtbench(*line, "--out", tmp_path / "out", "--spacing", "0.2")
    assert (code, err) == (0, "")
    records = json.loads(out)
    assert records == json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [record["image"] for record in records] == [str(word) for word in line[2:]]
    for record, shape in zip(records, (case.image.shape, (100, 90)), strict=True):
        for kind in ("mask", "overlay"):
            with Pil.open(record[kind]) as picture:
                assert picture.size == shape[::-1]
                assert picture.mode == ("L" if kind == "mask" else "RGB")
        for view in record["views"]:
            assert set(view) == {
                "box", "plane", "means", "descriptors", "assessment",
                "calipers", "category", "probabilities", "long_axis_mm",
                "short_axis_mm", "height_mm", "width_mm", "interval",
                "taller_than_wide", "others", "radiomics",
            }  # fmt: skip
            likeliest = max(view["probabilities"], key=view["probabilities"].get)
            drawn = view["category"] is not None
            assert view["category"] == (likeliest if drawn else None)
            assert tuple(view["probabilities"]) == ultrasound.GRADES
            assert sum(view["probabilities"].values()) == pytest.approx(1, abs=1e-3)
    _, again, _ = mtbench(*line, "--out", tmp_path / "out", "--spacing=0.2")
    assert again == out


def test_bad_words_to_predict(
    mtbench: Mtbench, rlar_run: tuple[Path, str], population: Collection, tmp_path: Path
) -> None:
    run, _ = rlar_run
    good, text = tmp_path / "good.png", tmp_path / "text.png"
    Pil.fromarray(population.cases[0].image).save(good)
    text.write_text("this is no picture")
    (tmp_path / "sub").mkdir()
    Pil.fromarray(population.cases[1].image).save(tmp_path / "sub" / "good.png")
    out = tmp_path / "out"
    for line, said in (
        ([tmp_path / "absent.png"], ["absent.png", "no such file"]),
        ([text], ["text.png", "does not decode as an image", "PNG"]),
        ([good, tmp_path / "sub" / "good.png"], ["sub/good.png", "same files"]),
        ([good, "--spacing", "wide"], ["--spacing", "float", "'wide'"]),
        ([good, "--spacing", "0"], ["spacing must be positive", "0"]),
        ([good, "--spacing", "-1"], ["spacing must be positive", "-1"]),
        ([good, "--spacing", "nan"], ["spacing must be finite", "nan"]),
        ([good, "--spacing"], ["--spacing"]),
        ([good, "--spaceing", "1"], ["--spaceing", "did you mean '--spacing'?"]),
        ([], ["Missing argument"]),
    ):
        code, printed, err = mtbench("predict", run, *line, "--out", out)
        assert code == 2, line
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert printed == ""
        for words in said:
            assert words in err
        assert {file.name for file in out.glob("*")} <= {".lock"}  # nothing half done
    code, _, err = mtbench("predict", run, good, "--out", text / "below")
    assert (code, err.count("\n")) == (2, 1)
    assert "cannot be written" in err
    assert text.read_text() == "this is no picture"


def write_ddti(folder: Path, cases: int) -> Path:
    """A folder of DDTI's form: bright nodules on tissue, graded by their brightness."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(1, cases + 1):
        grade = ddti.GRADES[number % 6]
        left, top, size = (int(v) for v in rng.integers((4, 8, 18), (24, 40, 34)))
        box = [(left, top), (left + size, top), (left + size, top + size), (left, top + size)]
        pixels = rng.normal(70, 8, (80, 60))  # too narrow to be a split screen
        pixels[top : top + size, left : left + size] += 20 + 20 * (number % 6)
        Pil.fromarray(pixels.clip(20, 255).astype(np.uint8)).save(folder / f"{number}_1.jpg")
        points = [{"x": x, "y": y} for x, y in box]
        svg = json.dumps([{"points": points, "annotation": {}, "regionType": "freehand"}])
        mark = f"<mark><image>1</image><svg>{svg}</svg></mark>" if number % 7 else ""
        said = f"<tirads>{grade}</tirads>" if number % 5 else ""
        if not mark and not said:
            said = f"<tirads>{grade}</tirads>"
        (folder / f"{number}.xml").write_text(f"<case><number>{number}</number>{said}{mark}</case>")
    return folder


@pytest.mark.parametrize("target", ["grades", "low-high"])
def test_a_ddti_folder_from_start_to_end(mtbench: Mtbench, tmp_path: Path, target: str) -> None:
    data = write_ddti(tmp_path / "ddti", 40)
    line = ["run", "--source", "ddti", "--data", data, "--target", target, *SMALL]
    code, printed, err = mtbench(*line, "-m", "ew", "-m", "stl", "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    results = [json.loads(f.read_text()) for f in (tmp_path / "out").rglob("result.json")]
    assert {result["method"] for result in results} == {"ew", "stl"}
    for file in (tmp_path / "out").rglob("test.json"):
        test = json.loads(file.read_text())["metrics"]
        assert math.isfinite(test["dice"])
        assert math.isfinite(test["auroc"])
    for result in results:
        assert result["status"] == "finished"
        notes = result["notes"]
        assert notes["images"] == notes["patients"]
        assert sum(notes["images"]) == 40
        assert sum(notes["with_mask"]) == 35  # some cases lack their contour,
        assert sum(notes["with_category"]) == 33  # some their grade
    spec = json.loads(next((tmp_path / "out").rglob("spec.json")).read_text())
    assert spec["task_params"]["data"] is None  # the content counts, not the place
    assert "Δm" in printed
    [run] = (tmp_path / "out").rglob("ew/seed0-*")
    code, out, err = mtbench("predict", run, data / "1_1.jpg", "--out", tmp_path / "p")
    assert (code, err) == (0, "")
    [record] = json.loads(out)
    grades = ["low", "high"] if target == "low-high" else list(ddti.GRADES)
    assert list(record["views"][0]["probabilities"]) == grades


def test_a_default_that_depends_on_the_source_is_recorded_as_the_value_in_use() -> None:
    def spec_params(**given: str) -> dict[str, object]:
        return Request.of("thyroid", ["ew"], given).task_params

    assert spec_params(source="ddti") == spec_params(source="ddti", guide="2")
    assert spec_params(source="ddti")["guide"] != spec_params(source="phantom")["guide"]
    assert spec_params(source="ddti", guide="0.5")["guide"] == 0.5
    sizes = [spec_params(source=name)["image_size"] for name in ("tn3k", "ddti")]
    assert sizes == [96, 128]
