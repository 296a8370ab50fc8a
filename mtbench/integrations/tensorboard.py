"""Run directories as runs of TensorBoard: a folder per cell."""

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

        Raises:
            RunError: the folder cannot be written.
        """
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        folder = self.folder / record.place
        try:
            folder.mkdir(parents=True, exist_ok=True)
            events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
            there = {
                (name, event.step)
                for name in events.Tags()["scalars"]
                for event in events.Scalars(name)
            }
            last = max(0, len(record.epochs) - 1)
            wanted = [
                (name, step, value)
                for step, values in [*enumerate(record.epochs), (last, record.once)]
                for name, value in values.items()
                if (name, step) not in there
            ]
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
                for name, step, value in wanted:
                    writer.add_scalar(name, value, step)
        except OSError as error:
            raise RunError(
                f"--tensorboard {folder}: cannot be written ({error.strerror})"
            ) from error
        return True
