"""Who runs: the plain sum, the floor, and every method of mtbench."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from mtbench.balancing.balancer import Said
from mtbench.balancing.engine import Engine
from mtbench.balancing.step import Step
from mtbench.plugins.method import Method
from mtbench_speed.models import Problem

Run = Callable[[int], object]


@dataclass(frozen=True, eq=False)
class Contestant:
    """Something to be timed.

    Attributes:
        by: whose implementation.
        method: of what; empty for a reference.
        run: does it once, given the round's number.
    """

    by: str
    method: str
    run: Run


def plain(problem: Problem) -> Run:
    """Return the gradient of the losses' sum: what training without any method costs."""

    def run(at: int) -> None:
        _, losses = problem.forward(at)
        torch.autograd.backward([sum(losses[1:], start=losses[0])])
        problem.model.zero_grad()

    return run


def floor(problem: Problem) -> Run:
    """Return the least that K gradients of the encoder cost; their values are dropped.

    One forward, each head's backward once, K encoder backwards.
    """
    shared = list(problem.model.encoder.parameters())
    heads = [list(head.parameters()) for head in problem.model.heads]

    def run(at: int) -> None:
        features, losses = problem.forward(at)
        for loss, head in zip(losses, heads, strict=True):
            split = torch.autograd.grad([loss], [*features, *head], retain_graph=True)
            torch.autograd.grad(features, shared, split[: len(features)], retain_graph=True)

    return run


def floor_and_products(problem: Problem) -> Run:
    """Return the floor, and the two products J J^T and w^T J of a matrix that lies ready.

    What a method on the Gramian costs if nothing but its mathematics is paid.
    """
    run, K, device = floor(problem), problem.objectives, problem.inputs.device
    jacobian = torch.randn(K, problem.parameters, device=device)
    weights = torch.ones(K, device=device)

    def both(at: int) -> None:
        run(at)
        torch.mm(jacobian, jacobian.T)
        torch.mv(jacobian.T, weights)

    return both


def by_hand(problem: Problem) -> Run:
    """Return the loop that one writes without a library: K backwards from the losses, two products.

    Like the floor it has no method; the weights are 1.
    """
    shared = list(problem.model.encoder.parameters())
    heads = [list(head.parameters()) for head in problem.model.heads]
    weights = torch.ones(problem.objectives, device=problem.inputs.device)

    def run(at: int) -> None:
        _, losses = problem.forward(at)
        rows = []
        for loss, head in zip(losses, heads, strict=True):
            found = torch.autograd.grad(loss, [*shared, *head], retain_graph=True)
            rows.append(torch.cat([grad.flatten() for grad in found[: len(shared)]]))
            for parameter, grad in zip(head, found[len(shared) :], strict=True):
                parameter.grad = grad
        jacobian = torch.stack(rows)
        torch.mm(jacobian, jacobian.T)
        parts = torch.split(torch.mv(jacobian.T, weights), [p.numel() for p in shared])
        for parameter, part in zip(shared, parts, strict=True):
            parameter.grad = part.view_as(parameter)
        problem.model.zero_grad()

    return run


def one_call(problem: Problem, method: Method) -> Run:
    """Return one step of a method in a loop of one's own, which says nothing but the losses.

    Raises:
        UsageError: the method cannot do with so many objectives.
    """
    balancer = method(problem.objectives).to(problem.inputs.device)
    model = balancer.wrap(problem.model)

    def run(at: int) -> None:
        features, losses = problem.forward(at, model, balancer.view)
        said: Said = {
            "again": lambda: problem.forward(at, model, balancer.view)[1],
            "validation": lambda: problem.forward(at + 1, model, balancer.view)[1],
        }
        if balancer.needs_features:
            said["latent"] = features[model.latent]
        balancer.backward(losses, **said)
        balancer.after_step(lambda: problem.forward(at, model, balancer.view)[1])
        model.zero_grad()
        balancer.zero_grad()

    return run


def ours(problem: Problem, method: Method, engine: Engine) -> Run:
    """Return one step of a method as the trainer makes it, without the optimizer.

    Raises:
        UsageError: the method cannot do with so many objectives.
    """
    balancer = method(problem.objectives).to(problem.inputs.device)
    model = balancer.wrap(problem.model)
    shared = list(model.encoder.named_parameters())

    def forward(at: int) -> Step:
        features, losses = problem.forward(at, model, balancer.view)
        return Step(
            losses, features=features, shared=shared, latent=model.latent,
            again=lambda: forward(at), validation=lambda: forward(at + 1), engine=engine,
        )  # fmt: skip

    def run(at: int) -> None:
        balancer.backward(forward(at))
        balancer.after_step(lambda: forward(at).losses)
        model.zero_grad()
        balancer.zero_grad()

    return run
