"""Run directories as runs of MLflow: an experiment per task, a run per cell."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING

from mtbench.errors import RunError, UsageError
from mtbench.inert import without_password, without_secrets
from mtbench.integrations.record import Record
from mtbench.plugins import extras

if TYPE_CHECKING:
    from mlflow.entities import Run

_EPOCHS = "mtbench.epochs"  # the tag that says how many are there
_DIGEST = "mtbench.digest"  # and the one that says which
_METRICS, _PARAMS = 1000, 100  # what a request may hold
_FOREIGN = re.compile(r"[^\w./: -]+")


class Log:
    """A tracking server or database.

    Args:
        uri: MLflow's tracking URI, such as ``http://host:5000`` or ``sqlite:///mlflow.db``.

    Raises:
        UsageError: MLflow is not installed, or the database's driver is not.
        RunError: the server cannot be reached.
    """

    def __init__(self, uri: str) -> None:
        extras.need("mlflow", "--mlflow")
        from mlflow import MlflowClient

        self.uri = uri
        self.experiments: dict[str, str] = {}
        with _told(uri):
            self.client = MlflowClient(tracking_uri=uri)

    def write(self, record: Record) -> bool:
        """Add what is not there yet; return whether there was any.

        A cell's run is found by its tag ``mtbench.hash``, so that logging again goes on with it. If
        the cell was trained anew since then, another run is begun.

        Raises:
            RunError: the server cannot be reached, or refuses.
        """
        with _told(self.uri):
            return self._write(record)

    def _write(self, record: Record) -> bool:
        from mlflow.entities import Metric, Param, RunTag

        run = self._run(record)
        there = int(run.data.tags.get(_EPOCHS, 0))
        when = round(1000 * (record.ended or record.started))
        metrics = [
            Metric(allowed(name), value, when, step)
            for step, epoch in islice(enumerate(record.epochs), there, None)
            for name, value in epoch.items()
        ]
        last = max(0, len(record.epochs) - 1)
        metrics += [
            Metric(name, value, when, last)
            for name, value in _once(record).items()
            if name not in run.data.metrics
        ]
        params = [
            Param(allowed(name), str(value))
            for name, value in record.params.items()
            if allowed(name) not in run.data.params
        ]
        wanted = {f"mtbench.{name}": value for name, value in record.tags.items()}
        wanted[_EPOCHS] = str(len(record.epochs))
        wanted[_DIGEST] = record.digest(len(record.epochs))
        tags = [RunTag(*tag) for tag in wanted.items() if run.data.tags.get(tag[0]) != tag[1]]
        if not (metrics or params or tags):
            return False
        run_id = run.info.run_id
        for start in range(0, len(params), _PARAMS):
            self.client.log_batch(run_id, params=params[start : start + _PARAMS])
        for start in range(0, len(metrics), _METRICS):
            self.client.log_batch(run_id, metrics=metrics[start : start + _METRICS])
        if record.ended is not None:
            status = "FINISHED" if record.status == "finished" else "FAILED"
            self.client.set_terminated(run_id, status, when)
        self.client.log_batch(run_id, tags=tags)  # last: they say that the rest is there
        return True

    def _run(self, record: Record) -> "Run":
        experiment = self._experiment(f"mtbench/{record.task}")
        same = f"tags.`mtbench.hash` = '{record.hash}'"
        for run in self.client.search_runs([experiment], same):
            if _is_of(run, record):
                return run
        return self.client.create_run(
            experiment,
            start_time=round(1000 * record.started),
            tags={"mtbench.hash": record.hash},
            run_name=str(record.place),
        )

    def _experiment(self, name: str) -> str:
        if name not in self.experiments:
            found = self.client.get_experiment_by_name(name)
            self.experiments[name] = (
                self.client.create_experiment(name) if found is None else found.experiment_id
            )
        return self.experiments[name]


def _is_of(run: "Run", record: Record) -> bool:
    """Return whether the record says all that a run holds, which else is an earlier training's."""
    there = int(run.data.tags.get(_EPOCHS, 0))
    digest = record.digest(there)
    return (
        there <= len(record.epochs)
        and run.data.tags.get(_DIGEST, digest) == digest
        and all(run.data.metrics.get(*item) == item[1] for item in _once(record).items())
    )


def _once(record: Record) -> dict[str, float]:
    return {allowed(name): value for name, value in record.once.items()}


def allowed(name: str) -> str:
    """Return a name with an underscore for what MLflow does not take in one.

    >>> allowed("val/auroc[TR1]"), allowed("shared gradients/cosine")
    ('val/auroc_TR1', 'shared gradients/cosine')
    """
    return _FOREIGN.sub("_", name).strip("_ ")


@contextmanager
def _told(uri: str) -> Iterator[None]:
    """Say in one line what MLflow, or the database below it, refuses."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    shown = without_password(uri)
    try:
        yield
    except ImportError as error:
        raise UsageError(
            f"--mlflow {shown}: its driver is not installed ({error}); install it, or log to "
            "sqlite:///FILE"
        ) from error
    except (MlflowException, SQLAlchemyError) as error:
        said = without_secrets(str(error).partition("\n")[0], uri)
        raise RunError(f"--mlflow {shown}: {said}") from error
