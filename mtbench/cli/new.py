"""``mtbench new``."""

import keyword
import re
from importlib.util import find_spec
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from mtbench.cli.options import PLAIN

if TYPE_CHECKING:
    from mtbench.plugins.registry import Kind

app = typer.Typer(help="Write a working start for a plugin.", no_args_is_help=True)

METHOD = '''"""NAME: say in a sentence what it does."""

from torch import Tensor

from mtbench import Weighting


class CLASS(Weighting):
    r"""Weigh objectives by the inverse norm of their gradients.

    .. math:: w_k = 1 / \\|g_k\\|, \\quad g_k = \\nabla L_k, \\quad \\|g_k\\| = \\sqrt{G_{kk}}
    """

    paper = "say where it is defined"

    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Return w from the Gramian G = J J^T, (K, K)."""
        return gramian.diagonal().rsqrt()
'''

METHOD_TEST = '''"""mtbench's conformance suite, on NAME."""

from pathlib import Path

import pytest

from mtbench import Balancer, find
from mtbench.testing import BalancerContract


class TestCLASS(BalancerContract):
    @pytest.fixture
    def make(self):
        plugin = Path(__file__).with_name("NAME.py")
        return find("method", "NAME", [plugin]).load(Balancer)
'''

TASK = '''"""NAME: say in a sentence what is learnt from what."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from torchmetrics import MeanSquaredError
from torchmetrics.classification import MulticlassAccuracy

from mtbench import Metric, MultitaskModel, Recipe, Splits, Task, data, seeding


class CLASS(Task):
    """Which side of a curve a point is on, and how far out: say what data it is, and whose."""

    objectives = ("side", "distance")
    metrics = {
        "accuracy": Metric("side", primary=True),
        "mse": Metric("distance", higher_is_better=False, primary=True),
    }
    recipe = Recipe(epochs=20, batch_size=32, lr=5e-3)

    def setup(self, seed, progress):
        x = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
        side = (x[:, 1] > x[:, 0].sin()).long()  # -1 would say: not known
        distance = x.norm(dim=1)  # here NaN would
        order = torch.randperm(len(x), generator=seeding.generator(seed, "split"))
        parts = [
            data.TensorSplit(x[rows], side=side[rows], distance=distance[rows])
            for rows in order.split([600, 150, 250])  # training, validation, test
        ]
        return Splits(*parts, fingerprint=data.fingerprint(x, side, distance))

    def model(self):
        encoder = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        heads = [nn.Linear(64, 2), nn.Sequential(nn.Linear(64, 1), nn.Flatten(0))]
        return MultitaskModel.single_feature(encoder, heads)

    def losses(self, outputs, batch):
        return [
            data.labelled_loss(cross_entropy, outputs[0], batch["side"]),
            data.labelled_loss(mse_loss, outputs[1], batch["distance"]),
        ]

    def meter(self):
        metrics = {"accuracy": MulticlassAccuracy(2), "mse": MeanSquaredError()}
        return data.TorchmetricsMeter(self, metrics)
'''

TASK_TEST = '''"""mtbench's conformance suite, on NAME."""

from pathlib import Path

import pytest

from mtbench import Task, find
from mtbench.testing import TaskContract


class TestCLASS(TaskContract):
    @pytest.fixture
    def make(self):
        plugin = Path(__file__).with_name("NAME.py")
        return find("task", "NAME", [plugin]).load(Task)
'''

DOCSTRING = '"""The KIND NAME for mtbench."""\n'
PACKAGE = """[build-system]
requires = ["hatchling>=1.27"]
build-backend = "hatchling.build"

[project]
name = "mtbench-DASHED"
version = "0.1.0"
description = "The KIND NAME for mtbench"
requires-python = ">=3.11"
dependencies = ["mtbench-toolkit"]

[project.optional-dependencies]
test = ["mtbench-toolkit[check]"]

# Every public module of this package is a KIND of mtbench's.
[project.entry-points."mtbench.KINDs"]
NAME = "mtbench_NAME"

[tool.hatch.build.targets.wheel]
packages = ["src/mtbench_NAME"]
"""

Name = Annotated[str, typer.Argument(help="Its name, which is its file's.")]
Folder = Annotated[Path, typer.Option(help="Where to write.")]
Package = Annotated[
    bool, typer.Option("--package", help="A folder that pip installs, which others can publish.")
]


@app.command()
def method(name: Name, folder: Folder = Path(), package: Package = False) -> None:
    """Write NAME.py, a working method, and test_NAME.py, its conformance test."""
    _write("method", name, folder, package, METHOD, METHOD_TEST)


@app.command()
def task(name: Name, folder: Folder = Path(), package: Package = False) -> None:
    """Write NAME.py, a working task, and test_NAME.py, its conformance test."""
    _write("task", name, folder, package, TASK, TASK_TEST)


def _write(kind: "Kind", name: str, folder: Path, package: bool, plugin: str, test: str) -> None:
    from mtbench.errors import PluginError, UsageError, writable
    from mtbench.plugins.registry import entries

    if not (name.isascii() and name.isidentifier()) or name.startswith("_"):
        raise UsageError(
            f"{name!r} is no {kind} name: it becomes a Python module and a folder, so Latin "
            "letters, digits and underscores only, not beginning with a digit or underscore"
        )
    title = "".join(part.capitalize() for part in name.split("_"))
    imports = " ".join(re.findall(r"^(?:from|import) .*", plugin + test, re.MULTILINE))
    if keyword.iskeyword(name) or keyword.iskeyword(title):
        raise UsageError(f"{name!r} is no {kind} name: it is a word of Python's; choose another")
    if taken := {name, title} & set(re.findall(r"\w+", imports)):
        raise UsageError(
            f"{name!r} is no {kind} name: its file would hide {taken.pop()!r}, which it imports; "
            "choose another"
        )
    if package and find_spec(f"mtbench_{name}"):
        raise UsageError(f"a package mtbench_{name} is installed already; choose another name")
    if name in entries(kind):
        raise UsageError(f"a {kind} {name!r} exists already: {entries(kind)[name].path}")
    place = plugins = tests = folder
    files = {}
    if package:
        place = folder / f"mtbench-{name.replace('_', '-')}"
        plugins, tests = place / "src" / f"mtbench_{name}", place / "tests"
        files = {place / "pyproject.toml": PACKAGE, plugins / "__init__.py": DOCSTRING}
        test = test.replace('"NAME", [plugin]', '"NAME"')
        test = test.replace('        plugin = Path(__file__).with_name("NAME.py")\n', "")
        test = test.replace("from pathlib import Path\n\n", "")
    files |= {plugins / f"{name}.py": plugin, tests / f"test_{name}.py": test}
    for file in files:
        if file.exists():
            raise PluginError(f"{file}: exists already; choose another name or folder")
    words = {
        "NAME": name,
        "CLASS": title,
        "DASHED": name.replace("_", "-"),
        "KIND": kind,
    }
    with writable(str(place)):
        for file, text in files.items():
            filled = re.sub("|".join(words), lambda found: words[found[0]], text)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(filled, encoding="utf-8")
            typer.echo(f"written: {file}")
    if package:
        typer.echo(f"install: pip install --editable {quote(f'{place}[test]')}")
    typer.echo(f"test it: pytest {quote(str(tests / f'test_{name}.py'))}")
    given = "" if package else f" --plugin {quote(f'{folder / name}.py')}"
    wanted = f"--task {name}" if kind == "task" else f"--task TASK --method {name}"
    typer.echo(f"run it:  mtbench run{given} {wanted} --method {PLAIN}")
    if kind == "method":
        typer.echo("tasks:   mtbench list tasks")
