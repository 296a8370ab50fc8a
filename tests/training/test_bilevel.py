"""What a method may ask for beside the step's losses: held-out batches, and validation metrics."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mtbench import Method, Step, seeding
from mtbench.errors import UsageError
from mtbench.training.cell.request import Request
from mtbench.training.cell.rundir import RunDirectory
from mtbench.training.data import TensorSplit
from mtbench.training.trainer.batches import Batches
from mtbench.training.trainer.trainer import Trainer
from tests.soak import differences
from tests.training.test_trainer import Remembering

BILEVEL = Path(__file__).with_name("bilevel.py")


class _Stop(Exception):  # noqa: N818 - stands in for a kill
    pass


def train(tiny: Path, out: Path, name: str = "bilevel", stop: int = -1, **given: str) -> Any:
    request = Request.of("tiny", [name], {"epochs": "3", **given}, [tiny, BILEVEL])
    splits, choice = request.task.setup(0, lambda *_: None), request.choices[0]
    spec = request.spec(choice, splits.fingerprint, 0, "fp32", "cpu")
    run, observer = RunDirectory.at(out, spec), Remembering()

    def stepped(epoch: int, losses: dict[str, float]) -> None:
        observer.losses.append(losses)
        if len(observer.losses) == stop:
            raise _Stop

    observer.stepped = stepped  # type: ignore[method-assign]
    trainer = Trainer(
        spec, request.task, splits, choice.method, run, observer, 1, checkpoint_seconds=0.0
    )
    if stop > 0:
        with pytest.raises(_Stop):
            trainer.run()
    else:
        trainer.run()
    return run


def batches(rows: int, share: float, seed: int, groups: list[int] | None = None) -> Batches:
    split = TensorSplit(torch.arange(rows), groups=groups)
    return Batches(split, 4, seed, "cpu", share)


def seen(source: Batches, epoch: int) -> list[int]:
    return [int(x) for i in range(source.steps) for x in source.at(epoch, i)["inputs"]]


@given(st.integers(2, 40), st.floats(0.01, 0.9), st.integers(0, 5))
def test_what_is_held_out_is_never_trained_on_and_else_nothing_changes(
    rows: int, share: float, seed: int
) -> None:
    source, plain = batches(rows, share, seed), batches(rows, 0, seed)
    trained = seen(source, 3)
    held = set(range(rows)) - set(trained)
    assert len(trained) + len(held) == rows
    assert min(share * rows, rows - 1) - 1e-9 <= len(held) < share * rows + 1
    assert trained == [x for x in seen(plain, 3) if x not in held]
    for position in range(source.steps):
        assert source.samples(position) == len(source.at(3, position)["inputs"])
    batch, count = source.validation(3, 0, 0)
    found = batch["inputs"].tolist()
    assert len(found) == len(set(found)) == count == min(4, len(held))
    assert set(found) <= held


def test_validation_batches_depend_on_seed_step_and_number_alone() -> None:
    def draw(seed: int, *at: int) -> list[int]:
        rows: Tensor = batches(64, 0.5, seed).validation(*at)[0]["inputs"]
        return rows.tolist()

    first = draw(0, 0, 0, 0)
    assert draw(0, 0, 0, 0) == first
    others = [draw(0, 1, 0, 0), draw(0, 0, 1, 0), draw(0, 0, 0, 1), draw(1, 0, 0, 0)]
    assert first not in others


def test_where_nothing_is_held_out_validation_is_of_all_samples() -> None:
    source = batches(6, 0, 0)
    assert sorted(seen(source, 0)) == list(range(6))
    found = {x for i in range(20) for x in source.validation(0, 0, i)[0]["inputs"].tolist()}
    assert found == set(range(6))


def test_groups_are_held_out_whole() -> None:
    groups = [0, 0, 0, 1, 1, 2, 2, 2, 3, 4]
    source = batches(10, 0.3, 0, groups)
    trained = {groups[i] for i in seen(source, 0)}
    held = {groups[i] for i in set(range(10)) - set(seen(source, 0))}
    assert held
    assert not held & trained
    with pytest.raises(UsageError, match="all are of one group"):
        batches(10, 0.3, 0, [7] * 10)


def one_by_one(groups: list[int], share: float, seed: int) -> set[int]:
    """Draw a group, until enough is held out or one is left."""
    names = list(dict.fromkeys(groups))
    order = torch.randperm(len(names), generator=seeding.generator(seed, "held out")).tolist()
    held: set[int] = set()
    for number in order[:-1]:
        if len(held) >= share * len(groups):
            break
        held |= {i for i, group in enumerate(groups) if group == names[number]}
    return held


@given(st.lists(st.integers(0, 6), min_size=2, max_size=20), st.floats(0.01, 1), st.integers(0, 9))
def test_groups_are_drawn_until_it_is_enough(groups: list[int], share: float, seed: int) -> None:
    if len(set(groups)) > 1:
        held = set(range(len(groups))) - set(seen(batches(len(groups), share, seed, groups), 0))
        assert held == one_by_one(groups, share, seed)


def test_what_is_held_out_is_found_without_a_look_at_every_group() -> None:
    class Count(TorchFunctionMode):
        calls = 0

        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
            self.calls += 1
            return function(*args, **(kwargs or {}))

    with Count() as few:
        batches(10, 0.5, 0)
    with Count() as many:
        batches(1000, 0.5, 0)
    assert many.calls == few.calls


def test_the_budget_counts_the_passes(tiny: Path, tmp_path: Path) -> None:
    run = train(tiny, tmp_path, calls="2")
    steps = len((run.path / "steps.csv").read_text().splitlines()) - 1
    assert steps == 3 * 5  # of 48 samples 12 are held out, and 8 are a batch
    assert run.result().cost.validation_passes == 2 * steps
    assert train(tiny, tmp_path, "ew").result().cost.validation_passes == 0


def test_metrics_reach_the_method_and_its_checkpoint(tiny: Path, tmp_path: Path) -> None:
    run = train(tiny, tmp_path)
    told = run.load("checkpoint.pt")["balancer"]["told"]
    last = json.loads((run.path / "epochs.jsonl").read_text().splitlines()[-1])["val"]
    assert told.tolist() == pytest.approx([last["mae_sum"], 1.0])  # the other is no error


def test_a_wrapper_hands_both_on(tiny: Path, tmp_path: Path) -> None:
    run = train(tiny, tmp_path, "norm_matched+bilevel")
    assert run.result().cost.validation_passes == 3 * 5
    assert run.load("checkpoint.pt")["balancer"]["base.told"][0] != 1


def test_resuming_ends_bit_identical(tiny: Path, tmp_path: Path) -> None:
    whole = train(tiny, tmp_path / "whole")
    train(tiny, tmp_path / "broken", stop=8)
    assert not list(differences(whole.path, train(tiny, tmp_path / "broken").path))


def test_a_loop_that_offers_no_validation_is_told() -> None:
    x = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match="held-out training samples: give validation=FUNCTION"):
        Method.find("bilevel", [BILEVEL])(2).backward(Step([x[0], x[1]], shared=[x]))
