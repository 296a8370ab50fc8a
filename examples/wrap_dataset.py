"""A Dataset and a network that know nothing of mtbench, as a task.

mtbench run --plugin examples/wrap_dataset.py --task wrap_dataset --method ew --method cagrad
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import Dataset, random_split
from torchmetrics import MeanSquaredError
from torchmetrics.classification import MulticlassAccuracy

from mtbench import Metric, MultitaskModel, Recipe, Splits, Task, seeding
from mtbench.training.data import DatasetSplit, TorchmetricsMeter, labelled_loss

# What was there before: a sample is (image, digit, amount of ink); the network gives two outputs.


class Digits(Dataset):
    def __init__(self):
        self.images, self.digits = load_digits(return_X_y=True)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        image = torch.tensor(self.images[i] / 16, dtype=torch.float32).view(1, 8, 8)
        return image, self.digits[i], image.mean()


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        convolution = nn.Conv2d(1, 16, 3, padding=1)
        self.trunk = nn.Sequential(
            convolution, nn.ReLU(), nn.Flatten(), nn.Linear(1024, 64), nn.ReLU()
        )
        self.digit = nn.Linear(64, 10)
        self.ink = nn.Sequential(nn.Linear(64, 1), nn.Flatten(0))

    def forward(self, image):
        z = self.trunk(image)
        return self.digit(z), self.ink(z)


# The task.


class WrappedDigits(Task):
    """Digits of scikit-learn: which, and how much ink."""

    objectives = ("digit", "ink")
    metrics = {  # noqa: RUF012
        "accuracy": Metric("digit", primary=True),
        "mse": Metric("ink", higher_is_better=False, primary=True),
    }
    recipe = Recipe(epochs=5, batch_size=32, lr=2e-3)

    def setup(self, seed, progress):
        parts = random_split(Digits(), [0.6, 0.15, 0.25], seeding.generator(seed, "split"))
        names = ("inputs", "digit", "ink")
        return Splits(*[DatasetSplit(part, names) for part in parts], fingerprint="digits-1")

    def model(self):
        network = Network()
        return MultitaskModel.single_feature(network.trunk, [network.digit, network.ink])

    def losses(self, outputs, batch):
        return [
            labelled_loss(cross_entropy, outputs[0], batch["digit"]),
            labelled_loss(mse_loss, outputs[1], batch["ink"]),
        ]

    def meter(self):
        return TorchmetricsMeter(
            self, {"accuracy": MulticlassAccuracy(10), "mse": MeanSquaredError()}
        )
