"""What a data source is called where a task has one: as the task."""

from mtbench.errors import UsageError, did_you_mean


def only(source: str, task: str) -> None:
    """Check a source's name.

    Raises:
        UsageError: there is none of that name.
    """
    if source != task:
        raise UsageError(f"task {task} has no source {source!r}: {did_you_mean(source, [task])}")
