"""The conformance suite of tasks."""

import copy
import inspect
import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtbench import seeding
from mtbench.balancing.engine import grad
from mtbench.balancing.model import MultitaskModel, PerObjective
from mtbench.balancing.step import Step
from mtbench.plugins import params
from mtbench.testing.equality import alike
from mtbench.training.machine.device import to_device
from mtbench.training.task import Batch, Metric, Split, Splits, Task, shadows

Unlabelled = Callable[[Batch, str], Batch | None]
"""Maps a batch and an objective's name to the batch without its labels; None if it cannot."""

PARTS = ("train", "val", "test")
SAMPLES = 16
"""At most so many make a batch here."""

BATCHES = 8
"""In so many training batches each objective has a gradient at least once."""

STEPS = 400
"""Of training, over all objectives, to see metrics improve."""

ENDS = {True: (1.0, 100.0), False: (0.0,)}
"""By `higher_is_better`: where a metric may stay, having nothing left to gain."""


MakeTask = Callable[[], Task]
"""How a task is constructed: its class, or a partial of it with parameters."""


@lru_cache(maxsize=1)
def prepared(make: MakeTask) -> tuple[Task, Splits]:
    """Return a task and its data at seed 0; those of the last `make` are kept."""
    task = make()
    return task, task.setup(0, _silent)


class TaskContract:
    """What every task keeps to; one fixture, `make`, names the task.

    Data is read once if `make` returns the same object each time; choose parameters that make it
    little. To see what happens where labels are missing, they are made so where a batch holds them
    under the objective's name (NaN, or -1 for integers); a task that keeps them elsewhere overrides
    `unlabelled`.
    """

    @pytest.fixture
    def make(self) -> MakeTask:
        """Return what constructs the task; to be overridden."""
        raise NotImplementedError("TaskContract: override the fixture `make`")

    @pytest.fixture
    def unlabelled(self) -> Unlabelled:
        """Return what takes an objective's labels from a batch."""
        return _unlabelled

    @pytest.fixture
    def task(self, make: MakeTask) -> Task:
        """Return the task, set up."""
        return prepared(make)[0]

    @pytest.fixture
    def splits(self, make: MakeTask) -> Splits:
        """Return its data."""
        return prepared(make)[1]

    # What is declared

    def test_objectives_and_metrics(self, task: Task) -> None:
        """Objectives have names of their own, and each is judged by a primary metric."""
        names = task.objectives
        assert names and len(set(names)) == len(names), (  # noqa: PT018
            f"`objectives` is a tuple of one or more different names, found {names}"
        )
        for name, metric in task.metrics.items():
            assert isinstance(metric, Metric), f"`metrics[{name!r}]` must be a mtbench.Metric"
            assert metric.objective in (*names, None), (
                f"metric {name!r} judges {metric.objective!r}, which is none of {names}"
            )
            assert not shadows(name, task.metrics), (
                f"metric {name!r} is called like a column of leaderboards: rename it"
            )
        judged = {metric.objective for metric in task.metrics.values() if metric.primary}
        assert judged >= set(names), (
            f"no metric with primary=True judges {sorted(set(names) - judged)}: model selection "
            "and the leaderboard would not see these objectives"
        )

    def test_parameters(self, task: Task) -> None:
        """Parameters are keyword-only arguments with types and defaults, for the command line."""
        known = params.declared(type(task))
        own = {
            name: parameter
            for name, parameter in inspect.signature(type(task)).parameters.items()
            if parameter.kind is not parameter.VAR_KEYWORD  # which hands on to the base's
        }
        assert own.keys() <= known.keys(), (
            f"{sorted(own.keys() - known.keys())}: parameters come after a * in __init__"
        )
        for name, parameter in own.items():
            assert parameter.annotation is not parameter.empty, f"parameter {name} has no type"
            assert parameter.default is not parameter.empty, f"parameter {name} has no default"

    # The data

    def test_own_inputs(self, task: Task, splits: Splits) -> None:
        """Whether every objective has inputs of its own is as declared."""
        found = isinstance(_batch(task, splits.train)["inputs"], PerObjective)
        assert found == task.own_inputs, (
            f"a batch's inputs are {'' if found else 'not '}PerObjective: say own_inputs = {found} "
            "in the class, so that methods on features are refused, or not, before data is loaded"
        )

    def test_setup_is_deterministic(self, task: Task, splits: Splits) -> None:
        """`setup` at one seed gives the same data, whatever the state of global generators."""
        with seeding.preserved():
            seeding.seed_everything(12345)
            again = task.setup(0, _silent)
        for name in PARTS:
            split, other = getattr(splits, name), getattr(again, name)
            assert len(split) == len(other), f"split {name} has {len(split)}, then {len(other)}"
            assert alike(_batch(task, split), _batch(task, other)), (
                f"split {name} differs between two calls of `setup` at one seed: draw from "
                "mtbench.seeding.generator(seed, 'split'), and sort what a folder or a set lists"
            )

    def test_fingerprint(self, task: Task, splits: Splits) -> None:
        """The fingerprint identifies the content, the same at every seed."""
        assert splits.fingerprint, "`Splits.fingerprint` is empty: see mtbench.data.fingerprint"
        for seed in (0, 1):
            assert task.setup(seed, _silent).fingerprint == splits.fingerprint, (
                f"another fingerprint at seed {seed}: it is of all the data before it is split, so "
                "that the leaderboard knows different seeds for the same problem"
            )

    def test_no_group_in_two_splits(self, splits: Splits) -> None:
        """No group (patient, subject, source image) lies in two splits of one objective."""
        own = [
            part.by_objective or {"all": part} for part in (splits.train, splits.val, splits.test)
        ]
        declared = [_disjoint([parts[name] for parts in own]) for name in own[0]]
        if not any(declared):
            pytest.skip(
                "samples are declared independent; if several are of one patient, say so by "
                "`Split.groups`"
            )

    @pytest.mark.parametrize("augmented", [False, True])
    def test_batches_are_deterministic(self, task: Task, splits: Splits, augmented: bool) -> None:
        """A batch depends on its indices and generator alone, and leaves global generators be."""
        for name in PARTS[:1] if augmented else PARTS:
            batches = []
            with seeding.preserved():
                for seed in (1, 2):
                    seeding.seed_everything(seed)
                    before = seeding.global_state()
                    generator = torch.Generator().manual_seed(7) if augmented else None
                    batches.append(_batch(task, getattr(splits, name), generator))
                    assert alike(before, seeding.global_state()), (
                        f"split {name}: `batch` draws from a global generator; draw from its "
                        "argument `generator`, or wrap the Dataset in mtbench.data.DatasetSplit"
                    )
            assert "inputs" in batches[0], "a batch is a dictionary with the entry 'inputs'"
            assert alike(*batches), (
                f"split {name}: two batches of the same indices differ: `generator` is the only "
                "source of randomness, and None asks for none"
            )

    # The model

    def test_initial_weights(self, make: MakeTask) -> None:
        """`model` returns K heads, initialised from torch's global generator, without any data."""
        task, states = make(), []
        with seeding.preserved():
            for other in (1, 2):
                seeding.seed_everything(other)
                torch.manual_seed(0)
                model = task.model()
                states.append(model.state_dict())
        assert isinstance(model, MultitaskModel), "`model` returns a mtbench.MultitaskModel"
        assert len(model.heads) == len(task.objectives), (
            f"{len(model.heads)} heads for {len(task.objectives)} objectives"
        )
        assert alike(*states), (
            "two models differ after the same torch.manual_seed: every method must start from the "
            "same weights"
        )

    def test_features(self, task: Task, splits: Splits) -> None:
        """The encoder gives a tuple of features on the graph, from inputs alone."""
        model, batch = _model(task), _batch(task, splits.train)
        inputs = _first(batch["inputs"])
        found = model.encoder(inputs)
        assert isinstance(found, tuple), (
            f"the encoder returns a tuple of tensors, found {type(found).__name__}: "
            "MultitaskModel.single_feature makes a model of ordinary modules"
        )
        for feature in model.encode(inputs):
            assert feature.is_floating_point(), f"features are floats, found {feature.dtype}"
            assert feature.requires_grad, "a feature is not on the graph: no gradient reaches it"

    def test_samples_do_not_mix(self, task: Task, splits: Splits) -> None:
        """In training a sample's features depend on that sample alone."""
        inputs = _first(_batch(task, splits.train)["inputs"])
        if not (isinstance(inputs, Tensor) and inputs.is_floating_point() and len(inputs) > 1):
            pytest.skip("inputs are no tensor of two or more samples")
        changed = torch.cat([inputs[:1], inputs[1:] * 0.5 + 0.25])
        first = []
        for given in (inputs, changed):
            with seeding.preserved():  # so that dropout is the same
                model = _model(task)
                seeding.seed_everything(0)
                first.append([feature[:1].detach() for feature in model.encode(given)])
        for a, b in zip(*first, strict=True):
            if not torch.allclose(a, b, rtol=1e-3, atol=1e-5):
                pytest.skip(
                    "samples mix (batch norm?): methods that look at samples one by one do not see "
                    "what they should; instance, group or layer norm do not mix them"
                )

    def test_state_and_evaluation(self, task: Task, splits: Splits) -> None:
        """In evaluation a model says the same twice, and so do its copy and one with its state."""
        model, fresh, batch = _model(task), _model(task, seed=1), _batch(task, splits.val)
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        file.seek(0)
        fresh.load_state_dict(torch.load(file, weights_only=True))
        said = []
        with torch.no_grad():
            for one in (model, model, fresh, copy.deepcopy(model)):
                one.eval()
                said.append(one(batch["inputs"]))
        for other, what in zip(
            said[1:],
            (
                "is asked twice: `eval()` must turn off what is random",
                "is loaded from its state_dict: what it learns is a Parameter or a buffer",
                "is copied: copy.deepcopy must give an equal model",
            ),
            strict=True,
        ):
            assert alike(said[0], other), f"outputs differ when a model {what}"

    # Losses and gradients

    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    def test_losses(self, task: Task, splits: Splits, precision: str) -> None:
        """`losses` returns K finite scalars on the graph, in training and in evaluation."""
        model = _model(task)
        for training, name in ((True, "train"), (False, "val"), (False, "test")):
            batch = _batch(task, getattr(splits, name))
            model.train(training)
            with (
                torch.set_grad_enabled(training),
                torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
            ):
                losses = task.losses(model(batch["inputs"]), batch)
            assert len(losses) == len(task.objectives), (
                f"{len(losses)} losses for {len(task.objectives)} objectives"
            )
            for objective, loss in zip(task.objectives, losses, strict=True):
                where = f"loss of {objective!r} on split {name} at {precision}"
                assert isinstance(loss, Tensor), f"{where} is no tensor"
                assert loss.shape == (), f"{where} is no scalar: shape {tuple(loss.shape)}"
                assert loss.isfinite(), f"{where} is {loss.item()}"
                assert loss.requires_grad or not training, (
                    f"{where} is not on the graph: it must come from the head's output"
                )

    def test_gradients(self, task: Task, splits: Splits) -> None:
        """Each loss has a finite gradient in the encoder and in its own head, in no other head."""
        model = _model(task)
        shared = list(model.encoder.parameters())
        heads = [list(head.parameters()) for head in model.heads]
        missing = {
            *((name, "the encoder") for name in task.objectives),
            *((n, "its head") for n, h in zip(task.objectives, heads, strict=True) if h),
        }
        for batch in _batches(task, splits.train):
            losses = task.losses(model(batch["inputs"]), batch)
            for k, (name, loss) in enumerate(zip(task.objectives, losses, strict=True)):
                own = {id(p) for p in (*shared, *heads[k])}
                others = [p for head in heads for p in head if id(p) not in own]
                assert not _reaches(loss, others), (
                    f"the loss of {name!r} has a gradient in another objective's head: what two "
                    "objectives use belongs to the encoder"
                )
                for place, parameters in (("the encoder", shared), ("its head", heads[k])):
                    if parameters and _reaches(loss, parameters):
                        missing.discard((name, place))
            if not missing:
                return
        for name, place in sorted(missing):
            pytest.fail(
                f"the loss of {name!r} has no gradient in {place} in {BATCHES} batches: is an "
                "output detached, or a head not in the objectives' order?"
            )

    def test_residuals(self, task: Task, splits: Splits) -> None:
        """Each loss is the mean of its residuals' squares, up to a factor, if the task has any."""
        model, batch = _model(task), _batch(task, splits.train)
        outputs = model(batch["inputs"])
        residuals = task.residuals(outputs, batch)
        if residuals is None:
            pytest.skip("its losses are no mean squares")
        Step(task.losses(outputs, batch), residuals=residuals).refuse_residuals()

    def test_missing_labels(self, task: Task, splits: Splits, unlabelled: Unlabelled) -> None:
        """Without labels an objective's loss is 0 on the graph, and the others are as before."""
        batch, model = _batch(task, splits.train), _model(task).eval()
        before = task.losses(model(batch["inputs"]), batch)
        for k, name in enumerate(task.objectives):
            hidden = unlabelled(batch, name)
            if hidden is None:
                pytest.skip(f"{_NO_LABELS} ({name!r})")
            losses = task.losses(model(batch["inputs"]), hidden)
            assert losses[k].requires_grad, f"the loss of {name!r} {_OFF_GRAPH}"
            assert losses[k].item() == 0, (
                f"the loss of {name!r} is {losses[k].item():g} where no sample has its label: "
                "leave these out, as mtbench.data.labelled_loss does"
            )
            assert not _reaches(losses[k], list(model.parameters())), (
                f"the loss of {name!r} has a gradient where no sample has its label"
            )
            for j, loss in enumerate(losses):
                assert j == k or torch.allclose(loss, before[j]), (
                    f"the loss of {task.objectives[j]!r} changes where labels of {name!r} are "
                    "missing"
                )

    # Metrics

    def test_meter(self, task: Task, splits: Splits) -> None:
        """A meter returns exactly the declared metrics, as numbers, also after one sample."""
        model = _model(task)
        for name in ("val", "test"):
            split = getattr(splits, name)
            for indices in (torch.arange(1), torch.arange(min(len(split), SAMPLES))):
                found = _measure(task, model, [split.batch(indices)])
                assert found.keys() == task.metrics.keys(), (
                    f"`meter` and `metrics` differ in {sorted(found.keys() ^ task.metrics.keys())}"
                )
                for metric, value in found.items():
                    assert isinstance(value, float), (
                        f"metric {metric!r} is a {type(value).__name__}, not a float"
                    )

    def test_meter_counts_samples(self, task: Task, splits: Splits) -> None:
        """Metrics of a split do not depend on how it is cut into batches."""
        model = _model(task)
        indices = torch.arange(min(len(splits.val), SAMPLES))
        whole, parts = (
            _measure(task, model, [splits.val.batch(i) for i in torch.split(indices, size)])
            for size in (len(indices), max(1, len(indices) // 2 + 1))
        )
        for name, value in whole.items():
            assert math.isclose(value, parts[name], rel_tol=1e-3, abs_tol=1e-5) or (
                math.isnan(value) and math.isnan(parts[name])
            ), (
                f"metric {name!r} is {value:g} of one batch and {parts[name]:g} of two: collect "
                "samples or sums, a mean of batches' means counts those of small batches more"
            )

    def test_meter_without_labels(self, task: Task, splits: Splits, unlabelled: Unlabelled) -> None:
        """Where an objective has no labels its metrics are NaN, and the others as before."""
        batch, model = _batch(task, splits.val), _model(task)
        before = _measure(task, model, [batch])
        for objective in task.objectives:
            hidden = unlabelled(batch, objective)
            if hidden is None:
                pytest.skip(f"{_NO_LABELS} ({objective!r})")
            for name, value in _measure(task, model, [hidden]).items():
                if (judged := task.metrics[name].objective) is None:
                    continue
                if judged == objective:
                    assert math.isnan(value), (
                        f"metric {name!r} is {value:g} where no sample has its label: NaN says "
                        "that it is undefined"
                    )
                else:
                    assert value == before[name] or math.isnan(before[name]), (
                        f"metric {name!r} changes where labels of {objective!r} are missing"
                    )

    def test_learning_improves_metrics(self, task: Task, splits: Splits) -> None:
        """Learning one batch by heart improves each primary metric in its declared direction."""
        batch = _batch(task, splits.train)
        for k, objective in enumerate(task.objectives):
            judges = {
                name: metric
                for name, metric in task.metrics.items()
                if metric.objective == objective and metric.primary
            }
            model = _model(task)
            before = after = _measure(task, model, [batch])
            worse = list(judges)
            with seeding.preserved():
                seeding.seed_everything(0)
                for _ in _learn(task, model, batch, k):
                    after = _measure(task, model, [batch])
                    worse = [n for n, m in judges.items() if not _better(m, before[n], after[n])]
                    if not worse:
                        break
            for name in worse:
                pytest.fail(
                    f"metric {name!r} goes from {before[name]:g} to {after[name]:g} while the loss "
                    f"of {objective!r} falls, and is declared higher_is_better="
                    f"{judges[name].higher_is_better}: is this its direction, and does the meter "
                    "read this objective's output and label?"
                )

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    def test_on_cuda(self, task: Task, splits: Splits) -> None:
        """Losses and metrics work where the model is."""
        model = _model(task).to("cuda")
        batch = to_device(_batch(task, splits.train), torch.device("cuda"))
        for loss in task.losses(model(batch["inputs"]), batch):
            assert loss.isfinite()
        _measure(task, model, [batch])


_NO_LABELS = (
    "labels are not known to the contract: name them after their objectives in the batch, or "
    "override the fixture `unlabelled`"
)
_OFF_GRAPH = "is not on the graph where no sample has its label: return output.sum() * 0"


def _silent(what: str, done: int, total: int) -> None:
    """Report no progress."""


def _unlabelled(batch: Batch, objective: str) -> Batch | None:
    labels = batch.get(objective)
    if not isinstance(labels, Tensor) or labels.dtype in (torch.bool, torch.uint8):
        return None
    return {
        **batch, objective: torch.full_like(labels, torch.nan if labels.is_floating_point() else -1)
    }  # fmt: skip


def _model(task: Task, seed: int = 0) -> MultitaskModel:
    with seeding.preserved():
        seeding.seed_everything(seed)
        return task.model()


def _batch(task: Task, split: Split, generator: torch.Generator | None = None) -> Batch:
    """Return the first batch: two samples at least, as batch norm needs."""
    return split.batch(torch.arange(_size(task, split)), generator)


def _batches(task: Task, split: Split) -> Iterator[Batch]:
    size = _size(task, split)
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    for indices in torch.split(order[: len(split) // size * size], size)[:BATCHES]:
        yield split.batch(indices)


def _size(task: Task, split: Split) -> int:
    return min(len(split), SAMPLES, max(2, task.recipe.batch_size))


def _first(inputs: Any) -> Any:
    """Return what one pass of the encoder takes."""
    return inputs[0] if isinstance(inputs, PerObjective) else inputs


def _reaches(loss: Tensor, parameters: Sequence[nn.Parameter]) -> bool:
    """Return whether a loss has a gradient that is not zero in some of the parameters."""
    found = [g for g in grad([loss], parameters, [torch.ones_like(loss)]) if g is not None]
    for value in found:
        assert value.isfinite().all(), "a gradient is infinite or NaN"
    return any(bool(value.any()) for value in found)


@torch.no_grad()
def _measure(task: Task, model: MultitaskModel, batches: Iterable[Batch]) -> dict[str, float]:
    model.eval()
    meter = task.meter()
    for batch in batches:
        meter.update(model(batch["inputs"]), batch)
    return meter.compute()


def _learn(task: Task, model: MultitaskModel, batch: Batch, k: int) -> Iterator[None]:
    """Train on one loss and one batch; yield when half its magnitude is lost, and at the end."""
    optimizer = torch.optim.Adam(model.parameters(), lr=task.recipe.lr)
    start = None
    for _ in range(max(100, STEPS // len(task.objectives))):
        loss = task.losses(model.train()(batch["inputs"]), batch)[k]
        start = loss.item() if start is None else start
        if start - loss.item() > abs(start) / 2:
            start = math.nan  # once
            yield
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    yield


def _better(metric: Metric, a: float, b: float) -> bool:
    """Return whether b is better than a, or undefined, or as good as can be."""
    improved = b > a if metric.higher_is_better else b < a
    perfect = a == b and b in ENDS[metric.higher_is_better]
    return improved or perfect or math.isnan(a) or math.isnan(b)


def _disjoint(parts: Sequence[Split]) -> bool:
    """Check that no group lies in two parts; return whether there are groups."""
    groups = {name: part.groups() for name, part in zip(PARTS, parts, strict=True)}
    if all(found is None for found in groups.values()):
        return False
    for (name, found), part in zip(groups.items(), parts, strict=True):
        assert found is not None, f"split {name} has no groups, where others have"
        count = len(part)
        assert len(found) == count, f"split {name}: {len(found)} groups of {count} samples"
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        common = set(groups[one] or ()) & set(groups[other] or ())
        assert not common, (
            f"{len(common)} groups lie in {one} and in {other}, such as {next(iter(common))!r}:"
            " split the groups, not the samples"
        )
    return True
