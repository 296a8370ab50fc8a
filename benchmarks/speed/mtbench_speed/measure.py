"""Three measurements by the clock: a step, a solver alone, an aggregation alone."""

import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from mtbench.balancing import engine as engines
from mtbench.balancing.balancer import Aggregator, Weighting
from mtbench.errors import UsageError
from mtbench.plugins.method import Method
from mtbench_speed import peers
from mtbench_speed.contestants import (
    Contestant,
    Run,
    by_hand,
    floor,
    floor_and_products,
    one_call,
    ours,
    plain,
)
from mtbench_speed.models import Problem
from mtbench_speed.timing import race, ratio

HEAT = 8
"""Methods that are timed together, beside their own references: what several keep of K d numbers
must fit, and a busy machine changes its speed between the first and the last."""
BURST = 80
"""Rows of the Gramians that a solver is given in one round; at least one Gramian."""
DRIFT = 0.05
"""Standard deviation of what is added to a drifting Jacobian's entries from one step to the next,
relative to that of the entries."""


@dataclass(frozen=True)
class Row:
    """One contestant of one measurement; what does not apply is None.

    Attributes:
        what: the measurement.
        model: the model's name.
        parameters: of the encoder; the matrix's columns where there is no model.
        batch: samples in a batch.
        objectives: K.
        method: which method; empty for a reference.
        by: whose implementation, or which reference.
        seconds: median over rounds.
        over_plain: median over rounds of the ratio to the plain sum's gradient.
        over_floor: the same, to the floor.
        over_peer: the same, to the fastest of the other libraries.
        mib: peak memory above the model.
        mib_over_plain: the same, less the plain sum's.
    """

    what: str
    model: str
    parameters: int
    batch: int | None
    objectives: int
    method: str
    by: str
    seconds: float | None = None
    over_plain: float | None = None
    over_floor: float | None = None
    over_peer: float | None = None
    mib: float | None = None
    mib_over_plain: float | None = None


@dataclass
class Settings:
    """What is measured, and how.

    Attributes:
        models: names of models.
        objectives: values of K.
        methods: what can be constructed.
        rounds: how often everybody runs.
        device: where.
        threads: of the CPU.
        batched: as in `mtbench.Engine`.
        width: of the models, in the place of their own.
        batch: samples, in the place of the models' own.
        precision: of the forward pass, ``fp32`` or ``bf16``.
        columns: d of the aggregated matrix.
        say: is told what is being done.
        notes: what the reader of the numbers must know; grows.
    """

    models: Sequence[str]
    objectives: Sequence[int]
    methods: Sequence[Method]
    rounds: int
    device: str
    threads: int
    batched: bool | None
    width: int | None
    batch: int | None
    precision: str
    columns: int
    say: Callable[[str], object]
    notes: list[str] = field(default_factory=list)

    def problem(self, model: str, objectives: int) -> Problem:
        """Return a model with its data."""
        return Problem.of(model, objectives, self.device, self.width, self.batch, self.precision)

    def heats(self) -> Iterator[Sequence[Method]]:
        """Yield the methods, a few at a time."""
        for begin in range(0, len(self.methods), HEAT):
            yield self.methods[begin : begin + HEAT]

    def made(self, what: str, method: Method, run: Callable[[], Run | None]) -> Run | None:
        """Return what `run` makes; None, and a note, where it cannot be made."""
        try:
            return run()
        except (UsageError, ValueError) as error:
            self.notes.append(f"{what}, {method.name}: left out: {error}")
            return None


def steps(settings: Settings) -> Iterator[Row]:
    """Time one step of every method, forward pass and hooks included."""
    for model in settings.models:
        for K in settings.objectives:
            problem = settings.problem(model, K)
            engine = engines.Engine(batched=settings.batched)
            for heat in settings.heats():
                names = ", ".join(method.name for method in heat)
                settings.say(f"step: {model}, K = {K}: {names}")
                yield from _steps(settings, problem, engine, heat)
            if engine.batched is not None:
                way = "one vmapped backward" if engine.batched else "a loop of K backwards"
                settings.notes.append(f"{model}, K = {K}: mtbench took {way}")


def _steps(
    settings: Settings, problem: Problem, engine: engines.Engine, heat: Sequence[Method]
) -> Iterator[Row]:
    references = Contestant("plain", "", plain(problem)), Contestant("floor", "", floor(problem))
    products = Contestant("floor + products", "", floor_and_products(problem))
    contestants = [*references, products, Contestant("by hand", "", by_hand(problem))]
    K = problem.objectives
    for method in heat:
        makers: dict[str, Callable[[], Run | None]] = {
            "mtbench": partial(ours, problem, method, engine),
            "mtbench, one call": partial(one_call, problem, method),
            **{by: partial(make, problem, method.name) for by, make in peers.PEERS.items()},
        }
        for by, maker in makers.items():
            run = settings.made(f"{by}, {problem.name}, K = {K}", method, maker)
            if run is not None:
                contestants.append(Contestant(by, method.name, run))
    seconds = _race(settings, contestants, f"{problem.name}, K = {K}")
    base, least = (seconds[reference] for reference in references)
    for contestant, times in seconds.items():
        yield Row(
            "step", problem.name, problem.parameters, problem.batch, K, contestant.method,
            contestant.by, statistics.median(times), ratio(times, base), ratio(times, least),
            _over_peer(contestant, seconds),
        )  # fmt: skip


def _race(
    settings: Settings, contestants: Sequence[Contestant], where: str
) -> dict[Contestant, list[float]]:
    left_out: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other libraries'
        seconds = race(contestants, settings.rounds, settings.device, left_out)
    settings.notes += [f"{where}: {line}" for line in left_out]
    return seconds


def _over_peer(contestant: Contestant, seconds: dict[Contestant, list[float]]) -> float | None:
    """Return the ratio of ours to the fastest of the others, None for others."""
    if contestant.by != "mtbench":
        return None
    others = [
        times
        for other, times in seconds.items()
        if other.method == contestant.method and not other.by.startswith("mtbench")
    ]
    if not others:
        return None
    return ratio(seconds[contestant], min(others, key=statistics.median))


def solvers(settings: Settings) -> Iterator[Row]:
    """Time `Weighting.weigh` alone, on unrelated Gramians and on slowly drifting ones."""
    for K in settings.objectives:
        settings.say(f"solver: K = {K}")
        for what in ("solver, drifting", "solver, fresh"):
            gramians = _gramians(
                K, settings.rounds * _calls(K), drifting=what == "solver, drifting"
            )
            contestants = []
            for method in settings.methods:
                run = settings.made(f"solver, K = {K}", method, partial(_weigh, method, gramians))
                if run is not None:
                    contestants.append(Contestant("mtbench", method.name, run))
                    made = peers.gramian_weighting(method.name, K)
                    if made is not None:
                        contestants.append(
                            Contestant("torchjd", method.name, partial(_in_turn, made, gramians))
                        )
            seconds = _race(settings, contestants, f"{what}, K = {K}")
            for contestant, times in seconds.items():
                yield Row(
                    what, "", 2 * K, None, K, contestant.method, contestant.by,
                    statistics.median(times) / _calls(K), over_peer=_over_peer(contestant, seconds),
                )  # fmt: skip


def _calls(objectives: int) -> int:
    return max(1, BURST // objectives)


def _gramians(objectives: int, count: int, *, drifting: bool) -> list[Tensor]:
    """Return J J^T of (K, 2 K) standard normal numbers."""
    generator = torch.Generator().manual_seed(0)

    def draw() -> Tensor:
        return torch.randn(objectives, 2 * objectives, dtype=torch.float64, generator=generator)

    jacobian, found = draw(), []
    for _ in range(count):
        found.append(jacobian @ jacobian.T)
        jacobian = jacobian + DRIFT * draw() if drifting else draw()
    return found


def _weigh(method: Method, gramians: Sequence[Tensor]) -> Run | None:
    K = len(gramians[0])
    balancer, losses = method(K), torch.linspace(1, 2, K, dtype=torch.float64)
    if not isinstance(balancer, Weighting):
        return None
    return partial(_in_turn, lambda gramian: balancer.weigh(gramian, losses), gramians)


def _in_turn(function: Callable[[Tensor], object], gramians: Sequence[Tensor], at: int) -> None:
    calls = _calls(len(gramians[0]))
    for gramian in gramians[at * calls : (at + 1) * calls]:
        function(gramian)


def aggregations(settings: Settings) -> Iterator[Row]:
    """Time the way from a (K, d) Jacobian to a direction; the floor is J J^T and w^T J alone."""
    for K in settings.objectives:
        generator = torch.Generator().manual_seed(0)
        jacobian = torch.randn(K, settings.columns, generator=generator).to(settings.device)
        weights = torch.ones(K, device=settings.device)
        products = Contestant("two products", "", partial(_products, jacobian, weights))
        for heat in settings.heats():
            names = ", ".join(method.name for method in heat)
            settings.say(f"aggregation: K = {K}: {names}")
            contestants = [products]
            for method in heat:
                run = settings.made(
                    f"aggregation, K = {K}", method, partial(_combine, method, jacobian)
                )
                if run is not None:
                    contestants.append(Contestant("mtbench", method.name, run))
                    made = peers.aggregator(method.name, K)
                    if made is not None:
                        contestants.append(
                            Contestant("torchjd", method.name, partial(_aggregate, made, jacobian))
                        )
            if len(contestants) == 1:
                continue
            seconds = _race(settings, contestants, f"aggregation, K = {K}")
            for contestant, times in seconds.items():
                yield Row(
                    "aggregation", "", settings.columns, None, K, contestant.method, contestant.by,
                    statistics.median(times), None, ratio(times, seconds[products]),
                    _over_peer(contestant, seconds),
                )  # fmt: skip


def _products(jacobian: Tensor, weights: Tensor, _: int) -> None:
    torch.mm(jacobian, jacobian.T)
    torch.mv(jacobian.T, weights)


def _aggregate(aggregator: Callable[[Tensor], object], jacobian: Tensor, _: int) -> None:
    aggregator(jacobian)


def _combine(method: Method, jacobian: Tensor) -> Run | None:
    K = len(jacobian)
    balancer = method(K).to(jacobian.device)
    values = torch.linspace(1, 2, K, dtype=torch.float64)
    if isinstance(balancer, Weighting):

        def weigh(_: int) -> None:
            weights = balancer.weigh(engines.gramian([jacobian]), values)
            torch.mv(jacobian.T, weights.to(jacobian))

        return weigh
    if isinstance(balancer, Aggregator):
        losses = values.to(jacobian)
        return lambda _: balancer.direct(jacobian, losses)
    return None
