"""ACR TI-RADS: descriptors, points, levels and what it recommends; others' thresholds beside it.

These tables state what guidelines say. They are shown beside a reading for research; nobody may act
on them for a patient.
"""

from collections.abc import Mapping
from typing import Any

from mtbench_tasks._lesion.descriptors import Descriptor, Lexicon, Threshold
from mtbench_tasks._lesion.reading import CLEAR, clear
from mtbench_tasks.thyroid import ultrasound
from mtbench_tasks.thyroid.ultrasound import GRADES, POINTS, Descriptors, grade

SHAPE = "shape"  # what a transverse view measures

LEXICON: Lexicon = tuple(
    Descriptor(name.replace("_", " "), tuple(terms), name) for name, terms in POINTS.items()
)
"""In ACR's terms, as the phantom has them."""

_DDTI: dict[str, tuple[str, dict[str, str]]] = {
    "composition": (
        "composition",
        {
            "dense": "solid",
            "predominantly solid": "mixed",
            "predominantly cystic": "mixed",
        },
    ),
    "echogenicity": (
        "echogenicity",
        {
            "hyperechogenicity": "hyperechoic",
            "isoechogenicity": "isoechoic",
            "hypoechogenicity": "hypoechoic",
            "marked hypoechogenicity": "very hypoechoic",
        },
    ),
    "margin": (
        "margins",
        {
            "well defined": "smooth",
            "well defined smooth": "smooth",
            "ill defined": "ill-defined",
            "microlobulated": "irregular",
            "macrolobulated": "irregular",
            "spiculated": "irregular",
        },
    ),
    "echogenic foci": (
        "calcifications",
        {"macrocalcification": "macrocalcifications", "microcalcification": "punctate"},
    ),
}
DDTI: Lexicon = tuple(
    Descriptor(d.name, d.terms, *_DDTI[d.name]) for d in LEXICON if d.name in _DDTI
)
"""In ACR's terms, from DDTI's words (our reading of them); it does not say the shape."""


_ACR = "Tessler et al. 2017, doi 10.1016/j.jacr.2017.01.046"
_EU = "Russ et al. 2017, doi 10.1159/000478927"
_K = "Ha et al. 2021, doi 10.3348/kjr.2021.0713"
THRESHOLDS = (
    Threshold("ACR TI-RADS", "TR1", None, None, _ACR),
    Threshold("ACR TI-RADS", "TR2", None, None, _ACR),
    Threshold("ACR TI-RADS", "TR3", 25, 15, _ACR),
    Threshold("ACR TI-RADS", "TR4", 15, 10, _ACR),
    Threshold("ACR TI-RADS", "TR5", 10, 5, _ACR),
    Threshold("EU-TIRADS", "2", None, None, _EU),
    Threshold("EU-TIRADS", "3", 20, None, _EU, above=True),
    Threshold("EU-TIRADS", "4", 15, None, _EU, above=True),
    Threshold("EU-TIRADS", "5", 10, None, _EU, above=True),
    Threshold("K-TIRADS", "2", None, None, _K),
    Threshold("K-TIRADS", "3", 20, None, _K, above=True),
    Threshold("K-TIRADS", "4", 10, None, _K, above=True, most=15),
    Threshold("K-TIRADS", "5", 10, None, _K, above=True),
)
"""EU- and K-TIRADS say "larger than", ACR "at least".

Of K-TIRADS 4 the physician chooses a size from 10 to 15 mm, by features, place, risk and patient.
"""
_OWN = {row.level: row for row in THRESHOLDS if row.system == "ACR TI-RADS"}


def points(terms: Mapping[str, str], taller: bool | None) -> tuple[int, int] | None:
    """Return the least and the largest sum of points; None where a term other than shape is absent.

    Args:
        terms: by descriptor; without the shape, what was measured counts.
        taller: whether a transverse view is taller than wide; None where not known.

    >>> terms = {"composition": "solid", "echogenicity": "hypoechoic", "margin": "smooth"}
    >>> points(terms | {"echogenic foci": "none"}, None)
    (4, 7)
    """
    names = [descriptor.name for descriptor in LEXICON]
    if not {*names} - {SHAPE} <= terms.keys():
        return None

    def total(shape: str) -> int:
        return ultrasound.points(Descriptors(*(terms.get(name, shape) for name in names)))

    wide, tall = POINTS[SHAPE]
    return total(tall if taller else wide), total(wide if taller is False else tall)


def advice(level: str, size: float | None) -> str:
    """Return what ACR TI-RADS recommends at a level, and at a size in mm, where that is known.

    >>> advice("TR4", 12.0), advice("TR2", None)
    ('biopsy from 15 mm, follow-up from 10 mm; at 12 mm: follow-up', 'no biopsy, no follow-up')
    """
    row = _OWN[level]
    if row.biopsy is None or row.follow_up is None:
        return "no biopsy, no follow-up"
    text = f"biopsy from {row.biopsy:g} mm, follow-up from {row.follow_up:g} mm"
    if size is None:
        return text
    now = "biopsy" if size >= row.biopsy else "follow-up" if size >= row.follow_up else "neither"
    return f"{text}; at {size:g} mm: {now}"


def assess(view: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the points and levels of a view's terms, and what follows of them and of its category.

    None where there is neither. A term that is less likely than not has no points, and without it
    there is no sum: it could be any.

    Args:
        view: of a reading, with a lesion.
    """
    described = (view["descriptors"] or {}).items()
    found = {name: said["term"] for name, said in described if said["probability"] >= CLEAR}
    total = points(found, view["taller_than_wide"])
    size = view.get("long_axis_mm")
    levels = [] if total is None else [GRADES[grade(t)] for t in dict.fromkeys(total)]
    levels = list(dict.fromkeys(levels))
    lines = [f"by points {level}: {advice(level, size)}" for level in levels]
    if described and total is None:
        lines.append(f"no points: {', '.join(n for n, _ in described if n not in found)} unclear")
    if clear(view) and view["category"] in _OWN:
        lines.append(f"category {view['category']}: {advice(view['category'], size)}")
    if not lines:
        return None
    return {"system": "ACR TI-RADS", "points": total, "levels": levels, "says": lines}
