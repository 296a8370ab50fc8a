"""A simulated B-mode image of a thyroid nodule, and its ACR descriptors.

An image is made the way a linear array makes one. Tissue is a field of unresolved scatterers: a
circular complex Gaussian whose local power is the tissue's echogenicity (dB, relative to normal
thyroid). Travelling down, the beam loses `2 a f` dB per mm (a: attenuation coefficient in
dB / (mm MHz), f: frequency; the factor 2 is the way back), of which time-gain compensation gives a
fixed part back: so shadows below calcium and air, and enhancement below fluid, follow from one
cumulative sum. The point-spread function is a Gaussian, short along depth (the pulse) and wide
across (the beam), widening away from the focus as `s(z)^2 = s0^2 (1 + ((z - z_f) / z_R)^2)`.
Electronic noise is added, the power of two independent looks is averaged (frequency compounding),
compressed to a dynamic range and quantised. Speckle, its spread (3.5 dB for two looks) and its
lateral elongation are consequences, not inputs.

Nodules are drawn from the ACR TI-RADS descriptors and graded by its points table: Tessler et al.,
"ACR TI-RADS: White Paper of the ACR TI-RADS Committee", J Am Coll Radiol 14:587-595 (2017).
Our own assumptions, from no publication: how often each descriptor occurs (`FREQUENCY`), and how
loud each tissue is (dB values below). Levels and display were set by comparison with DDTI, see
`benchmarks/phantom_vs_ddti.py` and `benchmarks/phantom_told.py`; they differ from image to image as
much as there, and so does how long and how bright layers are.
"""

from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import fft, ndimage

from mtbench_tasks._lesion.cases import Image, Mask

VERSION = 4
"""Part of every seed and of the cache key: a change that changes an image is a new version."""

GRADES = ("TR1", "TR2", "TR3", "TR4", "TR5")
HEIGHT, WIDTH = 160, 192
FINE = 2  # rows simulated per row shown: the pulse is shorter than a displayed pixel
LOOKS = 2  # independent speckle patterns averaged in power: frequency compounding
PAD = 12  # columns simulated beyond each side: the lateral filter is circular

Map = NDArray[np.floating[Any]]

POINTS: dict[str, dict[str, int]] = {
    "composition": {"cystic": 0, "spongiform": 0, "mixed": 1, "solid": 2},
    "echogenicity": {"anechoic": 0, "hyperechoic": 1, "isoechoic": 1, "hypoechoic": 2,
                     "very hypoechoic": 3},
    "shape": {"wider-than-tall": 0, "taller-than-wide": 3},
    "margin": {"smooth": 0, "ill-defined": 0, "irregular": 2, "extrathyroidal extension": 3},
    "echogenic_foci": {"none": 0, "comet-tail": 0, "macrocalcifications": 1,
                       "peripheral calcifications": 2, "punctate": 3},
}  # fmt: skip
"""ACR TI-RADS points; one kind of echogenic foci a nodule here, although ACR adds up several."""

FREQUENCY: dict[str, dict[str, tuple[float, float]]] = {
    "composition": {"cystic": (0.25, 0), "spongiform": (0.1, 0), "mixed": (0.3, 0.05),
                    "solid": (0.35, 0.95)},
    "echogenicity": {"anechoic": (0.25, 0), "hyperechoic": (0.25, 0.02),
                     "isoechoic": (0.35, 0.08), "hypoechoic": (0.13, 0.45),
                     "very hypoechoic": (0.02, 0.45)},
    "shape": {"wider-than-tall": (0.95, 0.55), "taller-than-wide": (0.05, 0.45)},
    "margin": {"smooth": (0.76, 0.2), "ill-defined": (0.2, 0.2), "irregular": (0.03, 0.45),
               "extrathyroidal extension": (0.01, 0.15)},
    "echogenic_foci": {"none": (0.68, 0.35), "comet-tail": (0.14, 0),
                       "macrocalcifications": (0.1, 0.1),
                       "peripheral calcifications": (0.05, 0.07), "punctate": (0.03, 0.48)},
}  # fmt: skip
"""P(descriptor | benign), P(descriptor | malignant): independent given the class (our reading)."""

MALIGNANT = 0.3
GRADE_FREQUENCY = (0.18, 0.2, 0.2, 0.22, 0.2)
LEVEL = {"anechoic": -21.0, "hyperechoic": 4.5, "isoechoic": 1.0, "hypoechoic": -6.0,
         "very hypoechoic": -12.0}  # fmt: skip
"""Nodule echogenicity in dB against normal thyroid; strap muscle, ACR's yardstick, -2 to -7."""

TISSUE, FLUID, CALCIUM, AIR = 0.05, 0.002, 1.6, 4.0
"""Attenuation in dB / (mm MHz), one way: soft tissue 0.5 dB / (cm MHz)."""


class Descriptors(NamedTuple):
    """The words of one ACR TI-RADS reading, in the order of `POINTS`."""

    composition: str
    echogenicity: str
    shape: str
    margin: str
    echogenic_foci: str


def points(words: Descriptors) -> int:
    """Sum the ACR TI-RADS points; nothing is added to a cystic or spongiform composition.

    The white paper says so of spongiform nodules; for cysts it follows from their anechogenicity,
    and we extend it to a reader's confused words.

    >>> points(Descriptors("solid", "hypoechoic", "taller-than-wide", "irregular", "punctate"))
    12
    """
    if words.composition in {"cystic", "spongiform"}:
        return 0
    return sum(POINTS[part][word] for part, word in zip(POINTS, words, strict=True))


def grade(total: int) -> int:
    """Index into `GRADES`: 0 is TR1, 1-2 TR2, 3 TR3, 4-6 TR4, 7 and more TR5.

    ACR's table has no row for a sum of 1 and true nodules never have it; readers can, and are
    then put into TR2 (our reading).
    """
    return int(np.searchsorted((1, 3, 4, 7), total, side="right"))


def _table() -> tuple[list[Descriptors], Map]:
    """All plausible nodules, and the probability of each within each grade (grades, nodules)."""
    words, weights = [], []
    for drawn in map(Descriptors._make, product(*POINTS.values())):
        fluid = drawn.composition in {"cystic", "spongiform"}
        plain = drawn.shape == "wider-than-tall" and drawn.margin in {"smooth", "ill-defined"}
        if (
            (drawn.composition == "cystic") != (drawn.echogenicity == "anechoic")
            or (drawn.echogenic_foci == "comet-tail" and drawn.composition == "solid")
            or (fluid and not (plain and drawn.echogenic_foci in {"none", "comet-tail"}))
            or (drawn.composition == "spongiform" and drawn.echogenicity != "isoechoic")
            or (drawn.composition == "cystic" and drawn.margin != "smooth")
        ):
            continue
        given = [FREQUENCY[part][word] for part, word in zip(POINTS, drawn, strict=True)]
        benign, malignant = np.prod(given, axis=0)
        words.append(drawn)
        weights.append((1 - MALIGNANT) * benign + MALIGNANT * malignant)
    of = np.array([grade(points(w)) for w in words])
    table = np.array(weights) * (of == np.arange(len(GRADES))[:, None])
    return words, table / table.sum(axis=1, keepdims=True)


NODULES, NODULE_FREQUENCY = _table()


def draw(rng: Generator) -> Descriptors:
    """Draw a grade, then a nodule of it: grades stay balanced whatever the descriptors' odds."""
    of = rng.choice(len(GRADES), p=GRADE_FREQUENCY)
    return NODULES[rng.choice(len(NODULES), p=NODULE_FREQUENCY[of])]


def _weights(length: int, scale: float) -> Map:
    """(length, knots) kernel that spreads white knots into a unit-variance smooth process."""
    knots = np.arange(-2, length / scale + 3) * scale
    kernel = _bump(np.arange(length)[:, None] - knots, 0.8 * scale).astype(np.float32)
    return np.asarray(kernel / np.sqrt((kernel**2).sum(axis=1, keepdims=True)))


def _curve(rng: Generator, length: int, scale: float) -> Map:
    """Draw a smooth unit-variance curve whose correlation length is about `scale` samples."""
    kernel = _weights(length, scale)
    return np.asarray(kernel @ rng.standard_normal(kernel.shape[1], dtype=np.float32))


def field(rng: Generator, shape: tuple[int, int], scale: tuple[float, float]) -> Map:
    """Draw a smooth unit-variance random field, correlation lengths in samples (down, across)."""
    down, across = _weights(shape[0], scale[0]), _weights(shape[1], scale[1])
    knots = rng.standard_normal((down.shape[1], across.shape[1]), dtype=np.float32)
    return np.asarray(down @ knots @ across.T)


def _ellipse(x: Map, z: Map, a: float, b: float, swell: Map | float = 1.0) -> tuple[Map, Map]:
    """Depth inside an ellipse (mm, negative outside, first order) and the normal's x-part.

    With `rho^2 = (x/a)^2 + (z/b)^2` scaled by `swell`, the distance to `rho = 1` is
    `rho (1 - rho) / |(x/a^2, z/b^2)|` to first order.
    """
    rho = np.sqrt((x / a) ** 2 + (z / b) ** 2) + 1e-6
    slope = np.sqrt((x / a**2) ** 2 + (z / b**2) ** 2) + 1e-6
    return rho * (swell - rho) / slope, x / a**2 / slope


def _bump(distance: Map, width: float) -> Map:
    # Clipped: an exponential that underflows to denormals costs ten times as much.
    return np.asarray(np.exp(np.maximum(-0.5 * (distance / width) ** 2, -30)))


class Ellipse(NamedTuple):
    """Middle and semi-axes in mm, across and down."""

    x: float
    z: float
    a: float
    b: float


@dataclass
class Body:
    """What the beam meets, on the fine grid (rows, columns); distances in mm.

    Attributes:
        x: distance from the middle, (1, columns).
        z: depth, (rows, 1).
        level: scattered power, dB against normal thyroid.
        mirror: amplitude of coherent reflectors (fascia, calcium), 1 = rms of normal thyroid.
        loss: attenuation, dB / (mm MHz).
        edge: refraction loss at surfaces that the beam grazes, dB / mm.
    """

    x: Map
    z: Map
    level: Map
    mirror: Map
    loss: Map
    edge: Map

    def paint(self, where: Map, level: Map | float, loss: float = TISSUE) -> None:
        """Blend in a tissue where `where` (0-1) says so."""
        self.level += where * (level - self.level)
        self.loss += where * (loss - self.loss)

    def near(self, at: Ellipse, margin: float) -> tuple[tuple[slice, slice], "Body"]:
        """Return a window around an ellipse, and the body in it: views, to be painted through."""
        rows, columns = (
            slice(*np.searchsorted(axis, (middle - half - margin, middle + half + margin)))
            for axis, middle, half in ((self.z[:, 0], at.z, at.b), (self.x[0], at.x, at.a))
        )
        maps = (m[rows, columns] for m in (self.level, self.mirror, self.loss, self.edge))
        return (rows, columns), Body(self.x[:, columns], self.z[rows], *maps)


def _neck(rng: Generator, spacing: float, a: float, b: float) -> tuple[Body, Ellipse]:
    """Build the neck around a lobe with room for an a x b nodule (semi-axes, mm)."""
    rows, columns = HEIGHT * FINE, WIDTH + 2 * PAD
    dz = spacing / FINE
    x = ((np.arange(columns)[None] - (columns - 1) / 2) * spacing).astype(np.float32)
    z = ((np.arange(rows)[:, None] + 0.5) * dz).astype(np.float32)
    transverse = rng.random() < 0.6
    side = rng.choice((-1.0, 1.0))  # where the trachea is

    lobe_a = max(rng.uniform(10, 13) if transverse else rng.uniform(22, 32), a * 1.1 + 1)
    lobe_b = max(rng.uniform(7.5, 10.5), b * 1.08 + 0.8)
    # Aside by so much, a lobe that is cut lengthwise shows a pole.
    lobe_x = rng.uniform(-2, 2) if transverse else rng.uniform(-13, 13)
    top = rng.uniform(5.5, 8.5)
    lobe_z = top + lobe_b
    uneven = 0.4 * _curve(rng, rows, 5 / dz)[:, None]
    inside, grazing = _ellipse(x - lobe_x - uneven, z - lobe_z, lobe_a, lobe_b)
    facing = np.sqrt(1 - grazing**2)  # how squarely the beam meets the capsule
    radius = rng.uniform(6, 8)
    trachea_x = lobe_x + side * (lobe_a + rng.uniform(6, 11))
    trachea_z = lobe_z + rng.uniform(0, 3)
    if transverse and rng.random() < 0.6:  # the isthmus runs to the other lobe before the trachea
        half = rng.uniform(0.8, 2.2)
        bridge = half - np.abs(z - (trachea_z - 0.9 * radius - half - 0.3) + uneven)
        bridge = np.minimum(bridge, side * (x - lobe_x))
        facing = np.where(bridge > inside, 1, facing)
        inside = 0.6 * np.logaddexp(inside / 0.6, bridge / 0.6)

    # Layers above and below follow the lobe's relief; `depth` is what they would be without it.
    relief = 0.3 * _curve(rng, columns, 9 / spacing) + rng.uniform(-0.06, 0.06) * x[0]
    bow = 1 - np.sqrt(np.clip(1 - ((x[0] - lobe_x) / (lobe_a * 1.6)) ** 2, 0, 1))
    relief += rng.uniform(-0.6, 1.8) * bow
    depth = z - relief * np.clip(z / top, 0, 1)
    row = np.clip(np.rint(depth / dz).astype(int), 0, rows - 1)
    along, contrast = rng.uniform(0.4, 1.2) / spacing, rng.uniform(0.6, 1.2)
    fibres = np.take_along_axis(field(rng, (rows, columns), (0.28 / dz, 7 * along)), row, 0)
    coarse = np.take_along_axis(field(rng, (rows, columns), (0.7 / dz, 5 * along)), row, 0)
    cloud = field(rng, (rows, columns), (2.5 / dz, 2.5 / spacing))
    fibres, coarse = contrast * fibres, contrast * coarse

    skin = rng.uniform(0.9, 1.6)
    fat = skin + rng.uniform(0.3, 0.6) * (top - skin)
    nothing = np.zeros((rows, columns), np.float32)
    surface = -4 + 3.0 * coarse + 2.0 * fibres + 1.5 * cloud
    body = Body(x, z, surface, nothing.copy(), nothing + np.float32(TISSUE), nothing.copy())

    def below(boundary: float | Map) -> Map:
        return _soft(depth - boundary, 0.12)

    strap = rng.uniform(-7, -2) + rng.uniform(2.5, 4.5) * fibres + 1.2 * cloud
    body.paint(below(skin), 2.0 + 3.0 * fibres + 3.0 * coarse)  # subcutaneous fat
    body.paint(below(fat), strap)
    body.paint(below(top + rng.uniform(1.5, 3.5)), -2 + 2.5 * coarse + 2.5 * fibres + 1.5 * cloud)
    floor = lobe_z + lobe_b * 0.98 + 1.4 - 0.2 * np.hypot(x[0] - lobe_x, 5) - relief * 0.3
    floor += 0.8 * _curve(rng, columns, 3 / spacing)
    clump = rng.uniform(0.3, 0.9) / spacing  # what lies below the lobe is short and clumped
    fibres = contrast * field(rng, (rows, columns), (0.2 / dz, clump))
    coarse = contrast * field(rng, (rows, columns), (0.6 / dz, 2 * clump))
    body.paint(below(floor), rng.uniform(-3, 6) + 3.5 * fibres + 4.0 * coarse)
    body.paint(below(floor + rng.uniform(3, 6)), -9 + 3.0 * fibres + 3.5 * coarse, 1.6 * TISSUE)
    body.level += 9 * _bump(depth - 0.3, 0.35)  # transducer and skin surface

    # Fascia: mirrors, patchy along their course because only square incidence comes back.
    bright, patch = rng.uniform(0.1, 0.7), rng.uniform(0.6, 2.0)

    def fascia(boundary: float | Map, strength: float, width: float = 0.11) -> None:
        course = depth - boundary - 0.2 * _curve(rng, columns, 5 / spacing)
        patchy = bright * np.exp(1.2 * _curve(rng, columns, patch / spacing) - 0.5)
        body.mirror += strength * patchy * _bump(course, width)
        body.level += 9 * np.minimum(patchy, 1) * _bump(course, 2 * width)

    fascia(skin, rng.uniform(0.4, 1.2))
    fascia(fat, rng.uniform(0.4, 1.5))
    fascia(fat + rng.uniform(0.3, 0.7) * (top - fat), rng.uniform(0.2, 1.0), 0.08)
    fascia(floor, rng.uniform(0.8, 4.0), 0.13)
    fascia(floor + rng.uniform(1.5, 4), rng.uniform(0.3, 2.0), 0.15)

    parenchyma = rng.uniform(0.7, 1.8) * cloud + rng.uniform(0.3, 1.5) * coarse + 0.7 * fibres
    body.paint(_soft(inside, 0.15), parenchyma)
    capsule = _bump(inside, 0.13) * facing**4
    body.mirror += bright * rng.uniform(0.4, 1.5) * capsule * np.exp(coarse - 0.5)
    body.level += 5 * bright * _bump(inside, 0.25) * facing**2

    if transverse:
        _trachea(rng, body, trachea_x, trachea_z, radius)
        carotid = rng.uniform(2.4, 3.6)
        _vessel(rng, body, lobe_x - side * (lobe_a + carotid * rng.uniform(0.6, 1.0)),
                lobe_z + rng.uniform(-2, 3), carotid, carotid * rng.uniform(0.85, 1))  # fmt: skip
        if rng.random() < 0.5:  # jugular vein: nearer to the skin, flattened by the transducer
            aside = WIDTH * spacing * rng.uniform(0.37, 0.5)
            _vessel(rng, body, -side * aside, lobe_z - lobe_b * 0.7,
                    rng.uniform(2.5, 4.5), rng.uniform(1.0, 2.2))  # fmt: skip
    for _ in range(rng.integers(0, 4)):  # small vessels and colloid specks in the lobe
        _vessel(rng, body, lobe_x + rng.uniform(-0.8, 0.8) * lobe_a,
                lobe_z + rng.uniform(-0.7, 0.7) * lobe_b, rng.uniform(0.3, 1.1), 0.4)  # fmt: skip
    return body, Ellipse(lobe_x, lobe_z, lobe_a, lobe_b)


def _soft(inside: Map, width: float) -> Map:
    """Blend from 0 outside to 1 inside over about `width` mm."""
    return np.asarray(1 / (1 + np.exp(np.clip(-inside / width, -30, 30))))


def _vessel(rng: Generator, body: Body, x: float, z: float, a: float, b: float) -> None:
    """Blood: almost echo-free, a bright wall where the beam meets it squarely, grazing edges."""
    _, body = body.near(Ellipse(x, z, a, b), 1.5 + 0.3 * a)
    right, down = body.x - x - rng.normal(0, 0.25) * (body.z - z), body.z - z
    swell = 1 + 0.06 * rng.normal() * np.cos(3 * np.arctan2(down, right))  # it is no disc
    inside, grazing = _ellipse(right, down, a, b * rng.uniform(0.75, 1.0), swell)
    big = min(a, b) / 2.5
    body.paint(_soft(inside, 0.15), rng.uniform(-26, -14), FLUID)
    square = 1 - np.minimum(grazing**2, 1)
    wall = _bump(inside + 0.2, 0.18) * min(big, 1)
    body.level += rng.uniform(2, 7) * wall * (0.4 + square)
    body.mirror += rng.uniform(0.1, 1.2) * wall * square**2
    if min(a, b) > 1.5:  # an artery's intima is a line of its own
        intima = _bump(inside - rng.uniform(0.45, 0.7), 0.1) * square**4
        body.level += rng.uniform(2, 7) * intima
    body.edge += 0.6 * min(big, 1) * _grazing(inside, grazing)


def _grazing(inside: Map, grazing: Map) -> Map:
    """Edge shadow: at grazing incidence the beam is refracted away (dB / mm, our reading)."""
    return np.asarray(4.0 * _bump(inside, 0.3) * np.clip(np.abs(grazing) - 0.9, 0, 1) / 0.1)


def _trachea(rng: Generator, body: Body, x: float, z: float, radius: float) -> None:
    """Cartilage and air: a bright arc, reverberations of it, and little but shadow behind."""
    inside, grazing = _ellipse(body.x - x, body.z - z, radius, radius * 0.9)
    up = np.clip((z - body.z) / radius, 0, 1) * np.sqrt(1 - grazing**2)
    haze = rng.uniform(1.0, 2.5)  # its shadow has soft edges
    body.paint(_soft(inside, 0.5 * haze), -12.0)
    for echo in range(3):
        ring = _bump(inside - 0.9 - 1.8 * echo, 0.35)
        body.level += (14 - 4 * echo) * up * ring
        body.mirror += rng.uniform(0.3, 2) * 0.5**echo * up**2 * ring
    air = rng.uniform(0.02, 0.4) * (AIR - TISSUE)
    body.loss += air * _soft(inside - rng.uniform(1, 4), haze)


def _place(
    rng: Generator, lobe: Ellipse, a: float, b: float, spacing: float, margin: str
) -> Ellipse:
    """Put the nodule anywhere in the lobe, or through its front for an extension."""
    angle, out = rng.uniform(0, 2 * np.pi), np.sqrt(rng.random())
    x = lobe.x + (lobe.a - a) * out * np.cos(angle)
    z = lobe.z + (lobe.b - b) * out * np.sin(angle)
    reach = WIDTH / 2 * spacing - a - 0.5
    x = float(np.clip(x, -reach, reach))
    if margin == "extrathyroidal extension":
        front = lobe.z - lobe.b * np.sqrt(max(0.0, 1 - ((x - lobe.x) / lobe.a) ** 2))
        z = front + b * rng.uniform(0.6, 0.75)
    return Ellipse(x, z, a, b)


def _outline(rng: Generator, body: Body, margin: str, at: Ellipse) -> tuple[Map, Map]:
    """Shape the contour: an ellipse, slightly turned, its radius swollen by harmonics."""
    turn = rng.uniform(-0.2, 0.2)
    right = (body.x - at.x) * np.cos(turn) + (body.z - at.z) * np.sin(turn)
    down = (body.z - at.z) * np.cos(turn) - (body.x - at.x) * np.sin(turn)
    angle = np.arctan2(down / at.b, right / at.a)
    swell = np.ones_like(angle)
    rough = margin in {"irregular", "extrathyroidal extension"}
    for n in range(3, 14 if rough else 6):
        size = 0.27 / n if rough else 0.085 / (n - 1)
        swell += size * rng.normal() * np.cos(n * angle + rng.uniform(0, 2 * np.pi))
    return _ellipse(right, down, at.a, at.b, np.clip(swell, 0.75, 1.3))


def _nodule(rng: Generator, body: Body, words: Descriptors, spacing: float, at: Ellipse) -> Map:
    """Paint composition, echogenicity, margin and foci; return the depth inside (mm)."""
    whole = np.full(body.level.shape, -1.0)
    window, body = body.near(at, 0.35 * max(at.a, at.b) + 3)
    dz, shape = spacing / FINE, body.level.shape
    inside, grazing = _outline(rng, body, words.margin, at)
    size = np.sqrt(at.a * at.b)
    edge = _soft(inside, {"ill-defined": 0.75, "smooth": 0.1}.get(words.margin, 0.15))
    level = LEVEL[words.echogenicity] + rng.uniform(-1, 1)
    uneven = rng.uniform(1.2, 3.0) * field(rng, shape, (1.6 / dz, 1.8 / spacing))

    body.mirror *= 1 - edge  # the nodule replaces the fascia that it has grown through
    if words.composition == "cystic":
        body.paint(edge, level + rng.uniform(-5, 5) + uneven, FLUID)  # from clear to colloid
    else:
        body.paint(edge, level + uneven, TISSUE * (1.25 if level < -3 else 1))
    if words.composition == "spongiform":
        cell = rng.uniform(0.2, 0.35)
        cells = field(rng, shape, (cell / dz, 1.2 * cell / spacing)) + 0.2 * uneven
        body.paint(edge * _soft(cells - 0.05, 0.15), level - 17, FLUID + 0.5 * TISSUE)
        body.level += 3.5 * edge * _soft(-cells, 0.2)
    if words.composition == "mixed":
        pools = field(rng, shape, (0.42 * size / dz, 0.5 * size / spacing))
        core = inside - 0.1 * size
        cut = np.quantile(pools[core > 0], rng.uniform(0.5, 0.8))
        fluid = _soft(pools - cut, 0.12) * _soft(core, 0.1)
        body.paint(fluid, rng.uniform(-24, -13) + uneven, FLUID)
    if words.echogenicity in {"isoechoic", "hyperechoic"}:  # a halo is all that shows many of them
        halo = 0.08 * size + 0.15
        faint = 0.7 if words.margin == "ill-defined" else 1.0
        body.level -= faint * rng.uniform(6, 10) * _bump(inside - 0.3 * halo, halo)
    if words.margin == "smooth":
        body.mirror += rng.uniform(0.4, 1.0) * (1 - grazing**2) ** 2 * _bump(inside, 0.13)
    if words.margin in {"smooth", "irregular"}:
        body.edge += rng.uniform(0.3, 1.0) * _grazing(inside, grazing)
    _foci(rng, body, words.echogenic_foci, dz, at, inside, grazing)
    whole[window] = inside
    return whole


def _foci(rng: Generator, body: Body, foci: str, dz: float, at: Ellipse, inside: Map,
          grazing: Map) -> None:  # fmt: skip
    """Add what shines: calcium shadows when it is larger than the beam, specks do not."""
    size = np.sqrt(at.a * at.b)
    if foci == "none":
        return
    if foci == "peripheral calcifications":
        angle = np.arctan2((body.z - at.z) / at.b, (body.x - at.x) / at.a)
        gaps = np.cos(2 * angle + rng.uniform(0, 6.3)) + np.cos(3 * angle + rng.uniform(0, 6.3))
        shell = _bump(inside - 0.2, 0.22) * _soft(gaps + 0.9, 0.1)
        body.level += 14 * shell
        body.mirror += 4.0 * shell * (0.35 + np.sqrt(1 - np.minimum(grazing**2, 1)))
        body.loss += 0.5 * CALCIUM * shell
        return
    rows, columns = np.nonzero(inside > 0.22 * size)
    count = {"macrocalcifications": rng.integers(1, 3), "comet-tail": rng.integers(2, 5),
             "punctate": rng.integers(4, 26)}[foci]  # fmt: skip
    for k in rng.integers(rows.size, size=count):
        row, column = rows[k], columns[k]
        if foci == "punctate":
            body.mirror[row, column] += rng.uniform(14, 56)
        elif foci == "comet-tail":  # resonance: an echo train that tapers below a bright point
            tail = rng.uniform(1.0, 2.2)
            end = min(row + int(tail / dz), body.z.size)
            train = np.arange(end - row) * dz
            ringing = 9 * np.exp(-3.5 * train / tail) * (0.6 + 0.4 * np.cos(15 * train))
            body.mirror[row:end, column] += ringing
        else:
            wide, high = rng.uniform(0.16, 0.34) * size + 0.4, rng.uniform(0.3, 0.6)
            sag = 0.12 * (body.x - body.x[0, column]) ** 2 / wide
            stone, _ = _ellipse(body.x - body.x[0, column], body.z - body.z[row] - sag, wide, high)
            calcium = _soft(stone, 0.08)
            body.level += 16 * calcium
            body.mirror += 6.0 * calcium * _bump(stone - 0.1, 0.25)
            body.loss += CALCIUM * calcium


def _speckle(rng: Generator, shape: tuple[int, ...]) -> NDArray[np.complex64]:
    """Circular complex Gaussian of unit power: unresolved scatterers, or electronic noise."""
    parts = rng.standard_normal((*shape, 2), dtype=np.float32) * np.float32(np.sqrt(0.5))
    return parts.view(np.complex64)[..., 0]


def _image(rng: Generator, body: Body, spacing: float) -> Image:
    """Insonify: transmission, scattering, point-spread function, noise, envelope, compression."""
    dz = spacing / FINE
    rows, columns = body.level.shape
    frequency = rng.uniform(7.5, 11)
    way = 2 * frequency * body.loss + body.edge
    # Time-gain compensation (dB / mm) follows the tissue's loss, and the sonographer's hand.
    gained = 2 * frequency * TISSUE * rng.uniform(0.5, 0.9) - rng.uniform(-0.15, 0.2)
    transmission = -np.cumsum(way - gained, axis=0) * dz
    transmission = ndimage.gaussian_filter1d(transmission, 0.35 / spacing, axis=1)

    scatter = _speckle(rng, (LOOKS, rows, columns)) * 10 ** (body.level / 20) + body.mirror
    scatter = scatter * 10 ** (transmission / 20)

    # The pulse is the same all the way; the beam widens away from the focus. Both filters keep
    # the power of diffuse scattering, so that a tissue's level does not depend on its depth.
    pulse = rng.uniform(0.06, 0.125) * 9 / frequency / dz
    focus, reach = rng.uniform(10, 22), rng.uniform(18, 50)
    beam = rng.uniform(0.18, 0.33) * 9 / frequency * np.hypot(1, (body.z - focus) / reach) / spacing
    omega = 2 * np.pi * fft.fftfreq(columns)[None]
    lateral = _bump(omega * beam, 1) + rng.uniform(0.2, 0.5) * _bump(omega * beam * 5, 1)  # lobes
    lateral /= np.sqrt((lateral**2).mean(axis=1, keepdims=True))
    echo = fft.ifft(fft.fft(scatter) * lateral.astype(np.float32))
    echo = ndimage.gaussian_filter1d(echo, pulse, axis=1) * np.sqrt(2 * np.sqrt(np.pi) * pulse)
    floor = rng.uniform(-34, -22) + 0.1 * body.z
    echo += _speckle(rng, echo.shape) * 10 ** (floor / 20)

    power = (echo.real**2 + echo.imag**2).mean(axis=0)
    decibel = 10 * np.log10(power.reshape(HEIGHT, FINE, columns).mean(axis=1) + 1e-9)
    contact = _curve(rng, columns, 10 / spacing)  # with the skin: uneven
    decibel += rng.uniform(1.5, 3.5) * contact
    shown = decibel[:, PAD:-PAD]
    # The grey map has a toe: noise and clutter fade into a black level instead of being cut off.
    # The gain is set by the picture's middle, as the sonographer does.
    span, black, toe = (rng.uniform(*r) for r in ((64, 82), (5, 32), (9, 15)))
    median = float(np.clip(rng.normal(66, 14), 35, 100))
    middle = black + toe * np.log(np.expm1(max(median - black, 1.0) / toe))
    grey = middle + (shown - np.median(shown)) * 255 / span
    grey = black + toe * np.logaddexp(0, (grey - black) / toe)
    grey = median * (grey / median) ** 1.35
    image: Image = np.clip(grey, 0, 255).astype(np.uint8)
    return image


def _size(rng: Generator, words: Descriptors, width: float, spacing: float) -> tuple[float, float]:
    """Draw the semi-axes of a nodule of about that width (mm), across and down."""
    tall = words.shape == "taller-than-wide"
    ratio = rng.uniform(1.2, 1.55) if tall else rng.uniform(0.5, 0.88)
    size = min(width / 2, 8.5 if tall else 10, 0.28 * WIDTH * spacing * np.sqrt(ratio))
    return size / np.sqrt(ratio), size * np.sqrt(ratio)


def simulate(seed: int, index: int) -> tuple[Image, Mask, Descriptors, float]:
    """Simulate one case: image, true nodule mask, descriptors, millimetres per pixel."""
    rng = np.random.default_rng([VERSION, seed, index, 0])
    words = draw(rng)
    spacing = rng.uniform(0.195, 0.25)
    width = WIDTH * spacing * rng.uniform(0.16, 0.5)
    a, b = _size(rng, words, width, spacing)
    body, lobe = _neck(rng, spacing, a, b)
    at = _place(rng, lobe, a, b, spacing, words.margin)
    inside = _nodule(rng, body, words, spacing, at)
    mask: Mask = inside.reshape(HEIGHT, FINE, -1).mean(axis=1)[:, PAD:-PAD] > 0
    return _image(rng, body, spacing), mask, words, spacing
