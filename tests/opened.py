"""A trainer that tests look into."""

from mtbench.training.trainer.loop import Loop
from mtbench.training.trainer.trainer import Trainer


class OpenTrainer(Trainer):
    """Keeps its loop."""

    def prepare(self) -> Loop:
        self.loop = super().prepare()
        return self.loop
