"""Where a cell is computed: what `--device` means."""

import pytest
import torch

from mtbench.cli.options import number_of_jobs
from mtbench.comparing.planning.suite import Suite
from mtbench.training.machine.device import device_type, use_device


@pytest.mark.parametrize(
    ("name", "kind", "chosen"),
    [
        ("cpu", "cpu", []), ("cpu:0", "cpu", []), ("mps:0", "mps", []),
        ("auto", "cuda", []), ("cuda", "cuda", []), ("cuda:1", "cuda", [1]),
    ],
)  # fmt: skip
def test_which_of_several_devices_is_no_part_of_a_cell(
    monkeypatch: pytest.MonkeyPatch, name: str, kind: str, chosen: list[int]
) -> None:
    found: list[torch.device] = []
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: None)  # this machine may have none
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", found.append)
    assert device_type(name) == kind
    use_device(name)
    assert [device.index for device in found] == chosen


def test_one_worker_has_a_gpu() -> None:
    assert number_of_jobs(None, "cuda") == 1
    assert number_of_jobs(3, "cuda") == 3


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
