import inspect
from typing import Any, Literal

import pytest

from mtbench.errors import UsageError
from mtbench.plugins.overrides import parse, route
from mtbench.plugins.params import convert, declared, documented, resolve
from mtbench.training.task import Recipe
from mtbench_baselines.ew import EqualWeights


class Thing:
    def __init__(self, count: int, *, c: float = 0.5, mode: Literal["a", "b"] = "a") -> None: ...


@pytest.mark.parametrize(
    ("text", "annotation", "value"),
    [
        ("3", int, 3),
        ("1e3", int, 1000),
        ("9007199254740993", int, 2**53 + 1),  # which no float is
        ("0.5", float, 0.5),
        ("yes", bool, True),
        ("off", bool, False),
        ("b", Literal["a", "b"], "b"),
        ("none", int | None, None),
        (None, str | None, None),
        ("none", str | None, None),
        ("some", str | None, "some"),
        ("1, 2", tuple[float, ...], (1.0, 2.0)),
        ([1, 2], tuple[float, ...], (1.0, 2.0)),
        ("", tuple[str, ...], ()),
    ],
)
def test_text_becomes_a_value(text: Any, annotation: Any, value: Any) -> None:
    found = convert(text, annotation, "x")
    assert found == value
    assert type(found) is type(value)


def test_a_default_of_another_type_is_taken_back_from_a_record() -> None:
    def function(*, rate: float = None, shares: tuple[float, ...] = [1.0]) -> None: ...  # type: ignore[assignment] # noqa: RUF013

    kept = {"rate": None, "shares": [1.0]}
    assert resolve(function, kept, "mine") == kept  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"mine\.rate must be float, found 'x'"):
        resolve(function, {"rate": "x"}, "mine")  # type: ignore[arg-type]


def test_a_type_that_is_not_there_is_told() -> None:
    def function(*, rate: "Missing") -> None: ...  # type: ignore[name-defined] # noqa: F821

    with pytest.raises(UsageError, match=r"function has a type that is not there \(name 'Missing'"):
        declared(function)


@pytest.mark.parametrize(
    "annotation",
    [list[float], dict, tuple, tuple[int, str], tuple[int | None, ...], float | list[int]],
)
def test_a_type_that_no_text_can_be_read_as_is_refused(annotation: Any) -> None:
    def function(*, rate: annotation = None) -> None: ...  # type: ignore[valid-type]

    with pytest.raises(UsageError, match=r"'rate' of .*function is .*: parameters have one of int"):
        declared(function)


@pytest.mark.parametrize(
    ("text", "annotation"),
    [
        ("2.5", int),
        ("inf", int),
        ("1e999", int),
        ("x", float),
        ("maybe", bool),
        ("c", Literal["a", "b"]),
        ("1,x", tuple[float, ...]),
    ],
)
def test_a_wrong_value_is_explained(text: str, annotation: Any) -> None:
    with pytest.raises(UsageError, match=rf"thing\.x must be .*, found '{text}'"):
        convert(text, annotation, "thing.x")


@pytest.mark.parametrize(
    ("value", "annotation"),
    [("inf", float), ("1e999", float | None), ([1, float("nan")], tuple[float, ...])],
)
def test_a_number_that_no_record_holds_is_refused(value: Any, annotation: Any) -> None:
    with pytest.raises(UsageError, match=r"thing\.x must be finite, found"):
        convert(value, annotation, "thing.x")


def test_resolve_fills_in_defaults_and_refuses_unknown_names() -> None:
    assert resolve(Thing, {"c": "0.1"}, "thing") == {"c": 0.1, "mode": "a"}
    with pytest.raises(UsageError, match=r"thing has no parameter 'moda': did you mean 'mode'\?"):
        resolve(Thing, {"moda": "a"}, "thing")


def test_declared_reads_classes_dataclasses_and_those_without_init() -> None:
    class Empty: ...

    assert list(declared(Thing)) == ["c", "mode"]
    assert "lr" in declared(Recipe)
    assert declared(Empty) == {}


@pytest.mark.parametrize(
    "changed",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"weight_decay": -1.0},
        {"clip": 0.0},
        {"optimizer": "lion"},
        {"schedule": None},
        {"select": "first"},
        {"nonfinite": "go on"},
    ],
)
def test_a_recipe_refuses_nonsense(changed: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(changed))):
        Recipe(**changed)


OWNERS = {
    "task": {"toy": ["c", "width"]},
    "recipe": {"recipe": ["lr"]},
    "method": {"m": ["c"], "n": ["c"]},
}


def test_a_key_goes_to_every_method_that_has_it() -> None:
    owners = {**OWNERS, "task": {"toy": ["width"]}}
    assert route({"c": "1"}, owners) == {"toy": {}, "recipe": {}, "m": {"c": "1"}, "n": {"c": "1"}}


def test_a_key_of_two_kinds_must_name_its_owner() -> None:
    with pytest.raises(UsageError, match=r"ambiguous: say toy\.c or m\.c or n\.c"):
        route({"c": "1"}, OWNERS)
    assert route({"n.c": "1"}, OWNERS)["n"] == {"c": "1"}
    assert route({"n.c": "1"}, OWNERS)["toy"] == {}


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("widht", r"unknown parameter or option 'widht': did you mean 'width'\?"),
        ("q.c", "nothing here is called 'q'"),
        ("m.width", "unknown parameter or option 'm.width'"),
    ],
)
def test_an_unknown_key_is_explained(key: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        route({key: "1"}, OWNERS)


@pytest.mark.parametrize(
    ("settings", "extra", "message"),
    [
        (["c"], [], "must be key=value"),
        (["c=1", "c=2"], [], "given twice"),
        ([], ["stray"], "unexpected argument 'stray'"),
    ],
)
def test_malformed_overrides(settings: list[str], extra: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse(settings, extra)


class Sized:
    """Sizes.

    Args:
        width: of all,
            each one.
        depth: of the middle.
    """

    def __init__(self, *, width: int = 16, depth: int = 4) -> None:
        self.size = width, depth


class Wide(Sized):
    """Wide sizes.

    Args:
        width: of these.
        height: as well.
    """

    def __init__(self, *, width: int = 64, height: int = 1, **common: Any) -> None:
        super().__init__(width=width, **common)


class Inherits(Wide):
    """Another one."""


def test_a_constructor_hands_on_to_its_base() -> None:
    for cls in (Wide, Inherits):
        found = {name: p.default for name, p in declared(cls).items()}
        assert found == {"width": 64, "height": 1, "depth": 4}
        assert cls(**resolve(cls, {"depth": "7"}, "wide")).size == (64, 7)
    with pytest.raises(UsageError, match="wide has no parameter 'common'"):
        resolve(Wide, {"common": 1}, "wide")
    with pytest.raises(UsageError, match="height must be int, found True"):
        resolve(Wide, {"height": True}, "wide")  # which equals the default


def test_a_parameter_is_explained_once() -> None:
    text = documented(Wide)
    assert text.index("Wide sizes.") < text.index("Sizes.\n")
    assert "    depth: of the middle." in text
    assert "    width: of these." in text
    assert "width: of all" not in text
    assert "each one" not in text
    assert documented(Sized) == inspect.getdoc(Sized)
    assert documented(Inherits) == f"Another one.\n\n{text}"  # whose parameters are its own
    assert documented(EqualWeights) == inspect.getdoc(EqualWeights)  # a base without any
