"""What came of a study's trials."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState


@dataclass(frozen=True)
class Outcome:
    """A trial that has ended.

    Attributes:
        number: the draw's in the official ruleset, else Optuna's.
        status: ``finished``, ``diverged`` or ``pruned``.
        score: by the selection rule on validation, -inf unless finished.
        asked: the searched parameters.
        val: the primary validation metrics, none unless finished.
        method_params: every own parameter.
        recipe: the recipe's values that were searched.
        cell: the run directory, seen from ``--out``.
        acts: the share of samples on which the method did anything, None where it does not say.
    """

    number: int
    status: str
    score: float
    asked: dict[str, Any]
    val: dict[str, float]
    method_params: dict[str, Any]
    recipe: dict[str, float]
    cell: str
    acts: float | None = None

    @classmethod
    def of(cls, number: int, trial: FrozenTrial) -> "Outcome":
        """Return the outcome of a trial that is complete or pruned."""
        attrs = trial.user_attrs
        status = "pruned" if trial.state is TrialState.PRUNED else attrs["status"]
        return cls(
            number=number,
            status=status,
            score=attrs["score"] if status == "finished" else -math.inf,
            asked=trial.params,
            val=attrs.get("val", {}),
            method_params=attrs["method_params"],
            recipe={
                key.removeprefix("recipe."): value
                for key, value in trial.params.items()
                if key.startswith("recipe.")
            },
            cell=attrs["cell"],
            acts=attrs.get("acts"),
        )


def ended(live: Mapping[int, FrozenTrial]) -> list[Outcome]:
    """Return the outcomes of the trials that have ended: best score first, then the earliest."""
    found = [
        Outcome.of(number, trial)
        for number, trial in live.items()
        if trial.state is not TrialState.RUNNING
    ]
    return sorted(found, key=lambda outcome: (-outcome.score, outcome.number))
