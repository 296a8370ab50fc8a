"""Run directories as runs of TensorBoard: a folder per cell."""

from collections.abc import Mapping
from ctypes import c_float
from itertools import count
from pathlib import Path

from mtbench.errors import RunError
from mtbench.integrations.record import Record
from mtbench.plugins import extras


class Log:
    """A folder for ``tensorboard --logdir``.

    Args:
        folder: where to.

    Raises:
        UsageError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        extras.need("tensorboard", "--tensorboard")
        self.folder = folder

    def write(self, record: Record) -> bool:
        """Add what is not there yet; return whether there was any.

        If the cell was trained anew since then, another folder is begun, ``seedS-HASH-2``.

        Raises:
            RunError: the folder cannot be written.
        """
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        last = max(0, len(record.epochs) - 1)
        said = {
            (name, step): value
            for step, values in [*enumerate(record.epochs), (last, record.once)]
            for name, value in values.items()
        }
        place = folder = self.folder / record.place
        others = (place.with_name(f"{place.name}-{number}") for number in count(2))
        try:
            while not _agree(there := _scalars(folder), said):
                folder = next(others)
            wanted = {key: value for key, value in said.items() if key not in there}
            if not wanted:
                return False
            with SummaryWriter(folder) as writer:
                if not there:
                    params = {
                        name: value if isinstance(value, bool | int | float) else str(value)
                        for name, value in record.params.items()
                    }
                    metrics = dict.fromkeys(record.once, 0.0)
                    for summary in hparams(params, metrics):  # type: ignore[no-untyped-call]
                        writer._get_file_writer().add_summary(summary)
                for (name, step), value in wanted.items():
                    writer.add_scalar(name, value, step)
        except OSError as error:
            raise RunError(
                f"--tensorboard {folder}: cannot be written ({error.strerror})"
            ) from error
        return True


Scalars = Mapping[tuple[str, int], float]
"""By name and step."""


def _scalars(folder: Path) -> Scalars:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder.mkdir(parents=True, exist_ok=True)
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {
        (name, event.step): event.value
        for name in events.Tags()["scalars"]
        for event in events.Scalars(name)
    }


def _agree(there: Scalars, said: Scalars) -> bool:
    """Return whether what is there is what a record says, in float32, which is what is kept."""
    return all(there[key] == c_float(said[key]).value for key in there.keys() & said.keys())
