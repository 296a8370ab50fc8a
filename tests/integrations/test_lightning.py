"""Lightning trains with a balancer as mtbench does."""

import logging
import warnings

import pytest
import torch
from torch import nn

from mtbench import Method
from mtbench.errors import StepError, UsageError
from mtbench.integrations.lightning import Balanced

with warnings.catch_warnings():  # not ours
    warnings.simplefilter("ignore")
    lightning = pytest.importorskip("lightning")
    from lightning.pytorch.plugins import MixedPrecision
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def trainer(tmp_path, **options):
    return lightning.Trainer(
        **{
            "accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False,
            "enable_model_summary": False, "enable_checkpointing": False,
            "default_root_dir": tmp_path, **options,
        }
    )  # fmt: skip


class Epochs:
    """The trainer's batches of one epoch after another."""

    def __init__(self, reference):
        self.reference, self.number = reference, 0

    def __iter__(self):
        yield from self.reference.epoch(self.number)
        self.number += 1


class Same(Balanced, lightning.LightningModule):
    """The tiny task, as the trainer begins it."""

    def __init__(self, reference):
        model, balancer = reference.start()
        super().__init__(balancer)
        self.model, self.task, self.recipe = model, reference.task, reference.spec.recipe

    def losses(self, batch):
        features = self.model.encode(batch["inputs"])
        return self.task.losses(self.model.decode(features, self.balancer.view), batch), features

    def training_step(self, batch, index):
        self.balance(lambda: self.losses(batch))

    def configure_optimizers(self):
        options = {"lr": self.recipe["lr"], "weight_decay": self.recipe["weight_decay"]}
        return torch.optim.AdamW(self.parameter_groups(), **options, fused=True)


@pytest.mark.parametrize(
    "name", ["ew", "uw", "cagrad", "dwa", "famo", "gradnorm", "rlar", "rlw", "rotograd", "samo+ew"]
)
def test_equals_mtbench_s_own_loop(name, reference, tmp_path):
    own = reference(name)
    module = Same(own)
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    trainer(tmp_path, max_epochs=3).fit(module, Epochs(own))
    for key, value in module.model.state_dict().items():
        torch.testing.assert_close(value, own.expected[key], rtol=1e-6, atol=1e-7)
        assert not torch.equal(value, before[key])


class Squares(Same):
    """The tiny task, whose losses are means of these squares."""

    def losses(self, batch):
        features = self.model.encode(batch["inputs"])
        outputs = self.model.decode(features)
        return self.task.losses(outputs, batch), features, self.task.residuals(outputs, batch)


@pytest.mark.parametrize("told", ["parameters", "named_parameters"])
def test_an_encoder_that_is_named_may_be_frozen(told, reference, tmp_path):
    class Frozen(Same):
        def training_step(self, batch, index):
            encoder = getattr(self.model.encoder, told)()
            self.balance(lambda: (self.losses(batch)[0], ()), shared=encoder)

    own = reference("cagrad")
    module = Frozen(own)
    module.model.encoder.requires_grad_(requires_grad=False)
    before = [p.detach().clone() for p in module.model.parameters()]
    trainer(tmp_path, max_epochs=1).fit(module, Epochs(own))
    moved = [not torch.equal(p, q) for p, q in zip(module.model.parameters(), before, strict=True)]
    assert moved == [p.requires_grad for p in module.model.parameters()]


def test_residuals_are_handed_over(reference, tmp_path, monkeypatch):
    def residuals(self, outputs, batch):
        return [output[:, 0] - batch["y"][:, k] for k, output in enumerate(outputs)]

    monkeypatch.setattr(type(reference("ew").task), "residuals", residuals)
    own = reference("ntk_weights")
    module = Squares(own)
    trainer(tmp_path, max_epochs=3).fit(module, Epochs(own))
    for key, value in module.model.state_dict().items():
        torch.testing.assert_close(value, own.expected[key], rtol=1e-6, atol=1e-7)
    assert (module.balancer.kept != 1).all()


class Net(Balanced, lightning.LightningModule):
    """Two objectives without randomness."""

    def __init__(self, name="ew", seed=0, **options):
        super().__init__(Method.find(name)(2, 3))
        torch.manual_seed(seed)
        self.encoder = nn.Sequential(nn.Linear(4, 8), nn.Tanh())
        self.a, self.b = nn.Linear(8, 1), nn.Linear(8, 1)
        self.options, self.seen = options, []

    def losses(self, x):
        z = self.encoder(x)
        return [(self.a(z) - 1).square().mean(), (self.b(z) - x[:, :1]).abs().mean()], z

    def training_step(self, batch, index):
        self.balance(lambda: self.losses(batch), **self.options)

    def on_before_optimizer_step(self, optimizer):
        self.seen.append([p.grad.clone() for p in (*self.encoder.parameters(), self.a.weight)])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameter_groups(), lr=1e-2)


def batches(count=4, rows=8):
    rows = torch.randn(count, rows, 4, generator=torch.Generator().manual_seed(1))
    return torch.utils.data.DataLoader(rows, batch_size=None)


@pytest.mark.parametrize("name", ["uw", "rlw", "famo", "dwa", "nash_mtl", "norm_matched+cagrad"])
def test_resumes_from_lightning_s_checkpoint(name, tmp_path):
    """Another module, other weights, other draws: all that counts is in the checkpoint."""
    whole = Net(name)
    trainer(tmp_path, max_epochs=4).fit(whole, batches())
    half = trainer(tmp_path, max_epochs=2)
    half.fit(Net(name), batches())
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed = Net(name, seed=5)
    trainer(tmp_path, max_epochs=4).fit(resumed, batches(), ckpt_path=tmp_path / "half.ckpt")
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


@pytest.mark.parametrize("name", ["ew", "uw", "mgda", "graddrop", "famo", "samo+ew"])
def test_accumulated_batches_are_balanced_as_one(name, tmp_path):
    module = Net(name, accumulate=3)
    run = trainer(tmp_path, max_epochs=1)
    run.fit(module, batches(7))
    assert run.global_step == len(module.seen) == 3  # twice three batches, and the one that is left
    whole = Net(name)
    joined = torch.stack(list(batches(6))).flatten(0, 1).reshape(2, 24, 4)
    trainer(tmp_path, max_epochs=1).fit(whole, torch.utils.data.DataLoader(joined, batch_size=None))
    for ours, theirs in zip(module.seen, whole.seen, strict=False):
        for value, wanted in zip(ours, theirs, strict=True):
            torch.testing.assert_close(value, wanted)


@pytest.mark.parametrize("labelled", [{0, 1, 2}, {1}, set()])
def test_accumulated_batches_may_lack_labels(labelled, tmp_path):
    """None is the loss 0 of a head that gets no gradient."""
    found = []
    for lacking in (lambda loss: None, lambda loss: 0 * loss):
        module, number = Net("famo", accumulate=3), iter(range(100))
        alone = module.losses

        def losses(x, alone=alone, number=number, lacking=lacking):
            (a, b), z = alone(x)
            return [a, b if next(number) % 3 in labelled else lacking(b)], z

        module.losses = losses
        trainer(tmp_path, max_epochs=1).fit(module, batches(3))
        found.append(module.seen)
    for ours, theirs in zip(*found, strict=True):
        for value, wanted in zip(ours, theirs, strict=True):
            torch.testing.assert_close(value, wanted)


def test_what_does_not_accumulate(tmp_path):
    with pytest.raises(StepError, match=r"rlar looks at the features, .*: hand over whole batches"):
        trainer(tmp_path, max_epochs=1).fit(Net("rlar", accumulate=2), batches())
    with pytest.raises(MisconfigurationException, match="not supported for manual optimization"):
        trainer(tmp_path, max_epochs=1, accumulate_grad_batches=2).fit(Net(), batches())
    module = Net(accumulate=2)
    alone = module.losses
    module.losses = lambda x: (*alone(x), [x, x])
    with pytest.raises(UsageError, match="residuals are looked at in one batch"):
        trainer(tmp_path, max_epochs=1).fit(module, batches())


@pytest.mark.parametrize("wrong", [-2, 0, 0.5, 2.0, "2", True, None])
def test_accumulate_is_a_whole_number_of_batches(wrong, tmp_path):
    words = rf"accumulate must be a whole number of at least 1, found {wrong!r}"
    with pytest.raises(UsageError, match=words):
        trainer(tmp_path, max_epochs=1).fit(Net(accumulate=wrong), batches())


@pytest.mark.parametrize("name", ["ew", "uw", "mgda", "rlar"])
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision(name, precision, tmp_path):
    """The optimizer sees unscaled gradients, near those of float32; a step that overflows skips."""
    exact = Net(name)
    trainer(tmp_path, max_epochs=1).fit(exact, batches(1))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60) if precision == "16-mixed" else None
    module = Net(name)
    start = [p.detach().clone() for p in module.encoder.parameters()]
    run = trainer(tmp_path, max_epochs=60, plugins=MixedPrecision(precision, "cpu", scaler))
    run.fit(module, batches(1))
    finite = [all(g.isfinite().all() for g in seen) for seen in module.seen]
    assert (finite[0], finite[-1]) == (scaler is None, True)
    first = module.seen[finite.index(True)]  # nothing has moved before it
    for value, wanted in zip(first, exact.seen[0], strict=True):
        torch.testing.assert_close(value, wanted, rtol=0.1, atol=0.02)
    assert all(
        not torch.equal(p, q) for p, q in zip(module.encoder.parameters(), start, strict=True)
    )
    assert all(p.isfinite().all() for p in module.parameters())


def test_a_scaler_and_several_optimizers_are_refused(tmp_path):
    """Lightning changes the scale after each optimizer's step, and the next one unscales by it."""

    class Several(Net):
        def configure_optimizers(self):
            return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.encoder, self.a)]

    def plugin(precision):
        scaler = torch.amp.GradScaler("cpu") if precision == "16-mixed" else None
        return MixedPrecision(precision, "cpu", scaler)

    trainer(tmp_path, max_epochs=1, plugins=plugin("bf16-mixed")).fit(Several(), batches())
    with pytest.raises(UsageError, match=r"one optimizer, found 2: give one .* groups"):
        trainer(tmp_path, max_epochs=1, plugins=plugin("16-mixed")).fit(Several(), batches())


def test_clipping_sees_unscaled_gradients(tmp_path):
    class Clipped(Net):
        def on_before_optimizer_step(self, optimizer):
            self.clip_gradients(optimizer, gradient_clip_val=0.01, gradient_clip_algorithm="norm")
            gradients = [p.grad.flatten() for p in self.parameters() if p.grad is not None]
            self.seen.append(torch.cat(gradients).norm().item())

    module = Clipped()
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**10))
    trainer(tmp_path, max_epochs=2, plugins=plugin).fit(module, batches())
    assert module.seen == pytest.approx([0.01] * 8, rel=1e-3)


class Skipping(Net):
    """Leaves out some batches, by epoch and number."""

    def __init__(self, *without, **options):
        super().__init__("dwa", **options)
        self.without, self.ended = without, []
        self.balancer.after_epoch = lambda: self.ended.append(self.current_epoch)

    def training_step(self, batch, index):
        if (self.current_epoch, index) not in self.without:
            super().training_step(batch, index)


@pytest.mark.parametrize("without", [(0, 1), (0, 3)])
def test_a_skipped_batch_is_no_part_of_a_later_step(without, tmp_path):
    """The last of two is; so what was held of the first is dropped, in the next epoch too."""
    skipping, whole = Skipping(without, accumulate=2), Skipping(accumulate=2)
    for module in (skipping, whole):
        module.configure_optimizers = lambda module=module: torch.optim.SGD(
            module.parameter_groups(), lr=0.0
        )
        trainer(tmp_path, max_epochs=2).fit(module, batches())
    del whole.seen[without[1] // 2]
    assert len(skipping.seen) == 3
    for found, expected in zip(skipping.seen, whole.seen, strict=True):
        for p, q in zip(found, expected, strict=True):
            assert torch.equal(p, q)


def test_a_module_is_fitted_again(tmp_path):
    """To other data: nothing is left of the batch at which the first fit ended."""

    class Sees(Net):
        def losses(self, x):
            self.seen.append(len(x))
            return super().losses(x)

    module = Sees("famo")
    for rows in (8, 4):
        module.seen.clear()
        trainer(tmp_path, max_steps=1).fit(module, batches(rows=rows))
        assert {found for found in module.seen if isinstance(found, int)} == {rows}


def test_an_epoch_ends_though_its_last_batch_is_skipped(tmp_path):
    module = Skipping((0, 3))
    trainer(tmp_path, max_epochs=3).fit(module, batches())
    assert module.ended == [1, 1, 2]  # the first by the next one's first batch


def test_the_balancer_s_own_parameters_get_no_weight_decay():
    module = Net("uw")
    model, own = module.parameter_groups()
    assert own == {"params": list(module.balancer.parameters()), "weight_decay": 0.0}
    assert len(model["params"]) + len(own["params"]) == len(list(module.parameters()))
    assert len(Net("mgda").parameter_groups()) == 1


def test_several_optimizers(tmp_path):
    class Several(Net):
        def configure_optimizers(self):
            heads = [*self.a.parameters(), *self.b.parameters()]
            return [
                torch.optim.SGD(self.encoder.parameters(), lr=0.1),
                torch.optim.SGD(heads, lr=0.1),
            ]

    class One(Net):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameter_groups(), lr=0.1)

    several, one = Several("mgda"), One("mgda")
    for module in (several, one):
        trainer(tmp_path, max_epochs=2).fit(module, batches())
    for p, q in zip(several.parameters(), one.parameters(), strict=True):
        assert torch.equal(p, q)


def test_several_processes_are_refused(tmp_path, monkeypatch):
    run = trainer(tmp_path, fast_dev_run=True)
    monkeypatch.setattr(type(run), "world_size", 2)
    with pytest.raises(UsageError, match="2 processes"):
        run.fit(Net(), batches())


def test_a_training_step_without_balance_is_refused(reference, tmp_path):
    class Forgets(Same):
        def training_step(self, batch, index):
            return sum(self.losses(batch)[0])

    own = reference("ew")
    with pytest.raises(UsageError, match=r"training_step did not call balance, so nothing is"):
        trainer(tmp_path, max_epochs=1).fit(Forgets(own), Epochs(own))

    class Skips(Same):
        def training_step(self, batch, index):
            if index:
                super().training_step(batch, index)

    trainer(tmp_path, max_epochs=1).fit(Skips(own), Epochs(own))


@pytest.mark.parametrize(
    ("forward", "words"),
    [
        (lambda losses, z: sum(losses), "found a Tensor$"),
        (lambda losses, z: [*losses, z, ()], "found a list$"),
        (lambda losses, z: tuple(losses), "found a Tensor as the first"),
        (lambda losses, z: ({"a": losses[0]}, z), "found a dict as the first"),
        (None, r"balance takes a function, found a tuple: say self\.balance\(lambda: "),
    ],
)
def test_what_is_no_forward_pass_is_refused(forward, words, reference, tmp_path):
    class Wrong(Same):
        def training_step(self, batch, index):
            found = self.losses(batch)
            self.balance(found if forward is None else lambda: forward(*found))

    own = reference("ew")
    with pytest.raises(UsageError, match=words):
        trainer(tmp_path, max_epochs=1).fit(Wrong(own), Epochs(own))


def test_what_is_no_module_of_ours_is_refused():
    class Named(Balanced, lightning.LightningModule):
        def __init__(self):
            super().__init__("cagrad")

    with pytest.raises(UsageError, match="wants a balancer, found 'cagrad'"):
        Named()
    with pytest.raises(UsageError, match=r"Swapped: Balanced comes first"):

        class Swapped(lightning.LightningModule, Balanced):
            pass
