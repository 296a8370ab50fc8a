"""A trained model in a folder of its own, to be kept or given away.

``model.json`` (what it is), ``model.safetensors`` (the weights of model and balancer),
``README.md`` (the model card), and, where it was asked for, ``model.onnx``.
"""

import hashlib
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor, nn

from mtbench import inert
from mtbench.balancing.model import MultitaskModel
from mtbench.errors import DataError, RunError, UsageError, first_fault, writable
from mtbench.plugins import extras
from mtbench.training.cell.request import reload
from mtbench.training.cell.result import Result
from mtbench.training.cell.rundir import Precision, RunDirectory, Spec
from mtbench.training.cell.weights import BALANCER, MODEL, PACKED, unpack
from mtbench.training.task import Splits, Task, Trained
from mtbench.training.trained.model import EXTRA_STATE, load_trained, restore
from mtbench.training.trainer.learner import Learner
from mtbench.version import __version__

DESCRIPTION, CARD, ONNX = "model.json", "README.md", "model.onnx"
TOLERANCE = 1e-4
"""How far an ONNX output may be from torch's, relative to the larger of 1 and its largest value."""

REAL = 8
"""Validation samples on which both are compared."""


class Description(BaseModel):
    """What a packaged model is.

    Attributes:
        format: of this file, with its `version`.
        mtbench: the version that wrote it.
        spec: of the cell that trained it.
        precision: at which the weights were found and are used.
        weights: sha256 of the weights' file.
        fitted: what `Task.fit` returned.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["mtbench-model"] = "mtbench-model"
    version: Literal[1] = 1
    mtbench: str
    spec: Spec
    precision: Precision
    weights: str
    fitted: dict[str, Any]


def is_model(path: Path) -> bool:
    """Return whether a folder is a run directory or a packaged model, finished or not."""
    return any((path / name).exists() for name in (DESCRIPTION, "spec.json"))


def load_all(
    paths: Sequence[Path], plugins: Sequence[Path] = (), hook: str = ""
) -> tuple[Task, Trained]:
    """Return the task and the trained models of `paths` as one: the first, with the others.

    Raises:
        RunError: as `load` does.
        UsageError: as `load` does, the models cannot be asked together, or one is there twice.
    """
    task, first = load(paths[0], plugins, hook)
    others = [load(path, plugins) for path in paths[1:]]
    known = {first.name: paths[0]}
    for path, (other, trained) in zip(paths[1:], others, strict=True):
        if type(other) is not type(task) or not task.joins(other):
            raise UsageError(
                f"{path}: cannot be asked together with {paths[0]}: models are of one task that "
                "allows it, with inputs of one size and outputs that mean the same"
            )
        if trained.name in known:
            raise UsageError(
                f"{path}: is the model of {known[trained.name]} again, {trained.name}: give it once"
            )
        known[trained.name] = path
    return task, replace(first, others=tuple(trained for _, trained in others))


def _refuse_without(task: Task, hook: str) -> None:
    """Refuse a task without a hook, in the words of `Task`'s, which refuses whatever it gets."""
    if hook and getattr(type(task), hook) is getattr(Task, hook):
        getattr(task, hook)(None, None, None)


def load(path: Path, plugins: Sequence[Path] = (), hook: str = "") -> tuple[Task, Trained]:
    """Return the task and the trained model of a finished run or of a packaged model.

    Args:
        path: of it.
        plugins: files that it was made with.
        hook: what the task is loaded for, ``predict`` or ``evaluate``.

    Raises:
        RunError: it is neither, not finished, or broken.
        UsageError: plugin files that it was made with are not given, or have changed; or the task
            has no such hook, which is told before its data is asked for.
    """
    if not path.exists():
        raise RunError(
            f"{path}: no such folder: give a finished run, such as runs/TASK/METHOD/seed0-..., or "
            "what `mtbench package` has made"
        )
    if not is_model(path):
        raise RunError(
            f"{path}: no run directory (it has no spec.json), and no packaged model (it has no "
            f"{DESCRIPTION})"
        )
    if not (path / DESCRIPTION).exists():
        run = RunDirectory(path)
        spec = run.spec()
        task, method = reload(spec, path, plugins)
        if run.result() is None:
            raise RunError(
                f"{path}: is not finished (no result.json); `mtbench run` goes on with it"
            )
        _refuse_without(task, hook)
        trained = load_trained(run, task, method)
        return task, Trained(trained.predict, name(spec), run.fitted() or {}, init=spec.init)
    known, file = _described(path), path / DESCRIPTION
    try:
        content = (path / PACKED).read_bytes()
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}: {error.filename})") from error
    if hashlib.sha256(content).hexdigest() != known.weights:
        raise RunError(f"{path / PACKED}: is not the file that {file} is about; package it again")
    task, method = reload(known.spec, path, plugins)
    _refuse_without(task, hook)
    spec = known.spec.model_copy(update={"precision": known.precision})
    try:
        trained = restore(spec, task, method, *unpack(content))
    except (KeyError, RuntimeError, SafetensorError) as error:
        raise RunError(
            f"{path}: its weights are not those of this model ({type(error).__name__}); mtbench or "
            f"a plugin has changed since {known.mtbench}: package it again"
        ) from error
    return task, Trained(trained.predict, name(known.spec), known.fitted, init=known.spec.init)


def fitted(path: Path, task: str) -> dict[str, Any]:
    """Return what `Task.fit` returned of a model; nothing of another task's, or a mere checkpoint.

    Args:
        path: a run directory, a packaged model, or a checkpoint.
        task: its name.

    Raises:
        RunError: it is broken.
    """
    if (path / DESCRIPTION).exists():
        known = _described(path)
        return known.fitted if known.spec.task == task else {}
    run = RunDirectory(path)
    if not is_model(path) or run.spec().task != task:
        return {}
    return run.fitted() or {}


def _described(path: Path) -> Description:
    """Return what a packaged model is.

    Raises:
        RunError: its description cannot be read.
    """
    file = path / DESCRIPTION
    try:
        return Description.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise RunError(
            f"{file}: not of version 1 of mtbench's packaged models: {first_fault(error)}"
        ) from error
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}: {error.filename})") from error


def name(spec: Spec) -> str:
    """Return which model it is, for a person."""
    return f"{spec.task} {spec.method} seed {spec.seed} {spec.hash}"


def write(
    path: Path, to: Path, *, onnx: bool, data: Path | None = None, plugins: Sequence[Path] = ()
) -> str | None:
    """Package the trained model of a finished run.

    Args:
        path: the run directory.
        to: the folder to make.
        onnx: whether to write ``model.onnx`` too, checked against torch.
        data: where the task's data lies, if it needs any; it is read for ONNX, and where `Task.fit`
            has not been asked.
        plugins: plugin files.

    Returns:
        How far ONNX is from torch, in words; None without it.

    Raises:
        RunError: the run is not finished, the folder exists or cannot be written, or ONNX gives
            something else than torch.
        DataError: the data is absent, broken, or not what the run was trained on.
        UsageError: the model has no form that ONNX takes, or the extra is not installed.
    """
    if onnx:
        extras.need("onnx", "--onnx")
    if (path / DESCRIPTION).exists():
        raise UsageError(f"{path}: is a packaged model already; give the run directory")
    if to.exists():
        raise RunError(f"--to {to}: exists already; remove it or choose another folder")
    run = RunDirectory(path)
    spec = run.spec()
    task, method = reload(spec, path, plugins, data)
    result = run.result()
    if result is None:
        raise RunError(f"{path}: is not finished (no result.json); `mtbench run` goes on with it")
    if result.status != "finished":
        raise RunError(f"{path}: has no model to package, it {result.status}")
    trained = load_trained(run, task, method)
    fitted = run.fitted()
    splits = None
    if onnx or (fitted is None and type(task).fit is not Task.fit):
        splits = _splits(spec, task, path)
    if fitted is None:
        fitted = {} if splits is None else task.fit(trained.predict, splits)
    with writable(f"--to {to}"):
        to.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".package-", dir=to.parent) as temporary:
            folder = Path(temporary) / "model"
            folder.mkdir()
            _save(trained, folder / PACKED)
            said = None
            if onnx:
                assert splits is not None
                said = _export(trained, task, splits, folder / ONNX)
            known = Description(
                mtbench=__version__,
                spec=spec,
                precision=trained.precision,
                weights=hashlib.sha256((folder / PACKED).read_bytes()).hexdigest(),
                fitted=fitted,
            )
            (folder / DESCRIPTION).write_text(known.model_dump_json(indent=2), encoding="utf-8")
            (folder / CARD).write_text(_card(known, task, run, result, said), encoding="utf-8")
            folder.rename(to)
    return said


def _splits(spec: Spec, task: Task, path: Path) -> Splits:
    try:
        splits = task.setup(spec.seed, lambda *_: None)
    except DataError as error:
        raise DataError(f"the data that {path} was trained on is read: {error}") from error
    if splits.fingerprint != spec.data:
        raise DataError(
            f"{path}: was trained on data {spec.data}, found {splits.fingerprint}; give --data of "
            "the training"
        )
    return splits


def _save(trained: Learner, file: Path) -> None:
    parts = ((MODEL, trained.model.state_dict()), (BALANCER, trained.balancer.state_dict()))
    tensors = {
        start + key: value.detach().cpu().contiguous().clone()
        for start, state in parts
        for key, value in state.items()
        if not key.endswith(EXTRA_STATE)
    }
    file.write_bytes(save(tensors))


class _Flat(nn.Module):
    """The model as ONNX wants it: one tensor in, a flat tuple of tensors out."""

    def __init__(self, trained: Learner, objectives: Sequence[str]) -> None:
        super().__init__()
        self.model: MultitaskModel = trained.model
        self.balancer, self.objectives = trained.balancer, objectives

    def named(self, inputs: Tensor) -> dict[str, Tensor]:
        """Return the outputs by name."""
        heads = self.model.decode(self.model.encode(inputs), self.balancer.view)
        return {
            key: value
            for objective, output in zip(self.objectives, heads, strict=True)
            for key, value in _tensors(objective, output)
        }

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.named(inputs).values())


def _tensors(objective: str, output: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield a head's output: a tensor, or a named tuple of tensors."""
    if isinstance(output, Tensor):
        yield objective, output
        return
    for field in getattr(output, "_fields", [None]):
        value = getattr(output, field) if field else None
        if not isinstance(value, Tensor):
            raise UsageError(
                f"--onnx: head {objective} gives {type(output).__name__}; what ONNX takes is a "
                "tensor, or a named tuple of tensors"
            )
        yield f"{objective}.{field}", value


def _export(trained: Learner, task: Task, splits: Splits, file: Path) -> str:
    """Write a model as ONNX and return how far it is from torch."""
    real = splits.val.batch(torch.arange(min(REAL, len(splits.val))))["inputs"]
    if not isinstance(real, Tensor) or not real.is_floating_point():
        raise UsageError(
            f"--onnx: the model's input is {type(real).__name__}; what ONNX takes here is one "
            "tensor of floating-point numbers"
        )
    noise = torch.randn(real.shape, generator=torch.Generator().manual_seed(0))
    random = real.mean() + real.std() * noise
    flat = _Flat(trained, task.objectives).eval()
    with torch.no_grad():
        names = list(flat.named(real))
    with _quiet():
        torch.onnx.export(
            flat,
            (torch.cat([real, real])[:2],),  # a batch of one would be taken for a constant
            file,
            input_names=["inputs"],
            output_names=names,
            dynamic_shapes={"inputs": {0: torch.export.Dim("batch")}},
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    largest = max(_difference(flat, file, real, "real"), _difference(flat, file, random, "random"))
    return (
        f"input `inputs` ({', '.join(['batch', *map(str, real.shape[1:])])}), outputs "
        f"{', '.join(f'`{key}`' for key in names)}; onnxruntime differs from torch by at most "
        f"{largest:.1e} of the larger of 1 and the output's largest value (allowed: "
        f"{TOLERANCE:.0e}), on {len(real)} validation inputs and as many random ones, one by one "
        "and together"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what torch's exporter says about torch."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _difference(flat: _Flat, file: Path, inputs: Tensor, kind: str) -> float:
    """Return the largest relative difference between onnxruntime and torch."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    if isinstance(batches := session.get_inputs()[0].shape[0], int):
        raise RunError(
            f"--onnx: the exported model takes batches of {batches} only, because it turns a size "
            "into a number: write x.shape[0] for len(x) in the model or the method's `view`"
        )
    largest = 0.0
    for batch in (inputs, *torch.split(inputs, 1)):
        with torch.no_grad():
            wanted = flat.named(batch)
        found = session.run(list(wanted), {"inputs": batch.numpy()})
        for key, value in zip(wanted, map(torch.from_numpy, found), strict=True):
            scale = max(1.0, wanted[key].abs().max().item())
            difference = (value - wanted[key]).abs().max().item() / scale
            if not difference <= TOLERANCE:
                raise RunError(
                    f"--onnx: on {kind} inputs output {key} differs from torch by {difference:.1e} "
                    f"(allowed: {TOLERANCE:.0e}); nothing was written"
                )
            largest = max(largest, difference)
    return largest


def _card(
    known: Description, task: Task, run: RunDirectory, result: Result, onnx: str | None
) -> str:
    """Return the model card, in Markdown."""
    spec = known.spec
    assert result.val is not None
    assert result.best_epoch is not None
    columns = {"validation": result.val}
    if (run.path / "test.opened").exists():
        columns["test"] = run.open_test()
    rows = [
        [key, *(_number(column.get(key)) for column in columns.values())] for key in result.metrics
    ]
    metrics = "\n".join(inert.table(["metric", *columns], rows))
    facts = {
        "task": spec.task, "method": spec.method, "seed": spec.seed, "spec": spec.hash,
        "data": spec.data, "started from": spec.init or "fresh weights",
        "epoch": f"{result.best_epoch + 1} of {spec.recipe['epochs']}",
        "precision": known.precision,
        "mtbench": result.environment["mtbench"],
    }  # fmt: skip
    settings = {
        "data": result.public_notes,
        "task": {k: v for k, v in spec.task_params.items() if k not in task.idle},
        "method": spec.method_params,
        "recipe": spec.recipe,
    }  # fmt: skip
    sealed = "" if "test" in columns else "\n\nThe test metrics of this run have not been opened."
    about_onnx = f"\n- `{ONNX}`: {onnx}. Computed in float32." if onnx else ""
    return f"""# {name(spec)}

A model trained by mtbench {known.mtbench}.

**Licence:** not chosen yet. Say here under which terms the weights may be used, and whether the
training data allows it, before you give them away.

{task.card(known.fitted).strip()}

## Metrics

{metrics}{sealed}

## Training

{chr(10).join(f"- {key}: `{value}`" for key, value in facts.items())}

```json
{json.dumps(settings, indent=2)}
```

## Files

- `{DESCRIPTION}`: the whole spec, and what was fitted beside the weights.
- `{PACKED}`: the weights; the model's names begin with `{MODEL}`, the method's with
  `{BALANCER}`.{about_onnx}

`mtbench predict FOLDER FILE` reads new files with this folder, `mtbench run --init FOLDER` trains
on from it.
"""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
