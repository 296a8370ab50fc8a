"""Foreign text made inert: labels, metric names and notes come from plugins and other people.

What is shown goes through here, once for each kind of place; HTML is escaped by its template.
URLs, which may hold a password, are shown without it.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence

_MARKDOWN = re.compile(r"([\\`*_<>|~#&]|(?<=\])\()")
_FORMULA = re.compile(r"[=@]|[+-](?!\d*[.,]?\d+$)")  # a number is none
_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "Δ": r"$\Delta$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "×": r"$\times$",
    "−": r"$-$", "·": r"$\cdot$", "≈": r"$\approx$", "÷": r"$\div$", "–": "--",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "α": r"$\alpha$", "β": r"$\beta$", "γ": r"$\gamma$", "δ": r"$\delta$", "ε": r"$\epsilon$",
    "ζ": r"$\zeta$", "η": r"$\eta$", "θ": r"$\theta$", "κ": r"$\kappa$", "λ": r"$\lambda$",
    "μ": r"$\mu$", "ν": r"$\nu$", "ξ": r"$\xi$", "π": r"$\pi$", "ρ": r"$\rho$", "σ": r"$\sigma$",
    "τ": r"$\tau$", "φ": r"$\phi$", "χ": r"$\chi$", "ψ": r"$\psi$", "ω": r"$\omega$",
}  # fmt: skip
_LIGATURE = re.compile(r"(?<=[-–])(?=[-–])|(?<=')(?=')|(?<=,)(?=,)|(?<=[`?!])(?=`)")
_QUERY = re.compile(r"(?i)([?&;][^=&;]*(?:pass|pwd|secret|token|key)[^=&;]*=)([^&;\s]+)")
_USER = re.compile(r"://[^/@:]*:(.+)@")
_UNKNOWN_TO_OT1 = "ÐÞðþ"  # the only letters of Latin-1 for which TeX's default fonts have no macro


def plain(text: str) -> str:
    r"""Return text in which nothing controls a terminal, turns its direction or cannot be seen.

    >>> plain("a\x1b[2Jb\nc\u200bd")
    'a�[2Jb�c�d'
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or unicodedata.category(c) == "Zs" else "\ufffd" for c in text
    )


def markdown(text: str) -> str:
    r"""Return text that Markdown shows as it is.

    >>> markdown("a|b <img> [x](y)")
    'a\\|b \\<img\\> [x]\\(y)'
    """
    return _MARKDOWN.sub(r"\\\1", plain(text))


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table; the texts are to be inert already.

    >>> table(["a", "b"], [["1", "2"]])
    ['| a | b |', '|---|---|', '| 1 | 2 |']
    """
    first, *others = (f"| {' | '.join(line)} |" for line in (heads, *rows))
    return [first, f"|{'---|' * len(heads)}", *others]


def spreadsheet(text: str) -> str:
    """Return text that no spreadsheet takes for a formula.

    >>> spreadsheet("=cmd()"), spreadsheet("cagrad c=0.4"), spreadsheet("-1.5")
    ("'=cmd()", 'cagrad c=0.4', '-1.5')
    """
    shown = plain(text)
    return f"'{shown}" if _FORMULA.match(shown.lstrip()) else shown


def tex(text: str) -> str:
    r"""Return text that TeX sets as it is; a character that its fonts lack is named.

    >>> tex("a_b 50%"), tex("a|b"), tex("λ = 1 中"), tex("--out")
    ('a\\_b 50\\%', 'a\\textbar{}b', '$\\lambda$ = 1 [U+4E2D]', '-{}-out')
    """
    parts = _LIGATURE.split(plain(text))
    found = "{}".join("".join(map(_typeset, part)) for part in parts)
    return f"{{{found}}}" if found.startswith("[") else found  # \\[ would be a length


def _typeset(character: str) -> str:
    latin = "\xc0" <= character <= "\xff" and character not in _UNKNOWN_TO_OT1
    known = character.isascii() or latin
    return _TEX.get(character, character if known else f"[U+{ord(character):04X}]")


def without_password(url: str) -> str:
    """Return a URL, or what was meant to be one, without what may be a password.

    >>> without_password("postgresql://me:secret@host/db?sslpassword=x&a=1")
    'postgresql://...@host/db?sslpassword=...&a=1'
    >>> without_password("postgresql:/me:secret@host/db")
    'postgresql:...@host/db'
    """
    shown = _QUERY.sub(r"\1...", url)
    kind, separator, rest = shown.partition("://" if "://" in shown else ":")
    return f"{kind}{separator}...@{rest.rpartition('@')[2]}" if "@" in rest else shown


def without_secrets(said: str, url: str) -> str:
    """Return what is said of a URL without its passwords, in the URL or by themselves.

    >>> without_secrets("no user me with 'secret'", "postgresql://me:secret@host/db")
    "no user me with '...'"
    """
    said = said.replace(url, without_password(url))
    for secret in [*_USER.findall(url), *(value for _, value in _QUERY.findall(url))]:
        said = said.replace(secret, "...")
    return said
