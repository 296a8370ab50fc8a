"""``mtbench check``."""

from typing import Annotated

import typer

from mtbench.cli.options import Plugins


def check(
    name: Annotated[str, typer.Argument(help="A method, or wrapper+method.")],
    plugin: Plugins = None,
) -> None:
    """Test whether a method keeps the contract of balancing methods; exit code 1 if not."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from mtbench.conformance import verdicts
    from mtbench.method import Method

    console = Console()
    method = Method.find(name, plugin or [])
    with console.status(f"checking {name}"):
        found = verdicts(method)
    table = Table("", "rule", "cases", box=None)
    for verdict in found:
        mark, style = ("FAIL", "red") if verdict.failed else ("pass", "green")
        if not verdict.failed and not verdict.passed:
            mark, style = "skip", "dim"
        text = Text(verdict.rule)
        for reason in verdict.reasons:
            text.append(f"\n  {reason}", style="dim")
        table.add_row(Text(mark, style=style), text, str(verdict.passed + verdict.failed))
    console.print(table)
    broken = [verdict for verdict in found if verdict.failed]
    if broken:
        console.print(f"{name} breaks {len(broken)} of {len(found)} rules", style="red")
        raise typer.Exit(1)
    console.print(f"{name} keeps the contract", style="green")
