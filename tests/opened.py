"""A trainer that tests look into."""

from mtbench.training.loop import Loop
from mtbench.training.trainer import Trainer


class OpenTrainer(Trainer):
    """Keeps its loop."""

    def prepare(self) -> Loop:
        self.loop = super().prepare()
        return self.loop
