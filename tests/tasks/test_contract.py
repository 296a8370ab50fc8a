"""Every task in the tree that needs no data keeps to the contract."""

from functools import partial

import pytest
import torch

from mtbench.plugins.registry import find
from mtbench.testing import TaskContract
from mtbench.training.task import Task

NAMES = ("dtlz2", "quadratic", "toy", "vlmop2", "zdt1", "zdt2", "zdt3")


def made(name, **parameters):
    return find("task", name).load(Task)(**parameters)


# By class, so that one task's tests follow each other and its data is made once.
@pytest.mark.parametrize("make", [partial(made, name) for name in NAMES], ids=NAMES, scope="class")
class TestContract(TaskContract):
    pass


THYROID = partial(made, "thyroid", cases=30, image_size=32, width=2)


class TestThyroid(TaskContract):
    @pytest.fixture
    def make(self):
        return THYROID

    @pytest.fixture
    def unlabelled(self):
        def hide(batch, objective):
            if objective == "segmentation":
                return {**batch, "has_mask": torch.zeros_like(batch["has_mask"])}
            return {
                **batch,
                "category": torch.full_like(batch["category"], -1),
                "radiomics": torch.full_like(batch["radiomics"], torch.nan),
            }

        return hide
