"""From what a user asks for to cells that can be run."""

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from mtbench import overrides, params, seeding
from mtbench.errors import RunError, UsageError
from mtbench.method import Method
from mtbench.registry import Entry, find
from mtbench.rundir import RunDirectory, Spec
from mtbench.task import Recipe, Splits, Task
from mtbench.trainer import fitting


@dataclass(frozen=True)
class Choice:
    """A method with its parameters.

    Attributes:
        method: what can be constructed.
        params: every own parameter.
    """

    method: Method
    params: dict[str, Any]


@dataclass(frozen=True)
class Request:
    """A task, the methods to run on it, and the recipe, checked and with defaults filled in.

    Attributes:
        entry: where the task comes from.
        task: an instance.
        task_params: its every own parameter.
        choices: the methods.
        recipe: the optimisation.
    """

    entry: Entry
    task: Task
    task_params: dict[str, Any]
    choices: list[Choice]
    recipe: Recipe

    @classmethod
    def of(
        cls,
        task: str,
        methods: Sequence[str],
        given: dict[str, str],
        plugins: Sequence[Path] = (),
        options: Sequence[str] = (),
    ) -> "Request":
        """Return the request of a command line.

        Args:
            task: the task's name.
            methods: the methods' names.
            given: overrides of parameters, as text.
            plugins: plugin files.
            options: the command's own options, for hints.

        Raises:
            UsageError: an unknown name or parameter, or a value that does not fit.
            PluginError: a plugin that does not load.
        """
        task_entry = find("task", task, plugins)
        found = [Method.find(name, plugins) for name in dict.fromkeys(methods)]
        task_class = task_entry.load(Task)
        share = overrides.route(
            given,
            {
                "task": {task: list(params.declared(task_class))},
                "recipe": {"recipe": list(params.declared(Recipe))},
                "method": {
                    part: list(known) for method in found for part, known in method.declared.items()
                },
            },
            options,
        )
        task_params = params.resolve(task_class, share[task], task)
        instance = task_class(**task_params)
        task_params |= instance.dependent
        known = params.declared(Recipe)
        changed = {
            key: params.convert(value, known[key].annotation, f"recipe.{key}")
            for key, value in share["recipe"].items()
        }
        choices = []
        for method in found:
            own = method.resolve(
                {
                    method.key(part, parameter): value
                    for part in method.declared
                    for parameter, value in share[part].items()
                }
            )
            method(len(instance.objectives), 0, **own)  # a bad value is told before data is loaded
            choices.append(Choice(method, own))
        recipe = dataclasses.replace(instance.recipe, **changed)
        return cls(task_entry, instance, task_params, choices, recipe)

    def spec(
        self,
        choice: Choice,
        splits: Splits,
        seed: int,
        precision: str,
        device: str,
        init: str | None = None,
        stage: Literal["trial", "final"] = "final",
    ) -> Spec:
        """Return the spec of one cell. Locations of data are no part of it, their content is."""
        digest = self.entry.digest()
        return Spec(
            task=self.entry.name,
            task_params={k: v for k, v in self.task_params.items() if not isinstance(v, Path)}
            | {k: None for k, v in self.task_params.items() if isinstance(v, Path)},
            method=choice.method.name,
            method_params=choice.params,
            plugins=choice.method.digests | ({self.entry.name: digest} if digest else {}),
            data=splits.fingerprint,
            init=init,
            recipe=dataclasses.asdict(self.recipe),
            seed=seed,
            precision=precision,  # type: ignore[arg-type]  # pydantic checks it
            device=device,
            stage=stage,
        )


def initial_weights(run: RunDirectory, task: Task) -> tuple[str, dict[str, Tensor]]:
    """Return the digest and the tensors of another run's trained model that a task's model can use.

    Raises:
        RunError: the run has no trained weights, or none of them fits.
    """
    run.spec()
    state = run.load("best.pt")
    if state is None:
        raise RunError(
            f"--init {run.path}: has no trained weights (best.pt); finish that run first"
        )
    with seeding.preserved():
        weights = fitting(task.model(), state["model"])
    if not weights:
        raise RunError(f"--init {run.path}: none of its weights fits this task's model")
    digest = hashlib.sha256((run.path / "best.pt").read_bytes()).hexdigest()
    return digest, weights


def reload(run: RunDirectory, plugins: Sequence[Path] = ()) -> tuple[Spec, Task, Method]:
    """Return the spec, task and method of an existing run directory.

    Raises:
        UsageError: the plugin files that it was made with are not given, or have changed.
    """
    spec = run.spec()
    task, method = find("task", spec.task, plugins), Method.find(spec.method, plugins)
    for entry in (task, *method.entries):
        if spec.plugins.get(entry.name) != entry.digest():
            raise UsageError(
                f"{run.path}: was made with another version of {entry.name!r} than "
                f"{entry.path}; give the plugin file that it was made with"
            )
    task_class = task.load(Task)
    return spec, task_class(**params.resolve(task_class, spec.task_params, spec.task)), method
