"""The numbers of a step, which stay on the device until the host looks at them."""

import time
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor

from mtbench.training.trainer import nonfinite


@dataclass
class Made:
    """A step that was made.

    Attributes:
        epoch: in which.
        position: in its epoch.
        lr: the learning rate.
        numbers: of the "loss" of each objective, the "gradient" norms, the "weight" of each
            objective where the step is logged and the method has weights, and the method's "note"s.
        read: the same on the host, once it has looked.
        noted: what the notes are called.
        seconds: what it took.
    """

    epoch: int
    position: int
    lr: float
    numbers: dict[str, list[Tensor]]
    read: dict[str, list[float]] = field(default_factory=dict)
    noted: tuple[str, ...] = ()
    seconds: float = 0.0


class Numbers:
    """The steps that were made since the record last took them in.

    Args:
        device: of the cell.

    Attributes:
        pending: these steps.
    """

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self.pending: list[Made] = []

    def look(self) -> None:
        """Read, in one copy, the numbers of the steps that were made since the last look.

        Raises:
            Diverged: some are not finite; it names the first such step.
        """
        begin = time.perf_counter()
        new = [made for made in self.pending if not made.read]
        if not new:
            return
        tensors = [x for made in new for some in made.numbers.values() for x in some]
        there = [x.to(self._device, non_blocking=True).flatten() for x in tensors]
        numbers = iter(torch.cat(there).tolist())
        waited = time.perf_counter() - begin
        for made in new:
            made.seconds += waited / len(new)
            made.read = {
                what: list(islice(numbers, sum(x.numel() for x in some)))
                for what, some in made.numbers.items()
            }
        for made in new:
            for what in ("loss", "gradient"):
                nonfinite.check(what, made.read.get(what, []), made.epoch, made.position)

    def take(self) -> list[Made]:
        """Look, and hand over the steps.

        Raises:
            Diverged: some are not finite.
        """
        self.look()
        taken, self.pending = self.pending, []
        return taken
