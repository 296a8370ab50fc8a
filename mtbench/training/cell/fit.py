"""Whether a method can be trained on a task by a recipe, told before data is loaded."""

from mtbench.balancing.balancer import Balancer
from mtbench.errors import UsageError
from mtbench.training.task import Task

NO_FEATURES = (
    "looks at features that all heads share, and the task has a batch per objective: choose "
    "another method"
)
NO_HELD_OUT = (
    "holds out training samples, and the task has a batch per objective, with no rule for that: "
    "choose another method"
)
NO_RESIDUALS = (
    "looks at what the losses square, and the task's losses are no mean squares: choose another "
    "method"
)
NO_SUM = (
    "descends no weighted sum of the losses, which is what optimizer=lbfgs lowers: choose another "
    "method or optimizer"
)
OWN_PARAMETERS = (
    "has parameters of its own to move, and optimizer=lbfgs moves the model: train with adam, and "
    "go on by lbfgs with a method that takes --weights-from RUN, and with --init RUN"
)


class UnfitError(UsageError):
    """A method that cannot be trained on a task, or by a recipe."""


def refuse_unfit(name: str, balancer: Balancer, task: Task, optimizer: str) -> None:
    """Check what is known without data.

    Args:
        name: the method's.
        balancer: the method, for the task's objectives.
        task: what it is to be trained on.
        optimizer: the recipe's.

    Raises:
        UnfitError: it cannot be.
    """
    searches = optimizer == "lbfgs"
    for holds, why in (
        (task.own_inputs and balancer.needs_features, NO_FEATURES),
        (task.own_inputs and balancer.holds_out > 0, NO_HELD_OUT),
        (balancer.needs_residuals and type(task).residuals is Task.residuals, NO_RESIDUALS),
        (searches and not balancer.is_weighted_sum, NO_SUM),
        (searches and any(True for _ in balancer.parameters()), OWN_PARAMETERS),
    ):
        if holds:
            raise UnfitError(f"{name} {why}")
