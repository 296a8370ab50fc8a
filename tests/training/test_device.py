"""Where a cell is computed: what `--device` means."""

import pytest
import torch

from mtbench.comparing.planning.suite import Suite
from mtbench.training.machine.device import use_device


@pytest.mark.parametrize(
    ("name", "kind", "chosen"),
    [
        ("cpu", "cpu", []), ("cpu:0", "cpu", []), ("mps:0", "mps", []),
        ("auto", "cuda", [0]), ("cuda", "cuda", [0]), ("cuda:1", "cuda", [1]),
    ],
)  # fmt: skip
def test_which_of_several_devices_is_no_part_of_a_cell(
    monkeypatch: pytest.MonkeyPatch, name: str, kind: str, chosen: list[int]
) -> None:
    found: list[int] = []
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: None)  # this machine may have none
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", found.append)
    assert use_device(name) == kind
    assert found == chosen


def test_nor_of_a_suite() -> None:
    said = {
        "version": 1, "name": "a", "title": "a", "methods": ["ew"], "tasks": [{"name": "toy"}],
        "budget": {"trials": 0, "seeds": 1},
    }  # fmt: skip
    digests = [
        Suite.model_validate(said | {"device": device}).digest
        for device in ("cuda", "cuda:1", "cpu")
    ]
    assert digests[0] == digests[1] != digests[2]
