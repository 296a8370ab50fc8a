"""``mtbench new``."""

from pathlib import Path
from typing import Annotated

import typer

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

TEST = '''"""mtbench's conformance suite, on NAME."""

from pathlib import Path

import pytest

from mtbench import Balancer
from mtbench.registry import find
from mtbench.testing import BalancerContract


class TestCLASS(BalancerContract):
    @pytest.fixture
    def make(self):
        plugin = Path(__file__).with_name("NAME.py")
        return find("method", "NAME", [plugin]).load(Balancer)
'''


@app.command()
def method(
    name: Annotated[str, typer.Argument(help="The method's name, which is its file's.")],
    folder: Annotated[Path, typer.Option(help="Where to write.")] = Path(),
) -> None:
    """Write NAME.py, a working method, and test_NAME.py, its conformance test."""
    from mtbench.errors import PluginError, UsageError
    from mtbench.registry import entries

    if not name.isidentifier() or name.startswith("_"):
        raise UsageError(
            f"{name!r} is no method name: it becomes a Python module, so letters, digits and "
            "underscores only, not beginning with a digit or underscore"
        )
    if name in entries("method"):
        raise UsageError(f"a method {name!r} exists already: {entries('method')[name].path}")
    title = "".join(part.capitalize() for part in name.split("_"))
    files = {folder / f"{name}.py": METHOD, folder / f"test_{name}.py": TEST}
    for file in files:
        if file.exists():
            raise PluginError(f"{file}: exists already; choose another name or folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, template in files.items():
            text = template.replace("NAME", name).replace("CLASS", title)
            file.write_text(text, encoding="utf-8")
            typer.echo(f"written: {file}")
    except OSError as error:
        raise PluginError(f"{folder}: cannot be written ({error.strerror})") from error
    typer.echo(f"test it: pytest {folder / f'test_{name}.py'}")
    typer.echo(f"run it:  mtbench run --plugin {folder / name}.py --method {name} --method ew")
