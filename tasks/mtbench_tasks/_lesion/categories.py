"""How readers spell a category, and which scale their categories are of."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mtbench_tasks._names import visible

SCALES = (
    ("TR1", "TR2", "TR3", "TR4", "TR5"),
    ("1", "2", "3", "4", "5"),
    ("2", "3", "4a", "4b", "4c", "5"),
    ("1", "2", "3", "4a", "4b", "4c", "5"),
    ("benign", "malignant"),
    ("low", "high"),
    ("0", "1"),
)
"""The known scales, from benign to malignant; the first that holds all categories is meant."""

NONE = {
    "", "-", "--", "?", ".", "nan", "n/a", "n.a.", "na", "n/d", "nd", "<na>", "#n/a", "#value!",
    "#ref!", "#div/0!", "#num!", "#name?", "none", "null", "nil", "missing", "unknown", "anon",
    "anonymous", "not available", "not graded", "not done", "pending",
}  # fmt: skip
"""What means that nothing was said."""

ODD = 0.1
"""Of the categories: where no more are off a scale, they are slips, and not another scale."""

_ACR = "TR"
_SYSTEMS = {
    **dict.fromkeys(("tr", "acr", "acrtr", "tirads", "acrtirads"), _ACR),
    **dict.fromkeys(("birads", "acrbirads"), "BI"),
    "eutirads": "EU", "ktirads": "K", "ctirads": "C",
    **dict.fromkeys(("", "grade", "category", "level"), ""),
}  # fmt: skip
_NAMES = {_ACR: "TI-RADS", "BI": "BI-RADS", "EU": "EU-TIRADS", "K": "K-TIRADS", "C": "C-TIRADS"}
_LETTERED = re.compile(f"({'|'.join(_SYSTEMS)})([0-6][abc]?)")


@dataclass(frozen=True)
class Category:
    """A category as it was meant.

    Attributes:
        grade: its place, such as ``4a`` or ``malignant``.
        system: ``TR`` (TI-RADS), ``BI`` (BI-RADS), ``EU``, ``K`` or ``C`` (Europe's, Korea's and
            China's TI-RADS), or empty where the cell does not say.
    """

    grade: str
    system: str = ""


@dataclass(frozen=True)
class Scale:
    """Which scale categories are of.

    Attributes:
        grades: from benign to malignant; None where no known scale is meant for certain.
        why: what speaks against one, or what looks odd of it.
    """

    grades: tuple[str, ...] | None
    why: str = ""


def said(cell: str) -> str | None:
    """Return a cell's text, None where it says that there is none.

    >>> said(" TR4 "), said("NaN"), said("n/a"), said("4.0")
    ('TR4', None, None, '4')
    """
    text = visible(cell)
    if text.casefold() in NONE:
        return None
    return re.sub(r"^(\D*\d+)[.,]0+$", r"\1", text)


def meant(cell: str) -> Category:
    """Return what a cell means, whatever its case, spaces, hyphens, apostrophes and the system's name.

    A number below zero is no grade: -1 often stands for what is not known.

    >>> meant("TI-RADS 4a"), meant("tr-4"), meant("Malignant")
    (Category(grade='4a', system='TR'), Category(grade='4', system='TR'), Category(grade='malignant', system=''))
    >>> meant("ACR 4"), meant("EU-TIRADS 4"), meant("Grade: 4"), meant("'4")
    (Category(grade='4', system='TR'), Category(grade='4', system='EU'), Category(grade='4', system=''), Category(grade='4', system=''))
    """  # noqa: E501
    text = visible(cell)
    plain = re.sub(r"[\s_:.'-]+", "", text).casefold()
    if (found := _LETTERED.fullmatch(plain)) and text[0] != "-":
        return Category(found[2], _SYSTEMS[found[1]])
    return Category(" ".join(cell.split()).casefold())


def unsaid(cell: str) -> bool:
    """Return whether a category is a negative number, as stands for what is not known.

    >>> unsaid("-1"), unsaid("-99.0"), unsaid("TR-4"), unsaid("1")
    (True, True, False, False)
    """
    return re.fullmatch(r"-\d+(\.0*)?", visible(cell)) is not None


def place(cell: str, grades: Sequence[str]) -> int | None:
    """Return a category's place on a scale; None if it has none.

    What is spelt as one of the grades is that one; else what means the same is.
    """
    exact = [grade.casefold() for grade in grades]
    if cell.casefold() in exact:
        return exact.index(cell.casefold())
    category, known = meant(cell), [meant(grade) for grade in grades]
    fits = [
        i
        for i, grade in enumerate(known)
        if grade.grade == category.grade and _one_system(grade.system, category.system)
    ]
    return fits[0] if len(fits) == 1 else None


def scale_of(cells: Iterable[str]) -> Scale:
    """Return the known scale that holds all categories but a few slips; without any, low and high.

    Negative numbers say nothing, unless the scale begins at 0.
    Numbers alone are of one scale with TI-RADS 1 to 5 where some are called so. Labels 1 and 2
    alone are no five grades.
    """
    cells = list(cells)
    graded = [cell for cell in cells if not unsaid(cell)]
    if graded and len(graded) < len(cells):
        rest = scale_of(graded)
        if rest.grades is not None and rest.grades[0] != "0":  # -1, 0, 1 may be a scale
            return rest
    counts = Counter(map(meant, cells))
    if not counts:
        return Scale(("low", "high"))
    systems = {category.system for category in counts} - {""}
    if len(systems) > 1:
        return Scale(None, f"are of {' and of '.join(sorted(_NAMES[s] for s in systems))}")
    plain = Counter[str]()
    for category, count in counts.items():
        plain[category.grade] += count
    scales = SCALES if _ACR in systems else SCALES[1:]
    levels = {grades: {meant(grade).grade for grade in grades} for grades in scales}
    fits = {grades: sum(plain[level] for level in own) for grades, own in levels.items()}
    grades = max(fits, key=fits.__getitem__)  # of equals the first
    if fits[grades] < (1 - ODD) * plain.total():
        return Scale(None, "fit no known scale")
    used = plain.keys() & levels[grades]
    if grades == SCALES[1] and not systems:
        if used <= {"1", "2"}:
            return Scale(None, "are 1 and 2 only, which are no five grades: benign and malignant?")
        if max(used) < "4":
            return Scale(grades, f"are numbers up to {max(used)}: is the scale 1 to 5?")
    if grades == SCALES[0] and any(not c.system and c.grade in used for c in counts):
        return Scale(grades, "are partly numbers alone: 4 is taken as TR4")
    return Scale(grades)


def _one_system(a: str, b: str) -> bool:
    return a == b or not (a and b)


def and_above(grades: Sequence[str], first: int) -> str:
    """Return which grades are meant, in words."""
    return grades[first] + " and above" * (first + 1 < len(grades))
