"""Radiomics: values worked by hand, PyRadiomics' own extractor as oracle, the cache."""

import logging
import os
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from joblib import Parallel, delayed
from scipy import ndimage
from scipy.ndimage import gaussian_filter

from mtbench.errors import DataError
from mtbench_tasks._lesion import radiomics
from mtbench_tasks._lesion.cases import Image, Mask
from mtbench_tasks._lesion.radiomics import FEATURES, STEP, Standardiser, extract, extract_all
from mtbench_tasks.thyroid import ddti

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("MTBENCH_DATA", ROOT.parent / "shared" / "data")) / "ddti"
NAMES = [feature.name for feature in FEATURES]


def named(image: Image, mask: Mask) -> dict[str, float]:
    return dict(zip(NAMES, extract(image, mask), strict=True))


def disk(radius: float, shape: tuple[int, int] = (160, 192)) -> Mask:
    y, x = np.indices(shape)
    return np.hypot(y - shape[0] // 2, x - shape[1] // 2) <= radius


def box(height: int, width: int, shape: tuple[int, int] = (160, 192)) -> Mask:
    mask = np.zeros(shape, dtype=bool)
    mask[50 : 50 + height, 40 : 40 + width] = True
    return mask


def tissue(seed: int = 0, shape: tuple[int, int] = (160, 192)) -> Image:
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=shape), (1, 2))
    return np.clip(100 + 40 * noise / noise.std(), 0, 255).astype(np.uint8)


def test_the_features_are_those_of_the_acr_descriptors() -> None:
    groups = {}
    for feature in FEATURES:
        groups.setdefault(feature.descriptor, []).append(feature.name)
    assert {group: len(names) for group, names in groups.items()} == {
        "composition": 3,
        "echogenicity": 2,
        "shape": 2,
        "margin": 3,
        "echogenic foci": 3,
    }
    assert len(set(NAMES)) == len(NAMES)


def test_a_disk_is_round() -> None:
    radius = 30
    found = named(tissue(), disk(radius))
    # An outline of steps and diagonals is up to 8 (sqrt 2 - 1) / 2 pi = 1.055 times too long.
    assert 1 / 1.07 < found["sphericity"] < 1
    assert found["elongation"] == pytest.approx(1, abs=1e-3)
    assert found["taller_than_wide"] == 1
    assert found["perimeter_surface_ratio"] == pytest.approx(2 / radius, rel=0.07)


@pytest.mark.parametrize(("height", "width"), [(10, 50), (50, 10), (20, 20)])
def test_a_bar_is_as_long_as_it_is(height: int, width: int) -> None:
    found = named(tissue(), box(height, width))
    assert found["taller_than_wide"] == height / width
    # The variance of n equally spaced points is (n^2 - 1) / 12.
    short, long = sorted((height, width))
    assert found["elongation"] == pytest.approx(np.sqrt((short**2 - 1) / (long**2 - 1)))
    # PyRadiomics' outline runs through the centres of the edges: corners are cut by half a pixel.
    perimeter = 2 * (height - 1 + width - 1) + 4 * np.sqrt(0.5)
    surface = height * width - 4 / 8
    assert found["perimeter_surface_ratio"] == pytest.approx(perimeter / surface)
    assert found["sphericity"] == pytest.approx(2 * np.sqrt(np.pi * surface) / perimeter)


def test_contrast_and_edge_of_a_step_are_the_step() -> None:
    mask = disk(25)
    found = named(np.where(mask, 60, 110).astype(np.uint8), mask)
    assert found["mean_contrast"] == -50
    assert found["median_contrast"] == -50
    assert found["percentile_10"] == found["percentile_90"] == 60
    assert found["entropy"] == pytest.approx(0, abs=1e-12)


def test_the_ring_ends_where_it_ends() -> None:
    mask = box(40, 40)
    grown = np.zeros_like(mask)
    reach = radiomics.RING
    grown[50 - reach : 90 + reach, 40 - reach : 80 + reach] = True
    image = np.where(mask, 100, np.where(grown, 80, 250)).astype(np.uint8)
    assert named(image, mask)["mean_contrast"] == 20  # nothing beyond RING is seen
    image[50 - reach, 60] = 250  # at a distance of exactly RING
    assert named(image, mask)["mean_contrast"] < 20


def test_the_edge_of_a_step_is_sharp_and_of_a_ramp_is_not() -> None:
    half = np.zeros((160, 192), dtype=bool)
    half[:, :90] = True  # a straight edge; the border of the image is none
    step = np.where(half, 60, 110).astype(np.uint8)
    assert named(step, half)["edge_sharpness"] == pytest.approx(50)
    # 2 grey levels a pixel, over 3 pixels from the middle of one side to that of the other.
    ramp = np.broadcast_to(2 * np.minimum(np.arange(192), 127), (160, 192)).astype(np.uint8)
    assert named(ramp, half)["edge_sharpness"] == pytest.approx(6)
    blurred = gaussian_filter(np.where(disk(25), 60.0, 110.0), 4).astype(np.uint8)
    sharp = np.where(disk(25), 60, 110).astype(np.uint8)
    at = named(sharp, disk(25))["edge_sharpness"]
    assert 35 < at <= 50
    assert named(blurred, disk(25))["edge_sharpness"] < 0.5 * at


def test_first_order_features_are_those_of_the_grey_values() -> None:
    image, mask = tissue(3), disk(28)
    found = named(image, mask)
    grey = image[mask].astype(float)
    assert found["percentile_10"] == pytest.approx(np.percentile(grey, 10))
    assert found["percentile_90"] == pytest.approx(np.percentile(grey, 90))
    spread = grey - grey.mean()
    kurtosis = np.mean(spread**4) / np.mean(spread**2) ** 2  # 3 for a Gaussian
    assert found["kurtosis"] == pytest.approx(kurtosis)
    p = np.unique(image[mask] // radiomics.BIN_WIDTH, return_counts=True)[1] / grey.size
    assert found["entropy"] == pytest.approx(-(p * np.log2(p)).sum())


def test_run_lengths_and_zones_of_stripes() -> None:
    # 8 rows of 8, rows 0, 2, 4, 6 in bin 1 and the others in bin 2: along rows 8 runs of 8 pixels,
    # so the normalised non-uniformity is 1; along columns 64 runs of 1: also 1; along a diagonal
    # 64 runs of 1. Each row is a zone of 8 pixels, touching none of its kind.
    image = np.zeros((40, 40), dtype=np.uint8)
    image[16:24:2, 16:24] = 80
    image[17:24:2, 16:24] = 88
    mask = np.zeros((40, 40), dtype=bool)
    mask[16:24, 16:24] = True
    found = named(image, mask)
    assert found["run_length_nonuniformity"] == pytest.approx(1)
    # Mean over zones of level^2 / size^2.
    assert found["small_area_high_grey"] == pytest.approx((4 * 1 + 4 * 4) / 8 / 64)


def test_bright_specks_raise_the_foci() -> None:
    plain, mask = tissue(1), disk(30)
    specked = plain.copy()
    rng = np.random.default_rng(2)
    points = np.argwhere(disk(26))
    for y, x in points[rng.choice(len(points), 12, replace=False)]:
        specked[y, x : x + 2] = 255
    before, after = named(plain, mask), named(specked, mask)
    assert after["kurtosis"] > before["kurtosis"]
    assert after["small_area_high_grey"] > before["small_area_high_grey"]


def test_moving_the_nodule_changes_nothing() -> None:
    image, mask = tissue(4), disk(20)
    moved = extract(np.roll(image, (17, -23), (0, 1)), np.roll(mask, (17, -23), (0, 1)))
    assert np.allclose(moved, extract(image, mask), rtol=1e-12)


def test_gain_shifts_grey_levels_and_leaves_the_rest() -> None:
    image, mask = np.clip(tissue(5), 0, 200), disk(20)
    before, after = named(image, mask), named(image + np.uint8(radiomics.BIN_WIDTH), mask)
    for name in NAMES:
        expected = before[name] + (8 if name.startswith("percentile") else 0)
        assert after[name] == pytest.approx(expected), name


@pytest.mark.parametrize(
    "mask",
    [
        np.zeros((160, 192), dtype=bool),
        np.ones((160, 192), dtype=bool),
        box(5, 6),
        box(1, 60),
        box(60, 2),
    ],
    ids=["empty", "full", "small", "line", "thin"],
)
def test_a_degenerate_mask_has_none(mask: Mask, caplog: pytest.LogCaptureFixture) -> None:
    found = extract(tissue(), mask)
    assert found.shape == (len(FEATURES),)
    assert np.isnan(found).all()
    assert not caplog.records


@pytest.mark.parametrize(
    "image", [tissue(), np.full((160, 192), 7, np.uint8)], ids=["tissue", "flat"]
)
def test_any_usable_mask_has_all(image: Image, caplog: pytest.LogCaptureFixture) -> None:
    corner = np.zeros((160, 192), dtype=bool)
    corner[:40, :30] = True
    two = box(12, 12) | np.roll(box(9, 20), (60, 80), (0, 1))
    with caplog.at_level(logging.INFO):
        for mask in (disk(20), corner, two, box(3, 11), ~box(60, 60), disk(4).astype(np.uint8)):
            assert np.isfinite(extract(image, mask)).all()  # type: ignore[arg-type]
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_it_agrees_with_the_full_extractor() -> None:
    import SimpleITK as sitk  # noqa: N813
    from radiomics.featureextractor import RadiomicsFeatureExtractor

    image, mask = tissue(6), disk(25) & ~disk(6)
    extractor = RadiomicsFeatureExtractor(
        binWidth=radiomics.BIN_WIDTH, force2D=True, force2Ddimension=0, additionalInfo=False
    )
    extractor.disableAllFeatures()
    for family in ("firstorder", "glrlm", "glszm", "shape2D"):
        extractor.enableFeatureClassByName(family)
    logging.getLogger("radiomics").setLevel(logging.ERROR)
    full = extractor.execute(
        sitk.GetImageFromArray(image[None].astype(float)),
        sitk.GetImageFromArray(mask[None].astype(np.uint8)),
    )
    found = named(image, mask)
    checked = 0
    for feature in FEATURES:
        if feature.pyradiomics:
            (theirs,) = (v for k, v in full.items() if k.endswith(f"_{feature.pyradiomics}"))
            assert found[feature.name] == pytest.approx(float(theirs), rel=1e-9), feature.name
            checked += 1
    assert checked == 9


# --- many at once, and the cache -----------------------------------------------------------------


def population(n: int) -> tuple[list[Image], list[Mask]]:
    shape = (48, 56)
    return [tissue(i, shape) for i in range(n)], [disk(8 + i % 5, shape) for i in range(n)]


def test_all_is_each_one_in_order(tmp_path: Path) -> None:
    images, masks = population(6)
    masks[2] = np.zeros_like(masks[2])
    images.append(images[0])  # twice the same
    masks.append(masks[0])
    calls: list[tuple[str, int, int]] = []
    found = extract_all(images, masks, cache=tmp_path, progress=lambda *at: calls.append(at))
    each = np.array([extract(i, m) for i, m in zip(images, masks, strict=True)])
    assert np.array_equal(found, each, equal_nan=True)
    assert [done for _, done, _ in calls] == [1, 2, 3, 4, 5, 6, 7]
    assert {(what, total) for what, _, total in calls} == {("radiomics", 7)}
    assert extract_all([], [], cache=None).shape == (0, len(FEATURES))
    with pytest.raises(ValueError, match="shorter"):
        extract_all(images, masks[:-1], cache=None)


def test_the_second_time_nothing_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, masks = population(4)
    first = extract_all(images, masks, cache=tmp_path / "new" / "cache")
    computed: list[int] = []

    def counted(image: Image, mask: Mask, spacing: float | None) -> np.ndarray:
        computed.append(1)
        return extract(image, mask, spacing)

    monkeypatch.setattr(radiomics, "extract", counted)
    calls: list[tuple[str, int, int]] = []
    again = extract_all(
        images, masks, cache=tmp_path / "new" / "cache", progress=lambda *at: calls.append(at)
    )
    assert np.array_equal(first, again)
    assert computed == []
    assert calls == [("radiomics", 4, 4)]
    images[1] = images[1] + np.uint8(1)  # another image
    masks[2] = ~masks[2]  # another mask
    extract_all(images, masks, cache=tmp_path / "new" / "cache")
    assert len(computed) == 2
    monkeypatch.setattr(radiomics, "VERSION", radiomics.VERSION + 1)
    extract_all(images, masks, cache=tmp_path / "new" / "cache")
    assert len(computed) == 2 + 4


@pytest.mark.parametrize("damage", ["junk", "header", "pages", "short vector"])
def test_a_broken_store_is_made_anew(tmp_path: Path, damage: str) -> None:
    images, masks = population(40 if damage == "pages" else 3)
    first = extract_all(images, masks, cache=tmp_path)
    store = tmp_path / "radiomics.sqlite"
    content = store.read_bytes()
    if damage == "junk":
        store.write_bytes(b"this is no database, and it is longer than a header" * 100)
    elif damage == "header":
        store.write_bytes(b"\0" * 100 + content[100:])
    elif damage == "pages":
        store.write_bytes(content[:4096] + b"\xa5" * (len(content) - 4096))
    else:
        connection = sqlite3.connect(store)
        connection.execute("UPDATE features SET vector = x'00'")
        connection.commit()
        connection.close()
    assert np.array_equal(extract_all(images, masks, cache=tmp_path), first)
    connection = sqlite3.connect(store)
    (rows,) = connection.execute(
        "SELECT count(*) FROM features WHERE length(vector) = 104"
    ).fetchone()
    connection.close()
    assert rows == len(images)


def test_a_cache_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder" / "radiomics.sqlite").mkdir(parents=True)
    for folder in (tmp_path / "file", tmp_path / "folder"):
        with pytest.raises(DataError, match="cannot be written") as error:
            extract_all(*population(1), cache=folder)
        assert "\n" not in str(error.value)
        assert str(folder) in str(error.value)


def test_a_cache_without_room_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    connect = radiomics._connect

    def narrow(path: str) -> sqlite3.Connection:
        store = connect(path)
        store.execute("PRAGMA max_page_count = 3")
        return store

    monkeypatch.setattr(radiomics, "_connect", narrow)
    with pytest.raises(DataError, match=r"radiomics.sqlite cannot be written \(.*is full\)"):
        extract_all(*population(1), keys=["x" * 99_999], cache=tmp_path)


def test_workers_give_what_one_process_gives(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(radiomics, "WORTH", 4)
    images, masks = population(20)
    calls: list[int] = []
    parallel = extract_all(
        images, masks, cache=tmp_path, workers=2, progress=lambda _what, done, _: calls.append(done)
    )
    assert calls == list(range(21))
    assert np.array_equal(parallel, extract_all(images, masks, cache=None, workers=1))


def test_two_processes_may_share_the_store(tmp_path: Path) -> None:
    images, masks = population(24)
    job = delayed(extract_all)(images, masks, cache=tmp_path)
    both = Parallel(n_jobs=2)([job, job])
    assert np.array_equal(both[0], both[1])
    connection = sqlite3.connect(tmp_path / "radiomics.sqlite")
    assert connection.execute("SELECT count(*) FROM features").fetchone() == (24,)
    connection.close()


# --- standardising -------------------------------------------------------------------------------


def test_the_standardiser_fits_rows_without_nan() -> None:
    rows = np.random.default_rng(0).normal([5, -3, 0], [2, 1e-3, 100], (200, 3))
    holes = np.vstack([rows, [np.nan] * 3, [1e9, np.nan, 1e9]])
    scaled = Standardiser.fit(holes)(rows)
    assert np.allclose(scaled.mean(axis=0), 0, atol=1e-9)
    assert np.allclose(scaled.std(axis=0), 1)
    assert np.array_equal(Standardiser.fit(holes)(rows), Standardiser.fit(rows)(rows))


def test_the_standardiser_bounds_its_output() -> None:
    rows = np.full((50, 3), 0.1)
    rows[:, 1] = np.arange(50)
    standardise = Standardiser.fit(rows)
    assert np.all(np.abs(standardise(rows)[:, [0, 2]]) < 1e-9)  # constant columns
    assert standardise(np.array([0.1, 1e6, np.nan])).tolist()[1] == 4
    assert standardise(np.array([0.1, -1e6, 0.1])).tolist()[1] == -4
    assert np.isnan(standardise(np.array([0.1, 1e6, np.nan]))[2])
    empty = Standardiser.fit(np.full((3, 2), np.nan))
    assert empty(np.array([[1.0, 2.0]])).tolist() == [[1, 2]]


# --- the real data -------------------------------------------------------------------------------


def test_real_nodules_all_have_radiomics() -> None:
    if not DATA.is_dir():
        pytest.skip(f"no DDTI at {DATA}: set MTBENCH_DATA to the folder that holds ddti/")
    cases = ddti.load(DATA).cases[::16]
    pairs = [(c.image, m) for c in cases if (m := c.readings[0].mask) is not None]
    found = extract_all([i for i, _ in pairs], [m for _, m in pairs], cache=None, workers=1)
    assert np.isfinite(found).all()
    median = dict(zip(NAMES, np.median(found, axis=0), strict=True))
    assert 0.75 < median["sphericity"] < 0.95
    assert 0.4 < median["taller_than_wide"] < 1  # most nodules lie flat
    assert median["mean_contrast"] < 0  # and are darker than what surrounds them


# One spacing


def seen_at(spacing: float) -> tuple[Image, Mask]:
    """One nodule of 12 x 8 mm and its tissue, at a resolution."""
    fine = np.random.default_rng(0).normal(size=(60, 80))
    y, x = np.mgrid[0:24:spacing, 0:32:spacing]
    texture = ndimage.map_coordinates(fine, [y / 0.4, x / 0.4], order=3, mode="reflect")
    mask = ((x - 15) / 6) ** 2 + ((y - 12) / 4) ** 2 <= 1
    image = (130 + 22 * texture - 60 * mask).clip(0, 255).astype(np.uint8)
    return image, mask


def test_radiomics_are_of_the_nodule_and_not_of_its_pixels() -> None:
    wanted = named(*seen_at(STEP))
    deviation = {"kurtosis": 0.15, "small_area_high_grey": 0.3, "edge_sharpness": 0.15}
    for spacing in (0.05, 0.07, 0.15):
        image, mask = seen_at(spacing)
        found = dict(zip((f.name for f in FEATURES), extract(image, mask, spacing), strict=True))
        for name, value in wanted.items():
            assert found[name] == pytest.approx(value, rel=deviation.get(name, 0.1)), name
        # In pixels of unknown size, these are others.
        plain = named(image, mask)
        assert abs(plain["perimeter_surface_ratio"] / wanted["perimeter_surface_ratio"] - 1) > 0.25


def test_a_spacing_that_cannot_be_is_none() -> None:
    image, mask = seen_at(0.1)
    np.testing.assert_array_equal(extract(image, mask, 8.0), extract(image, mask))
    np.testing.assert_array_equal(extract(image, mask, STEP), extract(image, mask))


def test_of_several_parts_the_largest_is_measured() -> None:
    image, mask = seen_at(0.1)
    more = mask.copy()
    more[5:15, 5:15] = True
    np.testing.assert_array_equal(extract(image, more), extract(image, mask))
