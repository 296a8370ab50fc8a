"""The analytic tasks: their published facts, how they train, and what theory says of methods."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mtbench.balancing.step import Step
from mtbench.errors import UsageError
from mtbench.plugins.registry import entries
from mtbench.training.cell.request import Request
from mtbench.training.task import History
from mtbench_tasks._analytic import TINY
from mtbench_tasks.dtlz2 import Dtlz2
from mtbench_tasks.quadratic import Quadratic
from mtbench_tasks.toy import Toy
from mtbench_tasks.vlmop2 import Vlmop2
from mtbench_tasks.zdt1 import Zdt1
from mtbench_tasks.zdt2 import Zdt2
from mtbench_tasks.zdt3 import Zdt3

Mtbench = Callable[..., tuple[int, str, str]]

TASKS = [
    Toy(), Toy(scaling="unequal"), Vlmop2(), Vlmop2(dimensions=2), Zdt1(), Zdt2(dimensions=2),
    Zdt3(), Dtlz2(), Quadratic(), Quadratic(form="rotated"),
]  # fmt: skip


def name(task):
    return "-".join(map(str, [type(task).__name__, task.dimensions, *vars(task).values()]))[:24]


every_task = pytest.mark.parametrize("task", TASKS, ids=name)


def silent(*_):
    pass


def hypervolume(front, reference):
    """The area that a front dominates below the reference point."""
    known = front[~front.isnan().any(1)]
    known = known[known[:, 0].argsort()]
    edges = torch.cat([known[1:, 0], torch.tensor([reference], dtype=front.dtype)])
    return float(((edges - known[:, 0]) * (reference - known[:, 1])).sum())


def descend(method, task, start, steps, lr, optimizer=torch.optim.Adam, **parameters):
    """Return where a method ends by the task's own model and losses, without the trainer."""
    K, start = len(task.objectives), torch.as_tensor(start)[None]
    choice = Request.of("toy", [method], parameters).choices[0]
    balancer = choice.method(K, 0, **choice.params)
    model = balancer.wrap(task.model())
    optimizer = optimizer([*model.parameters(), *balancer.parameters()], lr=lr)

    def forward():
        features = model.encode(start)
        losses = task.losses(model.decode(features, balancer.view), {})
        return Step(losses, features=features, again=forward)

    for _ in range(steps):
        optimizer.zero_grad()
        balancer.backward(forward())
        optimizer.step()
        balancer.after_step(lambda: forward().losses)
        balancer.after_epoch()
    return model.encode(start)[0][0].detach().double()


def needs(*methods):
    """The methods of these that are there."""
    known = entries("method")
    return pytest.mark.parametrize("method", [method for method in methods if method in known])


# Facts


def test_toy_front():
    task = Toy()
    x, f = task.pareto_set(), task.front()
    assert x[[0, -1], 0].tolist() == [-7, 7]
    assert x[[0, -1], 1].tolist() == pytest.approx([-8.434, -8.434], abs=1e-3)
    assert x[:, 1].max() == pytest.approx(-8.355, abs=1e-3)
    assert f[:, 0].min() == pytest.approx(-19.9894, abs=1e-4)
    assert f[f[:, 0].argmin(), 1] == pytest.approx(-0.3979, abs=1e-4)


@pytest.mark.parametrize(("scaling", "x1"), [("equal", 0.0), ("unequal", -5.727)])
def test_toy_mean_minimum(scaling, x1):
    task = Toy(scaling=scaling)
    least = task.front().mean(1).argmin()
    assert task.pareto_set()[least, 0] == pytest.approx(x1, abs=4e-3)
    if scaling == "equal":
        assert task.front()[least].tolist() == pytest.approx([-15.0916] * 2, abs=1e-4)
    else:
        assert task.pareto_set()[least, 1] == pytest.approx(-8.409, abs=1e-3)


def test_toy_values():
    """Against the published formula, number by number."""
    for x1, x2 in [(-8.5, 7.5), (9.0, -1.0), (3.0, 0.5)]:
        h = [
            math.log(max(abs((-x1 - 7) / 2 - math.tanh(-x2)), 5e-6)) + 6,
            math.log(max(abs((-x1 + 3) / 2 + math.tanh(-x2) + 2), 5e-6)) + 6,
        ]
        q = [((-x1 + side) ** 2 + 0.1 * (-x2 - 8) ** 2) / 10 - 20 for side in (7, -7)]
        c1, c2 = max(math.tanh(x2 / 2), 0), max(math.tanh(-x2 / 2), 0)
        expected = [a * c1 + b * c2 for a, b in zip(h, q, strict=True)]
        x = torch.tensor([x1, x2], dtype=torch.float64)
        assert Toy().values(x).tolist() == pytest.approx(expected)
        scaled = [0.1 * expected[0], expected[1]]
        assert Toy(scaling="unequal").values(x).tolist() == pytest.approx(scaled)


def test_toy_has_a_gradient_between_the_halves():
    """At the start (0, 0) a gate that is flat at 0 would leave x where it is."""
    x = torch.zeros(2, requires_grad=True)
    Toy(scaling="unequal").value(1, x).backward()
    assert x.grad[1] != 0


@pytest.mark.parametrize(
    ("task", "reference", "volume"),
    [(Vlmop2(), 1.0, 0.342), (Zdt1(), 1.1, 0.87667), (Zdt2(), 1.1, 0.54333)],
    ids=["vlmop2", "zdt1", "zdt2"],
)
def test_hypervolume(task, reference, volume):
    assert hypervolume(task.front(), reference) == pytest.approx(volume, abs=2e-4)


def test_vlmop2_front():
    for dimensions in (2, 10):
        task = Vlmop2(dimensions=dimensions)
        t = torch.linspace(-1, 1, 2001, dtype=torch.float64)
        expected = 1 - torch.stack([-((1 - t) ** 2), -((1 + t) ** 2)], 1).exp()
        torch.testing.assert_close(task.front(), expected)
        assert abs(t[expected.mean(1).argmin()]) == pytest.approx(0.9575, abs=1e-3)


def test_zdt_fronts():
    f1 = torch.linspace(TINY, 1, 10_001, dtype=torch.float64)
    torch.testing.assert_close(Zdt1().front(), torch.stack([f1, 1 - f1.sqrt()], 1))
    torch.testing.assert_close(Zdt2().front(), torch.stack([f1, 1 - f1**2], 1))


def test_zdt3_pieces():
    """The ends of the five pieces, as Deb's group publishes them."""
    known = ~Zdt3().front()[:, 0].isnan()
    f1 = torch.linspace(TINY, 1, 10_001, dtype=torch.float64)
    begins = f1[1:][known[1:] & ~known[:-1]].tolist()
    ends = f1[:-1][known[:-1] & ~known[1:]].tolist()
    assert begins == pytest.approx([0.18223, 0.40931, 0.61840, 0.82333], abs=2e-4)
    assert ends == pytest.approx([0.08300, 0.25776, 0.45388, 0.65251, 0.85183], abs=2e-4)


def test_zdt_off_the_front():
    x = torch.tensor([0.25, 0.5, 1.0], dtype=torch.float64)  # g = 1 + 9 * 0.75
    for task, shape in [
        (Zdt1(dimensions=3), lambda r: 1 - r**0.5),
        (Zdt2(dimensions=3), lambda r: 1 - r**2),
        (Zdt3(dimensions=3), lambda r: 1 - r**0.5 - r * math.sin(2.5 * math.pi)),
    ]:
        assert task.values(x).tolist() == pytest.approx([0.25, 7.75 * shape(0.25 / 7.75)])


def test_dtlz2():
    task = Dtlz2(dimensions=4)
    assert (task.front().norm(dim=1) - 1).abs().max() < 1e-12
    x = torch.tensor([1 / 3, 0.5, 0.5, 1.0], dtype=torch.float64)  # g = 1 / 4
    expected = [1.25 * math.cos(math.pi / 6) * math.sqrt(0.5)] * 2 + [0.625]
    assert task.values(x).tolist() == pytest.approx(expected)
    assert task.distance(task.values(x)) == pytest.approx(0.25)


def test_quadratic():
    task = Quadratic(form="rotated")
    x, f = task.pareto_set(), task.front()
    assert x[[0, -1]].flatten().tolist() == pytest.approx([-1, 0, 1, 0])
    assert f[0, 1] == pytest.approx(0)
    assert f[-1, 0] == pytest.approx(0)
    c, s = math.cos(math.pi / 16), math.sin(math.pi / 16)
    here = torch.tensor([1.0, 2.0], dtype=torch.float64)  # B_1^T (0, 2) = (2 s, 0.2 c)
    assert task.value(0, here) == pytest.approx(4 * s * s + 0.04 * c * c)
    assert Quadratic().values(here).tolist() == [1, 4]
    assert Quadratic().distance(torch.tensor([3.0, 4.0]).double()) == pytest.approx(5)


@every_task
def test_pareto_set_is_stationary(task):
    """Within the box some convex combination of the gradients vanishes (the best of many)."""
    x = task.pareto_set()
    x = x[~x.isnan().any(1)][:: max(1, len(x) // 7)].requires_grad_()
    low, high = task.box()
    K = len(task.objectives)
    rows = torch.stack(
        [torch.autograd.grad(task.value(k, x).sum(), x, retain_graph=True)[0] for k in range(K)], 1
    )
    bound = (x <= low + 1e-5) | (x >= high - 1e-5)
    rows = rows.masked_fill(bound[:, None], 0)
    weights = torch.rand(20_000, K, generator=torch.Generator().manual_seed(0)).double()
    weights[:K] = torch.eye(K)
    weights = weights / weights.sum(1, keepdim=True)
    scale = rows.flatten(1).norm(dim=1)
    shortest = torch.einsum("wk,mkn->mwn", weights, rows).norm(dim=2).min(1).values
    assert (shortest < 0.03 * scale + 1e-9).all()


# The task


@every_task
def test_start_depends_on_the_seed_alone(task):
    low, high = task.box()
    for seed in range(3):
        start = task.start(seed)
        assert torch.equal(start, task.start(seed))
        assert ((start >= low) & (start <= high)).all()
        split = task.setup(seed, silent).train
        assert len(split) == task.every
        assert torch.equal(split.batch(torch.arange(1))["inputs"][0], start)
    assert not torch.equal(task.start(0), task.start(1))


@every_task
def test_jacobian_is_that_of_the_functions(task):
    model, start = task.model(), task.start(1)
    features = model.encode(start[None])
    assert [tuple(feature.shape) for feature in features] == [(1, task.dimensions)]
    losses = task.losses(model.decode(features), {})
    J = Step(losses, features=features).jacobian()
    expected = torch.autograd.functional.jacobian(task.values, start)
    torch.testing.assert_close(J, expected)
    torch.testing.assert_close(torch.stack(losses), task.values(start))
    assert not [p for head in model.heads for p in head.parameters()]


@every_task
def test_meter(task):
    model, meter = task.model(), task.meter()
    start = task.start(0)
    with torch.no_grad():
        meter.update(model.decode(model.encode(start[None])), {})
    found = meter.compute()
    assert found.keys() == task.metrics.keys()
    assert [found[k] for k in task.objectives] == pytest.approx(task.values(start).tolist())
    assert [found["x1"], found["x2"]] == pytest.approx(start[:2].tolist())
    nearest = (task.front() - task.values(start.double())).norm(dim=1)
    assert found["distance"] == pytest.approx(float(nearest[~nearest.isnan()].min()), abs=0.01)
    assert {m.objective for m in task.metrics.values() if m.primary} == set(task.objectives)


@every_task
def test_distance_of_the_front_is_none(task):
    front = task.front()
    known = front[~front.isnan().any(1)]
    for f in known[:: max(1, len(known) // 5)]:
        assert task.distance(f) < 1e-9
        assert task.distance(f + 0.01) == pytest.approx(0.01, rel=1)


@every_task
def test_a_point_that_has_run_off_has_no_distance(task):
    K = len(task.objectives)
    assert math.isnan(task.distance(torch.full((K,), torch.nan)))
    assert not math.isfinite(task.distance(torch.full((K,), torch.inf)))


def test_box_is_kept():
    """x comes back from outside, and no gradient leads out again, but those that lead in stay."""
    task = Zdt2(dimensions=3)
    model, start = task.model(), torch.tensor([[0.5, 0.2, 0.2]])
    with torch.no_grad():
        model.encoder.displacement += torch.tensor([[1.0, -1.0, 0.0]])
    features = model.encode(start)
    assert features[0].tolist()[0] == pytest.approx([1, 0, 0.2])
    J = Step(task.losses(model.decode(features), {}), features=features).jacobian()
    assert J[0].tolist() == [1, 0, 0]  # down from x1 = 1
    assert J[1, :2].tolist() == [0, 0]  # not up from x1 = 1, not down from x2 = 0
    assert J[1, 2] > 0


def test_parameters():
    assert Toy(start=(1.0, 2.0)).start(3).tolist() == [1, 2]
    assert [len({tuple(Toy(scaling=s).start(i).tolist()) for i in range(9)}) for s in
            ("equal", "unequal")] == [3, 5]  # fmt: skip
    with pytest.raises(UsageError, match="two numbers, found 3"):
        Toy(start=(1.0, 2.0, 3.0))
    for task, least in [(Vlmop2, 2), (Zdt1, 2), (Dtlz2, 3)]:
        with pytest.raises(UsageError, match=f"at least {least}, found 1"):
            task(dimensions=1)


def test_run_draws_all_paths(mtbench: Mtbench, tmp_path: Path):
    words = ["run", "--task", "quadratic", "--method", "ew", "--method", "stl", "--seeds", 2]
    code, out, _ = mtbench(*words, "--epochs", 2, "--threads", 1, "--out", tmp_path)
    assert code == 0
    assert "start (3, -2)" in out
    picture = tmp_path / "quadratic" / "trajectories.png"
    assert picture.stat().st_size > 10_000
    assert "trajectories.png" in (tmp_path / "quadratic" / "report.md").read_text()
    records = next(tmp_path.rglob("ew/seed0-*/epochs.jsonl")).read_text().splitlines()
    path = [json.loads(record)["val"] for record in records]
    assert len(path) == 2
    assert path[0]["f1"] == pytest.approx(path[0]["x1"] ** 2)
    assert path[1]["distance"] < path[0]["distance"]


@pytest.mark.parametrize("task", [Zdt3(), Dtlz2()], ids=name)
def test_overview(task, tmp_path):
    val = dict.fromkeys(task.metrics, 0.5)
    cells = [History("m", seed, [{"val": val}]) for seed in range(9)]
    (file,) = task.overview([*cells, History("died", 0, [])], tmp_path)
    assert file.exists()
    assert task.overview([History("died", 0, [])], tmp_path) == []


# What theory says of methods, including where they should fail


@needs("ew", "cagrad", "mgda", "pcgrad", "imtl_g", "upgrad", "nash_mtl", "famo")
def test_toy_ends(method):
    """From the easy start all reach the front: those that seek the mean's minimum end there."""
    task = Toy()
    x = descend(method, task, task.start(1), steps=150, lr=0.1)
    assert task.distance(task.values(x)) < 1e-3
    assert (x[0] > -3) == (method in ("ew", "cagrad", "famo"))


@needs("ew", "mgda", "imtl_g", "nash_mtl")
def test_toy_valley(method):
    """At f1's valley the sum is stuck, zigzagging; the gradients' common descent is not."""
    x = descend(method, Toy(), [-5.0, 3.0], steps=200, lr=1e-3)
    assert (x[1] < 2.9) == (method != "ew")


@needs("ew", "cagrad", "mgda", "pcgrad", "imtl_g", "upgrad", "nash_mtl")
def test_vlmop2_ends(method):
    """The mean's minimum is near an end of the front; the other methods stop inside."""
    task = Vlmop2()
    x = descend(method, task, task.start(0), steps=100, lr=0.02)
    t = abs(x.mean()) * math.sqrt(task.dimensions)
    assert task.distance(task.values(x)) < 0.01
    if method in ("ew", "cagrad"):
        assert t == pytest.approx(0.9575, abs=0.01)
    else:
        assert t < 0.6


@needs("stch")
def test_vlmop2_smooth_maximum(method):
    """Near the maximum all losses fall by one factor from their nadir; at mu = 1 it is a sum."""
    task, start = Vlmop2(), Vlmop2().start(0)
    ends = [descend(method, task, start, 200, 0.01, mu=mu, warmup="0") for mu in ("0.02", "1")]
    ratios, logarithm = [task.values(x) / task.values(start.double()) for x in ends]
    assert ratios[0] == pytest.approx(float(ratios[1]), rel=0.03)
    assert (logarithm[0] - logarithm[1]).abs() > 0.5


@needs("ew", "cagrad", "mgda", "pcgrad", "imtl_g", "upgrad", "nash_mtl")
@pytest.mark.parametrize("x1", [0.3, 0.7])
def test_zdt2_concave(method, x1):
    """The sum leaves an optimal point of a concave front for an end; other methods stay inside."""
    x = descend(method, Zdt2(dimensions=2), [x1, 0.0], 100, lr=0.02, optimizer=torch.optim.SGD)
    if method in ("ew", "cagrad"):
        assert abs(x[0] - round(x1)) < 0.1
    else:
        assert 0.15 < x[0] < 0.85


@needs("ew", "cagrad", "pcgrad", "upgrad")
def test_quadratic_common_minimum(method):
    """Without a conflict at the optimum 50 steps of 0.075 suffice."""
    x = descend(method, Quadratic(), [3.0, -2.0], 50, lr=0.075, optimizer=torch.optim.SGD)
    assert x.abs().max() < 0.1


@needs("mgda")
def test_mgda_stalls_where_one_gradient_vanishes(method):
    """Such a point is Pareto stationary, though (0, 0) would be better for the other objective."""
    x = descend(method, Quadratic(), [3.0, -2.0], 50, lr=0.075, optimizer=torch.optim.SGD)
    assert x[0] > 1
    assert x[1].abs() < 0.01


@needs("ew", "cagrad", "mgda", "pcgrad", "imtl_g", "upgrad", "nash_mtl")
def test_quadratic_conflict(method):
    task = Quadratic(form="rotated")
    x = descend(method, task, [0.5, 0.5], 150, lr=0.1)
    assert task.distance(task.values(x)) < 0.01
