"""Who is told how a cell goes."""

from typing import Any, Protocol

from mtbench.training.cell.rundir import Spec


class Observer(Protocol):
    """Is told how a cell goes.

    Each method has a body, so that who inherits need not define it.
    """

    def started(self, spec: Spec, epochs: int, steps: int, done: int) -> None:
        """A cell begins, or goes on after `done` of its epochs x steps."""
        return

    def stepped(self, epoch: int, losses: dict[str, float]) -> None:
        """One step was made; there are no losses if it was skipped.

        Steps are told in their order, the first of a run at once, others when the host looks.
        """
        return

    def evaluated(self, record: dict[str, Any]) -> None:
        """An epoch ended with this record."""
        return

    def finished(self, result: dict[str, Any]) -> None:
        """The cell ended."""
        return


class Silent(Observer):
    """An observer that tells nobody."""
