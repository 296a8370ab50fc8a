"""The terminal, as commands write to it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def terminal(*, stderr: bool = False, quiet: bool = False) -> "Console":
    """Return a console that shows text as it is: a path may hold what rich takes for markup."""
    from rich.console import Console

    return Console(stderr=stderr, quiet=quiet, markup=False, emoji=False, highlight=False)
