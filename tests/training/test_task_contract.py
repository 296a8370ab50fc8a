"""The contract of tasks catches what it is there to catch, and says what to do."""

import inspect
import random
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from torchmetrics import MeanSquaredError
from torchmetrics.classification import MulticlassAccuracy

from mtbench import Metric, MultitaskModel, Recipe, Splits, Task, seeding
from mtbench.errors import PluginError
from mtbench.testing import TaskContract
from mtbench.testing.tasks import _unlabelled, prepared
from mtbench.training.data import (
    PerObjectiveSplit,
    TensorSplit,
    TorchmetricsMeter,
    fingerprint,
    labelled_loss,
)


class Noisy(TensorSplit):
    def batch(self, indices, generator=None):
        batch = super().batch(indices)
        if generator is not None:
            batch["inputs"] = batch["inputs"] + 0.01 * torch.randn(
                batch["inputs"].shape, generator=generator
            )
        return batch


class Good(Task):
    """Sixty subjects, five samples each, some without a label."""

    objectives = ("sort", "size")
    metrics = {  # noqa: RUF012
        "accuracy": Metric("sort", primary=True),
        "mse": Metric("size", higher_is_better=False, primary=True),
    }
    recipe = Recipe(batch_size=12, lr=1e-2)
    split = Noisy

    def __init__(self, *, dropout: float = 0.1):
        self.dropout = dropout

    def setup(self, seed, progress):
        x = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
        sort, size = (x[:, 0] > x[:, 1]).long(), x[:, 2].sin()
        sort[::7], size[::5] = -1, torch.nan
        parts = [
            self.split(x[rows], groups=(rows // 5).tolist(), sort=sort[rows], size=size[rows])
            for rows in self.rows(seed)
        ]
        return Splits(*parts, fingerprint=fingerprint(x, sort, size), notes={"samples": len(x)})

    def rows(self, seed):
        subjects = torch.randperm(60, generator=seeding.generator(seed, "split"))
        rows = (5 * subjects[:, None] + torch.arange(5)).flatten()
        return rows.split([200, 50, 50])

    def model(self):
        encoder = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Dropout(self.dropout))
        heads = [nn.Linear(16, 2), nn.Sequential(nn.Linear(16, 1), nn.Flatten(0))]
        return MultitaskModel.single_feature(encoder, heads)

    def losses(self, outputs, batch):
        return [
            labelled_loss(cross_entropy, outputs[0], batch["sort"]),
            labelled_loss(mse_loss, outputs[1], batch["size"]),
        ]

    def meter(self):
        metrics = {"accuracy": MulticlassAccuracy(2), "mse": MeanSquaredError()}
        return TorchmetricsMeter(self, metrics)


# What is declared


class OneUnjudged(Good):
    metrics = Good.metrics | {"mse": Metric("size", higher_is_better=False)}


class JudgesNothing(Good):
    metrics = Good.metrics | {"other": Metric("colour")}


class LikeAColumn(Good):
    metrics = Good.metrics | {"rank": Metric(None)}


class SameNames(Good):
    objectives = ("sort", "sort")


class Positional(Good):
    def __init__(self, dropout=0.1):
        self.dropout = dropout


class Untyped(Good):
    def __init__(self, *, dropout=0.1):
        self.dropout = dropout


# Data


class Changed(Good):
    """A good task whose data is good but for something."""

    def setup(self, seed, progress):
        splits = super().setup(seed, progress)
        return Splits(**vars(splits) | self.change(seed, splits))


class SaysOwnInputs(Good):
    own_inputs = True


class NoTest(Changed):
    def change(self, seed, splits):
        return {"test": TensorSplit(torch.zeros(0, 4))}


class UnrecordableNotes(Changed):
    def change(self, seed, splits):
        return {"notes": {"path": torch}}


class OwnFingerprint(Changed):
    def change(self, seed, splits):
        return {"fingerprint": f"{splits.fingerprint}-{seed}"}


class GlobalSplit(Good):
    def rows(self, seed):
        return torch.randperm(300).split([200, 50, 50])


class SamplesSplit(Good):
    def rows(self, seed):
        return torch.randperm(300, generator=seeding.generator(seed)).split([200, 50, 50])


class OwnSamplesSplit(SamplesSplit):
    def setup(self, seed, progress):
        splits = super().setup(seed, progress)
        parts = {
            name: PerObjectiveSplit(dict.fromkeys(self.objectives, getattr(splits, name)), "once")
            for name in ("train", "val", "test")
        }
        return replace(splits, **parts)


class Shuffled(TensorSplit):
    def batch(self, indices, generator=None):
        batch = super().batch(indices)
        return batch | {"inputs": batch["inputs"] + self.noise()}


class DrawsTorch(Good):
    class split(Shuffled):  # noqa: N801
        def noise(self):
            return torch.randn(1)


class DrawsNumpy(Good):
    class split(Shuffled):  # noqa: N801
        def noise(self):
            return np.random.rand()  # noqa: NPY002


class DrawsPython(Good):
    class split(Shuffled):  # noqa: N801
        def noise(self):
            return random.random()


class DrawsAnew(Good):
    class split(Shuffled):  # noqa: N801
        def noise(self):
            return torch.randn(1, generator=torch.Generator().manual_seed(id(torch.zeros(1))))

        def batch(self, indices, generator=None):
            self.count = getattr(self, "count", 0) + 1
            batch = TensorSplit.batch(self, indices)
            return batch | {"inputs": batch["inputs"] + self.count}


# Model


@pytest.mark.parametrize("kind", [staticmethod, classmethod])
def test_setup_may_be_a_method_of_any_kind(kind):
    made = type("Any", (Good,), {"setup": kind(lambda *asked: Good().setup(*asked[-2:]))})()
    assert made.setup(0, print).fingerprint == Good().setup(0, print).fingerprint


class Remodelled(Good):
    """A good task whose model is good but for something."""

    def model(self):
        model = super().model()
        self.spoil(model)
        return model


class ThreeHeads(Remodelled):
    def spoil(self, model):
        model.heads.append(model.heads[0])


class NumpyWeights(Remodelled):
    def spoil(self, model):
        nn.init.constant_(model.heads[0].body.bias, np.random.rand())  # noqa: NPY002


class NeedsData(Good):
    def setup(self, seed, progress):
        self.width = 4
        return super().setup(seed, progress)

    def model(self):
        return super().model() if self.width else None


class NoTuple(Good):
    def model(self):
        return MultitaskModel(nn.Linear(4, 16), super().model().heads)


class Detached(Remodelled):
    def spoil(self, model):
        model.encoder.body.requires_grad_(False)


class AlwaysDrops(Remodelled):
    def spoil(self, model):
        model.encoder.body[2].train = lambda mode=True: model.encoder.body[2]


class Forgets(Remodelled):
    def spoil(self, model):
        model.heads[0].body.bias = None
        offset = torch.randn(2)
        model.heads[0].register_forward_hook(lambda module, inputs, output: output + offset)


class BatchNorm(Remodelled):
    def spoil(self, model):
        model.encoder.body[1] = nn.BatchNorm1d(16)


# Losses


class Relost(Good):
    """A good task whose losses are good but for something."""

    def losses(self, outputs, batch):
        first, second = super().losses(outputs, batch)
        return self.spoil(first, second, outputs)


class OneLoss(Relost):
    def spoil(self, first, second, outputs):
        return [first + second]


class VectorLoss(Relost):
    def spoil(self, first, second, outputs):
        return [first[None], second]


class InfiniteLoss(Relost):
    def spoil(self, first, second, outputs):
        return [first / 0, second]


class OffGraph(Relost):
    def spoil(self, first, second, outputs):
        return [first, second.detach()]


class Swapped(Relost):
    def spoil(self, first, second, outputs):
        return [second, first]


class FirstTwice(Relost):
    def spoil(self, first, second, outputs):
        return [first, first]


class Leaks(Relost):
    def spoil(self, first, second, outputs):
        return [first, second + outputs[0].square().mean()]


class Unlearnable(Relost):
    def spoil(self, first, second, outputs):
        return [first, second * 0]


class BiasWithoutLabels(Relost):
    def spoil(self, first, second, outputs):
        return [first + 0.1 * outputs[0].square().mean(), second]


class NanWithoutLabels(Good):
    def losses(self, outputs, batch):
        return [
            labelled_loss(cross_entropy, outputs[0], batch["sort"]),
            (outputs[1] - batch["size"]).square().nanmean(),
        ]


class OffGraphWithoutLabels(Good):
    def losses(self, outputs, batch):
        found = super().losses(outputs, batch)
        return [loss if loss.item() else torch.zeros(()) for loss in found]


class NeedsBoth(Good):
    """Uses only the samples that have all labels."""

    def losses(self, outputs, batch):
        both = (batch["sort"] >= 0) & ~batch["size"].isnan()
        labels = {
            "sort": batch["sort"].where(both, -1),
            "size": batch["size"].where(both, torch.nan),
        }
        return super().losses(outputs, labels)


# Metrics


class Remeasured(Good):
    """A good task whose meter is good but for something."""

    def meter(self):
        task = self

        class Meter(TorchmetricsMeter):
            def __init__(self):
                super().__init__(task, Good.meter(task)._metrics)
                self.batches = []

            def update(self, outputs, batch):
                task.spoil_update(super(), outputs, batch)
                one = Good.meter(task)
                one.update(outputs, batch)
                self.batches.append(one.compute())

            def compute(self):
                return task.spoil(super().compute(), self.batches)

        return Meter()

    def spoil_update(self, meter, outputs, batch):
        meter.update(outputs, batch)

    def spoil(self, found, batches):
        return found


class Undeclared(Remeasured):
    def spoil(self, found, batches):
        return found | {"mae": 0.0}


class Tensors(Remeasured):
    def spoil(self, found, batches):
        return {name: torch.tensor(value) for name, value in found.items()}


class MeansOfMeans(Remeasured):
    def spoil(self, found, batches):
        return {name: float(np.mean([batch[name] for batch in batches])) for name in found}


class ZeroWithoutLabels(Remeasured):
    def spoil(self, found, batches):
        return {name: float(np.nan_to_num(value)) for name, value in found.items()}


class WrongDirection(Good):
    metrics = Good.metrics | {"mse": Metric("size", primary=True)}


class Constant(Remeasured):
    def spoil(self, found, batches):
        return found | {"accuracy": 0.5}


class Upside(Remeasured):
    def spoil_update(self, meter, outputs, batch):
        meter.update([-outputs[0], outputs[1]], batch)


contract = TaskContract()
unaugmented = partial(contract.test_batches_are_deterministic, augmented=False)
full = partial(contract.test_losses, precision="fp32")
CASES = [
    (OneUnjudged, contract.test_objectives_and_metrics, "'size'.*would not see"),
    (JudgesNothing, contract.test_objectives_and_metrics, "'other' judges 'colour'"),
    (LikeAColumn, contract.test_objectives_and_metrics, "'rank' is called like a column"),
    (SameNames, contract.test_objectives_and_metrics, "different names"),
    (Positional, contract.test_parameters, "'dropout'.*after a \\*"),
    (Untyped, contract.test_parameters, "dropout has no type"),
    (NoTest, contract.test_fingerprint, "split test is empty"),
    (UnrecordableNotes, contract.test_fingerprint, "result.json"),
    (SaysOwnInputs, contract.test_own_inputs, "inputs are not PerObjective: say own_inputs = Fal"),
    (OwnFingerprint, contract.test_fingerprint, "another fingerprint at seed 1"),
    (GlobalSplit, contract.test_setup_is_deterministic, "split train differs"),
    (SamplesSplit, contract.test_no_group_in_two_splits, "groups lie in train and in val"),
    (OwnSamplesSplit, contract.test_no_group_in_two_splits, "groups lie in train and in val"),
    (DrawsTorch, unaugmented, "global generator"),
    (DrawsNumpy, unaugmented, "global generator"),
    (DrawsPython, unaugmented, "global generator"),
    (DrawsAnew, unaugmented, "two batches of the same indices differ"),
    (ThreeHeads, contract.test_initial_weights, "3 heads for 2 objectives"),
    (NumpyWeights, contract.test_initial_weights, "two models differ"),
    (NeedsData, contract.test_initial_weights, "width"),
    (NoTuple, contract.test_features, "single_feature"),
    (Detached, contract.test_features, "not on the graph"),
    (AlwaysDrops, contract.test_state_and_evaluation, "is asked twice"),
    (Forgets, contract.test_state_and_evaluation, "loaded from its state_dict"),
    (BatchNorm, contract.test_samples_do_not_mix, "samples mix"),
    (OneLoss, full, "1 losses for 2 objectives"),
    (VectorLoss, full, r"'sort'.*no scalar: shape \(1,\)"),
    (InfiniteLoss, full, "'sort'.* is inf"),
    (OffGraph, full, "'size'.*not on the graph"),
    (Swapped, contract.test_gradients, "'sort' has a gradient in another objective's head"),
    (FirstTwice, contract.test_gradients, "'size' has a gradient in another objective's head"),
    (Leaks, contract.test_gradients, "'size' has a gradient in another objective's head"),
    (Unlearnable, contract.test_gradients, "'size' has no gradient in its head|the encoder"),
    (BiasWithoutLabels, contract.test_missing_labels, "'sort' is .* where no sample"),
    (NanWithoutLabels, contract.test_missing_labels, "'size' is nan where no sample"),
    (OffGraphWithoutLabels, contract.test_missing_labels, "sum\\(\\) \\* 0"),
    (NeedsBoth, contract.test_missing_labels, "'size' changes where labels of 'sort'"),
    (Undeclared, contract.test_meter, "differ in \\['mae'\\]"),
    (Tensors, contract.test_meter, "is a Tensor, not a float"),
    (MeansOfMeans, contract.test_meter_counts_samples, "of one batch and .* of two"),
    (ZeroWithoutLabels, contract.test_meter_without_labels, "'accuracy' is 0 where no sample"),
    (WrongDirection, contract.test_learning_improves_metrics, "'mse' goes from .*=True"),
    (Constant, contract.test_learning_improves_metrics, "'accuracy' goes from 0.5 to 0.5"),
    (Upside, contract.test_learning_improves_metrics, "'accuracy' goes from"),
]


def apply(check, make):
    """Call a rule with the fixtures that it asks for."""
    wanted = [name for name in inspect.signature(check).parameters if name in FIXTURES]
    return check(**{name: FIXTURES[name](make) for name in wanted})


FIXTURES = {
    "make": lambda make: make,
    "task": lambda make: prepared(make)[0],
    "splits": lambda make: prepared(make)[1],
    "unlabelled": lambda make: _unlabelled,
}


@pytest.mark.parametrize(
    ("broken", "check", "said"), CASES, ids=[f"{broken.__name__}" for broken, *_ in CASES]
)
def test_broken_tasks_fail(broken, check, said):
    outcomes = (
        AssertionError,
        AttributeError,
        PluginError,
        pytest.fail.Exception,
        pytest.skip.Exception,
    )
    with pytest.raises(outcomes, match=said):
        apply(check, broken)


class TestGood(TaskContract):
    @pytest.fixture
    def make(self):
        return Good


def test_labels_that_the_contract_does_not_know_are_skipped_and_can_be_told():
    class Elsewhere(Good):
        def setup(self, seed, progress):
            splits = super().setup(seed, progress)
            parts = [
                TensorSplit(**{n: t for n, t in part._tensors.items() if n != "size"},
                            other=part._tensors["size"])
                for part in (splits.train, splits.val, splits.test)
            ]  # fmt: skip
            return Splits(*parts, fingerprint=splits.fingerprint)

        def losses(self, outputs, batch):
            return super().losses(outputs, {**batch, "size": batch["other"]})

    task, splits = prepared(Elsewhere)
    with pytest.raises(pytest.skip.Exception, match=r"override the fixture.*\('size'\)"):
        contract.test_missing_labels(task, splits, _unlabelled)

    def unlabelled(batch, objective):
        return _unlabelled(batch, "other" if objective == "size" else objective)

    contract.test_missing_labels(task, splits, unlabelled)
    with pytest.raises(AssertionError):
        contract.test_missing_labels(task, splits, lambda batch, objective: batch)
