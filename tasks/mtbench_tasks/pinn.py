"""Physics-informed networks: an equation, its boundary and its start, learnt without data."""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtbench import seeding
from mtbench.balancing.model import MultitaskModel
from mtbench.training.data import TensorSplit, fingerprint, known, labelled_loss
from mtbench.training.task import Batch, Meter, Metric, Predictor, Progress, Recipe, Splits, Task
from mtbench_tasks._bounds import at_least

HELD_OUT = 1_000
"""Points of each kind in the validation and in the test split."""

GRID = 101
"""Points on a side of a picture."""

BOUNDED = "boundary"
"""The objective that every equation has: its head's output gives the solution's error."""

INSIDE, BOUNDARY, START = range(3)
"""Kinds of points."""


class Objective(NamedTuple):
    """What is asked of the solution.

    Attributes:
        name: of the objective.
        where: the kind of points at which it is asked.
    """

    name: str
    where: int


class Equation(ABC):
    r"""An equation for :math:`u: [l_1, h_1] \times [l_2, h_2] \to \mathbb{R}^C` and its solution.

    A jet is u with its derivatives, (..., 5, C): u, :math:`\partial_1 u`, :math:`\partial_2 u`,
    :math:`\partial_{11} u`, :math:`\partial_{22} u`. An equation says what of a jet is to have the
    value that it has for the solution.

    Attributes:
        objectives: what is asked.
        low: l.
        high: h.
        timed: whether the second coordinate is time: its lower side is the start, and its upper one
            no boundary.
        components: the names of u's C components.
    """

    objectives: tuple[Objective, ...] = (
        Objective("residual", INSIDE),
        Objective("boundary", BOUNDARY),
    )
    low = (-1.0, -1.0)
    high = (1.0, 1.0)
    timed = False
    components: tuple[str, ...] = ("u",)

    @abstractmethod
    def solution(self, points: Tensor) -> Tensor:
        """Return u, (N, C), at points, (N, 2) in float64."""

    @abstractmethod
    def residual(self, jets: Tensor) -> Tensor:
        """Return the equation's left-hand side, (..., n)."""

    def asked(self, name: str, jets: Tensor) -> Tensor:
        """Return what an objective asks of jets, (..., n)."""
        return self.residual(jets) if name == "residual" else jets[..., 0, :]


class Poisson(Equation):
    """The equation of Poisson."""

    def solution(self, points: Tensor) -> Tensor:
        """Return a product of sines."""
        return (math.pi * points).sin().prod(-1, keepdim=True)

    def residual(self, jets: Tensor) -> Tensor:
        """Return the Laplacian."""
        return jets[..., 3, :] + jets[..., 4, :]


class Helmholtz(Equation):
    """The equation of Helmholtz with wave number 1."""

    def solution(self, points: Tensor) -> Tensor:
        """Return a product of sines, of frequencies 1 and 4."""
        return (math.pi * points * points.new_tensor([1.0, 4.0])).sin().prod(-1, keepdim=True)

    def residual(self, jets: Tensor) -> Tensor:
        """Return the Laplacian and u."""
        return jets[..., 3, :] + jets[..., 4, :] + jets[..., 0, :]


class Burgers(Equation):
    """The equation of Burgers, whose wave becomes a shock at x = 0."""

    objectives = (*Equation.objectives, Objective("initial", START))
    low = (-1.0, 0.0)
    timed = True
    viscosity = 0.01 / math.pi

    def solution(self, points: Tensor) -> Tensor:
        """Return Cole and Hopf's quotient of two integrals, by the trapezoidal rule."""
        x, t = points.unsqueeze(-1).unbind(-2)
        # The weights exp(-s^2) at |s| = 15 are below those that count by more than exp(-100).
        s = torch.linspace(-15, 15, 601, dtype=points.dtype)
        y = math.pi * (x - 2 * (self.viscosity * t).sqrt() * s)
        weights = (-y.cos() / (2 * math.pi * self.viscosity) - s.square()).softmax(-1)
        return -(weights * y.sin()).sum(-1, keepdim=True)

    def residual(self, jets: Tensor) -> Tensor:
        """Return transport and diffusion."""
        u, slope, speed, bend, _ = jets.unbind(-2)
        return speed + u * slope - self.viscosity * bend


class KleinGordon(Equation):
    """The equation of Klein and Gordon with a cubic term."""

    objectives = (*Equation.objectives, Objective("initial", START))
    low = (0.0, 0.0)
    timed = True

    def solution(self, points: Tensor) -> Tensor:
        """Return a wave that grows with x."""
        x, t = points.unbind(-1)
        return (x * (5 * math.pi * t).cos() + (x * t).pow(3))[..., None]

    def residual(self, jets: Tensor) -> Tensor:
        """Return the wave operator and the cube of u."""
        u, _, _, bend, acceleration = jets.unbind(-2)
        return acceleration - bend + u.pow(3)

    def asked(self, name: str, jets: Tensor) -> Tensor:
        """Return u and its speed at the start, otherwise as always."""
        return jets[..., 0:3:2, 0] if name == "initial" else super().asked(name, jets)


class Stokes(Equation):
    """The equations of Stokes for a velocity and a pressure."""

    objectives = (
        Objective("momentum", INSIDE),
        Objective("divergence", INSIDE),
        Objective("boundary", BOUNDARY),
    )
    components = ("v1", "v2", "p")

    def solution(self, points: Tensor) -> Tensor:
        """Return four eddies, and a pressure."""
        x, y = (math.pi * points).unbind(-1)
        return torch.stack([x.sin() * y.cos(), -x.cos() * y.sin(), x.sin() * y.sin()], dim=-1)

    def residual(self, jets: Tensor) -> Tensor:
        """Return pressure's slope minus friction, (..., 2)."""
        return jets[..., 1:3, 2] - jets[..., 3, :2] - jets[..., 4, :2]

    def asked(self, name: str, jets: Tensor) -> Tensor:
        """Return momentum, divergence, or all of u."""
        if name == "divergence":
            return jets[..., 1, :1] + jets[..., 2, 1:2]
        return self.residual(jets) if name == "momentum" else jets[..., 0, :]


EQUATIONS: dict[str, type[Equation]] = {
    "poisson": Poisson,
    "helmholtz": Helmholtz,
    "burgers": Burgers,
    "klein_gordon": KleinGordon,
    "stokes": Stokes,
}


def exact(equation: Equation, points: Tensor) -> Tensor:
    """Return the solution's jets, (N, 5, C), at points, (N, 2) in float64."""
    with torch.enable_grad():
        points = points.detach().requires_grad_()
        jets = []
        for u in equation.solution(points).unbind(-1):
            (first,) = torch.autograd.grad(u.sum(), points, create_graph=True)
            second = [
                torch.autograd.grad(slope.sum(), points, retain_graph=True)[0][:, i]
                for i, slope in enumerate(first.unbind(-1))
            ]
            jets.append(torch.stack([u, *first.unbind(-1), *second], dim=-1).detach())
    return torch.stack(jets, dim=-1)


def drawn(equation: Equation, count: int, generator: torch.Generator) -> Tensor:
    """Return points of each kind, (N, 3, 2), float64, uniform inside and along the edges."""
    low, high = (torch.tensor(x, dtype=torch.float64) for x in (equation.low, equation.high))
    points = torch.rand(count, 3, 2, generator=generator, dtype=torch.float64)
    sides = 2 if equation.timed else 4
    side = torch.randint(sides, (count,), generator=generator)
    rows = torch.arange(count)
    points[rows, BOUNDARY, side // 2] = (side % 2).double()
    points[:, START, 1] = 0
    return low + (high - low) * points


class Field(nn.Module):
    r"""A perceptron u with hyperbolic tangents, and its derivatives.

    The derivatives go forward with the values, layer by layer: with z a layer's sums,

    .. math:: (\tanh z)' = (1 - \tanh^2 z) \, z', \quad
        (\tanh z)'' = (1 - \tanh^2 z) (z'' - 2 \tanh(z) \, z'^2)

    in each direction, so that a layer is one matrix product and no backward pass is needed before
    the loss's own.

    Args:
        components: C.
        width: of the hidden layers.
        depth: their number.
    """

    def __init__(self, components: int, width: int, depth: int) -> None:
        super().__init__()
        sizes = [2, *[width] * depth, components]
        layers = [nn.Linear(*size) for size in itertools.pairwise(sizes)]
        for layer in layers:
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.layers = nn.ModuleList(layers)

    def forward(self, points: Tensor) -> tuple[Tensor]:
        """Return the jets, (B, S, 5, C), at points, (B, S, 2)."""
        shape = points.shape
        axes = torch.eye(2, device=points.device).expand(*shape, 2)
        jets = torch.cat([points[..., None, :], axes, torch.zeros_like(axes)], dim=-2)
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, nn.Linear)
            if i:
                value, first, second = jets.split([1, 2, 2], dim=-2)
                value = value.tanh()
                bent = second - 2 * value * first.square()
                slope = 1 - value.square()
                jets = torch.cat([value, slope * first, slope * bent], dim=-2)
            jets = F.linear(jets, layer.weight)
            jets = jets + F.pad(layer.bias[None], (0, 0, 0, 4))
        return (jets,)


class Seen(NamedTuple):
    """What a head tells: what is asked of its points' jets, (B, n), and u inside, (B, C)."""

    asked: Tensor
    u: Tensor


class Side(nn.Module):
    """A head without parameters: what an objective asks."""

    def __init__(self, equation: Equation, objective: Objective) -> None:
        super().__init__()
        self.equation, self.objective = equation, objective

    def forward(self, features: tuple[Tensor, ...]) -> Seen:
        """Return it at the objective's points."""
        jets = features[0][:, self.objective.where]
        return Seen(self.equation.asked(self.objective.name, jets), features[0][:, INSIDE, 0])


class Errors(Meter):
    """What is wrong at each objective's points, and the error of u inside."""

    def __init__(self, equation: Equation) -> None:
        self.names = [objective.name for objective in equation.objectives]
        self.sums = torch.zeros(len(self.names) + 1, dtype=torch.float64)
        self.counts = self.sums.clone()

    def update(self, outputs: Sequence[Seen], batch: Batch) -> None:
        """Take in one batch."""
        for k, (name, seen) in enumerate(zip(self.names, outputs, strict=True)):
            self._add(k, seen.asked - batch[name], batch[name])
            if name == BOUNDED:
                self._add(-1, (seen.u - batch["u"]) / batch["size"], batch[name])

    def _add(self, k: int, errors: Tensor, labels: Tensor) -> None:
        squares = errors[known(labels)].double().square().mean(-1)
        self.sums[k] += squares.sum().cpu()
        self.counts[k] += len(squares)

    def compute(self) -> dict[str, float]:
        """Return every metric of `Pinn`; NaN without points."""
        means = (self.sums / self.counts).sqrt().tolist()
        return dict(zip([*(f"rms_{name}" for name in self.names), "l2"], means, strict=True))


class Pinn(Task):
    r"""A network that solves a differential equation with a known solution, without data.

    - ``poisson``: :math:`u_{xx} + u_{yy} = f`, solved by :math:`\sin \pi x \sin \pi y`
    - ``helmholtz``: :math:`u_{xx} + u_{yy} + u = f`, by :math:`\sin \pi x \sin 4 \pi y`
    - ``burgers``: :math:`u_t + u u_x = \nu u_{xx}` from :math:`-\sin \pi x`,
      :math:`\nu = 0.01 / \pi`
    - ``klein_gordon``: :math:`u_{tt} - u_{xx} + u^3 = f`, by :math:`x \cos 5 \pi t + (x t)^3`
    - ``stokes``: :math:`\nabla p - \Delta v = f` and :math:`\nabla \cdot v = 0`, by four eddies

    on :math:`[-1, 1]^2`, or with t on [-1, 1] x [0, 1] (Burgers) and [0, 1] x [0, 1]
    (Klein-Gordon). Objectives are the mean squares of what is wrong with the equation
    (``residual``), on the ``boundary`` and at the start (``initial``: u, and for Klein-Gordon its
    speed too); Stokes has ``momentum`` and ``divergence`` for the residual. All is shared: heads
    have no parameters. Objectives at different points of a sample have orthogonal feature
    gradients, in which methods on features see no conflict. The recipe is Poisson's; the others
    want several times as many epochs.

    ``rms_OBJECTIVE`` is the root of an objective's loss at the test points, and primary. ``l2`` is
    what the literature reports, :math:`\lVert \hat u - u \rVert / \lVert u \rVert` inside, the
    components of u taken relative to their own sizes. **It is what a method should be judged by**,
    and primary. It judges no single objective: an equation without a boundary has many solutions.
    Of separate models it is that of the one for the boundary, which knows nothing of the equation;
    so every method is far better there than ``stl``.

    Raissi et al., J. Comput. Phys. 378, 2019 (Burgers; solved by Cole's and Hopf's integrals as in
    Basdevant et al., Computers & Fluids 14, 1986); Wang et al., arXiv 2001.04536 (Helmholtz,
    Klein-Gordon; our reading). Deviations: pressure, which a flow determines but for a constant, is
    given on the boundary; training takes batches of fixed points.

    Args:
        equation: which one.
        samples: of the training split: so many points of each kind, drawn by the seed. Those of
            validation and test are the same at every seed.
        width: of the hidden layers.
        depth: their number.
    """

    recipe = Recipe(epochs=30, batch_size=128, lr=3e-3, weight_decay=0.0, select="last")
    objectives: tuple[str, ...] = ("residual", "boundary")

    def __init__(
        self,
        *,
        equation: Literal["poisson", "helmholtz", "burgers", "klein_gordon", "stokes"] = "poisson",
        samples: int = 10_000,
        width: int = 50,
        depth: int = 4,
    ) -> None:
        at_least(1, samples=samples, width=width, depth=depth)
        self.equation = EQUATIONS[equation]()
        self.samples, self.width, self.depth = samples, width, depth
        self.kinds = 3 if self.equation.timed else 2
        self.objectives = tuple(objective.name for objective in self.equation.objectives)
        self.metrics = {
            f"rms_{name}": Metric(name, higher_is_better=False, primary=True)
            for name in self.objectives
        } | {"l2": Metric(None, higher_is_better=False, primary=True)}

    def setup(self, seed: int, progress: Progress) -> Splits:
        """Draw the points, and find what is asked there."""
        parts = {
            name: drawn(self.equation, count, seeding.generator(of, name))[:, : self.kinds]
            for name, count, of in (
                ("train", self.samples, seed), ("val", HELD_OUT, 0), ("test", HELD_OUT, 0),
            )
        }  # fmt: skip
        jets = {
            name: exact(self.equation, points.flatten(0, 1)).unflatten(0, points.shape[:2])
            for name, points in parts.items()
        }
        size = jets["test"][:, INSIDE, 0].square().mean(0).sqrt()
        splits = {
            name: TensorSplit(
                points.float(),
                groups=None,
                u=jets[name][:, INSIDE, 0],
                size=size.expand(len(points), -1),
                **{
                    objective.name: self.equation.asked(
                        objective.name, jets[name][:, objective.where]
                    ).float()
                    for objective in self.equation.objectives
                },
            )
            for name, points in parts.items()
        }
        return Splits(
            **splits,
            fingerprint=fingerprint(parts["test"], jets["test"]),
            notes={"points of each kind": [len(points) for points in parts.values()]},
        )

    def model(self) -> MultitaskModel:
        """Return the network, with what each objective asks as its heads."""
        heads = [Side(self.equation, objective) for objective in self.equation.objectives]
        return MultitaskModel(Field(len(self.equation.components), self.width, self.depth), heads)

    def losses(self, outputs: Sequence[Seen], batch: Batch) -> list[Tensor]:
        """Return the mean squares of what is asked minus what it should be."""
        return [
            labelled_loss(F.mse_loss, seen.asked, batch[name])
            for name, seen in zip(self.objectives, outputs, strict=True)
        ]

    def residuals(self, outputs: Sequence[Seen], batch: Batch) -> list[Tensor]:
        """Return what is asked minus what it should be."""
        return [
            seen.asked.float() - batch[name]
            for name, seen in zip(self.objectives, outputs, strict=True)
        ]

    def meter(self) -> Meter:
        """Return a fresh meter."""
        return Errors(self.equation)

    def figures(self, predictor: Predictor, splits: Splits, folder: Path) -> list[Path]:
        """Draw each component of the solution, what the network makes of it, and the error."""
        from matplotlib.figure import Figure

        low, high = self.equation.low, self.equation.high
        axes = [
            torch.linspace(*ends, GRID, dtype=torch.float64) for ends in zip(low, high, strict=True)
        ]
        grid = torch.cartesian_prod(*axes)
        found = predictor(grid[:, None].expand(-1, self.kinds, -1).float())[0].u.cpu()
        truth = self.equation.solution(grid)
        figure = Figure(figsize=(11, 3.2 * truth.shape[1]), layout="constrained")
        places = iter(figure.subplots(truth.shape[1], 3, squeeze=False).flat)
        for component, u, v in zip(
            self.equation.components, truth.unbind(1), found.double().unbind(1), strict=True
        ):
            ends, worst = (float(u.min()), float(u.max())), float((v - u).abs().max())
            for name, values, (least, most), colours in (
                ("solution", u, ends, "viridis"),
                ("network", v, ends, "viridis"),
                ("network minus solution", v - u, (-worst, worst), "RdBu"),
            ):
                place = next(places)
                picture = place.imshow(
                    values.view(GRID, GRID).T.numpy(), origin="lower", aspect="auto",
                    extent=(low[0], high[0], low[1], high[1]), vmin=least, vmax=most, cmap=colours,
                )  # fmt: skip
                place.set(
                    title=f"{component}, {name}",
                    xlabel="x",
                    ylabel="t" if self.equation.timed else "y",
                )
                figure.colorbar(picture, ax=place)
        file = folder / "solution.png"
        figure.savefig(file, dpi=110)
        return [file]
