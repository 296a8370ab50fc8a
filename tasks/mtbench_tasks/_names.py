"""Names of people and of categories, as tables spell them."""

import re
import unicodedata
from collections.abc import Iterable


def visible(cell: str) -> str:
    """Return a text in one Unicode form, without what is not seen, all dashes a hyphen.

    >>> visible("P\u201301\u200b ")
    'P-01'
    """
    seen = [c for c in unicodedata.normalize("NFKC", cell) if unicodedata.category(c) != "Cf"]
    return re.sub(r"[\u2010-\u2015\u2212]", "-", "".join(seen)).strip()


def spelt_alike(names: Iterable[str]) -> dict[str, str]:
    """Return for each name of a person the first spelling of it.

    Spellings are one where they differ by case, Unicode form, kind of dash, what is not seen (such
    as spaces), a dash between a letter and a number, the order of names, a spreadsheet's ``.0``,
    what parts thousands, or leading zeros.

    >>> spelt_alike(["P01", "p 1", "P02", "7.0", "007", "P-2"])
    {'P01': 'P01', 'p 1': 'P01', 'P02': 'P02', '7.0': '7.0', '007': '7.0', 'P-2': 'P02'}
    >>> spelt_alike(["Doe, John", "DOE^JOHN", "John Doe", "1,234", "1234"])
    {'Doe, John': 'Doe, John', 'DOE^JOHN': 'Doe, John', 'John Doe': 'Doe, John', '1,234': '1,234', '1234': '1,234'}
    """  # noqa: E501
    first: dict[str, str] = {}
    found = {}
    for name in names:
        text = visible(name).casefold().strip("'")
        words = re.split(r"[\s,^]+", text.strip(", ^"))
        key = "".join(sorted(words) if all(map(str.isalpha, words)) else text.split())
        if re.fullmatch(r"\d{1,3}(['.,]\d{3})+", key):
            key = re.sub(r"\D", "", key)
        key = re.sub(r"^(\d+)\.0+$", r"\1", key)
        key = re.sub(r"(?<=[^\W\d])[-_.](?=\d)", "", key)
        key = re.sub(r"(?<!\d)0+(?=\d)", "", key)
        found[name] = first.setdefault(key, name)
    return found
