"""The contract catches what it is there to catch."""

import math
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

from mtbench.balancing.balancer import Aggregator, Balancer, Scalarizer, Weighting
from mtbench.errors import PluginError, UsageError
from mtbench.plugins.method import Method
from mtbench.testing import BalancerContract
from mtbench.testing.conformance import of_method
from tests.conftest import Mtbench


class Good(Scalarizer):
    paper = "none"

    def objective(self, step):
        return step.total(), None


class Forgets(Good):
    """Its history is no buffer."""

    def __init__(self, num_objectives, seed=0):
        super().__init__(num_objectives, seed)
        self.count = 0

    def objective(self, step):
        self.count += 1
        return step.total() * self.count, None


class GlobalDraw(Good):
    def objective(self, step):
        return step.total(torch.rand(step.num_objectives)), None


class Overwrites(Good):
    def balance(self, step):
        for parameter in (*step.shared, *(p for head in step.heads for p in head)):
            parameter.grad = None
        return super().balance(step)


class Ascends(Good):
    def objective(self, step):
        return -step.total(), None


class Divides(Good):
    def objective(self, step):
        return step.total(1 / step.values), None


class FirstOnly(Good):
    def objective(self, step):
        return step.losses[0], None


class NeedsFeatures(Good):
    def objective(self, step):
        return step.total() + step.sensitivities[0].sum() * 0, None


contract = BalancerContract()
CASES = [
    (Forgets, contract.test_state_dict_reproduces_the_next_step),
    (GlobalDraw, contract.test_global_generators_are_left_alone),
    (GlobalDraw, contract.test_state_dict_reproduces_the_next_step),
    (Overwrites, contract.test_gradients_accumulate),
    (Ascends, contract.test_one_objective_is_plain_descent),
    (Ascends, contract.test_ends_near_the_pareto_set),
    (Divides, lambda make: contract.test_extreme_gradients(make, "first zero")),
    (FirstOnly, lambda make: contract.test_missing_label_trains_the_other(make, 0)),
    (
        FirstOnly,
        lambda make: contract.test_every_parameter_gets_a_finite_gradient(make, 2, torch.float32),
    ),
    (NeedsFeatures, contract.test_without_features),
]


@pytest.mark.parametrize(("method", "check"), CASES)
def test_broken_methods_fail(method, check):
    check(Good)
    with pytest.raises((AssertionError, RuntimeError, ValueError)):
        check(method)


class Weighs(Weighting):
    """Equal weights: what is broken below is broken in one place."""

    paper = "none"

    def weights(self, gramian, losses):
        return torch.ones_like(losses)


class Directs(Aggregator):
    paper = "none"

    def direction(self, jacobian, losses):
        return jacobian.sum(0)


class NoBase(Weighs):
    def __init__(self, num_objectives: int, seed: int = 0) -> None:
        self.alpha = 0.5


class OtherNumber(Weighs):
    def __init__(self, num_objectives: int, seed: int = 0) -> None:
        super().__init__(2, seed)


class Positional(Weighs):
    def __init__(self, num_objectives: int, seed: int = 0, alpha: float = 0.5) -> None:
        super().__init__(num_objectives, seed)


class Untyped(Weighs):
    def __init__(self, num_objectives: int, seed: int = 0, *, alpha=0.5) -> None:
        super().__init__(num_objectives, seed)


class Required(Weighs):
    def __init__(self, num_objectives: int, seed: int = 0, *, alpha: float) -> None:
        super().__init__(num_objectives, seed)


class HandsOn(Weighs):
    """Nothing is broken: it takes what its base takes."""

    def __init__(self, num_objectives: int, seed: int = 0, **common: float) -> None:
        super().__init__(num_objectives, seed, **common)


class NoPaper(Weighs):
    paper = ""


class NoCost(Weighs):
    passes = ""


class Nowhere(Weighs):
    on_host = ("avarage",)


class Column(Weighs):
    def weights(self, gramian, losses):
        return losses[:, None]


class Listed(Weighs):
    def weights(self, gramian, losses):
        return [1.0] * len(losses)


class Rows(Directs):
    def direction(self, jacobian, losses):
        return jacobian.sum(1)


class Scalarless(Good):
    def objective(self, step):
        return step.total()[None], None


class Pairless(Good):
    def objective(self, step):
        return step.total()


class Detached(Good):
    def objective(self, step):
        return step.total().detach(), None


class OnGraph(Balancer):
    paper, passes = "none", "F"

    def balance(self, step):
        step.total().backward(retain_graph=True)
        return torch.stack(list(step.losses))


class NanWeights(OnGraph):
    def balance(self, step):
        return super().balance(step).detach() * torch.nan


class Idle(OnGraph):
    def balance(self, step):
        return None


class NanGradient(OnGraph):
    def balance(self, step):
        (step.total() * torch.nan).backward()


class HeadsAlone(OnGraph):
    def balance(self, step):
        super().balance(step)
        for parameter in step.shared:
            parameter.grad.zero_()


class KeepsGraph(OnGraph):
    def balance(self, step):
        step.assign(step.jacobian().sum(0))


class ChangesGramian(Weighs):
    def weights(self, gramian, losses):
        gramian.diagonal().add_(1)
        return torch.ones_like(losses)


class ChangesLosses(Weighs):
    def weights(self, gramian, losses):
        return losses.clamp_(min=1)


class ChangesJacobian(Directs):
    def direction(self, jacobian, losses):
        return jacobian.mul_(0.5).sum(0)


class KeepsJacobian(Directs):
    def direction(self, jacobian, losses):
        self.last = [jacobian[1:]]
        return jacobian.sum(0)


class KeepsGramian(Weighs):
    """As numpy sees it, in an object of its own."""

    def weights(self, gramian, losses):
        self.box = SimpleNamespace(last=gramian.numpy())
        return super().weights(gramian, losses)


class MovesModel(OnGraph):
    def balance(self, step):
        super().balance(step)
        with torch.no_grad():
            step.shared[0].sub_(0.1 * step.shared[0].grad)


class ClassState(Weighs):
    """All its instances count together."""

    steps: ClassVar = [0]

    def weights(self, gramian, losses):
        self.steps[0] += 1
        return losses + self.steps[0]


class Everybodys(Weighs):
    """The first object's losses are kept for all."""

    first: ClassVar = []

    def weights(self, gramian, losses):
        self.first.append(losses)
        return self.first[0].clone()


class Sets(OnGraph):
    def balance(self, step):
        for parameter, value in zip(step.shared, step.gradient(step.total()), strict=True):
            parameter.grad = value


class Counts(Weighs):
    count = 0

    def weights(self, gramian, losses):
        self.count += 1
        return super().weights(gramian, losses)


class LateHistory(Weighs):
    """What it keeps is first used after 20 steps."""

    def __init__(self, num_objectives: int, seed: int = 0) -> None:
        super().__init__(num_objectives, seed)
        self.history = []

    def weights(self, gramian, losses):
        self.history = [*self.history, losses.tolist()][-20:]
        return losses.new_tensor(self.history).mean(0) if len(self.history) == 20 else losses


class Lazy(Weighs):
    """Nothing is broken: what is made on first use stays as it is, and is made again."""

    constant = None

    sees_zero_rows = True

    def weights(self, gramian, losses):
        if self.constant is None:
            self.constant = torch.ones_like(losses)
        return self.constant


class OwnOptimizer(Weighs):
    def __init__(self, num_objectives: int, seed: int = 0) -> None:
        super().__init__(num_objectives, seed)
        self.logits = torch.nn.Parameter(torch.zeros(num_objectives))
        self.adam = torch.optim.Adam([self.logits])

    def weights(self, gramian, losses):
        with torch.enable_grad():
            (self.logits.softmax(0) * losses).sum().backward()
        self.adam.step()
        self.adam.zero_grad()
        return super().weights(gramian, losses)


class Tuned(Weighs):
    def __init__(self, num_objectives: int, seed: int = 0, *, alpha: float = 0.5) -> None:
        super().__init__(num_objectives, seed)
        self.alpha = alpha

    @classmethod
    def suggest(cls, trial, num_objectives):
        return {"alpha": trial.suggest_float("alpha", 0.0, 1.0)}

    def weights(self, gramian, losses):
        return losses ** (self.alpha - 0.5)


class Unread(Tuned):
    """Its search space is drawn, and changes nothing."""

    def __init__(self, num_objectives: int, seed: int = 0, *, exponent: float = 0.5) -> None:
        super().__init__(num_objectives, seed)
        self.exponent = float(exponent)


class UnreadOfAType(Tuned):
    def __init__(self, num_objectives: int, seed: int = 0, *, slope: float = 0.5) -> None:
        super().__init__(num_objectives, seed)
        self.slope: float = slope


class ReadByName(Unread):
    """Its parameter is read, by `getattr`."""

    def __init__(self, num_objectives: int, seed: int = 0, *, curvature: float = 0.5) -> None:
        super().__init__(num_objectives, seed)
        self.curvature = float(curvature)

    def weights(self, gramian, losses):
        return losses ** getattr(self, "curvature")  # noqa: B009 - what this is about


class Undefined(Weighs):
    """Keeps a NaN that stays."""

    def __init__(self, num_objectives: int, seed: int = 0) -> None:
        super().__init__(num_objectives, seed)
        self.last = math.nan


class Misspelt(Tuned):
    @classmethod
    def suggest(cls, trial, num_objectives):
        return {"aplha": trial.suggest_float("alpha", 0.0, 1.0)}


class DrawsNothing(Tuned):
    @classmethod
    def suggest(cls, trial, num_objectives):
        return {"alpha": 0.5}


class DrawsNan(Tuned):
    def weights(self, gramian, losses):
        return losses * (torch.nan if self.alpha != 0.5 else 1.0)


class Half(Weighs):
    def weights(self, gramian, losses):
        return gramian.diagonal().rsqrt().half()


class Logarithm(Weighs):
    def weights(self, gramian, losses):
        return losses.log() + 10


class Remembers(Weighs):
    """It keeps a number for each objective, and does not say so."""

    def __init__(self, num_objectives, seed=0):
        super().__init__(num_objectives, seed)
        self.register_buffer("average", torch.ones(num_objectives))

    def weights(self, gramian, losses):
        self.average.mul_(0.9).add_(losses, alpha=0.1)
        return self.average.clone()


class RemembersAll(Remembers):
    sees_zero_rows = True


class Widens(Weighs):
    """What it returns stays as wide as it was once."""

    def weights(self, gramian, losses):
        return torch.ones(self.num_objectives)


class HoldsLoss(Good):
    def objective(self, step):
        self.last = [step.losses[0]]
        return step.total(), None


class HoldsAverage(Good):
    def __init__(self, num_objectives, seed=0):
        super().__init__(num_objectives, seed)
        self.register_buffer("average", torch.ones(num_objectives))

    def objective(self, step):
        self.average = 0.9 * self.average + 0.1 * torch.stack(list(step.losses))
        return (torch.stack(list(step.losses)) / self.average).sum(), None


class NotYetSeen(Good):
    """Nothing is broken: what has had no label yet has no average."""

    def __init__(self, num_objectives, seed=0):
        super().__init__(num_objectives, seed)
        self.register_buffer("average", torch.full((num_objectives,), math.nan))

    def objective(self, step):
        seen = step.values != 0
        old = torch.where(self.average.isnan(), step.values, self.average)
        self.average = torch.where(seen, 0.9 * old + 0.1 * step.values, self.average)
        return step.total(), None


class BecomesNan(NotYetSeen):
    def __init__(self, num_objectives, seed=0):
        super().__init__(num_objectives, seed)
        self.average.fill_(1)

    def objective(self, step):
        self.average = step.values / step.values
        return step.total(), None


class Grows(Directs):
    def __init__(self, num_objectives, seed=0):
        super().__init__(num_objectives, seed)
        self.register_buffer("momentum", torch.zeros(0))

    def direction(self, jacobian, losses):
        if not len(self.momentum):
            self.momentum = torch.zeros_like(jacobian[0])
        self.momentum.mul_(0.9).add_(jacobian.sum(0))
        return self.momentum.clone()


class GrowsAndSaysSo(Grows):
    sized_later = ("momentum",)


class AsksNothing(Directs):
    """It is asked about all objectives, whatever their gradients are."""

    asks_nothing = True

    def __init__(self, num_objectives, seed=0):
        super().__init__(num_objectives, seed)
        self.register_buffer("average", torch.ones(num_objectives))

    def direction(self, jacobian, losses):
        self.average.lerp_(losses.float(), 0.1)
        return self.average.to(jacobian) @ jacobian


class DrawsAtFirst(Weighs):
    """Which weights it takes is chance."""

    sees_zero_rows = True

    def __init__(self, num_objectives, seed=0):
        super().__init__(num_objectives, seed)
        drawn = torch.rand(num_objectives, generator=self.generator, dtype=torch.float64)
        self.register_buffer("drawn", drawn + 0.5)

    def weights(self, gramian, losses):
        return self.drawn.clone()


class Solves(Weighs):
    """It stops near the solution, at another point in another order."""

    def weights(self, gramian, losses):
        return 1 + 1e-5 * torch.arange(len(losses)).to(losses)


class SaysNothing(Weighs):
    def weights(self, gramian, losses):
        if len(losses) < self.num_objectives:
            raise AssertionError
        return super().weights(gramian, losses)


class InTurn(Weighs):
    """Each objective gives way to those before it."""

    def weights(self, gramian, losses):
        return 1 + (-gramian.tril(-1)).clamp(min=0).sum(0) / gramian.diagonal()


class InTurnByIntent(InTurn):
    is_symmetric = False


def answers(make):
    for K in (3, 1):
        contract.test_answers_in_shape(make, K)


def gradients(make):
    contract.test_every_parameter_gets_a_finite_gradient(make, 2, torch.float32)


def divisors(make):
    for scale in ("last 1e-12", "first zero"):
        contract.test_extreme_gradients(make, scale)


RULES = {
    contract.test_can_be_constructed: [
        (NoBase, "__init__ does not construct its base"),
        (OtherNumber, "hands num_objectives=2 to its base where 1 are asked for"),
        (Positional, "parameter 'alpha' of __init__ is no keyword"),
        (Untyped, "parameter 'alpha' of __init__ has no type"),
        (Required, "parameter 'alpha' of __init__ has no default"),
        (Unread, "parameter 'exponent' of __init__ is never read"),
        (UnreadOfAType, "parameter 'slope' of __init__ is never read"),
    ],
    contract.test_declares_paper_and_cost: [
        (NoPaper, "`paper` is empty"),
        (NoCost, "`passes` is empty"),
        (Nowhere, "`on_host` or `sized_later`: no 'avarage'"),
    ],
    answers: [
        (Column, r"`weights` returns shape \(3, 1\): return shape \(3,\)"),
        (Listed, "`weights` returns list"),
        (Everybodys, "`weights` returns the shape of another object's, with K = 3: what is kept"),
        (Rows, r"`direction` returns shape \(3,\): return shape \(7,\)"),
        (Scalarless, r"`objective` returns shape \(1,\): return shape \(\)"),
        (Pairless, "`objective` returns no pair"),
        (Detached, "`objective` is off the graph"),
        (OnGraph, "`backward` returns weights on the graph"),
        (NanWeights, r"`backward` returns \[nan, nan, nan\]: not finite"),
    ],
    contract.test_fewer_may_be_asked_about: [
        (Remembers, r"`weights` raises RuntimeError .* 2 of 3 .*: if .* say sees_zero_rows = True"),
        (SaysNothing, r"`weights` raises AssertionError \(\) where 2 of 3"),
        (Widens, r"`weights` returns shape \(3,\) where 2 of 3 objectives have a gradient"),
    ],
    contract.test_no_step_is_held: [
        (HoldsLoss, r"self\.last\[0\] hangs on the graph .* keep what \.detach\(\) returns"),
        (HoldsAverage, r"self\.average hangs on the graph"),
    ],
    contract.test_their_order_makes_no_difference: [
        (InTurn, "treat them alike, or say is_symmetric = False"),
    ],
    gradients: [
        (Idle, r"encoder\.body\.0\.weight has no \.grad: write it by"),
        (NanGradient, r"encoder\.body\.0\.weight\.grad is not finite"),
        (HeadsAlone, "the encoder get zero gradients"),
        (MovesModel, r"encoder\.body\.0\.weight was changed: write \.grad only"),
    ],
    contract.test_global_generators_are_left_alone: [
        (GlobalDraw, "torch's global generator was drawn from"),
    ],
    contract.test_what_it_is_given_stays: [
        (ChangesGramian, "`gramian` was changed in place"),
        (ChangesLosses, "`losses` was changed in place"),
        (ChangesJacobian, "`jacobian` was changed in place"),
        (KeepsJacobian, r"self\.last\[0\] is the memory of `jacobian`"),
        (KeepsGramian, r"self\.box\.last is the memory of `gramian`"),
    ],
    contract.test_the_graph_goes_with_the_step: [
        (KeepsGraph, r"the graph outlives the step, .* say step\.release\(\) before the last"),
    ],
    contract.test_state_is_in_the_state_dict: [
        (Counts, r"self\.count changes from step to step and is not restored"),
        (LateHistory, r"self\.history changes from step to step and is not restored"),
        (OwnOptimizer, r"self\.adam is an optimizer"),
        (Grows, r"self\.momentum has shape \(24,\) .* say sized_later = \('momentum',\)"),
    ],
    contract.test_state_dict_reproduces_the_next_step: [
        (ClassState, r"not in the state .a module's or class's variable"),
    ],
    contract.test_deterministic_at_a_seed: [
        (ClassState, "two trainings at one seed end apart"),
    ],
    contract.test_gradients_accumulate: [
        (Sets, r"the second \.grad is not added to the first"),
    ],
    contract.test_search_space_is_drawn: [
        (Misspelt, r"`suggest` returns 'aplha', which is no parameter .* \(there are: alpha\)"),
        (DrawsNothing, r"`suggest` returns \{'alpha': 0\.5\} and draws nothing"),
        (DrawsNan, r"with alpha=0\.\d+, which `suggest` draws, the model is not finite"),
    ],
    divisors: [
        (Half, r"where losses are so scaled .*, \.grad is not finite"),
        (BecomesNan, r"where losses are so scaled, self\.average is not finite"),
    ],
    contract.test_negative_losses: [
        (Logarithm, "losses below 0 make the model non-finite"),
    ],
}


@pytest.mark.parametrize(
    ("check", "method", "sentence"),
    [(check, *case) for check, cases in RULES.items() for case in cases],
    ids=[method.__name__ for cases in RULES.values() for method, _ in cases],
)
def test_each_rule_says_what_is_broken(check, method, sentence):
    with pytest.raises((AssertionError, pytest.fail.Exception), match=sentence):
        check(method)


@pytest.mark.parametrize(
    "method",
    [
        Good,
        Weighs,
        Directs,
        HandsOn,
        Lazy,
        Tuned,
        RemembersAll,
        GrowsAndSaysSo,
        InTurnByIntent,
        NotYetSeen,
        AsksNothing,
        DrawsAtFirst,
        Solves,
    ],
)
def test_no_rule_is_broken_without_a_reason(method):
    for check in RULES:
        with suppress(pytest.skip.Exception):
            check(method)


def test_an_attribute_may_be_nan():
    contract.test_state_is_in_the_state_dict(Undefined)


def test_a_parameter_may_be_read_by_its_name():
    contract.test_can_be_constructed(ReadByName)


def test_a_method_may_hold_a_module_and_what_holds_itself():
    class Rings(Weighs):
        def __init__(self, num_objectives, seed=0):
            super().__init__(num_objectives, seed)
            self.library, self.ring = torch, []
            self.ring.append(self.ring)

    contract.test_what_it_is_given_stays(Rings)


PLUGIN = """from mtbench import Weighting


class Mine(Weighting):
    paper = "none"

    def weights(self, gramian, losses):
"""


def plugin(folder: Path, body: str) -> Path:
    file = folder / "mine.py"
    file.write_text(f"{PLUGIN}        {body}\n")
    return file


def test_check_stops_where_others_build_on_and_names_the_line(
    mtbench: Mtbench, tmp_path: Path
) -> None:
    file = plugin(tmp_path, "return gramian.add_(1).diagonal()")
    code, out, _ = mtbench("check", "mine", "--plugin", file)
    assert code == 1
    assert "`gramian` was changed in place" in out
    assert "(mine.py:7)" in out  # nothing raises: where the method answers
    assert out.count("FAIL") == 1
    last = [line for line in out.splitlines() if line[1:5] in ("pass", "FAIL", "skip")][-1]
    assert "Gramian, Jacobian and losses are not changed" in last


def test_check_tells_a_cause_once(tmp_path: Path) -> None:
    odd = "losses.max() > 1e9 or len(losses) == 3 and losses[0] == losses[1]"
    file = plugin(tmp_path, f"return [][0] if {odd} else losses ** 0")
    broken = [rule for rule in of_method(Method.find("mine", [file])) if rule.failed]
    assert [rule.failed for rule in broken] == [2, 1]
    reasons = [reason for rule in broken for reason in rule.reasons]
    assert len(reasons) == 1
    assert reasons[0].endswith("list index out of range (mine.py:8)")


def test_check_tries_all_rules_whatever_is_said_to_pytest(
    mtbench: Mtbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = plugin(tmp_path, "return losses + []")
    monkeypatch.setenv("PYTEST_ADDOPTS", "-k declares_paper")
    code, out, _ = mtbench("check", "mine", "--plugin", file)
    assert code == 1, out
    (tmp_path / "other").mkdir()
    file = plugin(tmp_path / "other", "raise KeyboardInterrupt")
    assert mtbench("check", "mine", "--plugin", file)[0] == 130
    monkeypatch.setattr("pytest.main", lambda *_, **__: pytest.ExitCode.USAGE_ERROR)
    with pytest.raises(UsageError, match="rules could not be tried: pytest ends with"):
        of_method(Method.find("ew"))


def test_check_tells_what_we_refuse_in_our_words(tmp_path: Path) -> None:
    file = plugin(tmp_path, "return losses\n\n    def __init__(self, num_objectives, seed=0): ...")
    first, *_ = of_method(Method.find("mine", [file]))
    assert first.reasons[0].startswith(f"{file}: Mine.__init__ does not construct its base: begin")


def test_an_abstract_method_is_refused_with_what_it_lacks(tmp_path: Path) -> None:
    file = plugin(tmp_path, "return losses")
    file.write_text(file.read_text().replace("def weights", "def weight"))
    with pytest.raises(PluginError, match="found none; Mine does not define weights"):
        Method.find("mine", [file])
