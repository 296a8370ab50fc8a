"""From what a user asks for to cells that can be run."""

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mtbench import seeding
from mtbench.errors import PluginError, UsageError, did_you_mean
from mtbench.plugins import overrides, params
from mtbench.plugins.method import Method
from mtbench.plugins.registry import Entry, find
from mtbench.training.cell import weights
from mtbench.training.cell.fit import refuse_unfit
from mtbench.training.cell.rundir import Precision, Spec
from mtbench.training.task import Recipe, Task, must_declare, shadows


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
            UsageError: an unknown name or parameter, a value that does not fit, or a method that
                cannot be trained on the task.
            PluginError: a plugin that does not load.
        """
        task_entry = find("task", task, plugins)
        found = [Method.find(name, plugins) for name in dict.fromkeys(methods)]
        if any(task in name.split("+") for name in methods):  # a spec has one digest for a name
            raise UsageError(
                f"the task and a method are both called {task!r}: rename one of their files"
            )
        task_class = task_entry.load(Task)
        owners = {
            "task": {task: list(params.declared(task_class))},
            "recipe": {"recipe": list(params.declared(Recipe))},
            "method": {
                part: list(known) for method in found for part, known in method.declared.items()
            },
        }
        keys = {key for group in owners.values() for own in group.values() for key in own}
        if "data" in given and "data" not in keys:
            raise UsageError(f"--data: task {task} takes no data; leave it out")
        share = overrides.route(given, owners, options)
        task_params = params.resolve(task_class, share[task], task)
        instance = task_class(**task_params)
        must_declare(instance)
        usual = {key: p.default for key, p in params.declared(task_class).items()}
        filled = {**usual, **instance.dependent}
        # A written configuration names every parameter: nobody asked for those at their default,
        # nor for those that the task has filled in.
        for key in sorted(instance.idle & share[task].keys()):
            if task_params[key] not in (usual[key], filled[key]):
                raise UsageError(
                    f"{task}.{key} changes nothing, given the other parameters: leave it out, or "
                    f"give its default, {params.text(filled[key])}"
                )
        if unknown := instance.dependent.keys() - usual.keys():
            raise PluginError(
                f"{task}: its dependent names {min(unknown)!r}, which is no parameter of it: "
                f"{did_you_mean(min(unknown), usual)}"
            )
        if taken := [name for name in instance.metrics if shadows(name, instance.metrics)]:
            raise UsageError(
                f"{task}: its metric {taken[0]!r} is called like a column of leaderboards: rename "
                "it"
            )
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
            # A bad value is told before data is loaded.
            balancer = method(len(instance.objectives), 0, **own)
            optimizer = changed.get("optimizer", instance.recipe.optimizer)
            refuse_unfit(method.name, balancer, instance, optimizer)
            choices.append(Choice(method, own))
        recipe = dataclasses.replace(instance.recipe, **changed)  # it too has rules
        return cls(task_entry, instance, task_params, choices, recipe)

    def spec(
        self,
        choice: Choice,
        fingerprint: str,
        seed: int,
        precision: Precision,
        device: str,
        init: str | None = None,
        stage: Literal["trial", "final"] = "final",
    ) -> Spec:
        """Return the spec of one cell. Locations of data are no part of it, its fingerprint is."""
        return Spec(
            task=self.entry.name,
            task_params={
                k: None if isinstance(v, Path) else v for k, v in self.task_params.items()
            },
            method=choice.method.name,
            method_params=choice.params,
            plugins=choice.method.digests | {self.entry.name: self.entry.digest()},
            data=fingerprint,
            init=init,
            recipe=self.recipe.record(),
            seed=seed,
            precision=precision,
            device=device,
            stage=stage,
        )


def initial_weights(path: Path, task: Task) -> weights.Fit:
    """Return which tensors of a run, a packaged model or a checkpoint fit a task's model.

    Raises:
        RunError: it is absent or broken, or nothing fits.
    """
    with seeding.preserved():
        return weights.fit(path, task.model())


def reload(
    spec: Spec, origin: Path, plugins: Sequence[Path] = (), data: Path | None = None
) -> tuple[Task, Method]:
    """Return the task and the method of a spec.

    An installed package may have changed since: its weights fit, or loading them says that they do
    not. It may also stand where a plugin file of its name was. Either is logged as a warning, which
    goes to stderr where nobody set up logging.

    Args:
        spec: of a cell.
        origin: where it lies, for messages.
        plugins: plugin files.
        data: where the task's data lies, which a spec does not say.

    Raises:
        UsageError: the plugin files that it was made with are not given, or have changed, or the
            task has other parameters now.
    """
    task, method = find("task", spec.task, plugins), Method.find(spec.method, plugins)
    changed = []
    for entry in (task, *method.entries):
        made = spec.plugins.get(entry.name)
        if entry.module is None and made != entry.digest():
            raise UsageError(
                f"{origin}: was made with another version of {entry.name!r} than "
                f"{entry.path}; give the plugin file that it was made with"
            )
        if made != entry.digest():
            changed.append(repr(entry.name))
    if changed:
        logging.getLogger(__name__).warning(
            f"warning: {origin}: was made with other code of {', '.join(changed)} than is "
            "installed; its weights are read all the same, and may give other outputs"
        )
    task_class = task.load(Task)
    given = spec.task_params if data is None else spec.task_params | {"data": data}
    try:
        resolved = params.resolve(task_class, given, spec.task)
    except UsageError as error:
        raise UsageError(
            f"{origin}: was made with another version of {spec.task!r} than is installed, whose "
            f"parameters are others: {error}"
        ) from error
    made_task = task_class(**resolved)
    made_task.recall(spec.data)
    return made_task, method
