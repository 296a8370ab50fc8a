"""The phantom: its grading by hand-worked cases, its physics, its readers and its cache."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from mtbench.errors import UsageError
from mtbench_tasks._lesion.cases import Case, Collection, Image, Mask
from mtbench_tasks.thyroid import phantom, ultrasound
from mtbench_tasks.thyroid.ultrasound import Descriptors

SIZE = 100
NOISE = "reader_noise must be finite and not negative, found "


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    return phantom.load(size=SIZE, cache=tmp_path_factory.mktemp("phantom"), workers=1)


def same(first: Case, second: Case) -> bool:
    masks = zip((first.truth, *first.readings), (second.truth, *second.readings), strict=True)
    return (
        first.descriptors == second.descriptors
        and first.spacing == second.spacing
        and np.array_equal(first.image, second.image)
        and all(a.category == b.category and np.array_equal(a.mask, b.mask) for a, b in masks)
    )


def dice(a: Mask, b: Mask) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def quadratic_kappa(a: NDArray[np.int_], b: NDArray[np.int_]) -> float:
    apart = np.subtract.outer(np.arange(5), np.arange(5)) ** 2
    seen = np.zeros((5, 5))
    np.add.at(seen, (a, b), 1)
    chance = np.outer(seen.sum(1), seen.sum(0)) / seen.sum()
    return float(1 - (seen * apart).sum() / (chance * apart).sum())


def ring(mask: Mask) -> Mask:
    near, far = (ndimage.binary_dilation(mask, iterations=n) for n in (3, 10))
    outside: Mask = far & ~near
    return outside


def contrast(case: Case) -> float:
    assert case.truth is not None
    assert case.truth.mask is not None
    core = ndimage.binary_erosion(case.truth.mask, iterations=3)
    return float(np.median(case.image[core]) - np.median(case.image[ring(case.truth.mask)]))


# --- ACR points, worked by hand from the white paper's table ---


@pytest.mark.parametrize(
    ("words", "total", "grade"),
    [
        (("cystic", "anechoic", "wider-than-tall", "smooth", "none"), 0, "TR1"),
        (("spongiform", "isoechoic", "wider-than-tall", "smooth", "none"), 0, "TR1"),
        (("mixed", "isoechoic", "wider-than-tall", "smooth", "comet-tail"), 2, "TR2"),
        (("solid", "hyperechoic", "wider-than-tall", "ill-defined", "none"), 3, "TR3"),
        (("mixed", "hypoechoic", "wider-than-tall", "smooth", "none"), 3, "TR3"),
        (("solid", "hypoechoic", "wider-than-tall", "smooth", "none"), 4, "TR4"),
        (("solid", "isoechoic", "wider-than-tall", "irregular", "macrocalcifications"), 6, "TR4"),
        (("solid", "hypoechoic", "wider-than-tall", "smooth", "punctate"), 7, "TR5"),
        (("solid", "very hypoechoic", "taller-than-wide", "extrathyroidal extension",
          "peripheral calcifications"), 13, "TR5"),
    ],
)  # fmt: skip
def test_points_and_grade_follow_the_acr_table(
    words: tuple[str, ...], total: int, grade: str
) -> None:
    found = ultrasound.points(Descriptors(*words))
    assert found == total
    assert ultrasound.GRADES[ultrasound.grade(found)] == grade


def test_a_sum_of_one_is_graded_tr2_and_no_true_nodule_has_it() -> None:
    assert ultrasound.GRADES[ultrasound.grade(1)] == "TR2"
    assert 1 not in {ultrasound.points(words) for words in ultrasound.NODULES}


# --- the collection ---


def test_each_case_is_one_patient_read_by_everybody(collection: Collection) -> None:
    assert len(collection.cases) == len({case.patient for case in collection.cases}) == SIZE
    for case in collection.cases:
        assert case.image.shape == (ultrasound.HEIGHT, ultrasound.WIDTH)
        assert case.image.dtype == np.uint8
        assert [r.reader for r in case.readings] == ["reader-1", "reader-2", "reader-3"]
        assert case.truth is not None
        assert case.truth.reader == "truth"
        words = Descriptors(**{k: v for k, v in case.descriptors.items() if k != "points"})
        assert case.descriptors["points"] == str(ultrasound.points(words))
        assert case.truth.category == ultrasound.grade(ultrasound.points(words))


def test_every_grade_has_its_share(collection: Collection) -> None:
    share = Counter(case.truth.category for case in collection.cases if case.truth)
    assert all(0.12 <= share[grade] / SIZE <= 0.3 for grade in range(5))


def test_nodules_are_whole_and_neither_tiny_nor_huge(collection: Collection) -> None:
    for case in collection.cases:
        assert case.truth is not None
        mask = case.truth.mask
        assert mask is not None
        assert ndimage.label(mask)[1] == 1
        assert not mask[0].any()
        assert not mask[-1].any()
        assert 0.07 <= mask.any(axis=0).sum() / ultrasound.WIDTH <= 0.65


def test_taller_than_wide_nodules_are(collection: Collection) -> None:
    for case in collection.cases:
        assert case.truth is not None
        assert case.truth.mask is not None
        tall, wide = (np.count_nonzero(case.truth.mask.any(axis=axis)) for axis in (1, 0))
        if case.descriptors["margin"] == "smooth":
            assert (tall > wide) == (case.descriptors["shape"] == "taller-than-wide")


# --- determinism ---


def test_a_case_depends_on_version_seed_and_index_alone(
    collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    fewer = phantom.load(size=3, readers=2, workers=2)
    assert fewer.fingerprint != collection.fingerprint
    for a, b in zip(fewer.cases, collection.cases, strict=False):
        assert np.array_equal(a.image, b.image)
        for mine, theirs in zip(a.readings, b.readings, strict=False):
            assert mine.category == theirs.category
            assert np.array_equal(mine.mask, theirs.mask)
    monkeypatch.setattr(ultrasound, "VERSION", ultrasound.VERSION + 1)
    for other in (ultrasound.simulate(1, 0)[0], ultrasound.simulate(0, 0)[0]):
        assert not np.array_equal(other, collection.cases[0].image)


# --- readers ---


def test_readers_without_noise_say_the_truth() -> None:
    for case in phantom.load(size=6, reader_noise=0, workers=1).cases:
        assert case.truth is not None
        for reading in case.readings:
            assert np.array_equal(reading.mask, case.truth.mask)
            assert reading.category == case.truth.category


def test_readers_differ_from_the_truth_as_much_as_people_do(collection: Collection) -> None:
    overlap, agreement = [], []
    for r in range(3):
        pairs = [(case.readings[r], case.truth) for case in collection.cases]
        overlap.append(np.mean([dice(a.mask, b.mask) for a, b in pairs]))  # type: ignore[arg-type, union-attr]
        read, true = np.array([(a.category, b.category) for a, b in pairs]).T  # type: ignore[union-attr]
        agreement.append(quadratic_kappa(read, true))
    assert 0.85 <= np.mean(overlap) <= 0.93
    assert 0.8 <= np.mean(agreement) <= 0.92
    assert len(set(np.round(overlap, 4))) == 3


def test_a_reader_has_a_style() -> None:
    """One who draws outwards does so in most cases; the noise knob scales it."""
    words = Descriptors("solid", "isoechoic", "wider-than-tall", "smooth", "none")
    row, column = np.ogrid[:160, :192]
    truth = (row - 80) ** 2 + (column - 96) ** 2 < 35**2
    outward = phantom.Style(0.8, 0.5, 0.2, 0.0, 0.0, 0.0)

    def area(noise: float, seed: int) -> int:
        rng = np.random.default_rng(seed)
        mask, category = phantom.read(truth, words, 0.2, outward, noise, rng)
        assert category == 2
        return int(mask.sum())

    for seed in range(5):
        assert truth.sum() == area(0, seed) < area(0.5, seed) < area(1, seed)


# --- physics ---


def test_echogenicity_shows(collection: Collection) -> None:
    """Against its surroundings: fluid darkest, then very hypoechoic, hypoechoic, isoechoic."""
    plain = [c for c in collection.cases if c.descriptors["composition"] in {"cystic", "solid"}]
    level = {
        word: np.median([contrast(c) for c in plain if c.descriptors["echogenicity"] == word])
        for word in ultrasound.POINTS["echogenicity"]
    }
    assert level["anechoic"] < level["very hypoechoic"] < level["hypoechoic"] < -8
    assert level["hypoechoic"] < level["isoechoic"] < level["hyperechoic"]
    assert abs(level["isoechoic"]) < 15


def uniform_body() -> ultrasound.Body:
    rows, columns = ultrasound.HEIGHT * ultrasound.FINE, ultrasound.WIDTH + 2 * ultrasound.PAD
    flat = np.zeros((rows, columns))
    x = (np.arange(columns)[None] - (columns - 1) / 2) * 0.22
    z = (np.arange(rows)[:, None] + 0.5) * 0.22 / ultrasound.FINE
    return ultrasound.Body(x, z, flat.copy(), flat.copy(), flat + ultrasound.TISSUE, flat.copy())


def image_of(seed: int, body: ultrasound.Body | None = None) -> Image:
    return ultrasound._image(np.random.default_rng(seed), body or uniform_body(), spacing=0.22)


def shown(body: ultrasound.Body) -> NDArray[np.float64]:
    """The mean of several images of it."""
    return np.mean([image_of(s, body) for s in range(8)], axis=0)


@pytest.mark.parametrize(
    ("loss", "darker"), [(ultrasound.CALCIUM, True), (ultrasound.FLUID, False)]
)
def test_calcium_shadows_and_fluid_enhances_what_is_below(loss: float, darker: bool) -> None:
    body, plain = uniform_body(), shown(uniform_body())
    thick = 10 if darker else 60
    body.loss[80 : 80 + thick, 90:126] = loss
    change = shown(body) - plain
    change -= change[80:110, 10:60].mean()  # the gain follows the picture's middle
    below = change[80:110, 84:108].mean()
    assert below < -20 if darker else below > 10
    assert abs(change[:35, 84:108].mean()) < 2  # nothing above it changes


def test_speckle_is_wider_across_than_along_the_beam_and_widens_off_focus() -> None:
    images = [image_of(s) for s in range(8)]

    def correlation(rows: slice, axis: int) -> float:
        found = []
        for image in images:
            part = image[rows].astype(float)
            part -= ndimage.gaussian_filter(part, 5)
            near, far = (part[:, :-2], part[:, 2:]) if axis else (part[:-2], part[2:])
            found.append(np.corrcoef(near.ravel(), far.ravel())[0, 1])
        return float(np.mean(found))

    focal, deep = slice(55, 95), slice(115, 155)
    assert correlation(focal, 1) > correlation(focal, 0) + 0.15
    assert correlation(deep, 1) > correlation(focal, 1) + 0.03


def test_speckle_has_the_contrast_of_two_looks() -> None:
    """dB spread of the mean of two exponential powers: sqrt(psi'(2)) * 10 / ln 10 = 3.49."""
    image = image_of(3).astype(float)
    part = image[60:90]
    spread = (part - ndimage.gaussian_filter(part, 12)).std() * 54 / 255
    assert 2.3 < spread < 3.9  # less, since one pixel averages two correlated rows


# --- cache and parameters ---


def test_cache_round_trip_and_a_broken_file_is_made_anew(tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []

    def load() -> Collection:
        calls.clear()
        return phantom.load(
            size=3, cache=tmp_path / "deep", workers=1, progress=lambda *at: calls.append(at)
        )

    made = load()
    assert calls == [
        (f"simulating {what}", done, 3) for what in ("phantoms", "readings") for done in (1, 2, 3)
    ]
    files = sorted((tmp_path / "deep").iterdir())
    assert len(files) == 2
    read = load()
    assert not calls
    assert read.fingerprint == made.fingerprint
    assert all(same(a, b) for a, b in zip(made.cases, read.cases, strict=True))

    for file in files:
        whole = file.read_bytes()
        middle = len(whole) // 2
        method = whole.rindex(b"PK\x01\x02") + 10  # by which the last array is packed
        for broken in (
            b"", b"no zip", whole[:middle], whole[:3000] + b"?" + whole[3001:],
            whole[:method] + b"?" + whole[method + 1 :],
        ):  # fmt: skip
            file.write_bytes(broken)
            again = load()
            assert len(calls) == 3
            assert all(same(a, b) for a, b in zip(made.cases, again.cases, strict=True))
            assert file.read_bytes() == whole
    assert files == sorted((tmp_path / "deep").iterdir())


def test_reader_noises_share_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    phantom.load(size=3, cache=tmp_path, workers=1)
    alone = phantom.load(size=3, reader_noise=2.0, readers=2, workers=1)
    monkeypatch.setattr(phantom, "simulate", None)  # nothing is simulated again
    shared = phantom.load(size=3, reader_noise=2.0, readers=2, cache=tmp_path, workers=1)
    assert shared.fingerprint == alone.fingerprint
    assert all(same(a, b) for a, b in zip(alone.cases, shared.cases, strict=True))
    assert sorted(file.name.split("-")[1] for file in tmp_path.iterdir()) == [
        "cases", "readings", "readings",
    ]  # fmt: skip


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cache must be a folder that can be written, got .*file"):
        phantom.load(size=1, cache=tmp_path / "file", workers=1)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"size": 0}, "size must be at least 1, found 0"),
        ({"seed": -1}, "seed must be at least 0, found -1"),
        ({"readers": 0}, "readers must be at least 1, found 0"),
        ({"workers": 0}, "workers must be at least 1, found 0"),
        ({"reader_noise": -0.5}, NOISE + "-0.5"),
        ({"reader_noise": np.nan}, NOISE + "nan"),
    ],
)
def test_bad_parameters_are_named(parameters: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        phantom.load(**parameters)
    assert str(caught.value) == message
