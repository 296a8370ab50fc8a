"""grouped and last_layer."""

import copy
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtbench import Balancer, Method, Step
from mtbench.errors import StepError, UsageError
from mtbench.seeding import derive
from mtbench_baselines._groups import checked, grouped
from mtbench_baselines.every import Every
from mtbench_baselines.graddrop import GradDrop
from mtbench_baselines.grouped import Grouped
from mtbench_baselines.last_layer import LastLayer
from mtbench_baselines.mgda import MGDA
from mtbench_baselines.uw import UncertaintyWeighting
from tests.soak import differences
from tests.training.test_bilevel import train

BASES = ["mgda", "pcgrad", "gradvac", "nash_mtl", "gramian_ema+cagrad", "moco", "trimmed_mean"]
BYS = {"tensor": [[0], [1], [2], [3]], "layer": [[0, 1], [2, 3]], "block": [[0, 1], [2, 3]]}
K = 3


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.encoder = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
            self.heads = nn.ModuleList(nn.Linear(3, 1) for _ in range(K)).double()

    def step(self, batch: int, **said: Any) -> Step:
        x = torch.randn(6, 4, generator=torch.Generator().manual_seed(batch)).double()
        z = self.encoder(x)
        losses = [(head(z) - k).square().mean() for k, head in enumerate(self.heads)]
        return Step(losses, **{"shared": self.encoder.named_parameters(), **said})

    def grads(self, method: Balancer, batch: int, **said: Any) -> tuple[list[Tensor], list[Tensor]]:
        self.zero_grad()
        method.backward(self.step(batch, **said))
        parts = (self.encoder, self.heads)
        return tuple([p.grad.clone() for p in part.parameters()] for part in parts)


def made(name: str, **given: Any) -> Balancer:
    return Method.find(name)(K, 7, **given)


@pytest.mark.parametrize("by", BYS)
@pytest.mark.parametrize("base", BASES)
def test_each_group_is_the_base_on_its_block_of_the_jacobian(base: str, by: str) -> None:
    """Over several steps, each group's memory its own."""
    net, method = Net(), made(f"grouped+{base}", **{"grouped.by": by})
    groups = BYS[by]
    alone = [drawing(made(base), number) for number in range(len(groups))]
    for batch in range(4):
        found, heads = net.grads(method, batch)
        step = net.step(batch)
        columns = torch.split(step.jacobian().clone(), [p.numel() for p in step.shared], dim=1)
        for group, own in zip(groups, alone, strict=True):
            block = torch.cat([columns[i] for i in group], dim=1)
            x = torch.zeros(block.shape[1], dtype=torch.float64, requires_grad=True)
            losses = step.values.double() + block @ x
            own.backward(Step(list(losses), shared=[x]))
            torch.testing.assert_close(torch.cat([found[i].flatten() for i in group]), x.grad)
        plain = [g for head in step.head_grads for g in head]
        assert all(map(torch.equal, heads, plain))


def drawing(method: Balancer, group: int) -> Balancer:
    """Return the method of a group, which draws by itself; the first as the base would."""
    for part in method.modules() if group else ():
        if isinstance(part, Balancer):
            part.generator.manual_seed(derive(part.generator.initial_seed(), "group", group))
    return method


@pytest.mark.parametrize("base", BASES)
def test_one_group_is_the_base(base: str) -> None:
    net, inside, plain = Net(), made(f"grouped+{base}", **{"grouped.by": "all"}), made(base)
    for batch in range(3):
        for found, wanted in zip(net.grads(inside, batch), net.grads(plain, batch), strict=True):
            torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("base", BASES)
def test_resumes_bit_identical(base: str) -> None:
    """A fresh one takes as many groups as there were, and one with others loses them."""
    net, method = Net(), made(f"grouped+{base}")
    for batch in range(3):
        net.grads(method, batch)
    state = copy.deepcopy(method.state_dict())
    fresh, other = made(f"grouped+{base}"), made(f"grouped+{base}")
    net.encoder.append(nn.Linear(3, 3).double())
    net.grads(other, 0)
    del net.encoder[-1]
    wanted = net.grads(method, 3)
    for resumed in (fresh, other):
        resumed.load_state_dict(state)
        for a, b in zip(wanted, net.grads(resumed, 3), strict=True):
            assert all(map(torch.equal, a, b))


def test_groups_by_pattern_then_by_rule() -> None:
    def found(names: Iterable[str], by: Any, *named: str) -> list[list[int]]:
        _, patterns = checked("x", by, named)
        leaves = [(name, torch.ones(1, requires_grad=True)) for name in names]
        return grouped("x", Step([leaves[0][1].sum()], shared=leaves), by, patterns)

    lora = ["a.lora_A", "a.lora_B", "b.lora_A", "b.lora_B", "b.bias"]
    assert found(lora, "layer", "lora_A", "lora_B") == [[0, 2], [1, 3], [4]]
    deep = ["net.stem.weight", "net.1.conv.weight", "net.1.norm.weight", "net.1.norm.bias"]
    assert found(deep, "layer") == [[0], [1], [2, 3]]
    assert found(deep, "block") == [[0], [1, 2, 3]]
    assert found(deep, "tensor", "norm") == [[0], [1], [2, 3]]
    assert found(deep, "all") == [[0, 1, 2, 3]]
    assert found(["body.weight", "body.bias"], "block") == [[0, 1]]


@pytest.mark.parametrize("method", ["grouped", "last_layer"])
def test_names_that_are_not_known_are_asked_for(method: str) -> None:
    given = {"grouped.by": "layer"} if method == "grouped" else {}
    balancer, net = made(f"{method}+mgda", **given), Net()
    with pytest.raises(StepError, match=r"hand over shared=encoder.named_parameters\(\)"):
        net.grads(balancer, 0, shared=net.encoder.parameters())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Grouped(UncertaintyWeighting(2)), "grouped wraps methods that find weights"),
        (lambda: Grouped(MGDA(2, space="features")), "space=features"),
        (lambda: Grouped(MGDA(2), by="rows"), "by must be 'tensor' or"),
        (lambda: Grouped(MGDA(2), named=("(",)), "regular expressions, found '\\('"),
        (lambda: LastLayer(UncertaintyWeighting(2)), "last_layer wraps methods that find weights"),
        (lambda: LastLayer(GradDrop(2)), "last_layer wraps"),
        (lambda: LastLayer(Grouped(MGDA(2))), "last_layer wraps"),
        (lambda: LastLayer(MGDA(2, space="features")), "last_layer wraps"),
        (lambda: LastLayer(Every(MGDA(2, space="features"))), "last_layer wraps"),
    ],
)
def test_refuses(make: Callable[[], Balancer], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


def test_groups_that_were_others_in_the_first_step_are_refused() -> None:
    net, method = Net(), made("grouped+gradvac")
    method.backward(net.step(0))
    with pytest.raises(StepError, match=r"4 groups .* found 2 now: say shared="):
        method.backward(net.step(1, shared=list(net.encoder[0].parameters())))


def test_an_overflow_in_one_group_is_the_plain_sum_and_leaves_no_trace() -> None:
    for base in ("gramian_ema+mgda", "moco"):
        method = made(f"grouped+{base}")
        net = Net()
        net.grads(method, 0)
        before = copy.deepcopy(method.state_dict())
        x, y, u, v = (torch.ones(1, requires_grad=True) for _ in range(4))
        bent = (1 + (y - 1).abs().sqrt()).sum()  # no slope at y = 1
        losses = [(x + y + u + v).sum(), x.sum(), bent]
        method.backward(Step(losses, shared=[x, y, u, v]))
        assert x.grad.item() == 2
        assert not y.grad.isfinite().any()
        assert method.state_dict().keys() == before.keys()
        for key, value in method.state_dict().items():
            assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("base", ["mgda", "gradnorm", "norm_matched+pcgrad", "damped+cagrad"])
@pytest.mark.parametrize("with_features", [False, True])
def test_last_layer_is_the_base_with_the_last_layer_for_shared(
    base: str, with_features: bool
) -> None:
    net = Net()
    ours, theirs = made(f"last_layer+{base}"), made(base)
    named = made(f"last_layer+{base}", **{"last_layer.named": "^0"})
    first = made(base)
    for batch in range(3):
        pairs = [(ours, theirs, net.encoder[2]), (named, first, net.encoder[0])]
        for method, plain, layer in pairs:
            found = net.grads(method, batch)
            wanted = net.grads(plain, batch, shared=layer.parameters())
            for a, b in zip(found, wanted, strict=True):
                torch.testing.assert_close(a, b)


@pytest.mark.parametrize("named", [("conv",), ("0", "0.weight")])
def test_each_pattern_makes_a_group(named: tuple[str, ...]) -> None:
    said = f"left is called like {named[-1]!r}, found 0.weight, 0.bias"
    with pytest.raises(StepError, match=re.escape(said)):
        Net().grads(made("grouped+mgda", **{"grouped.named": named}), 0)


def test_last_layer_wants_a_name_that_there_is() -> None:
    with pytest.raises(StepError, match=re.escape("called like 'conv', found 0.weight, 0.bias")):
        Net().grads(made("last_layer+mgda", **{"last_layer.named": "conv"}), 0)


def test_last_layer_goes_back_once_through_what_is_below() -> None:
    net, calls = Net(), []
    net.encoder[0].weight.register_hook(lambda _: calls.append(1))
    net.grads(made("last_layer+mgda"), 0)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("method", "given"),
    [("grouped+pcgrad", {"grouped.by": "layer"}), ("last_layer+gradnorm", {})],
)
def test_layers_are_known_in_training_which_resumes_bit_identical(
    tiny: Path, tmp_path: Path, method: str, given: dict[str, str]
) -> None:
    whole = train(tiny, tmp_path / "whole", method, **given)
    train(tiny, tmp_path / "broken", method, stop=8, **given)
    again = train(tiny, tmp_path / "broken", method, **given)
    assert not list(differences(whole.path, again.path))
