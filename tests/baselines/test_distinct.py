"""No two methods are the same one under two names, unless that is said here."""

import itertools

import pytest
import torch
from torch import nn

from mtbench import Balancer, Method, Step, Wrapper
from mtbench.plugins.registry import entries, find

K, EPOCHS, STEPS = 3, 6, 4  # stch is si until its warm-up ends, after five epochs
SAME = [
    {"ew", "ls", "stl"},  # ls by default; stl only differs by the model that it asks for
    {"edm", "imtl_g"},  # where none of imtl_g's weights is negative, as here
    {"fairgrad", "pivrg"},  # pivrg without single-task references
]


def name_of(name):
    wraps = issubclass(find("method", name).load(Balancer), Wrapper)
    return f"{name}+mgda" if wraps else name


def trajectory(name):
    """Train on three conflicting objectives of different curvature and scale; return the path."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4))
        heads = nn.ModuleList([nn.Linear(4, 1) for _ in range(K)])
    method = Method.find(name)(K)
    optimizer = torch.optim.SGD(
        [*encoder.parameters(), *heads.parameters(), *method.parameters()], lr=0.05
    )
    x = torch.randn(STEPS, 8, 3, generator=torch.Generator().manual_seed(1))
    targets = (x.sum(2), -2 * x.sum(2) + 1, (3 * x[..., 0]).sin())

    def step(batch):
        features = (encoder(x[batch]),)
        outputs = [head(method.view(features, k)[0])[:, 0] for k, head in enumerate(heads)]
        residuals = [out - target[batch] for out, target in zip(outputs, targets, strict=True)]
        losses = [
            scale * residual.square().mean()
            for scale, residual in zip((1.0, 0.3, 2.0), residuals, strict=True)
        ]
        return Step(
            losses,
            features=features,
            shared=encoder.named_parameters(),
            again=lambda: step(batch),
            validation=lambda: step((batch + 1) % STEPS),
            residuals=residuals,
        )

    path = []
    for _ in range(EPOCHS):
        for batch in range(STEPS):
            optimizer.zero_grad()
            method.backward(step(batch))
            optimizer.step()
            method.after_step(lambda batch=batch: step(batch).losses)
            every = (*encoder.parameters(), *heads.parameters())
            path.append(torch.cat([p.detach().flatten() for p in every]))
        method.after_epoch()
    return torch.stack(path)


@pytest.fixture(scope="module")
def paths():
    return {name: trajectory(name_of(name)) for name in entries("method")}


def same(a, b):
    return torch.allclose(a, b, rtol=0, atol=1e-6)


def test_no_two_methods_give_the_same_run(paths):
    pairs = itertools.combinations(sorted(paths), 2)
    found = {pair for pair in pairs if same(*(paths[name] for name in pair))}
    declared = {p for group in SAME for p in itertools.combinations(sorted(group), 2)}
    assert found == declared


def test_no_wrapper_is_its_base(paths):
    for name, path in paths.items():
        assert "+" not in name_of(name) or not same(path, paths["mgda"]), name
