"""A loop with Accelerate trains as mtbench does."""

import re
import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

from mtbench import Method
from mtbench.errors import StepError, UsageError
from mtbench.integrations.accelerate import backward

accelerate = pytest.importorskip("accelerate")
AcceleratorState = pytest.importorskip("accelerate.state").AcceleratorState
EXAMPLE = Path(__file__).parents[2] / "examples" / "accelerate_loop.py"


def accelerator_of(**options):
    """Return a new accelerator; Accelerate's state is the process's."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return accelerate.Accelerator(cpu=True, **options)


@pytest.mark.parametrize("name", ["ew", "uw", "cagrad", "dwa", "famo", "rlar"])
def test_equals_mtbench_s_own_loop(name, reference):
    own = reference(name)
    model, balancer = own.start()
    accelerator = accelerator_of()
    recipe = own.spec.recipe
    groups = [
        {"params": model.parameters()},
        {"params": balancer.parameters(), "weight_decay": 0.0},
    ]
    encoder, first, second, optimizer = accelerator.prepare(
        model.encoder,
        *model.heads,
        torch.optim.AdamW(
            groups if list(balancer.parameters()) else groups[:1],
            lr=recipe["lr"], weight_decay=recipe["weight_decay"], fused=True,
        ),
    )  # fmt: skip

    def forward(batch):
        features = encoder(batch["inputs"])
        outputs = [head(balancer.view(features, k)) for k, head in enumerate((first, second))]
        return own.task.losses(outputs, batch), features

    for epoch in range(recipe["epochs"]):
        for batch in own.epoch(epoch):
            losses, features = forward(batch)
            backward(accelerator, balancer, losses, features=features)
            accelerator.clip_grad_norm_(model.parameters(), float("inf"))
            optimizer.step()
            balancer.after_step(lambda: forward(batch)[0])  # noqa: B023
            optimizer.zero_grad()
        balancer.after_epoch()
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, own.expected[key], rtol=1e-6, atol=1e-7)


def parts(name, accelerator, seed=0):
    torch.manual_seed(seed)
    model = nn.ModuleList([nn.Linear(4, 8), nn.Linear(8, 1), nn.Linear(8, 1)])
    balancer = Method.find(name)(2, 7)
    parameters = [*model.parameters(), *balancer.parameters()]
    *modules, optimizer = accelerator.prepare(*model, torch.optim.AdamW(parameters, lr=1e-2))
    accelerator.register_for_checkpointing(balancer)
    return modules, balancer, optimizer


def batch(numbers):
    """Return the batch of a number, or of several."""
    if isinstance(numbers, int):
        return torch.randn(8, 4, generator=torch.Generator().manual_seed(numbers))
    return torch.cat([batch(number) for number in numbers])


def train(accelerator, modules, balancer, optimizer, numbers, times=1.0):
    """Take a step per number, or none where gradients are accumulated; return the gradients."""
    encoder, a, b = modules
    seen = []
    for x in map(batch, numbers):
        with accelerator.accumulate(*modules):
            z = encoder(x)
            losses = [(a(z) - 1).square().mean(), (b(z) - x[:, :1]).abs().mean()]
            losses = [times * loss for loss in losses]
            backward(accelerator, balancer, dict(zip("ab", losses, strict=True)))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_([], 1.0)
                seen.append([m.weight.grad.clone() for m in modules])
            optimizer.step()
            optimizer.zero_grad()
    return seen


@pytest.mark.parametrize("name", ["uw", "rlw", "nash_mtl"])
def test_resumes_from_save_state(name, tmp_path):
    accelerator = accelerator_of()
    whole = parts(name, accelerator)
    train(accelerator, *whole, range(3))
    accelerator.save_state(tmp_path)
    train(accelerator, *whole, range(3, 6))

    accelerator = accelerator_of()
    resumed = parts(name, accelerator, seed=5)
    accelerator.load_state(tmp_path)
    train(accelerator, *resumed, range(3, 6))
    for ours, theirs in zip([*whole[0], whole[1]], [*resumed[0], resumed[1]], strict=True):
        for key, value in ours.state_dict().items():
            assert torch.equal(value, theirs.state_dict()[key]), key


@pytest.mark.parametrize("name", ["ew", "uw", "mgda", "graddrop"])
def test_accumulated_batches_are_balanced_as_one(name):
    one = accelerator_of()
    (wanted,) = train(one, *parts(name, one), [range(3)])
    three = accelerator_of(gradient_accumulation_steps=3)
    (found,) = train(three, *parts(name, three), range(3))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_what_looks_at_features_does_not_accumulate():
    accelerator = accelerator_of(gradient_accumulation_steps=2)
    modules, balancer, _ = parts("rlar", accelerator)
    with accelerator.accumulate(*modules):
        z = modules[0](batch(0))
        losses = [head(z).square().mean() for head in modules[1:]]
        with pytest.raises(StepError, match="several micro-batches"):
            backward(accelerator, balancer, losses, latent=z)


def test_the_forward_pass_again_is_that_of_all_accumulated_batches():
    found = []
    for numbers in ([range(3)], range(3)):
        accelerator = accelerator_of(gradient_accumulation_steps=len(numbers))
        modules, balancer, _ = parts("samo+ew", accelerator)

        def losses(of=range(3), modules=modules):
            z = modules[0](batch(of))
            return [(head(z) - 1).square().mean() for head in modules[1:]]

        for number in numbers:
            with accelerator.accumulate(*modules):
                if not accelerator.sync_gradients and number == 0:  # it drops what is held
                    with pytest.raises(StepError, match="the last micro-batch's backward alone"):
                        backward(accelerator, balancer, losses(number), again=losses)
                said = {"again": losses} if accelerator.sync_gradients else {}
                backward(accelerator, balancer, losses(number), **said)
        found.append([m.weight.grad for m in modules])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", ["ew", "mgda", "uw"])
def test_bf16(name):
    exact = accelerator_of()
    (wanted,) = train(exact, *parts(name, exact), [0])
    mixed = accelerator_of(mixed_precision="bf16")
    (found,) = train(mixed, *parts(name, mixed), [0])
    for value, near in zip(found, wanted, strict=True):
        assert value.abs().max() > 0
        assert not torch.equal(value, near)
        torch.testing.assert_close(value, near, rtol=0.1, atol=0.02)


@pytest.mark.parametrize("name", ["ew", "mgda", "uw"])
def test_with_a_gradient_scaler(name):
    """Accelerate makes one on a GPU only; the prepared optimizer unscales, or skips."""
    accelerator = accelerator_of()
    exact = parts(name, accelerator)
    train(accelerator, *exact, range(2))
    accelerator = accelerator_of()
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14)
    modules, balancer, optimizer = parts(name, accelerator)
    seen = train(accelerator, modules, balancer, optimizer, range(2))
    assert not optimizer.step_was_skipped
    assert all(g.abs().max() > 100 for g in seen[0])
    for ours, theirs in zip(modules, exact[0], strict=True):
        torch.testing.assert_close(ours.weight, theirs.weight)
    before = modules[0].weight.clone()
    train(accelerator, modules, balancer, optimizer, [2], times=1e36)
    assert optimizer.step_was_skipped
    assert torch.equal(modules[0].weight, before)


def test_several_processes_are_refused(monkeypatch):
    accelerator = accelerator_of()
    monkeypatch.setattr(type(accelerator), "num_processes", 2)
    with pytest.raises(UsageError, match="2 processes"):
        backward(accelerator, Method.find("ew")(2), [])


def test_the_example_learns(monkeypatch, capsys):
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with torch.random.fork_rng():
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    AcceleratorState._reset_state(reset_partial_state=True)
    numbers = re.findall(r"epoch \d+: grade (\S+), size (\S+)\n", capsys.readouterr().out)
    assert len(numbers) == 20
    assert float(numbers[-1][0]) < 0.8 * float(numbers[0][0])
    assert float(numbers[-1][1]) < 0.8 * float(numbers[0][1])
