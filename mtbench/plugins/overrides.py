"""``--set key=value`` and ``--key value``: finding whose parameter a key is."""

from collections.abc import Mapping, Sequence

from mtbench.errors import UsageError, did_you_mean
from mtbench.plugins.params import Bare


def parse(settings: Sequence[str], extra: Sequence[str]) -> dict[str, str]:
    """Return the overrides by key.

    Args:
        settings: ``key=value`` texts.
        extra: command line words that are no option of the command: ``--key value`` pairs, or
            ``--key`` alone, whose value is `Bare`.

    >>> parse(["c=0.4"], ["--strict", "--source", "ddti", "--width=8"])
    {'c': '0.4', 'strict': 'true', 'source': 'ddti', 'width': '8'}

    Raises:
        UsageError: a text of another form, or a key that is given twice.
    """
    pairs: list[tuple[str, str]] = []
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {text}: must be key=value")
        pairs.append((key.strip(), value.strip()))
    words = list(extra)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise UsageError(
                f"unexpected argument {word!r}: an option takes one value, as in --name value"
            )
        key, equals, value = word[2:].partition("=")
        if not equals:
            value = words.pop(0) if words and not words[0].startswith("--") else Bare("true")
        pairs.append((key.replace("-", "_"), value))
    found: dict[str, str] = {}
    for key, value in pairs:
        if key in found:
            raise UsageError(f"parameter {key!r} is given twice: {found[key]!r} and {value!r}")
        found[key] = value
    return found


def route(
    given: Mapping[str, str],
    owners: Mapping[str, Mapping[str, Sequence[str]]],
    options: Sequence[str] = (),
) -> dict[str, dict[str, str]]:
    """Return each owner's share of the overrides.

    A plain key goes to whatever has a parameter of that name: all methods that have it, but not
    both a method and the task. ``owner.key`` names one owner.

    Args:
        given: the overrides.
        owners: by kind (task, recipe, method), the parameter names of each owner.
        options: the command's own options, for the hint only.

    >>> owners = {"task": {"thyroid": ["width"]}, "method": {"cagrad": ["c"], "ew": []}}
    >>> route({"c": "0.4", "thyroid.width": "8"}, owners)
    {'thyroid': {'width': '8'}, 'cagrad': {'c': '0.4'}, 'ew': {}}

    Raises:
        UsageError: nobody has the parameter, or owners of two kinds have it.
    """
    known = {name: keys for kind in owners.values() for name, keys in kind.items()}
    share: dict[str, dict[str, str]] = {name: {} for name in known}
    for text, value in given.items():
        owner, dot, key = text.rpartition(".")
        if dot and owner not in known:
            raise UsageError(
                f"{text}: nothing here is called {owner!r}; {did_you_mean(owner, known)}"
            )
        kinds = {
            kind: [name for name, keys in group.items() if key in keys and owner in ("", name)]
            for kind, group in owners.items()
        }
        kinds = {kind: names for kind, names in kinds.items() if names}
        if not kinds:
            names = known[owner] if dot else [k for keys in known.values() for k in keys]
            own = {} if dot else {option.replace("-", "_"): f"--{option}" for option in options}
            hint = did_you_mean(key, {*names, *own}, own, listed="mtbench info NAME")
            raise UsageError(f"unknown parameter or option {text!r}: {hint}")
        if len(kinds) > 1:
            choices = " or ".join(f"{name}.{key}" for names in kinds.values() for name in names)
            raise UsageError(f"parameter {key!r} is ambiguous: say {choices}")
        for names in kinds.values():
            for name in names:
                share[name][key] = value
    return share
