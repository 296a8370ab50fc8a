"""Where a cell is computed: what `--device` means."""

import pytest
import torch

from mtbench.training.machine.device import resolve_device


@pytest.mark.parametrize(
    ("name", "kind", "chosen"),
    [("cpu:0", "cpu", []), ("mps:0", "mps", []), ("cuda", "cuda", []), ("cuda:1", "cuda", [1])],
)
def test_which_of_several_devices_is_no_part_of_a_cell(
    monkeypatch: pytest.MonkeyPatch, name: str, kind: str, chosen: list[int]
) -> None:
    found: list[int] = []
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: None)  # this machine may have none
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: found.append(device.index))
    assert resolve_device(name) == kind
    assert found == chosen
