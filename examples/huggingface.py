"""A Hugging Face dataset as a task; needs `pip install 'mtbench-toolkit[huggingface]'`.

mtbench run --plugin examples/huggingface.py --task huggingface --method ew --method cagrad
"""

from datasets import Dataset
from sklearn.datasets import load_iris
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from torchmetrics import MeanSquaredError
from torchmetrics.classification import MulticlassAccuracy

from mtbench import Metric, MultitaskModel, Recipe, Splits, Task
from mtbench.training.data import DatasetSplit, TorchmetricsMeter, fingerprint, labelled_loss


def flowers():
    """Any `datasets.Dataset` will do: `load_from_disk`, or `load_dataset("csv", data_files=...)`.

    Its columns are called as a batch's entries: "inputs", and each objective.
    """
    x, species = load_iris(return_X_y=True)
    table = {"inputs": x[:, :3].tolist(), "species": species.tolist(), "width": x[:, 3].tolist()}
    return Dataset.from_dict(table).with_format("torch")


class Iris(Task):
    """Fisher's irises: the species, and the petals' width, from the other measures."""

    objectives = ("species", "width")
    metrics = {  # noqa: RUF012
        "accuracy": Metric("species", primary=True),
        "mse": Metric("width", higher_is_better=False, primary=True),
    }
    recipe = Recipe(epochs=30, lr=1e-2)

    def setup(self, seed, progress):
        table = flowers()
        rest = table.train_test_split(0.25, seed=seed)
        train = rest["train"].train_test_split(0.2, seed=seed)
        parts = [DatasetSplit(part) for part in (train["train"], train["test"], rest["test"])]
        columns = [table[name][:] for name in ("inputs", "species", "width")]
        return Splits(*parts, fingerprint=fingerprint(*columns))

    def model(self):
        encoder = nn.Sequential(nn.Linear(3, 32), nn.ReLU())
        heads = [nn.Linear(32, 3), nn.Sequential(nn.Linear(32, 1), nn.Flatten(0))]
        return MultitaskModel.single_feature(encoder, heads)

    def losses(self, outputs, batch):
        return [
            labelled_loss(cross_entropy, outputs[0], batch["species"]),
            labelled_loss(mse_loss, outputs[1], batch["width"]),
        ]

    def meter(self):
        return TorchmetricsMeter(
            self, {"accuracy": MulticlassAccuracy(3), "mse": MeanSquaredError()}
        )
