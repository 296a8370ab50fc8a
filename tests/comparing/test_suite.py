"""Suites: what is shipped makes sense, and what is wrong with a file is told in a line."""

import os
import re
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from mtbench.balancing.wrapper import Wrapper
from mtbench.comparing.planning.grid import Cell, Grid, Order, needs_data
from mtbench.comparing.planning.suite import Suite, load
from mtbench.comparing.shipped import shipped
from mtbench.errors import PluginError, UsageError
from mtbench.plugins.registry import entries

GOOD = """
version = 1
name = "mine"
title = "a comparison"
methods = ["ew", "ls"]

[budget]
trials = 2
seeds = 3

[[tasks]]
name = "tiny"
"""


def test_those_shipped_are_found_by_name() -> None:
    assert set(shipped()) >= {"quick", "thyroid", "ddti", "toys", "methods", "field"}
    for name in shipped():
        assert load(name).name == name


def announce(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    points = [(EntryPoint("suites", name, "mtbench.suites"), f"of {name}") for name in packages]
    monkeypatch.setattr("mtbench.plugins.registry._points", lambda *_: points)


def test_a_package_that_is_gone_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    announce(monkeypatch, "gone.suites")
    with pytest.raises(PluginError, match=r"of gone.suites: announces suites in .* else uninstall"):
        shipped()


@pytest.mark.parametrize("below", ["", "published"])
def test_two_files_of_one_name_are_refused(
    below: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("one_suites", "other_suites"):
        (tmp_path / package / below).mkdir(parents=True)
        (tmp_path / package / "__init__.py").touch()
        (tmp_path / package / below / "same.toml").touch()
    monkeypatch.syspath_prepend(tmp_path)
    announce(monkeypatch, "one_suites", "other_suites", "one_suites")
    said = r"two files are called 'same.toml': .*one_suites.* and .*other_suites.*; rename one"
    with pytest.raises(PluginError, match=said):
        shipped(below)


@pytest.mark.parametrize(
    "name",
    [
        "quick",
        "core",
        "core_digits",
        "core_domains",
        "thyroid",
        "ddti",
        "toys",
        "methods",
        "field",
        "rlar_phantom",
        "rlar_readers",
        "rlar_dose",
        "rlar_ddti",
        "rlar_breast",
        "rlar_gpu",
    ],
)
def test_those_shipped_name_what_is_there(name: str) -> None:
    suite = load(name).model_copy(update={"device": "cpu"})  # there may be no GPU
    grid = Grid(Order(suite))
    budget = suite.budget
    frozen = sum(bool(entry.weights_from) for entry in grid.entries)
    assert len(grid.cells) == (
        len(grid.entries) * budget.cells - frozen * budget.repetitions * budget.trials
    )
    assert len(grid.tasks) == len(suite.tasks)  # columns are told apart
    tuning, final = ({c.seed for c in grid.cells if (c.trial is None) == f} for f in (False, True))
    assert not tuning & final
    for entry in grid.entries:
        trials = 0 if entry.weights_from else budget.trials
        assert [len(draws) for draws in entry.draws] == [trials] * budget.repetitions
        assert all(draw.recipe["lr"] > 0 for draws in entry.draws for draw in draws[1:])


def test_all_are_those_that_stand_alone() -> None:
    grid = Grid(Order(load("methods")))
    found = {entry.choice.method.name for entry in grid.entries}
    known = set(entries("method"))
    assert {"stl", "ew", "rlar", "cagrad"} <= found < known
    assert all(not issubclass(e.choice.method.classes[0], Wrapper) for e in grid.entries)


def made(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    return file


def test_defaults_of_a_file(tmp_path: Path) -> None:
    suite = load(str(made(tmp_path, GOOD)))
    assert (suite.precision, suite.device, suite.search) == ("fp32", "cpu", None)
    assert suite.budget.final_seeds(0) == range(3)
    assert [method.row for method in suite.methods] == ["ew", "ls"]
    every = load(str(made(tmp_path, GOOD.replace('["ew", "ls"]', '"all"'))))
    assert [method.name for method in every.methods] == ["all"]
    assert suite.digest == load(str(made(tmp_path, GOOD.replace("a comparison", "other")))).digest
    assert (
        suite.digest != load(str(made(tmp_path, GOOD.replace("trials = 2", "trials = 3")))).digest
    )


def test_what_older_suites_say_keeps_its_digest(tmp_path: Path) -> None:
    """Or all that they have made would belong to another suite."""
    assert load(str(made(tmp_path, GOOD))).digest == "8dfc30807fba"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("version = 1", "version = 2", r"version: input should be 1, found 2"),
        ("version = 1", "", r"version is missing"),
        ("title", "titel", r"unknown key titel: did you mean 'title'"),
        ("trials = 2", "trails = 2", r"unknown key budget\.trails: did you mean 'trials'"),
        ('name = "tiny"', 'nane = "tiny"', r"unknown key tasks\.0\.nane: did you mean 'name'"),
        ("trials = 2", "trials = -2", r"budget\.trials: .*greater than or equal to 0, found -2"),
        ("seeds = 3", 'seeds = "3"', r"budget\.seeds: .*integer, found '3'"),
        ("seeds = 3", "seeds = 3\ntuning_seed = 1", r"budget: tuning_seed must be none .* found 1"),
        ('["ew", "ls"]', "[]", r"methods: .*at least 1 item"),
        ('["ew", "ls"]', '["ew", 3]', r"methods\.1: .*MethodSetting, found 3"),
        ("seeds = 3", "seeds = 1000000000", r"budget\.seeds: .*or equal to 1000, found 1"),
        ('"ls"]', '{name = "ls", set = {weights = [1.0]}}]', r"methods\.1: a variant needs a l"),
        ('"ls"]', '{name = "ls", weights_from = "ew"}]', r"methods\.1: a variant needs a label"),
        ('"ls"]', '{name = "ls", times = 4}]', r"methods\.1: a variant needs a label.* 'ls'"),
        ('"ls"]', '{name = "ls", times = 4, label = "a", recipe = {epochs = 2}}]',
         r"methods\.1: 'a' says epochs and how many times the task's: say one"),
        ('"ls"]', '{name = "ls", weights_from = "ew", label = "a", recipe = {epochs = 2}}]',
         r"methods\.1: 'a' has weights and recipe of 'ew'"),
        ('"ls"]', '{name = "ls", lable = "a"}]', r"key methods\.1\.lable: did you mean 'label'"),
        ('"ls"]', '{name = "ls", label = "ew"}]', r"methods\.1: 'ew' is named twice"),
        ("[budget]", "margin = 0.0\n[budget]", r"margin: .*greater than 0, found 0"),

        ('["ew", "ls"]', '["ew", "ew"]', r"methods\.1: 'ew' is named twice"),
        ("[budget]", "[search]\nlr = [1]\n[budget]", r"search\.lr: .*at least 2 items"),
        ("[budget]", "[search]\nlr = [1, 'a']\n[budget]", r"search\.lr\.1: .*number, found 'a'"),
        ('name = "tiny"', 'name = "tiny"\n[[tasks]]\nname = "tiny"', r"tasks\.1: is the same as"),
        ('name = "tiny"', 'name = "tiny"\n[[tasks]]\nname = "tiny"\nsearch = {lr = [1e-3, 1e-2]}',
         r"tasks\.1: is the same as task 0 in what names it, 'tiny"),
        ("seeds = 3", 'seeds = 3\n[[tasks]]\nname = "a"\nresample = {x = "repetition"}',
         r"tasks\.0: resample needs `repetitions` in the budget"),
        ('name = "tiny"', 'name = "tiny"\nresample = {x = [1]}', r"resample\.x.*at least 2 items"),
        ('name = "tiny"', 'name = "tiny"\nresample = {x = [0, 1]}',
         r"must be the folds of one collection, .* found x = \[0, 1\]; .* are x = \"repetition\""),
        ('name = "tiny"', 'name = "tiny"\nresample = {fold = [1, 1]}', r"found fold = \[1, 1\]"),
        ('name = "tiny"', 'name = "tiny"\nresample = {fold = ["1/5", "2/5"]}', r"the folds of one"),
        ('name = "tiny"', 'name = "tiny"\nset = {x = 1}\nresample = {x = "repetition"}', r"in set"),
        ("version = 1", "version = ", r"is no TOML: Invalid value \(at line 2"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in GOOD
    file = made(tmp_path, GOOD.replace(old, new))
    with pytest.raises(UsageError, match=said) as error:
        load(str(file))
    assert str(error.value).startswith(f"{file}: ")
    assert "\n" not in str(error.value)


def test_no_such_suite(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown suite 'quik': did you mean 'quick'"):
        load("quik")
    with pytest.raises(UsageError, match=r"cannot be read \(No such file"):
        load(str(tmp_path / "none.toml"))
    os.mkfifo(tmp_path / "pipe.toml")  # nobody writes into it
    with pytest.raises(UsageError, match=r"pipe\.toml: cannot be read \(it is no regular file\)"):
        load(str(tmp_path / "pipe.toml"))


def test_a_mark_of_the_byte_order_is_no_fault(tmp_path: Path) -> None:
    """Editors on Windows write one."""
    file = tmp_path / "mine.toml"
    file.write_text(shipped()["quick"].read_text(), encoding="utf-8-sig")
    assert load(str(file)) == load("quick")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"methods": ["eww"]}, r"suite mine: methods\.0: unknown method 'eww': did you mean 'ew'"),
        ({"methods": ["ew+ls"]}, r"suite mine: methods\.0: .*ew wraps no other"),
        ({"tasks": [{"name": "tinny"}]}, r"suite mine: tasks\.0: unknown task 'tinny'"),
        ({"tasks": [{"name": "tiny", "set": {"mising": True}}]}, r"tasks\.0: unknown .*'missing'"),
        ({"tasks": [{"name": "tiny", "set": {"sleep": [1.0]}}]}, None),
        ({"tasks": [{"name": "tiny", "recipe": {"epoch": 1}}]}, r"tasks\.0: unknown .*'epochs'"),
        ({"tasks": [{"name": "tiny", "recipe": {"epochs": 0}}]}, r"epochs must be at least 1"),
        ({"methods": ["uw", {"name": "ls", "label": "cagrad"}]},
         r"methods\.1: label 'cagrad' is the name of another method than 'ls': choose another"),
        ({"against": ["lss"]}, r"suite mine: against\.0: no row 'lss' here: did you mean 'ls'"),
        (
            {"methods": [{"name": "ls", "set": {"weight": 1}, "label": "a"}]},
            r"tasks\.0: ls has no parameter 'weight'",
        ),
        ({"tasks": [{"name": "tiny", "set": {"sleep": 1.0 * i}} for i in range(600)],
          "methods": [{"name": "ls", "label": str(i)} for i in range(900)],
          "budget": {"trials": 1, "seeds": 1}}, r"at most 1000000 cells, found 1080000"),
        ({"methods": ["uw", {"name": "ls", "weights_from": "u", "label": "a"}]},
         r"row 'a': weights_from: no row 'u' here that finds weights: did you mean 'uw'"),
        ({"methods": ["uw", {"name": "ew", "weights_from": "uw", "label": "a"}]},
         r"row 'a': weights_from: ew has no parameter 'weights': choose one that has"),
        ({"methods": ["rlar", {"name": "ls", "weights_from": "rlar", "label": "a"}]},
         r"row 'a': weights_from: rlar descends no weighted sum of the losses"),
        ({"methods": ["graddrop", {"name": "ls", "weights_from": "graddrop", "label": "a"}]},
         r"row 'a': weights_from: graddrop descends no weighted sum of the losses"),
        ({"search": {"lr": [0.1, 0.01]}}, r"range of lr must be 0 < low < high, found 0\.1 0\.01"),
        ({"device": "tpu"}, r"device tpu: not available"),
    ],
)  # fmt: skip
def test_names_that_are_not_there(tiny: Path, changed: dict[str, Any], said: str | None) -> None:
    content = {
        "version": 1, "name": "mine", "title": "t", "methods": ["ew", "ls"],
        "budget": {"trials": 1, "seeds": 1}, "tasks": [{"name": "tiny"}],
    }  # fmt: skip
    suite = Suite.model_validate(content | changed)
    if said is None:  # a list of one number reads as that number
        Grid(Order(suite, None, (tiny,)))
        return
    with pytest.raises(UsageError, match=said) as error:
        Grid(Order(suite, None, (tiny,)))
    assert re.search(r"\n", str(error.value)) is None


def test_a_row_of_equal_hours_trains_so_many_times_each_tasks_epochs(tiny: Path) -> None:
    longer = {"name": "ls", "times": 3, "label": "ls x3"}
    content = {
        "version": 1, "name": "mine", "title": "t", "methods": ["ls", longer],
        "budget": {"trials": 1, "seeds": 1},
        "tasks": [{"name": "tiny"}, {"name": "tiny", "recipe": {"epochs": 7}}],
    }  # fmt: skip
    grid = Grid(Order(Suite.model_validate(content), None, (tiny,)))
    asked = [
        (cell.entry.label, grid.spec(cell, "", cell.trial).recipe["epochs"]) for cell in grid.cells
    ]
    assert asked == 2 * [("ls", 4), ("ls x3", 12)] + 2 * [("ls", 7), ("ls x3", 21)]


def test_what_a_row_says_of_the_recipe_is_not_searched(tiny: Path) -> None:
    slow = {"name": "ls", "recipe": {"lr": 0.05}, "label": "slow"}
    content = {
        "version": 1, "name": "mine", "title": "t", "methods": ["ls", slow],
        "budget": {"trials": 3, "seeds": 1},
        "tasks": [{"name": "tiny", "search": {"lr": [1e-3, 2e-3], "weight_decay": [1e-5, 1e-4]}}],
    }  # fmt: skip
    grid = Grid(Order(Suite.model_validate(content), None, (tiny,)))
    usual, own = ([entry.setting(0, trial)[0].recipe for trial in (1, 2)] for entry in grid.entries)
    assert [recipe.lr for recipe in own] == [0.05, 0.05] != [recipe.lr for recipe in usual]
    assert [recipe.weight_decay for recipe in own] == [recipe.weight_decay for recipe in usual]
    fixed = [grid.claim(Cell(entry, 0), None).fixed for entry in grid.entries]
    assert fixed == [{}, {"recipe.lr": 0.05}]


def test_a_row_is_left_out_where_its_method_cannot_be_trained() -> None:
    """It is told once, beforehand, and claims count the rows that a task has."""
    frozen = {"name": "ls", "weights_from": "encodec", "label": "frozen"}
    content = {
        "version": 1, "name": "mine", "title": "t", "budget": {"trials": 1, "seeds": 1},
        "methods": [frozen, "ew", "all"], "tasks": [{"name": "domains"}, {"name": "digits"}],
    }  # fmt: skip
    grid = Grid(Order(Suite.model_validate(content)))
    needy = {"rlar", "rotograd", "consmtl", "encodec", "ntk_weights"}
    rows = {task: [entry.label for entry in found] for task, found in grid.tasks.items()}
    assert set(rows["digits"]) - set(rows["domains"]) == needy - {"ntk_weights"} | {"frozen"}
    assert rows["digits"][:2] == ["frozen", "ew"]
    assert set(grid.left_out) == {
        *(("domains", row) for row in needy | {"frozen"}), ("digits", "ntk_weights"),
    }  # fmt: skip
    said = grid.tell_left_out()
    assert not any("\n" in line for line in said)
    assert "left out on domains: frozen takes the weights of encodec, which is left out" in said
    assert (
        "left out on digits: ntk_weights looks at what the losses square, and the task's losses "
        "are no mean squares: choose another method"
    ) in said
    claims = {cell.entry.task: grid.claim(cell, None).rows for cell in grid.cells}
    assert claims == {task: len(found) for task, found in rows.items()}
    for methods, why in (
        (["ew", "ntk_weights"], r"no task can have a row 'ntk_weights'; on domains, ntk_weights"),
        (["ntk_weights"], r"tasks\.0: no row is left: ntk_weights looks at what the losses square"),
    ):
        with pytest.raises(UsageError, match=f"suite mine: {why}"):
            Grid(Order(Suite.model_validate(content | {"methods": methods})))
    other = {"methods": ["rlar", "ntk_weights"], "tasks": content["tasks"][::-1]}
    with pytest.raises(UsageError, match=r"tasks\.1: no row is left: rlar looks at features"):
        Grid(Order(Suite.model_validate(content | other)))


def test_what_lbfgs_cannot_lower_is_left_out() -> None:
    recipe = {
        "optimizer": "lbfgs", "schedule": "constant", "batch_size": 10_000, "weight_decay": 0.0,
    }  # fmt: skip
    content = {
        "version": 1, "name": "mine", "title": "t", "budget": {"trials": 0, "seeds": 1},
        "methods": ["ew", "uw", "graddrop", "mgda"], "tasks": [
            {"name": "pinn"}, {"name": "pinn", "recipe": recipe, "set": {"samples": 100}},
        ],
    }  # fmt: skip
    grid = Grid(Order(Suite.model_validate(content)))
    assert {row for _, row in grid.left_out} == {"uw", "graddrop"}


def test_what_no_cell_can_do_is_told_before_a_sweep() -> None:
    """Each worker would refuse it, cell by cell."""
    content = {
        "version": 1, "name": "mine", "title": "t", "budget": {"trials": 0, "seeds": 1},
        "methods": ["ew"], "tasks": [{"name": "digits", "recipe": {"nonfinite": "fp32"}}],
    }  # fmt: skip
    with pytest.raises(UsageError, match=r"tasks\.0: nonfinite=fp32 lowers bf16 to fp32"):
        Grid(Order(Suite.model_validate(content)))


def test_data_is_given_where_it_is_needed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"suite ddti: task thyroid needs data: say --data"):
        needs_data(Order(load("ddti")))
    with pytest.raises(UsageError, match=r"does not exist"):
        needs_data(Order(load("ddti"), tmp_path / "none"))
    with pytest.raises(UsageError, match=r"no task of suite quick needs data"):
        needs_data(Order(load("quick"), tmp_path))
    needs_data(Order(load("ddti"), tmp_path))
