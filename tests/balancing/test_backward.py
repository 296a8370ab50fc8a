"""`balancer.backward(losses)`: what it takes, refuses in one line, leaves behind."""

import copy
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._functorch.config
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import mtbench
from mtbench import Balancer, Engine, Step
from mtbench.balancing import passes
from mtbench.balancing.distributed import ALONE
from mtbench.errors import StepError, UsageError
from tests.methods import NAMELESS


class Net(nn.Module):
    """An encoder, K heads, and their losses on one batch."""

    def __init__(self, K: int = 2, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.default_generator.manual_seed(0)  # the CPU's alone: it is set a thousand times
            self.encoder = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh())
            self.heads = nn.ModuleList(nn.Linear(6, 1) for _ in range(K))
            self.x = torch.randn(12, 4).to(dtype)
        self.to(dtype)

    def z(self, samples: slice = slice(None)) -> Tensor:
        z: Tensor = self.encoder(self.x[samples])
        return z

    def of(self, z: Tensor, count: int = 12) -> list[Tensor]:
        return [(head(z) - k).square().sum() / count for k, head in enumerate(self.heads)]

    def overflown(self, z: Tensor) -> list[Tensor]:
        first, *others = self.of(z)
        return [first / 0, *others]

    def losses(self, samples: slice = slice(None)) -> list[Tensor]:
        return self.of(self.z(samples))

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        z = self.encoder(x)
        return self.of(z), z


def grads(module: nn.Module) -> list[Tensor | None]:
    found = [None if p.grad is None else p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    return found


def same(found: Sequence[Tensor | None], expected: Sequence[Tensor | None]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def made(net: Net, name: str = "cagrad", **said: Any) -> list[Tensor | None]:
    """The gradients that a new balancer makes of a new forward pass."""
    mtbench.balancer(name, num_objectives=len(net.heads)).backward(net.losses(), **said)
    return grads(net)


def drive(
    net: Net, balancer: mtbench.Balancer, losses_of: Callable[[Tensor], Any], **more: Any
) -> Any:
    """One step of a whole loop, with all that any method may ask for."""
    net.zero_grad()
    z = net.z()

    def again() -> Any:
        return losses_of(net.z())

    said: dict[str, Any] = {"again": again, "validation": again, **more}
    if balancer.needs_features:
        said["latent"] = z
    weights = balancer.backward(losses_of(z), **said)
    written = [p for p in net.parameters() if p.grad is not None]
    if all(p.grad.isfinite().all() for p in written):
        with torch.no_grad():
            for p in written:
                p -= 0.01 * p.grad
    balancer.after_step(again)
    return weights


def tensors(balancer: mtbench.Balancer) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in balancer.state_dict().items() if isinstance(v, Tensor)}


# --- what it takes


def test_a_balancer_by_name() -> None:
    balancer = mtbench.balancer("damped+cagrad", num_objectives=3, seed=4, **{"cagrad.c": 0.1})
    assert balancer.base.c == 0.1
    with pytest.raises(UsageError, match="did you mean 'cagrad'"):
        mtbench.balancer("cagard", num_objectives=2)
    with pytest.raises(TypeError, match="positional"):
        mtbench.balancer("cagrad", 2, 0.4)  # type: ignore[misc]


def test_names_in_names_out() -> None:
    net, balancer = Net(), mtbench.balancer("mgda", num_objectives=2)
    by_order = balancer.backward(net.losses())
    first, second = net.losses()
    by_name = balancer.backward({"mask": first, "grade": second})
    assert list(by_name) == ["mask", "grade"]
    assert torch.stack(list(by_name.values())).equal(by_order)
    turned = balancer.backward(dict(reversed(list(zip(by_name, net.losses(), strict=True)))))
    assert turned == by_name  # a name's weight does not depend on the order
    with pytest.raises(StepError, match="balances mask, grade, found losses named mask, size"):
        balancer.backward({"mask": first, "size": second})
    assert (
        mtbench.balancer("graddrop", num_objectives=2).backward(
            dict(zip("ab", net.losses(), strict=True))
        )
        is None
    )  # it has no weights


@pytest.mark.parametrize("name", ["ew", "mgda", "graddrop"])
def test_a_new_gradient_scaler(name: str) -> None:
    net, scaler = Net(dtype=torch.float32), torch.amp.GradScaler("cpu", init_scale=1024.0)
    balancer = mtbench.balancer(name, num_objectives=2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    plain = made(net, name)
    balancer.backward(net.losses(), loss_scale=scaler)
    scaler.unscale_(optimizer)
    for p, expected in zip(net.parameters(), plain, strict=True):
        torch.testing.assert_close(p.grad, expected)
    scaler.step(optimizer)
    scaler.update()


def test_latent_space_is_where_z_is() -> None:
    net = Net()
    for name in ("rlar", "mgda", "rotograd"):
        found = []
        for features in (False, True):
            options = {"space": "features"} if name == "mgda" else {}
            balancer = mtbench.balancer(name, num_objectives=2, **options)
            z = net.z()
            losses = net.of(z)
            balancer.backward(losses, **({"features": z} if features else {"latent": z}))
            found.append(grads(net))
        same(*found)


def test_latent_space_within_the_encoder() -> None:
    """z need not be where the losses part."""
    net = Net()
    z = net.encoder[:2](net.x)
    losses = net.of(net.encoder[2:](z))
    found = Step(losses, latent=z).feature_grads()
    for row, loss in zip(found, losses, strict=True):
        torch.testing.assert_close(row[0], torch.autograd.grad(loss, z, retain_graph=True)[0])


def test_the_forward_pass_again_is_its_losses() -> None:
    net = Net()
    same(
        made(net, "samo+cagrad", again=net.losses),
        made(net, "samo+cagrad", again=lambda: Step(net.losses())),
    )


# --- what is told to Step


@pytest.mark.parametrize("name", ["mgda", "trimmed_mean", "config"])
@pytest.mark.parametrize(
    "told",
    [
        lambda z, h: [z],
        lambda z, h: [z, z],  # repeated
        lambda z, h: [h, z],  # one computed from the other
        lambda z, h: [h],  # not what the heads get
        lambda z, h: [z, z.clone()],  # one that nobody reads
    ],
)
def test_features_do_not_change_what_is_right(
    name: str, told: Callable[[Tensor, Tensor], list[Tensor]]
) -> None:
    net = Net()
    expected = made(net, name)
    h = net.encoder[:2](net.x)
    z = net.encoder[2:](h)
    told_step = Step(net.of(z), features=told(z, h), shared=net.encoder.parameters())
    mtbench.balancer(name, num_objectives=2).backward(told_step)
    same(grads(net), expected)


@pytest.mark.parametrize("name", ["mgda", "rlar"])
@pytest.mark.parametrize(
    "away", [Tensor.detach, Tensor.clone, lambda z: z.detach().requires_grad_()]
)
def test_features_that_no_loss_reads_are_refused(
    name: str, away: Callable[[Tensor], Tensor]
) -> None:
    net = Net()
    z = net.z()
    balancer = mtbench.balancer(name, num_objectives=2)
    with pytest.raises(StepError, match=r"no loss (reads|was computed from)"):
        balancer.backward(Step(net.of(z), features=away(z)))
    with pytest.raises(StepError, match=r"no loss (reads|was computed from)"):
        balancer.backward(Step(net.of(z), features=away(z), shared=net.encoder.parameters()))


@pytest.mark.parametrize("name", ["unit+mgda", "rotograd", "rlar", "consmtl", "encodec"])
@pytest.mark.parametrize("told", ["latent", "features"])
def test_a_loss_that_goes_round_the_features_is_refused(name: str, told: str) -> None:
    net, early = Net(), nn.Linear(8, 1).double()
    options = {"mgda.space": "features"} if "mgda" in name else {}
    balancer = mtbench.balancer(name, num_objectives=3, **options)
    h = net.encoder[:2](net.x)
    z = net.encoder[2:](h)
    with pytest.raises(StepError, match=r"losses\[2\] reaches shared parameters, but not by way"):
        balancer.backward([*net.of(z), early(h).square().mean()], **{told: z})
    for away in (h.detach(), None):  # nothing of it is to reach the encoder
        z = net.z()
        third = None if away is None else early(away).square().mean()
        balancer.backward([*net.of(z), third], **{told: z})
    assert early.weight.grad is not None


@pytest.mark.parametrize("how", [lambda z, h: [z, z], lambda z, h: [h, z]])
def test_latent_space_does_not_count_twice(how: Callable[..., list[Tensor]]) -> None:
    net = Net()
    h = net.encoder[:2](net.x)
    z = net.encoder[2:](h)
    step = Step(net.of(z), features=how(z, h))
    with pytest.raises(StepError, match="would count twice: hand over each once"):
        step.gramian("features")


@pytest.mark.parametrize("name", ["ew", "mgda", "uw", "graddrop"])
def test_what_is_refused(name: str) -> None:
    net, balancer = Net(), mtbench.balancer(name, num_objectives=2)
    a, b = net.losses()
    for losses, message in [
        ([a], rf"{name} balances 2 objectives, found 1 losses: construct it with num_objectives=1"),
        ([a, b, b], "found 3 losses"),
        ([a, 1.0], r"losses\[1\] must be a scalar tensor, or None .* found a float"),
        ([a, torch.ones(3)], r"losses\[1\] must be a scalar, found shape \(3,\)"),
        ([a, b.detach()], r"losses\[1\] depends on nothing that requires grad: was it detached"),
    ]:
        with pytest.raises(StepError, match=message):
            balancer.backward(losses)
    with pytest.raises(StepError, match=r"losses\[1\] depends on nothing that requires grad"):
        balancer.backward(Step([a, b.detach()]))
    with torch.no_grad(), pytest.raises(StepError, match=r"under torch\.no_grad"):
        balancer.backward(net.losses())
    with pytest.raises(StepError, match=r"must be parameters, found a Sequential: give \.param"):
        balancer.backward([a, b], shared=net.encoder)
    with pytest.raises(StepError, match=r"shared\[0\] must be a parameter, found a tensor"):
        balancer.backward([a, b], shared=[net.z()])
    assert all(g is None for g in grads(net))


@pytest.mark.parametrize("name", ["ew", "mgda", "graddrop"])
def test_a_graph_that_is_gone_is_refused(name: str) -> None:
    """Two balancers on one graph, or a loss whose backward was called before."""
    net, (first, second) = Net(4), (mtbench.balancer(name, num_objectives=2) for _ in range(2))
    losses = net.losses()
    first.backward(losses[:2])
    with pytest.raises(StepError, match="an earlier backward pass freed it: balance all losses"):
        second.backward(losses[2:])
    z = nn.Linear(600, 600)(torch.ones(4, 600))  # a layer whose gradients are not formed
    losses = [z.square().sum(), z.exp().sum()]
    sum(losses).backward()
    with pytest.raises(StepError, match="an earlier backward pass freed it: balance all losses"):
        first.backward(losses)


@pytest.mark.parametrize("name", ["ew", "uw", "mgda", "graddrop"])
@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_under_no_grad_gradients_are_written_all_the_same(
    name: str, without: Callable[[], Any]
) -> None:
    """As `Tensor.backward` does."""
    net = Net()
    expected, losses = made(net, name), net.losses()
    with without():
        mtbench.balancer(name, num_objectives=2).backward(losses)
    same(grads(net), expected)


@pytest.mark.parametrize("name", ["mgda", "graddrop"])
def test_shared_parameters_that_no_loss_reaches_are_refused(name: str) -> None:
    net, balancer = Net(), mtbench.balancer(name, num_objectives=2)
    with pytest.raises(StepError, match="no loss reaches any of the 4 shared parameters"):
        balancer.backward(net.losses(), shared=Net().encoder.parameters())


@pytest.mark.parametrize("as_step", [False, True])
@pytest.mark.parametrize("name", ["ew", "mgda", "graddrop"])
def test_shared_parameters_at_which_nothing_compares_are_refused(name: str, as_step: bool) -> None:
    net, balancer = Net(), mtbench.balancer(name, num_objectives=2)

    def backward(losses: Sequence[Tensor | None], shared: Any) -> None:
        if as_step:
            balancer.backward(Step(losses, shared=shared))
        else:
            balancer.backward(losses, shared=shared)

    for k, head in enumerate(net.heads):
        with pytest.raises(StepError, match=rf"only losses\[{k}\] reaches"):
            backward(net.losses(), head.parameters())
    for none in ([], [p.data for p in net.encoder.parameters()]):
        with pytest.raises(StepError, match="no trainable parameter is left in shared="):
            backward(net.losses(), none)
    backward(net.losses(), kept := net.encoder.parameters())
    with pytest.raises(StepError, match="a generator gives them once"):
        backward(net.losses(), kept)
    first, _ = net.losses()
    backward([first, None], net.encoder.parameters())  # no label, no mistake


@pytest.mark.parametrize("told", [{}, {"shared": True}, {"features": True}])
def test_a_graph_without_parameters_trains_its_tensors(told: dict[str, bool]) -> None:
    encoder, *heads = (torch.ones(4, requires_grad=True) for _ in range(3))
    z = 2 * encoder
    said = {"shared": [encoder], "features": z}
    losses = [(z * head).sum() for head in heads]
    mtbench.balancer("mgda", num_objectives=2).backward(losses, **{k: said[k] for k in told})
    for tensor in (encoder, *heads):
        torch.testing.assert_close(tensor.grad, torch.full((4,), 2.0))


def test_nothing_is_said_beside_a_step() -> None:
    net, balancer = Net(), mtbench.balancer("mgda", num_objectives=2)
    with pytest.raises(StepError, match=r"found loss_scale beside it: say Step\(losses, loss_sc"):
        balancer.backward(Step(net.losses()), loss_scale=8.0)


def test_other_forward_passes_may_be_steps() -> None:
    net, famos = Net(), [mtbench.balancer("famo", num_objectives=2) for _ in range(2)]
    first, second = net.losses()
    for famo, again in zip(famos, (list, Step), strict=True):
        famo.backward(net.losses())
        famo.after_step(lambda again=again: again([first / 3, second / 2]))
    same([famos[0].logits], [famos[1].logits])
    assert famos[0].logits.count_nonzero() > 0
    with pytest.raises(StepError, match="balances 2 objectives, found 1 losses"):
        famos[1].after_step(lambda: Step([first]))
    for form in (list, Step):
        samo = mtbench.balancer("samo+ew", num_objectives=2)
        with pytest.raises(StepError, match=r"losses\[0\] depends on nothing that requires grad"):
            samo.backward(
                net.losses(),
                again=lambda form=form: form([net.losses()[0].detach(), net.losses()[1]]),
            )


def test_what_is_repeated_within_autocast_sees_the_parameters_of_now() -> None:
    region, found = partial(torch.autocast, "cpu", torch.bfloat16), []
    for whole, each in ((region, nullcontext), (nullcontext, region)):
        net, balancer = Net(dtype=torch.float32), mtbench.balancer("famo", num_objectives=2)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

        def losses(net: Net = net, each: Any = each) -> list[Tensor]:
            with each():
                return net.losses()

        with whole():
            balancer.backward(losses())
            optimizer.step()
            balancer.after_step(losses)
        found.append(balancer.logits)
    assert found[0].any()
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("name", ["moco", "modo", "db_mtl", "moml", "auto_lambda", "cyclic+mgda"])
def test_autocast_does_not_round_the_direction(name: str) -> None:
    x, target = nn.Parameter(torch.randn(300)), torch.randn(2, 300)

    def losses() -> list[Tensor]:
        return [(k + 1) * (x - y).square().sum() for k, y in enumerate(target)]

    found = []
    for enabled in (False, True):
        balancer = mtbench.balancer(name, num_objectives=2)
        x.grad, said = None, {"validation": losses}
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            balancer.backward(losses(), shared=[x], **said)
        found.append(x.grad)
    torch.testing.assert_close(*found)


def test_other_forward_passes_may_name_their_losses() -> None:
    """By name, without a label, and counted, as the first pass."""
    net, balancer = Net(dtype=torch.float32), mtbench.balancer("famo", num_objectives=2)
    for names in (["a", "b"], ["b", "a"]):
        balancer.backward(dict(zip("ab", net.losses(), strict=True)))
        balancer.after_step(lambda names=names: {n: net.losses()["ab".index(n)] for n in names})
        assert balancer.logits.count_nonzero() == 0  # nothing has moved, and nobody is mixed up
    first, second = net.losses()
    balancer.backward([first, second])
    balancer.after_step(lambda: [None, second / 2])
    with pytest.raises(StepError, match="famo balances 2 objectives, found 1 losses"):
        balancer.after_step(lambda: [second])

    net.zero_grad()
    samo = mtbench.balancer("samo+fairgrad", num_objectives=2)
    by_name = samo.backward(
        dict(zip("ab", net.losses(), strict=True)),
        again=lambda: dict(zip("ab", net.losses(), strict=True)),
    )
    named = grads(net)
    samo = mtbench.balancer("samo+fairgrad", num_objectives=2)
    samo.backward(net.losses(), again=net.losses)
    same(grads(net), named)
    assert list(by_name) == ["a", "b"]
    with pytest.raises(StepError, match="balances 2 objectives, found 1 losses"):
        samo.backward(net.losses(), again=lambda: net.losses()[:1])
    with pytest.raises(StepError, match=r"samo: again needs a function .*, found a list: say lamb"):
        samo.backward(net.losses(), again=net.losses())
    with pytest.raises(StepError, match=r"was the forward pass under torch\.no_grad"):
        samo.backward(net.losses(), again=torch.no_grad()(net.losses))
    famo = mtbench.balancer("famo", num_objectives=2)
    famo.backward(net.losses())
    with pytest.raises(StepError, match="famo: after_step needs a function"):
        famo.after_step(net.losses())  # type: ignore[arg-type]


def test_a_balancer_is_no_module_to_call() -> None:
    with pytest.raises(UsageError, match=r"mgda: .* say balancer\.backward\(losses\)"):
        mtbench.balancer("mgda", num_objectives=2)([torch.ones(())])


@pytest.mark.parametrize("seed", [None, True, 2**64, "0", 0.5])
def test_a_seed_is_an_integer_that_torch_takes(seed: Any) -> None:
    with pytest.raises(UsageError, match=r"ew: seed must be"):
        mtbench.balancer("ew", num_objectives=2, seed=seed)


def test_integers_of_numpy_are_integers() -> None:
    balancer = mtbench.balancer("ew", num_objectives=np.int64(2), seed=np.int64(1))
    assert type(balancer.num_objectives) is int


@pytest.mark.parametrize("name", [None, nn.Linear])
def test_a_method_goes_by_its_name(name: Any) -> None:
    with pytest.raises(UsageError, match="name must be a method's"):
        mtbench.balancer(name, num_objectives=2)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"features": nn.Linear(2, 2)}, r"features\[0\] must be a tensor .* found a Linear"),
        ({"features": {"z": torch.ones(2)}}, r"features\[0\] must be a tensor .* found a dict"),
        ({"latent": [torch.ones(2)]}, "latent must be a tensor or its index, found a list"),
        ({"ranks": True}, r"ranks must be Group\(\) or ALONE .* found True"),
        ({"shared": [(1, 2, 3)]}, r"shared\[0\] .* found a tuple"),
        ({"shared": nn.Linear(2, 2).weight}, "found one: hand over a list"),
        ({"shared": 3}, "shared must be parameters, found a int"),
        ({"features": 3}, r"features\[0\] must be a tensor .* found a int"),
        ({"engine": mtbench.Engine}, r"engine must be an Engine\(\.\.\.\), found <class"),
        ({"feature": None}, "mgda: backward takes no feature=: did you mean 'features'"),
        ({"retain_graph": True}, "mgda: backward takes no retain_graph=: known: again, engine"),
        ({"loss_scale": 0.0}, "loss_scale must be a GradScaler, or a number above 0, found 0.0"),
        ({"loss_scale": float("nan")}, "found nan"),
        ({"loss_scale": None}, "found None"),
        ({"loss_scale": True}, "found True"),
        ({"loss_scale": "8"}, "found '8'"),
        ({"loss_scale": torch.ones(2, 3)}, r"found a tensor of shape \(2, 3\)"),
        ({"loss_scale": torch.ones((), dtype=torch.complex64)}, r"found a tensor of shape \(\)"),
    ],
)
def test_wrong_words_are_refused(said: dict[str, Any], message: str) -> None:
    net, balancer = Net(), mtbench.balancer("mgda", num_objectives=2)
    with pytest.raises(StepError, match=message) as refused:
        balancer.backward(net.losses(), **said)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        (
            torch.ones((), requires_grad=True),
            "a sequence of scalars, found a Tensor: .* not their sum",
        ),
        (None, "found a NoneType"),
        ({torch.ones(()), torch.zeros(())}, "a sequence of scalars, found a set: .* in order"),
        ([torch.ones(()), 0.0], r"losses\[1\] must be a scalar tensor, or None .* found a float"),
        ([torch.ones((), dtype=torch.complex64)] * 2, r"losses\[0\] must be real, found torch.c"),
        (
            [None, torch.ones(()), torch.ones((), device="meta")],
            r"on one device, found losses\[2\] on meta and another on cpu: say loss\.to\('cpu'\)",
        ),
        ({None: torch.ones(()), "b": torch.ones(())}, "losses' names must be .* found None"),
    ],
)
def test_wrong_losses_are_refused(losses: Any, message: str) -> None:
    with pytest.raises(StepError, match=message):
        mtbench.balancer("mgda", num_objectives=2).backward(losses)


@pytest.mark.parametrize("count", [2.0, "2", True, None])
def test_a_number_of_objectives_is_an_integer(count: Any) -> None:
    with pytest.raises(UsageError, match="ew: num_objectives must be an integer, found"):
        mtbench.balancer("ew", num_objectives=count)


def test_reentrant_checkpoints_are_refused() -> None:
    net = Net()
    net.x.requires_grad_()

    def losses() -> list[Tensor]:
        return net.of(checkpoint(net.encoder, net.x, use_reentrant=True))

    made_by_sum = Net()
    mtbench.balancer("ew", num_objectives=2).backward(made_by_sum.losses())
    mtbench.balancer("ew", num_objectives=2).backward(losses())  # one backward needs no parameters
    same(grads(net), grads(made_by_sum))
    with pytest.raises(StepError, match="use_reentrant=False"):
        mtbench.balancer("mgda", num_objectives=2).backward(losses())


def by_flash(net: Net, z: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return F.scaled_dot_product_attention(*[z[None, None]] * 3)


def compiled(net: Net, z: Tensor) -> Tensor:
    found: Tensor = torch.compile(net.heads[0], backend="aot_eager")(z)
    return found


def checkpointed(net: Net, z: Tensor) -> Any:
    return checkpoint(net.heads[0], z, use_reentrant=True)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # of dynamo
@pytest.mark.parametrize(
    ("head", "message"),
    [
        (compiled, "leave heads uncompiled"),
        (by_flash, r"sdpa_kernel\(SDPBackend.MATH\).* \(torch says: derivative for aten::_scaled"),
        (checkpointed, "use_reentrant=False"),
    ],
)
def test_heads_whose_gradients_cannot_be_differentiated(
    head: Callable[[Net, Tensor], Tensor], message: str
) -> None:
    net = Net()
    z = net.z()
    losses = [head(net, z).square().mean(), net.heads[1](z).square().mean()]
    with pytest.raises(StepError, match=message):
        mtbench.balancer("rlar", num_objectives=2).backward(losses, latent=z)


def test_several_processes_have_to_be_spoken_of(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net()
    expected = made(net)
    monkeypatch.setattr("mtbench.balancing.balancer.processes", lambda: 2)
    monkeypatch.setattr("mtbench.balancing.distributed.differ", lambda found: len(found) == 2 + 8)
    with pytest.raises(StepError, match=r"losses or gradients differ .*: give ranks=Group\(\)"):
        made(net)
    same(made(Net(), ranks=ALONE), expected)


@pytest.mark.parametrize("mark", ["ds_id", "_hp_mapping", "_is_flat_param"])
def test_parameters_that_others_hold_are_refused(mark: str) -> None:
    net = Net()
    setattr(net.encoder[0].weight, mark, 1)
    with pytest.raises(StepError, match="held by FSDP or DeepSpeed"):
        made(net)


def test_a_direction_says_nothing_of_what_is_left_out() -> None:
    net = Net()
    with pytest.raises(StepError, match="2 parameters that several losses reach are beside the"):
        made(net, "graddrop", shared=net.encoder[2].parameters())


# --- what is right


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("space", ["shared", "features"])
def test_a_part_of_the_encoder(parts: int, space: str) -> None:
    """Weights are found there; all that is shared gets the weighted sum's gradient."""
    net = Net(3)
    part = list(net.encoder[2].parameters())
    losses = net.losses()
    rows = [torch.cat([g.flatten() for g in torch.autograd.grad(x, part, retain_graph=True)])
            for x in losses]  # fmt: skip
    J = torch.stack(rows)
    balanced = Step(losses, shared=part, engine=Engine(batched=False, parts=parts))
    torch.testing.assert_close(balanced.gramian(), J @ J.T)
    weights = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
    balanced.backward(weights, space)  # type: ignore[arg-type]
    total = sum(w * x for w, x in zip(weights, net.losses(), strict=True))
    expected = torch.autograd.grad(total, list(net.encoder.parameters()))
    for p, g in zip(net.encoder.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, g)
    for head, loss in zip(net.heads, net.losses(), strict=True):
        torch.testing.assert_close(head.weight.grad, torch.autograd.grad(loss, head.weight)[0])


@pytest.mark.filterwarnings("ignore")  # dynamo's own
@pytest.mark.parametrize("name", ["ew", "mgda", "config", "uw"])
def test_heads_that_are_compiled_with_the_encoder(name: str) -> None:
    """For autograd the whole model is one node: who has no gradient tells whose a head is."""
    net = Net(3)
    expected = made(net, name)
    with torch._functorch.config.patch(donated_buffer=False):
        compiled = torch.compile(net, backend="aot_eager")
        balancer = mtbench.balancer(name, num_objectives=3)
        for absent in (False, True):
            losses, z = compiled(net.x)
            if absent:  # heads are known by now
                losses[1] = None
                rest = mtbench.balancer(name, num_objectives=3)
                plain: list[Tensor | None] = [*net.losses()]
                plain[1] = None
                rest.backward(plain)
                expected = grads(net)
            balancer.backward(losses)
            found = grads(net)
            zeros = [g if g is None or g.any() else None for g in found]
            same(zeros if absent else found, expected)
        losses, z = compiled(net.x)
        with pytest.raises(StepError, match="no loss"):
            mtbench.balancer("rlar", num_objectives=3).backward(losses, latent=z)


class Waits(TorchDispatchMode):
    """Counts how often the host waits for the device, were the tensors on one."""

    count = 0

    def __torch_dispatch__(self, called, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += called is torch.ops.aten._local_scalar_dense.default
        return called(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["ew", "graddrop"])
@pytest.mark.parametrize("missing", [None, torch.tensor(math.nan), torch.tensor(0.0)])
def test_the_host_does_not_wait_for_what_is_missing(name: str, missing: Tensor | None) -> None:
    net, balancer = Net(3), mtbench.balancer(name, num_objectives=3)
    with Waits() as waits:
        balancer.backward([*net.losses()[:2], missing])
    assert waits.count == 0


@pytest.mark.filterwarnings("ignore")  # dynamo's own
@pytest.mark.parametrize("name", ["mgda", "config"])
def test_heads_are_told_though_another_is_not_compiled_with_them(name: str) -> None:
    """A loss that is None is in no graph: what is compiled without it waits for nothing of it."""
    net, present = Net(3), (0, 2)

    def losses(z: Tensor) -> list[Tensor | None]:
        heads = enumerate(net.heads)
        return [head(z).exp().mean() if k in present else None for k, head in heads]

    mtbench.balancer(name, num_objectives=3).backward(losses(net.z()))
    expected = grads(net)
    with torch._functorch.config.patch(donated_buffer=False):
        compiled = torch.compile(lambda x: losses(net.encoder(x)), backend="aot_eager")
        balancer = mtbench.balancer(name, num_objectives=3)
        for _ in range(2):
            balancer.backward(compiled(net.x))
            same(grads(net), expected)


@pytest.mark.filterwarnings("ignore")  # dynamo's own
@pytest.mark.parametrize("name", ["cagrad", "upgrad", "graddrop"])
def test_what_is_zero_at_first_is_no_head(name: str) -> None:
    net, seen = Net(2), []
    nn.init.zeros_(net.heads[1].weight)
    net.encoder[0].weight.register_hook(lambda g: seen.append(g.isfinite().all()))
    with (
        torch._functorch.config.patch(donated_buffer=False),
        torch.autograd.detect_anomaly(check_nan=True),
    ):
        compiled = torch.compile(net, backend="aot_eager")
        balancer = mtbench.balancer(name, num_objectives=2)
        for value in (0.0, 0.3):
            net.zero_grad()
            nn.init.constant_(net.heads[1].weight, value)
            balancer.backward(compiled(net.x)[0])
            check_encoder(net, net.losses(), name)
            for head, loss in zip(net.heads, net.losses(), strict=True):
                (own,) = torch.autograd.grad(loss, head.weight)
                torch.testing.assert_close(head.weight.grad, own)
    assert all(seen)


@pytest.mark.filterwarnings("ignore")  # dynamo's own
@pytest.mark.parametrize("name", ["ew", "cagrad", "config"])
def test_a_hook_between_what_is_compiled_apart_sees_no_nan(name: str) -> None:
    net, seen = Net(2), []
    expected = made(net, name)
    with torch._functorch.config.patch(donated_buffer=False):
        encoder = torch.compile(net.encoder, backend="aot_eager")
        z = encoder(net.x)
        z.register_hook(lambda g: seen.append(bool(g.isfinite().all())))
        z.retain_grad()
        mtbench.balancer(name, num_objectives=2).backward(net.of(z))
    same(grads(net), expected)
    assert seen
    assert all(seen)
    assert z.grad is not None
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("steps", [0, 12])
@pytest.mark.parametrize("kind", ["pre", "post"])
def test_a_hook_on_a_layers_node(kind: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that comes later is noticed before there have been twice as many steps."""
    from mtbench.balancing import layers

    monkeypatch.setattr(layers, "_FEWEST", 0)
    monkeypatch.setattr(layers.Layer, "pays", lambda self, objectives: True)
    layer, heads = nn.Linear(6, 5), [nn.Linear(5, 1) for _ in range(2)]
    balancer = mtbench.balancer("mgda", num_objectives=2)

    def losses(hooked: bool) -> list[Tensor]:
        y = layer(torch.ones(3, 6))
        if hooked and kind == "post":
            y.grad_fn.register_hook(lambda g, _: tuple(None if v is None else 3 * v for v in g))
        elif hooked:
            y.grad_fn.register_prehook(lambda g: tuple(3 * v for v in g))
        return [head(torch.tanh(y)).square().mean() for head in heads]

    own = list(layer.parameters())
    J = torch.stack([
        torch.cat([g.flatten() for g in torch.autograd.grad(x, own, retain_graph=True)])
        for x in losses(hooked=True)
    ])  # fmt: skip
    for step in range(2 * steps):
        balancer.backward(losses(hooked=step >= steps))
    layer.zero_grad()
    weights = balancer.backward(losses(hooked=True))
    found = torch.cat([p.grad.flatten() for p in layer.parameters()])
    torch.testing.assert_close(found, mtbench.combine("mgda", J))
    torch.testing.assert_close(found, weights.float() @ J)


def check_encoder(net: Net, losses: Sequence[Tensor], name: str) -> None:
    """Hold the encoder's ``.grad`` against what a method makes of autograd's K gradients."""
    own = list(net.encoder.parameters())
    rows = [torch.autograd.grad(x, own, retain_graph=True, materialize_grads=True) for x in losses]
    J = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    found = torch.cat([p.grad.flatten() for p in own])
    if name == "graddrop":  # it draws lots whether to take what is above zero, or below
        signs = J.clamp(min=0).sum(0), J.clamp(max=0).sum(0)
        assert torch.stack([(found - x).abs() for x in signs]).amin(0).max() < 1e-8
    else:
        values = torch.stack([x.detach() for x in losses])
        torch.testing.assert_close(found, mtbench.combine(name, J, values))


@pytest.mark.parametrize("name", ["cagrad", "upgrad", "graddrop"])
@pytest.mark.parametrize("told", [{}, {"batched": True}, {"features": True}])
@pytest.mark.parametrize(
    "hook", [lambda g: -g, lambda g: g.mul_(3), lambda g: g / (1e-3 + g.norm())]
)
def test_a_hook_on_features_runs_once(
    name: str, told: dict[str, bool], hook: Callable[[Tensor], Tensor]
) -> None:
    net = Net(3)

    def losses() -> tuple[list[Tensor], Tensor]:
        z = net.z()
        z.register_hook(hook)
        return net.of(z), z

    found, z = losses()
    said: dict[str, Any] = {"engine": Engine(batched=True)} if "batched" in told else {}
    said |= {"features": z} if "features" in told else {}
    mtbench.balancer(name, num_objectives=3).backward(found, **said)
    check_encoder(net, losses()[0], name)


@pytest.mark.parametrize("name", ["cagrad", "graddrop"])
def test_a_hook_on_features_may_refuse_zeros(name: str) -> None:
    def lives(gradient: Tensor) -> None:
        if not gradient.any():
            raise ValueError("the gradient has vanished")

    net = Net(3)
    z = net.z()
    z.register_hook(lives)
    mtbench.balancer(name, num_objectives=3).backward(net.of(z))
    check_encoder(net, net.losses(), name)


def of_chunks(net: Net) -> tuple[list[Tensor], list[Tensor]]:
    a, b = net.z().chunk(2, 1)
    z = torch.tanh(b.square())
    return [a.square().sum() + z.sum(), a.sum() - z.square().sum(), z.exp().sum()], [a, z]


def of_qr(net: Net) -> tuple[list[Tensor], list[Tensor]]:
    q, r = torch.linalg.qr(net.z())
    z = r @ r.T
    return [q.exp().sum() + z.sum(), q[:, 0].exp().sum(), z.square().sum()], [q, z]


@pytest.mark.parametrize("name", ["cagrad", "upgrad", "graddrop"])
@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("of", [of_chunks, of_qr])
def test_a_node_with_several_outputs(
    name: str, told: bool, of: Callable[[Net], tuple[list[Tensor], list[Tensor]]]
) -> None:
    net = Net()
    losses, features = of(net)
    said = {"features": features} if told else {}
    mtbench.balancer(name, num_objectives=3).backward(losses, **said)
    check_encoder(net, of(net)[0], name)


@pytest.mark.parametrize("name", ["cagrad", "upgrad", "graddrop"])
def test_retained_gradients_count_once(name: str) -> None:
    net = Net(3)
    z = net.z()
    z.retain_grad()
    losses = net.of(z)
    expected = sum(torch.autograd.grad(x, z, retain_graph=True)[0] for x in losses)
    z.grad = None
    mtbench.balancer(name, num_objectives=3).backward(losses)
    torch.testing.assert_close(z.grad, expected)


def joined(net: Net, hook: Callable[[Tensor], Tensor | None], at_head: bool) -> list[Tensor]:
    """Losses of outputs in one tensor, with a hook on a head's output or on all of them."""
    outputs = [head(net.z()) for head in net.heads]
    if at_head:
        outputs[0].register_hook(hook)
    together = torch.cat(outputs, 1)
    if not at_head:
        together.register_hook(hook)
    return [(column - k).square().mean() for k, column in enumerate(together.unbind(1))]


def finite(gradient: Tensor) -> None:
    assert gradient.isfinite().all()


@pytest.mark.parametrize("hook", [torch.nan_to_num, finite], ids=["cleans", "refuses"])
@pytest.mark.parametrize("at_head", [False, True])
@pytest.mark.parametrize("name", ["cagrad", "graddrop"])
def test_a_hook_above_joined_outputs(
    name: str, at_head: bool, hook: Callable[[Tensor], Tensor | None]
) -> None:
    net = Net(3)
    expected = made(net, name)
    mtbench.balancer(name, num_objectives=3).backward(joined(net, hook, at_head))
    same(grads(net), expected)


@pytest.mark.parametrize("hook", [lambda _: None, finite], ids=["looks", "refuses"])
def test_what_a_mask_takes_out_of_joined_outputs_is_read(hook: Any) -> None:
    net = Net(3)
    first, second, third = joined(net, hook, False)
    step = Step([first + 0 * second, second, third])
    head = {*map(id, net.heads[1].parameters())}
    assert ({*map(id, step.shared)} >= head) == (hook is not finite)  # else its own gradient tells


def test_an_output_that_no_loss_reads_among_joined_ones() -> None:
    net = Net(3)
    mtbench.balancer("cagrad", num_objectives=2).backward(joined(net, finite, False)[:2])
    assert [head.weight.grad is None for head in net.heads] == [False, False, True]


def test_shared_parameters_come_as_the_forward_pass_reads_them() -> None:
    """Whichever losses lead there: a method that is resumed may see another batch first."""
    left, right, *heads = [nn.Linear(2, 2), nn.Linear(2, 2), *(nn.Linear(4, 1) for _ in range(3))]
    for missing in (0, 1, 2, None):
        parts = [left(torch.ones(1, 2)), right(torch.ones(1, 2))]
        turned = (parts, parts[::-1], parts[::-1])
        losses = [h(torch.cat(z, 1)).sum() for h, z in zip(heads, turned, strict=True)]
        step = Step([None if k == missing else x for k, x in enumerate(losses)])
        assert [*map(id, step.shared)] == [id(p) for m in (left, right) for p in m.parameters()]


def test_a_batch_for_each_objective_costs_one_backward_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net, calls = Net(5), []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return grad(*args, **kwargs)

    grad = passes.grad
    monkeypatch.setattr(passes, "grad", counted)
    losses = [net.losses(slice(k, k + 4))[k] for k in range(5)]
    mtbench.balancer("mgda", num_objectives=5).backward(losses)
    assert len(calls) == 5


class Saved:
    """What autograd saved of a forward pass, as long as it does."""

    def __init__(self, value: Tensor) -> None:
        self.value = value


@contextmanager
def watched() -> Iterator[weakref.WeakSet[Saved]]:
    """Give what the block's forward pass saved, and the graph has not let go."""
    kept: weakref.WeakSet[Saved] = weakref.WeakSet()

    def pack(value: Tensor) -> Saved:
        kept.add(saved := Saved(value))
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.value):
        yield kept


@pytest.mark.parametrize("name", NAMELESS)
@pytest.mark.parametrize("where", ["split", "whole"])
def test_the_graph_is_freed(name: str, where: str) -> None:
    """While the losses and z are held; also where it does not split, but for the heads there."""
    net = Net(3)
    balancer = mtbench.balancer(name, num_objectives=3)
    for _ in range(2):  # some methods ask for less in later steps
        with watched() as of_encoder:
            z = net.z()
        with watched() as of_heads:
            losses = net.of(z)
        if where == "whole":
            losses[0] = losses[0] + sum(p.square().sum() for p in net.encoder.parameters())
        said = {"latent": z} if balancer.needs_features else {}
        assert of_encoder
        assert of_heads
        balancer.backward(losses, again=net.losses, validation=net.losses, **said)
        differentiates_heads_twice = name == "consmtl"
        assert not of_encoder or (where == "whole" and differentiates_heads_twice)
        assert not of_heads or where == "whole" or differentiates_heads_twice
        assert losses[0].grad_fn is not None


@pytest.mark.parametrize(
    "name", ["ew", "mgda", "graddrop", "samo+ew", "norm_matched+stch", "norm_matched+mgda"]
)
def test_hooks_after_accumulation_run_once(name: str) -> None:
    net, seen = Net(), []
    for p in net.parameters():
        p.register_post_accumulate_grad_hook(lambda p: seen.append((id(p), p.grad.clone())))
    net_again = {"again": net.losses}
    mtbench.balancer(name, num_objectives=2).backward(net.losses(), **net_again)
    assert sorted(i for i, _ in seen) == sorted(id(p) for p in net.parameters())
    for p in net.parameters():
        torch.testing.assert_close(dict(seen)[id(p)], p.grad)


@pytest.mark.parametrize("name", ["mgda", "graddrop"])
def test_what_checks_cost(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One walk, and a pass for each head and each row; the losses alone, one that runs no node."""
    calls: list[str] = []

    def counted(owner: Any, what: str) -> None:
        real = getattr(owner, what)

        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(what)
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, what, call)

    for owner, what in ((passes, "part"), (passes, "part_at"), (torch.autograd, "grad")):
        counted(owner, what)
    net, balancer = Net(), mtbench.balancer(name, num_objectives=2)
    z = net.z()
    balancer.backward(Step(net.of(z), features=z, shared=net.encoder.parameters()))
    assert calls == ["part_at", *["grad"] * 4]
    calls.clear()
    balancer.backward(net.losses())
    assert calls == ["part", *["grad"] * 5]


def test_what_no_loss_reaches_keeps_no_gradient() -> None:
    net, idle = Net(), nn.Parameter(torch.ones(2))
    for name in ("mgda", "graddrop"):
        made(net, name, shared=[*net.encoder.parameters(), idle])
        assert idle.grad is None


@pytest.mark.parametrize("name", ["ew", "mgda", "graddrop", "norm_matched+mgda"])
def test_a_sparse_gradient_may_be_there(name: str) -> None:
    words, heads = nn.Embedding(5, 3, sparse=True), [nn.Linear(3, 1) for _ in range(2)]
    found = []
    for before in (0.0, 1.0):
        words.zero_grad()
        (before * words(torch.arange(4)).sum()).backward()
        z = words(torch.arange(4))
        losses = [(head(z) - k).square().mean() for k, head in enumerate(heads)]
        mtbench.balancer(name, num_objectives=2).backward(losses)
        found.append(words.weight.grad.to_dense())
    torch.testing.assert_close(found[1][:4], found[0][:4] + 1)


def test_channels_last_gradients_stay_so() -> None:
    encoder = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    heads = [nn.Linear(4, 1) for _ in range(2)]
    for name in ("mgda", "graddrop"):
        z = encoder(torch.ones(2, 3, 5, 5)).mean((2, 3))
        losses = [head(z).square().mean() for head in heads]
        mtbench.balancer(name, num_objectives=2).backward(losses)
        assert encoder.weight.grad.stride() == encoder.weight.stride()
        encoder.zero_grad()


def test_what_is_shared_is_remembered_while_labels_are_missing() -> None:
    net = Net()
    balancer = mtbench.balancer("nash_mtl", num_objectives=2, max_norm=0.0)
    balancer.backward(net.losses())
    net.zero_grad()
    weights = balancer.backward([net.losses()[0], None])
    assert weights[0] != 1
    (plain,) = torch.autograd.grad(net.losses()[0], net.encoder[0].weight)
    (own,) = torch.autograd.grad(net.losses()[0], net.heads[0].weight)
    torch.testing.assert_close(net.encoder[0].weight.grad, weights[0] * plain)
    torch.testing.assert_close(net.heads[0].weight.grad, own)  # a head still
    assert net.heads[1].weight.grad is None


@pytest.mark.parametrize("name", ["ew", "uw", "mgda", "graddrop"])
@pytest.mark.parametrize("how", ["none", "zero", "nan"])
def test_the_head_of_an_objective_without_labels_does_not_move(name: str, how: str) -> None:
    net = Net()
    balancer = mtbench.balancer(name, num_objectives=2)
    parameters = [*net.parameters(), *balancer.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=0.1)
    for at in range(4):
        losses: list[Tensor | None] = [*net.losses()]
        if at == 2:
            before = copy.deepcopy(net.heads[1].state_dict())
            output = net.heads[1](net.z())
            absent = {"none": None, "zero": output.sum() * 0, "nan": output[:0].mean()}
            losses[1] = absent[how]
        optimizer.zero_grad()
        balancer.backward(losses)
        optimizer.step()
        if at == 2:
            assert all(v.equal(before[k]) for k, v in net.heads[1].state_dict().items())
    assert all(p.isfinite().all() for p in parameters)


@pytest.mark.parametrize("name", ["ew", "uw", "dwa", "famo", "mgda"])
@pytest.mark.parametrize("count", [0.0, 1.0], ids=["nan", "zero"])
def test_a_mask_without_labels_in_joined_outputs(name: str, count: float) -> None:
    net = Net(3)
    outputs = torch.cat([head(net.z()) for head in net.heads], 1)
    labelled = torch.tensor([12.0, 0.0, 12.0]).double()
    squares = torch.where(labelled > 0, (outputs - 1).square(), 0).sum(0)
    losses = squares / labelled.clamp(min=count)
    mtbench.balancer(name, num_objectives=3).backward(list(losses))
    assert [head.weight.grad is None for head in net.heads] == [False, True, False]


@pytest.mark.parametrize("name", ["ew", "mgda", "moco"])
@pytest.mark.parametrize("one", [True, False])
def test_a_leaf_of_value_0_is_no_label(name: str, one: bool) -> None:
    net, balancer = Net(), mtbench.balancer(name, num_objectives=2)
    balancer.backward(net.losses())
    before = tensors(balancer)
    net.zero_grad()
    zeros = [torch.tensor(0.0, requires_grad=True) for _ in range(2)]
    balancer.backward([zeros[0], zeros[not one]])
    assert not any(g is not None and g.any() for g in (*grads(net), *(x.grad for x in zeros)))
    torch.testing.assert_close(tensors(balancer), before)


@pytest.mark.parametrize("name", ["ew", "dwa", "cagrad", "upgrad", "graddrop"])
@pytest.mark.parametrize("pieces", [[slice(0, 12)], [slice(0, 5), slice(5, 12)]])
def test_a_loss_of_value_0_with_a_gradient_trains_its_head(name: str, pieces: list[slice]) -> None:
    net, balancer = Net(), mtbench.balancer(name, num_objectives=2)

    def losses(piece: slice) -> list[Tensor]:
        z = net.z(piece)
        score = net.heads[1](z).sum()
        return [net.of(z)[0], score - score.detach()]

    for piece in pieces[:-1]:
        balancer.accumulate(losses(piece))
    balancer.backward(losses(pieces[-1]))
    found, encoder = net.heads[1].weight.grad, grads(net.encoder)
    torch.testing.assert_close(found, net.z().sum(0, keepdim=True))
    net.zero_grad()
    mtbench.balancer(name, num_objectives=2).backward([*losses(slice(12))[:1], None])
    assert not encoder[0].allclose(net.encoder[0].weight.grad)  # it takes part there, too


@pytest.mark.parametrize("name", ["uw", "norm_matched+uw"])
def test_the_order_of_names_is_in_the_state(name: str, tmp_path: Path) -> None:
    net, balancer = Net(), mtbench.balancer(name, num_objectives=2, seed=3)
    with torch.no_grad():
        next(balancer.parameters()).copy_(torch.tensor([0.0, 1.0]))
    old = balancer.state_dict()
    expected = balancer.backward(dict(zip("\u03bcq", net.losses(), strict=True)))
    torch.save(balancer.state_dict(), tmp_path / "state.pt")
    loaded = mtbench.balancer(name, num_objectives=2)
    loaded.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    turned = dict(zip("q\u03bc", reversed(net.losses()), strict=True))
    assert loaded.backward(turned) == expected
    before = mtbench.balancer(name, num_objectives=2)
    before.load_state_dict(old)  # of a balancer that has not heard of names
    assert before.generator.get_state().equal(loaded.generator.get_state())
    turned = dict(zip("q\u03bc", reversed(net.losses()), strict=True))
    assert list(before.backward(turned)) == ["q", "\u03bc"]


@pytest.mark.parametrize("name", ["db_mtl", "metabalance"])
def test_a_state_of_another_number_of_objectives_is_refused(name: str) -> None:
    net, saved = Net(), mtbench.balancer(name, num_objectives=2)
    drive(net, saved, net.of)
    with pytest.raises(RuntimeError, match="size mismatch"):
        mtbench.balancer(name, num_objectives=3).load_state_dict(saved.state_dict())


def test_a_copy_of_a_balancer_starts_afresh() -> None:
    net, balancer = Net(), mtbench.balancer("mgda", num_objectives=2)
    balancer.backward(net.losses())
    twin = copy.deepcopy(balancer)
    assert not twin.engine._buffer.numel()
    assert not twin.engine.remember(())
    net.zero_grad()
    twin.backward(net.losses())


# --- micro-batches


@pytest.mark.parametrize("name", [m for m in NAMELESS if m != "stl"])
def test_micro_batches_are_the_whole_batch(name: str) -> None:
    found = []
    for pieces in ([slice(0, 12)], [slice(0, 4), slice(4, 7), slice(7, 12)]):
        net = Net(3)
        balancer = mtbench.balancer(name, num_objectives=3)
        if balancer.needs_features:
            with pytest.raises(StepError, match="those of several micro-batches"):
                balancer.accumulate(net.losses())
            return
        parameters = [*net.parameters(), *balancer.parameters()]
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        said: dict[str, Any] = {"again": net.losses, "validation": net.losses}
        for _ in range(2):
            optimizer.zero_grad()
            *first, last = pieces
            for piece in first:
                balancer.accumulate(net.losses(piece), validation=net.losses)
            balancer.backward(net.losses(last), **said)
            optimizer.step()
            balancer.after_step(net.losses)
        found.append([p.detach() for p in parameters])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["ew", "cagrad", "upgrad", "graddrop", "uw"])
@pytest.mark.parametrize("hook", [lambda g: -3 * g, lambda g: g / g.norm()])
def test_micro_batches_run_a_parameters_hook_once(
    name: str, hook: Callable[[Tensor], Tensor]
) -> None:
    found = []
    for pieces in ([slice(0, 12)], [slice(0, 5), slice(5, 12)]):
        net = Net(3)
        handles = [p.register_hook(hook) for p in net.parameters()]
        balancer = mtbench.balancer(name, num_objectives=3)
        for piece in pieces[:-1]:
            balancer.accumulate(net.losses(piece))
        balancer.backward(net.losses(pieces[-1]))
        found.append(grads(net))
        for handle in handles:
            handle.remove()
        assert not any(p._backward_hooks for p in net.parameters())
    same(*found)


@pytest.mark.parametrize("name", ["ew", "dwa", "famo", "softadapt", "mgda", "graddrop"])
@pytest.mark.parametrize("times", [math.inf, math.nan])
def test_a_micro_batch_that_is_not_finite_is_so_for_the_whole(name: str, times: float) -> None:
    found = []
    for parts in (1, 2):
        net, balancer = Net(), mtbench.balancer(name, num_objectives=2)
        (a, b), last = net.losses(slice(0, 6)), net.losses(slice(6, 12))
        first = [times * a, b]
        if parts == 2:
            balancer.accumulate(first)
        else:
            last = [x + y for x, y in zip(first, last, strict=True)]
        weights = balancer.backward(last)
        found.append((weights, tensors(balancer), grads(net)))
    torch.testing.assert_close(found[1], found[0], equal_nan=True)


def test_the_forward_pass_again_is_that_of_all_micro_batches() -> None:
    net, piece = Net(), slice(0, 6)
    for name in ("samo+ew", "norm_matched+samo+ew"):
        balancer = mtbench.balancer(name, num_objectives=2)
        message = "give again= to the last micro-batch's backward alone"
        with pytest.raises(StepError, match=message):
            balancer.accumulate(net.losses(piece), again=net.losses)
        with pytest.raises(StepError, match=message):
            balancer.accumulate(Step(net.losses(piece), again=net.losses))
    mtbench.balancer("ew", num_objectives=2).accumulate(net.losses(piece), again=net.losses)


def test_micro_batches_are_of_one_model() -> None:
    net = Net()
    balancer = mtbench.balancer("mgda", num_objectives=2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for refused in (balancer.accumulate, balancer.backward):
        balancer.accumulate(net.losses(slice(0, 6)))
        for p in net.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        with pytest.raises(StepError, match=r"moved since .*: step the optim.* max_norm="):
            refused(net.losses(slice(6, 12)))
    optimizer.zero_grad()
    balancer.backward(net.losses())  # nothing is left of what was refused
    found = grads(net)
    mtbench.balancer("mgda", num_objectives=2).backward(net.losses())
    same(found, grads(net))


def test_nothing_is_left_of_micro_batches_that_are_given_up() -> None:
    """Neither where one is refused, nor where a loop drops them."""
    net = Net()
    mtbench.balancer("mgda", num_objectives=2).backward(net.losses())
    wanted = grads(net)
    for given_up in (Balancer.accumulate, Balancer.backward, lambda own, _: own.discard()):
        balancer = mtbench.balancer("mgda", num_objectives=2)
        balancer.accumulate(net.losses(slice(0, 6)))
        with suppress(StepError):
            given_up(balancer, [loss.detach() for loss in net.losses()])
        balancer.backward(net.losses())
        same(wanted, grads(net))


def test_micro_batches_without_labels_and_by_name() -> None:
    net = Net()
    first, last = net.losses(slice(0, 6)), net.losses(slice(6, 12))
    balancer = mtbench.balancer("mgda", num_objectives=2)
    balancer.accumulate({"a": first[0], "b": None})
    assert set(balancer.backward({"a": last[0], "b": last[1]})) == {"a", "b"}
    found = grads(net)
    whole = [net.losses()[0], net.losses(slice(6, 12))[1]]
    mtbench.balancer("mgda", num_objectives=2).backward(whole)
    same(found, grads(net))


@pytest.mark.parametrize("scales", [(1024.0, 1.0), (1.0, 1024.0)])
def test_micro_batches_have_one_loss_scale(scales: tuple[float, float]) -> None:
    net, balancer = Net(), mtbench.balancer("mgda", num_objectives=2)
    balancer.accumulate(net.losses(), loss_scale=scales[0])
    with pytest.raises(StepError, match=r"found \d+ and \d+: say loss_scale=scaler in"):
        balancer.backward(net.losses(), loss_scale=scales[1])


@pytest.mark.parametrize("scale", [1.0, 65536.0])
def test_micro_batches_in_half_precision(scale: float) -> None:
    found = []
    for parts in (1, 2):
        net, balancer = Net(dtype=torch.float16), mtbench.balancer("mgda", num_objectives=2)
        losses = [1e-4 / parts * loss.float() for loss in net.losses()]
        if parts == 2:
            balancer.accumulate(losses, loss_scale=scale)
            losses = [1e-4 / parts * loss.float() for loss in net.losses()]
        balancer.backward(losses, loss_scale=scale)
        found.append(grads(net))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize(
    ("last", "whole"), [(None, 256.5), (torch.tensor(0), 256.5), (torch.bfloat16, 257.5)]
)
def test_losses_of_micro_batches_add_up_in_float32(last: Any, whole: float) -> None:
    x, balancer = nn.Parameter(torch.ones(2)), mtbench.balancer("famo", num_objectives=2)
    balancer.accumulate([256.5 * x[0], x[1]])
    balancer.backward([x[0].to(last) if isinstance(last, torch.dtype) else last, x[1]])
    assert balancer.losses.tolist() == [whole, 2.0]


def test_shared_parameters_of_any_micro_batch_count() -> None:
    net, found = Net(), []
    shared = [*net.encoder[2].parameters()]
    for first, last in [(shared, shared), (shared, None)]:
        balancer = mtbench.balancer("mgda", num_objectives=2)
        balancer.accumulate(net.losses(slice(0, 6)), shared=first)
        found.append(balancer.backward(net.losses(slice(6, 12)), shared=last))
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("rlar", {}),
        ("mgda", {"space": "features"}),
        ("every+mgda", {"mgda.space": "features"}),
        ("norm_matched+gradnorm", {"gradnorm.space": "features"}),
    ],
)
def test_micro_batches_have_no_common_latent_space(name: str, options: dict[str, str]) -> None:
    net = Net()
    z = net.z()
    balancer = mtbench.balancer(name, num_objectives=2, **options)
    with pytest.raises(StepError, match="at the features, and those of several micro-batches"):
        balancer.accumulate(net.of(z), latent=z)


# --- what a loop forgets


def loop(balancer: mtbench.Balancer, steps: int, net: Net, *extra: Tensor) -> Iterator[None]:
    optimizer = torch.optim.SGD([*net.parameters(), *extra], lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        balancer.backward(net.losses())
        optimizer.step()
        yield


def test_parameters_that_never_move() -> None:
    net, balancer = Net(), mtbench.balancer("uw", num_objectives=2)
    with pytest.warns(UserWarning, match="uw: its own parameters have not moved") as told:
        list(loop(balancer, 30, net))
    assert len(told) == 1
    balancer = mtbench.balancer("uw", num_objectives=2)
    list(loop(balancer, 30, net, *balancer.parameters()))


def test_parameters_that_move_after_many_additions_to_grad() -> None:
    net, balancer = Net(), mtbench.balancer("uw", num_objectives=2)
    optimizer = torch.optim.SGD([*net.parameters(), *balancer.parameters()], lr=0.01)
    for step in range(1, 33):
        balancer.backward(net.losses())
        if step % 16 == 0:
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("name", ["famo", "norm_matched+famo"])
def test_after_step_forgotten(name: str) -> None:
    net, balancer = Net(), mtbench.balancer(name, num_objectives=2)
    with pytest.warns(UserWarning, match=r"after_step was not called in 10 steps") as told:
        list(loop(balancer, 30, net))
    assert len(told) == 1
    for _ in loop(mtbench.balancer(name, num_objectives=2), 9, net):
        pass
    balancer = mtbench.balancer(name, num_objectives=2)
    for _ in loop(balancer, 30, net):
        balancer.after_step(net.losses)


@pytest.mark.parametrize("name", ["famo", "samo+famo"])
def test_after_step_before_the_step(name: str) -> None:
    """Or with the losses of before it: the method learns nothing from them."""
    net, balancer = Net(), mtbench.balancer(name, num_objectives=2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)

    def stale(times: int) -> None:
        for losses in (net.losses() for _ in range(times)):
            balancer.backward(losses, again=net.losses)
            optimizer.step()
            balancer.after_step(lambda losses=losses: losses)  # type: ignore[misc]

    with pytest.warns(UserWarning, match=r"after_step found the losses of before") as told:
        stale(30)
    assert len(told) == 1
    balancer = mtbench.balancer(name, num_objectives=2)
    for i in range(30):
        balancer.backward(net.losses(), again=net.losses)
        if i > 4:  # a scaler may skip some
            optimizer.step()
        balancer.after_step(net.losses)


@pytest.mark.parametrize("name", ["ew", "rotograd", "norm_matched+rotograd"])
def test_a_view_of_no_tuple_is_refused(name: str) -> None:
    balancer = mtbench.balancer(name, num_objectives=2)
    with pytest.raises(StepError, match=r"view takes a tuple of features, .* view\(\(z,\), k\)"):
        balancer.view(torch.ones(4, 8), 0)  # type: ignore[arg-type]


def test_after_epoch_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtbench.balancing.watch._EPOCH", 20)
    net, balancer = Net(), mtbench.balancer("dwa", num_objectives=2)
    with pytest.warns(UserWarning, match="after_epoch was not called in 20 steps") as told:
        list(loop(balancer, 30, net))
    assert len(told) == 1
    balancer = mtbench.balancer("dwa", num_objectives=2)
    for _ in loop(balancer, 30, net):
        balancer.after_epoch()
    list(loop(mtbench.balancer("mgda", num_objectives=2), 30, net))


def test_backward_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtbench.balancing.watch._PARTS", 8)
    net, balancer = Net(), mtbench.balancer("mgda", num_objectives=2)

    def accumulate(parts: int) -> None:
        for _ in range(parts):
            balancer.accumulate(net.losses())

    for _ in range(3):
        accumulate(7)
        balancer.backward(net.losses())
    with pytest.warns(UserWarning, match="accumulate was called 8 times without back") as told:
        accumulate(20)
    assert len(told) == 1


@pytest.mark.parametrize("name", ["rotograd", "norm_matched+rotograd"])
@pytest.mark.parametrize("seen", [False, True])
def test_view_forgotten(name: str, seen: bool) -> None:
    net, balancer = Net(), mtbench.balancer(name, num_objectives=2)

    def run() -> None:
        for _ in range(30):
            z = net.z()
            views = [balancer.view((z,), k=k)[0] if seen else z for k in range(2)]
            losses = [net.of(view)[k] for k, view in enumerate(views)]
            balancer.backward(losses, latent=z)

    if seen:
        run()
        return
    with pytest.warns(UserWarning, match="view was not called in 10 steps") as told:
        run()
    assert len(told) == 1


def test_single_task_learning_wants_a_model_for_each_loss() -> None:
    with pytest.warns(UserWarning, match="stl: the losses have no model of their own") as told:
        list(loop(mtbench.balancer("stl", num_objectives=2), 30, Net()))
    assert len(told) == 1
    heads, x = [nn.Linear(2, 1), nn.Linear(2, 1)], torch.ones(3, 2)
    balancer = mtbench.balancer("stl", num_objectives=2)
    both = balancer.wrap(mtbench.MultitaskModel.single_feature(nn.Linear(2, 2), heads))
    for _ in range(30):
        balancer.backward([output.square().mean() for output in both(x)])
    balancer = mtbench.balancer("stl", num_objectives=2)
    for _ in range(30):
        balancer.backward([head(x).square().mean() for head in heads])


@pytest.mark.parametrize("name", ["cagrad", "graddrop"])
def test_nothing_in_common(name: str) -> None:
    net, balancer = Net(), mtbench.balancer(name, num_objectives=2)
    net.encoder.requires_grad_(False)
    with pytest.warns(UserWarning, match="no two losses had a trained parameter in common") as told:
        list(loop(balancer, 30, net))
    assert len(told) == 1
    list(loop(mtbench.balancer(name, num_objectives=2), 9, net))
    balancer = mtbench.balancer(name, num_objectives=2)
    net.encoder.requires_grad_(True)
    list(loop(balancer, 2, net))
    net.encoder.requires_grad_(False)
    list(loop(balancer, 30, net))  # frozen later, as is often meant
    list(loop(mtbench.balancer("ew", num_objectives=2), 30, net))


@pytest.mark.parametrize("name", ["cagrad", "graddrop"])
def test_one_objective_a_step(name: str) -> None:
    net, balancer = Net(), mtbench.balancer(name, num_objectives=2)

    def run(balancer: mtbench.Balancer, steps: int, other: bool) -> None:
        for t in range(steps):
            losses: list[Tensor | None] = [*net.losses()]
            losses[t % 2] = None
            if other:
                first: list[Tensor | None] = [None, None]
                first[t % 2] = net.losses()[t % 2]
                balancer.accumulate(first)
            balancer.backward(losses)

    with pytest.warns(UserWarning, match="no step of 10 had two losses to balance") as told:
        run(balancer, 25, other=False)
    assert len(told) == 1
    run(mtbench.balancer(name, num_objectives=2), 12, other=True)  # what it says to do
    alone = mtbench.balancer(name, num_objectives=1)
    for _ in range(12):
        alone.backward(net.losses()[:1])


@pytest.mark.parametrize("name", [*NAMELESS, "only+mgda"])
def test_another_default_device(name: str) -> None:
    """It may be a GPU, while what a solver reads stays on the CPU."""
    found = []
    for device in ("cpu", "meta"):
        net, balancer = Net(3), mtbench.balancer(name, num_objectives=3)
        with torch.device(device):
            drive(net, balancer, net.of)
            found.append((drive(net, balancer, net.of), tensors(balancer)))
            made = mtbench.balancer(name, num_objectives=3)
        for part in made.modules():
            for buffer in part.on_host if isinstance(part, mtbench.Balancer) else ():
                assert part.get_buffer(buffer).device.type == "cpu", buffer
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


# --- what goes wrong


@pytest.mark.parametrize("name", NAMELESS)
def test_an_infinite_loss_leaves_no_trace(name: str) -> None:
    found = []
    for overflows in (False, True):
        net = Net(3)
        balancer = mtbench.balancer(name, num_objectives=3)
        for t in range(5):
            if t in (0, 2) and overflows:
                drive(net, balancer, net.overflown)
                assert not all(p.grad.isfinite().all() for p in net.encoder.parameters())
            weights = drive(net, balancer, net.of)
            if t == 3:
                balancer.after_epoch()
        found.append((weights, tensors(balancer)))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


@pytest.mark.parametrize("what", ["gradient", "scale", "loss"])
@pytest.mark.parametrize("name", NAMELESS)
def test_what_is_infinite_or_nan_leaves_no_trace(name: str, what: str) -> None:
    net = Net(3)
    balancer = mtbench.balancer(name, num_objectives=3)
    for t in range(4):
        if t == 2 and what == "gradient":
            drive(net, balancer, lambda z: [net.of(z)[0] + (0 * z.sum()).sqrt(), *net.of(z)[1:]])
        elif t == 2 and what == "scale":
            drive(net, balancer, net.of, loss_scale=float("inf"))
        elif t == 2:
            drive(net, balancer, lambda z: [math.nan * net.of(z)[0], *net.of(z)[1:]])
            assert any(g is not None and g.isnan().any() for g in grads(net))
        weights = drive(net, balancer, net.of)
    if weights is not None:
        assert weights.isfinite().all()
    for state in tensors(balancer).values():
        assert state.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("name", NAMELESS)
def test_a_balancer_keeps_its_precision(name: str) -> None:
    found = []
    for other in (None, torch.bfloat16, torch.float16, torch.float64):
        net = Net(dtype=torch.float32)
        balancer = mtbench.balancer(name, num_objectives=2)
        for _ in range(2):
            if other is not None:
                balancer.to(other)
            weights = drive(net, balancer, net.of)
        found.append((weights, tensors(balancer)))
    for changed in found[1:]:
        torch.testing.assert_close(changed, found[0], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["uw", "dwa"])
def test_a_balancer_moves_between_devices(name: str) -> None:
    balancer = mtbench.balancer(name, num_objectives=2).to("meta", torch.bfloat16)
    states = [*balancer.parameters(), *balancer.buffers()]
    assert states
    assert all(state.is_meta and state.dtype != torch.bfloat16 for state in states)


@pytest.mark.parametrize("name", NAMELESS)
def test_a_batch_without_any_label_is_nothing_to_do(name: str) -> None:
    net = Net()
    balancer = mtbench.balancer(name, num_objectives=2)
    before = tensors(balancer)
    said = {"latent": net.z()} if balancer.needs_features else {}
    weights = balancer.backward([None, None], **said)
    assert weights is None or not weights.any()
    assert all(g is None for g in grads(net))
    torch.testing.assert_close(tensors(balancer), before, rtol=0, atol=0)
