"""Parameters of plugins: what a constructor's signature declares, and text turned into values.

A method's and a task's own parameters are the keyword-only arguments of its ``__init__``, with
annotations among int, float, bool, str, Path, Literal, tuple[X, ...] and unions of these. A
constructor that ends in ``**name`` hands on to its base's, whose parameters are its own then.
"""

import inspect
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from mtbench.errors import UsageError, did_you_mean

_KINDS = (
    "parameters have one of int, float, bool, str, Path, Literal, tuple[X, ...] and unions of these"
)


class Bare(str):
    """The value of an option that was given none: true, if it is one of what is true or false."""


def declared(callee: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the keyword-only parameters of a class or function, annotations resolved.

    >>> class Base:
    ...     def __init__(self, *, width: int = 16, depth: int = 4) -> None: ...
    >>> class Wide(Base):
    ...     def __init__(self, *, width: int = 64, **common: int) -> None: ...
    >>> [(name, p.default) for name, p in declared(Wide).items()]
    [('width', 64), ('depth', 4)]

    Raises:
        UsageError: an annotation names what is not there, or what no text can be read as.
    """
    found: dict[str, inspect.Parameter] = {}
    chain = map(_constructor, _chain(callee)) if isinstance(callee, type) else [callee]
    for function in chain:
        try:
            hints = get_type_hints(function)
        except NameError as error:
            raise UsageError(
                f"{function.__module__.rpartition('.')[2]}: {function.__qualname__} has a type "
                f"that is not there ({error}): {_KINDS}"
            ) from None
        for parameter in _own(function):
            hint = hints.get(parameter.name, str)
            if not _readable(hint):
                raise UsageError(
                    f"{function.__module__.rpartition('.')[2]}: {parameter.name!r} of "
                    f"{function.__qualname__} is {inspect.formatannotation(hint)}: {_KINDS}"
                )
            found.setdefault(parameter.name, parameter.replace(annotation=hint))
    return found


def _own(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return a function's keyword-only parameters."""
    known = inspect.signature(function).parameters.values()
    return [parameter for parameter in known if parameter.kind is parameter.KEYWORD_ONLY]


def documented(cls: type) -> str:
    """Return a class's docstring, followed by those of the bases that take its parameters.

    Of a base's ``Args:`` those are left out that an earlier one explains.
    """
    texts: list[str] = []
    bases = (owner for owner in _chain(cls) if owner is not cls and _own(_constructor(owner)))
    for owner in (cls, *bases):
        text = inspect.getdoc(owner) or ""
        for name in re.findall(r"^    (\w+): ", "\n".join(texts), re.MULTILINE):
            text = re.sub(rf"^    {name}: .*\n?(        .*\n?)*", "", text, flags=re.MULTILINE)
        texts.append(text.rstrip())
    return "\n\n".join(texts)


def explained(callee: Callable[..., Any]) -> dict[str, str]:
    """Return what the docstring of a class or function says of its arguments, each in one line.

    >>> explained(explained)
    {'callee': 'what has a docstring with ``Args:``.'}

    Args:
        callee: what has a docstring
            with ``Args:``.
    """
    text = documented(callee) if isinstance(callee, type) else inspect.getdoc(callee) or ""
    found = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", text, re.MULTILINE)
    return {name: " ".join(said.split()) for name, said in found}


def _chain(cls: type) -> Iterator[type]:
    """Yield the classes whose constructors together take a class's parameters."""
    for owner in cls.__mro__[:-1]:
        if "__init__" in vars(owner):
            yield owner
            kinds = [p.kind for p in inspect.signature(_constructor(owner)).parameters.values()]
            if inspect.Parameter.VAR_KEYWORD not in kinds:
                return


def _constructor(cls: type) -> Callable[..., Any]:
    own: Callable[..., Any] = vars(cls)["__init__"]
    return own


def resolve(cls: type, given: Mapping[str, Any], owner: str) -> dict[str, Any]:
    """Return the parameters of a class, those given over the defaults.

    Args:
        cls: the plugin's class.
        given: values; strings are parsed by the annotation.
        owner: how the plugin is called in messages.

    Raises:
        UsageError: an unknown name, a value of the wrong type, or a required one missing.
    """
    known = declared(cls)
    for name in given:
        if name not in known:
            hint = did_you_mean(name, known, listed=f"mtbench info {owner}")
            raise UsageError(f"{owner} has no parameter {name!r}: {hint}")
    values = {}
    for name, parameter in known.items():
        usual = parameter.default  # which may be of another type than is declared
        if name in given and not (type(given[name]) is type(usual) and given[name] == usual):
            values[name] = convert(given[name], parameter.annotation, f"{owner}.{name}")
        elif parameter.default is inspect.Parameter.empty:
            raise UsageError(f"{owner} needs {name}={describe(parameter.annotation)}")
        else:
            values[name] = usual
    return values


def convert(value: Any, annotation: Any, where: str) -> Any:
    """Return `value` as the annotation's type.

    >>> convert("1,2.5", tuple[float, ...], "ls.weights")
    (1.0, 2.5)
    >>> convert(0, tuple[int, ...], "only.objectives")
    (0,)
    >>> convert("none", float | None, "x")

    Raises:
        UsageError: the value has no reading of that type, or is not finite.
    """
    if isinstance(value, Bare) and bool not in _options(annotation):
        raise UsageError(f"{where} must be {describe(annotation)}: its value is missing")
    # None first: a text reads anything.
    for option in sorted(_options(annotation), key=lambda option: option is not type(None)):
        try:
            found = _read(value, option)
        except (ValueError, TypeError, OverflowError):
            continue
        numbers = found if isinstance(found, tuple) else (found,)
        if any(isinstance(one, float) and not math.isfinite(one) for one in numbers):
            # A spec is JSON, which has none: all of them would be one cell.
            raise UsageError(f"{where} must be finite, found {value!r}")
        return found
    raise UsageError(f"{where} must be {describe(annotation)}, found {value!r}")


def describe(annotation: Any) -> str:
    """Return an annotation in words.

    >>> describe(float | None), describe(bool), describe(tuple[int, ...])
    ('float or none', 'true or false', 'int,int,...')
    >>> describe(Literal["a", "b"]), describe(tuple[Literal["a", "b"], ...])
    ("'a' or 'b'", "'a' or 'b', or several with commas")
    """
    return " or ".join(_name(option) for option in _options(annotation))


def _name(option: Any) -> str:
    if get_origin(option) is Literal:
        return " or ".join(map(repr, get_args(option)))
    if get_origin(option) is tuple:
        inner = describe(get_args(option)[0])
        return f"{inner}, or several with commas" if " " in inner else f"{inner},{inner},..."
    if option is bool:
        return "true or false"
    return "none" if option is type(None) else str(option.__name__).lower()


def _readable(annotation: Any) -> bool:
    """Return whether text can be read as what is annotated."""
    return all(_is_one(option) or _is_several(option) for option in _options(annotation))


def _is_several(option: Any) -> bool:
    kind = get_args(option)
    return get_origin(option) is tuple and kind[1:] == (...,) and _is_one(kind[0])


def _is_one(option: Any) -> bool:
    return get_origin(option) is Literal or option in (int, float, bool, str, Path, type(None))


def _options(annotation: Any) -> Iterable[Any]:
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def _read(value: Any, option: Any) -> Any:
    if option is type(None):
        if value is None or str(value).lower() in ("none", ""):
            return None
    elif get_origin(option) is Literal:
        for choice in get_args(option):
            if str(value) == str(choice):
                return choice
    elif get_origin(option) is tuple:
        inner = get_args(option)[0]
        several = isinstance(value, Iterable)  # one number is a tuple of one, as "1" is
        items = value.split(",") if isinstance(value, str) else value if several else (value,)
        items = () if value == "" else items  # `text` of none
        return tuple(
            _read(item.strip() if isinstance(item, str) else item, inner) for item in items
        )
    elif option is bool:
        if str(value).lower() in ("true", "yes", "1", "on"):
            return True
        if str(value).lower() in ("false", "no", "0", "off"):
            return False
    elif option is int:
        if not isinstance(value, bool) and float(value).is_integer():
            with suppress(ValueError):  # 1e3
                return int(value)  # exact, as a float is up to 2^53
            return int(float(value))
    elif option is float:
        if not isinstance(value, bool):
            return float(value)
    elif option in (str, Path):
        return option(value)
    raise ValueError(value)


def text(value: Any) -> str:
    """Return a value as a command line takes it.

    >>> text(None), text(True), text((0.5, 2))
    ('none', 'true', '0.5,2')
    """
    if isinstance(value, tuple | list):
        return ",".join(map(text, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def own_keys(parameters: Mapping[str, Any]) -> str:
    """Return parameters as `key=value` text for one line.

    >>> own_keys({"c": 0.5, "w": (1, 2), "strict": True})
    'c=0.5 w=1,2 strict=true'
    """
    return " ".join(f"{key}={text(value)}" for key, value in parameters.items())


def plain(keys: Collection[str]) -> dict[str, str]:
    """Return what each key is called for short: ``recipe.`` is left out where no other is so.

    >>> plain(["recipe.lr", "recipe.weight_decay", "lr"])
    {'recipe.lr': 'recipe.lr', 'recipe.weight_decay': 'weight_decay', 'lr': 'lr'}
    """
    short = {key: key.removeprefix("recipe.") for key in keys}
    return {key: key if name in keys else name for key, name in short.items()}
