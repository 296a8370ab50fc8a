"""The ready-made parts of tasks."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import Dataset
from torchmetrics import MeanSquaredError, R2Score
from torchmetrics.classification import BinaryAUROC

from mtbench import Metric, MultitaskModel, UsageError
from mtbench.errors import DataError, PluginError
from mtbench.training.data import (
    DatasetSplit,
    PerObjectiveSplit,
    TensorSplit,
    TorchmetricsMeter,
    fingerprint,
    known,
    labelled_loss,
)


def test_a_split_of_tensors():
    x, y = torch.randn(5, 3), torch.arange(5)
    split = TensorSplit(x, y=y, groups="aabbc")
    assert len(split) == 5
    assert list(split.groups()) == ["a", "a", "b", "b", "c"]
    batch = split.batch(torch.tensor([4, 0]))
    assert torch.equal(batch["inputs"], x[[4, 0]])
    assert batch["y"].tolist() == [4, 0]
    with pytest.raises(DataError, match="'inputs': 5, 'y': 4"):
        TensorSplit(x, y=y[:4])


class Augmenting(Dataset):
    """Draws from every global generator."""

    def __len__(self):
        return 6

    def __getitem__(self, i):
        drawn = [random.random(), np.random.rand(), float(torch.rand(()))]  # noqa: NPY002
        return torch.tensor([i, *drawn]), i % 2


def test_a_dataset_that_augments_is_deterministic_and_leaves_generators_alone():
    split, indices = DatasetSplit(Augmenting(), names=("inputs", "y")), torch.tensor([3, 1, 1])
    before = torch.get_rng_state(), random.getstate(), str(np.random.get_state())  # noqa: NPY002

    def inputs(seed):
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        torch.rand(1, generator=generator)
        return split.batch(indices, generator)["inputs"]

    for seed in (None, 0, 1):
        assert torch.equal(inputs(seed), inputs(seed))
    assert not (inputs(0)[:, 1:] == inputs(1)[:, 1:]).any()
    assert not (inputs(0)[1, 1:] == inputs(0)[2, 1:]).any()  # the same sample, augmented twice
    assert inputs(0)[:, 0].tolist() == [3, 1, 1]
    assert split.batch(indices)["y"].tolist() == [1, 1, 1]
    torch.set_rng_state(before[0])  # `inputs(None)` drew
    split.batch(indices)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), str(np.random.get_state())) == before[1:]  # noqa: NPY002


def test_a_dataset_of_dictionaries():
    rows = [{"inputs": torch.full((2,), float(i)), "name": f"case {i}"} for i in range(3)]
    split = DatasetSplit(rows, groups=[7, 7, 8])
    batch = split.batch(torch.tensor([2, 0]))
    assert batch["inputs"].tolist() == [[2, 2], [0, 0]]
    assert batch["name"] == ["case 2", "case 0"]
    assert (len(split), split.groups()) == (3, [7, 7, 8])


def test_samples_of_more_parts_than_names_are_refused():
    split = DatasetSplit([(torch.ones(2), 1.0, 2.0)], ("inputs", "y"))
    with pytest.raises(UsageError, match="samples have 3 parts, and names has 2: inputs, y"):
        split.batch(torch.tensor([0]))


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_a_loss_that_is_broadcast_is_refused():
    """(B, 1) beside (B,) trains on every pair of samples."""
    with pytest.raises(
        UsageError, match=r"output of \(4, 1\) and labels of \(4,\) give .* \(4, 4\)"
    ):
        labelled_loss(mse_loss, torch.ones(4, 1), torch.ones(4))


def test_a_dataset_that_has_run_out_gives_no_sample():
    """In a batch of all objectives' own samples, as ``once`` makes them."""
    longer, shorter = ([(torch.ones(2, 3), 1.0)] * count for count in (5, 2))
    parts = {
        "a": DatasetSplit(longer, ("inputs", "a")),
        "b": DatasetSplit(shorter, ("inputs", "b")),
    }
    batch = PerObjectiveSplit(parts, "once").batch(torch.tensor([3, 4]))
    assert [tuple(inputs.shape) for inputs in batch["inputs"]] == [(2, 2, 3), (0, 2, 3)]
    assert (batch["a"].tolist(), batch["b"].tolist()) == ([1, 1], [])


def test_a_fingerprint_is_of_type_shape_and_values():
    tensors = [torch.zeros(4), torch.zeros(2, 2), torch.ones(4), torch.zeros(4, dtype=torch.int32),
               torch.zeros(4, dtype=torch.bfloat16), torch.zeros(16, dtype=torch.bool)]  # fmt: skip
    assert len({fingerprint(tensor) for tensor in tensors}) == len(tensors)
    assert fingerprint(*tensors[:2]) != fingerprint(*tensors[1::-1])
    assert fingerprint(torch.arange(6).view(2, 3).T) == fingerprint(
        torch.tensor([[0, 3], [1, 4], [2, 5]])
    )


@given(st.lists(st.booleans(), min_size=1, max_size=8))
def test_a_loss_is_that_of_the_labelled_samples(here):
    here, k = torch.tensor(here), len(here)
    generator = torch.Generator().manual_seed(k)
    output = torch.randn(k, 3, generator=generator, requires_grad=True)
    kinds = torch.randint(3, (k,), generator=generator).where(here, -1)
    sizes = torch.randn(k, 3, generator=generator).where(here[:, None], torch.nan)
    for loss, labels in ((cross_entropy, kinds), (mse_loss, sizes)):
        assert torch.equal(known(labels), here)
        found = labelled_loss(loss, output, labels)
        (gradient,) = torch.autograd.grad(found, output)
        assert not gradient[~here].any()
        if here.any():
            torch.testing.assert_close(found, loss(output[here], labels[here]))
            assert gradient[here].any()
        else:
            assert found.item() == 0


class Judged:
    objectives = ("kind", "size")
    metrics = {  # noqa: RUF012
        "mse": Metric("size", higher_is_better=False, primary=True),
        "auroc": Metric("kind", primary=True),
        "r2": Metric("size"),
    }


def test_an_objective_without_samples_is_refused_by_name():
    splits = {name: TensorSplit(torch.zeros(n, 2)) for name, n in (("a", 3), ("b", 0))}
    with pytest.raises(DataError, match="'b' has none"):
        PerObjectiveSplit(splits, "cycle")


def test_objectives_samples_have_rule_and_labels():
    parts = {name: TensorSplit(torch.zeros(2), a=torch.ones(2)) for name in "ab"}
    with pytest.raises(UsageError, match="'cycle' or 'once', found 'Cycle'"):
        PerObjectiveSplit(parts, "Cycle")  # type: ignore[arg-type]
    with pytest.raises(
        PluginError, match=r"labels of 'b' under this name, found \['a', 'inputs'\]"
    ):
        PerObjectiveSplit(parts, "once").batch(torch.tensor([0]))


def test_a_sample_may_lack_some_of_its_labels():
    nan = torch.nan
    sizes = torch.tensor([[nan, 0.0], [3.0, nan], [nan, nan]])
    assert labelled_loss(mse_loss, torch.ones(3, 2), sizes).item() == (1 + 4) / 2
    output = torch.randn(2, 3, 4)
    kinds = torch.tensor([[1, -1, 0, 2], [-1, -1, -1, -1]])
    found = labelled_loss(cross_entropy, output, kinds)
    torch.testing.assert_close(found, cross_entropy(output, kinds, ignore_index=-1))
    shares = torch.tensor([[0.5, 0.5, 0.0, 0.0], [nan, 1.0, 0.0, 0.0]])  # one loss for all of them
    found = labelled_loss(cross_entropy, output[:, 0], shares)
    torch.testing.assert_close(found, cross_entropy(output[:1, 0], shares[:1]))


def test_a_meter_of_torchmetrics():
    def meter():
        metrics = {"mse": MeanSquaredError(), "auroc": BinaryAUROC(), "r2": R2Score()}
        return TorchmetricsMeter(Judged(), metrics)

    assert all(np.isnan(value) for value in meter().compute().values())
    outputs = [torch.tensor([0.9, 0.2, 0.4, 0.7]), torch.tensor([1.0, 2.0, 3.0, 4.0])]
    kind, size = torch.tensor([1, 0, 1, -1]), torch.tensor([1.0, 4.0, torch.nan, torch.nan])
    whole, parts = meter(), meter()
    whole.update(outputs, {"kind": kind, "size": size})
    for i in range(4):
        parts.update([o[i : i + 1] for o in outputs],
                     {"kind": kind[i : i + 1], "size": size[i : i + 1]})  # fmt: skip
    found = whole.compute()
    assert found == parts.compute()
    assert (found["mse"], found["auroc"]) == (2.0, 1.0)
    assert found["r2"] == pytest.approx(1 - 4 / 4.5)
    one = meter()  # undefined: an AUROC of one class, an R2 of one sample
    one.update([o[:1] for o in outputs], {"kind": kind[:1], "size": size[:1]})
    found = one.compute()
    assert np.isnan([found["auroc"], found["r2"]]).all()
    assert found["mse"] == 0


def test_a_metric_that_does_not_take_what_it_is_fed_is_named():
    own = TorchmetricsMeter(Judged(), {name: MeanSquaredError() for name in Judged.metrics})
    kind, size = torch.ones(4), torch.ones(4)
    with pytest.raises(PluginError, match=r"^metric 'auroc' does not take .* \(4, 2\) .* \(4,\)"):
        own.update([torch.ones(4, 2), torch.ones(4)], {"kind": kind, "size": size})


def test_a_metric_of_several_numbers_is_refused():
    class Several(MeanSquaredError):  # noqa: N818 - its base is an error of another kind
        def compute(self):
            return torch.zeros(3)

    metrics = {"mse": Several(), "auroc": BinaryAUROC(), "r2": R2Score()}
    meter = TorchmetricsMeter(Judged(), metrics)
    batch = {"kind": torch.tensor([0, 1]), "size": torch.ones(2)}
    meter.update([torch.tensor([0.1, 0.9]), torch.ones(2)], batch)
    with pytest.raises(PluginError, match=r"'mse' must compute one number, found \[3\]"):
        meter.compute()
    with pytest.raises(UsageError, match=r"\['mse', 'auroc', 'r2'\] hold samples already"):
        TorchmetricsMeter(Judged(), metrics)


def test_a_meter_of_metrics_that_the_task_does_not_declare():
    with pytest.raises(UsageError, match=r"\['auroc', 'mae', 'mse', 'r2'\]"):
        TorchmetricsMeter(Judged(), {"mae": MeanSquaredError()})


def test_a_meter_of_metrics_that_judge_no_objective():
    class All(Judged):
        metrics = {**Judged.metrics, "all": Metric(None)}  # noqa: RUF012

    with pytest.raises(UsageError, match=r"\['all'\] judge none: write a Meter"):
        TorchmetricsMeter(All(), dict.fromkeys(All.metrics, MeanSquaredError()))


def test_a_model_of_ordinary_modules():
    body, heads = nn.Linear(3, 5), [nn.Linear(5, 1), nn.Linear(5, 2)]
    model, x = MultitaskModel.single_feature(body, heads), torch.randn(4, 3)
    for output, head in zip(model(x), heads, strict=True):
        assert torch.equal(output, head(body(x)))
    assert len(model.encode(x)) == 1
    with pytest.raises(PluginError, match="single_feature"):
        MultitaskModel(body, heads)(x)
