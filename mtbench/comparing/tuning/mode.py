"""How trials are chosen: the official ruleset, or any sampler and pruner of Optuna."""

import importlib.util
from dataclasses import dataclass
from typing import Any

import optuna

from mtbench.errors import UsageError

SAMPLERS: dict[str, Any] = {
    "tpe": optuna.samplers.TPESampler,
    "random": optuna.samplers.RandomSampler,
    "cmaes": optuna.samplers.CmaEsSampler,
    "nsgaii": optuna.samplers.NSGAIISampler,
    "gp": optuna.samplers.GPSampler,
}
PRUNERS = ("none", "median", "hyperband")


@dataclass(frozen=True)
class Mode:
    """How trials are chosen.

    Attributes:
        sampler: of `SAMPLERS`, or None for the official ruleset.
        pruner: of `PRUNERS`.
        multi: whether every primary metric is an objective of its own.
    """

    sampler: str | None = None
    pruner: str = "none"
    multi: bool = False

    def __post_init__(self) -> None:
        if self.sampler not in (None, *SAMPLERS):
            raise UsageError(f"sampler must be one of {', '.join(SAMPLERS)}, found {self.sampler}")
        if self.pruner not in PRUNERS:
            raise UsageError(f"pruner must be one of {', '.join(PRUNERS)}, found {self.pruner}")
        if self.official and (self.multi or self.pruner != "none"):
            raise UsageError("a pruner or several objectives need a sampler")
        if self.multi and self.pruner != "none":
            raise UsageError("Optuna prunes single-objective studies only: not with several")
        if self.multi and self.sampler == "cmaes":
            raise UsageError("sampler cmaes has one objective only: take tpe, gp or nsgaii")
        if self.sampler == "cmaes" and importlib.util.find_spec("cmaes") is None:
            raise UsageError("sampler cmaes needs the package cmaes: pip install cmaes")

    @property
    def official(self) -> bool:
        """Whether the trials are those of `draw`."""
        return self.sampler is None

    @property
    def name(self) -> str:
        """The mode in one word."""
        parts = [self.sampler or "official", self.pruner, "multi" if self.multi else "none"]
        return "-".join(part for part in parts if part != "none")

    def make_sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        """Return Optuna's sampler; official trials are queued, and it is asked for nothing."""
        sampler: optuna.samplers.BaseSampler = SAMPLERS[self.sampler or "random"](seed=seed)
        return sampler

    def make_pruner(self, epochs: int) -> optuna.pruners.BasePruner:
        """Return Optuna's pruner of trials of so many epochs."""
        if self.pruner == "median":
            return optuna.pruners.MedianPruner()
        if self.pruner == "hyperband":
            return optuna.pruners.HyperbandPruner(max_resource=epochs)
        return optuna.pruners.NopPruner()
