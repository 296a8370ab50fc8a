"""GradNorm's toy problem: its functions, its scales, its metric."""

import math
from functools import partial

import pytest
import torch

from mtbench.errors import UsageError
from mtbench.testing import TaskContract
from mtbench.training.data import fingerprint
from mtbench.training.task import Splits
from mtbench_tasks.gradnorm_toy import GradNormToy, Ratios


def setup(task: GradNormToy, seed: int = 0) -> Splits:
    return task.setup(seed, lambda *_: None)


SMALL = partial(GradNormToy, samples=200)


class TestGradNormToyContract(TaskContract):
    @pytest.fixture
    def make(self) -> partial[GradNormToy]:
        return SMALL


def test_the_functions_differ_by_their_scales_and_own_parts() -> None:
    rows = torch.arange(200)
    batch = setup(GradNormToy(scales=(2.0, 6.0), samples=200)).train.batch(rows)
    other = setup(GradNormToy(scales=(2.0, 2.0), samples=200)).train.batch(rows)
    assert torch.equal(batch["f1"], other["f1"])
    assert torch.allclose(batch["f2"], 3 * other["f2"])
    assert batch["inputs"].norm(dim=1).allclose(torch.ones(200))
    # (B + eps) x of a unit vector has variance 10 + 3.5, and covariance 10 with the other's: so
    # often do the signs of two normal variables agree.
    agree = (other["f1"] * other["f2"] > 0).double().mean().item()
    assert agree == pytest.approx(0.5 + math.asin(10 / 13.5) / math.pi, abs=0.01)
    # Half of a normal variable lies within 0.6745 deviations.
    middle = (other["f1"] / 2).abs().median().atanh().item()
    assert middle == pytest.approx(0.6745 * math.sqrt(13.5), rel=0.05)


def test_a_seed_draws_the_training_samples_alone() -> None:
    first, other = setup(SMALL(), 0), setup(SMALL(), 1)
    rows = torch.arange(100)
    a, b = first.train.batch(rows), other.train.batch(rows)
    assert not torch.equal(a["inputs"], b["inputs"])
    seen = set()
    for part in ("val", "test"):
        x, y = getattr(first, part).batch(rows), getattr(other, part).batch(rows)
        for name in x:
            assert torch.equal(x[name], y[name])
        seen.add(fingerprint(x["inputs"]))
    assert len(seen | {fingerprint(a["inputs"])}) == 3


def test_losses_and_metric_by_hand() -> None:
    task = GradNormToy(scales=(1.0, 10.0))
    outputs = [torch.zeros(2, 100), torch.full((2, 100), 5.0)]
    batch = {"f1": torch.full((2, 100), 0.5), "f2": torch.full((2, 100), 10.0)}
    assert [x.item() for x in task.losses(outputs, batch)] == [0.25, 25.0]
    meter = task.meter()
    meter.update(outputs, batch)
    assert meter.compute() == {"nmse_f1": 1.0, "nmse_f2": 0.25}
    assert task.metrics["nmse_f1"].chance == 1.0  # of zeros
    assert all(map(math.isnan, Ratios(["f1"]).compute().values()))


def test_equal_heads_make_losses_of_squared_scales() -> None:
    task = GradNormToy(scales=(1.0, 100.0))
    torch.manual_seed(0)
    model = task.model()
    first, second = model.heads
    second.load_state_dict(first.state_dict())
    outputs = model(torch.randn(3, 250))
    assert torch.allclose(outputs[1], 100 * outputs[0])


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"scales": ()}, "scales must be"),
        ({"scales": (1.0, 0.0)}, "scales must be"),
        ({"scales": (math.inf,)}, "scales must be"),
        ({"samples": 0}, "samples must be at least 1, found 0"),
        ({"width": 0}, "width must be at least 1, found 0"),
    ],
)
def test_refusals(parameters: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        GradNormToy(**parameters)  # type: ignore[arg-type]
