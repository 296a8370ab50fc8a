"""Cost of a step of each method on the thyroid model, side by side: medians of interleaved steps.

Usage: python benchmarks/step_cost.py [--compile] [--device cuda] [--encoder NAME] [--size PIXELS]
    [METHOD ...]

--compile puts beside each the same with the encoder compiled by torch.compile. An encoder has
random weights here: they cost the same.
"""

import argparse
import statistics
import time

import torch
import torch._functorch.config

from mtbench import Step
from mtbench.training.cell.request import Request

parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
parser.add_argument("methods", nargs="*", default=["ew", "rlar", "pcgrad", "mgda"])
parser.add_argument("--compile", action="store_true")
parser.add_argument("--device", default="cpu")
parser.add_argument("--encoder", default="efficientnet_lite0")
parser.add_argument("--size", type=int, default=96)
given = parser.parse_args()

torch.set_flush_denormal(True)
torch.set_num_threads(1)
torch.set_default_device(given.device)
request = Request.of(
    "thyroid", given.methods, {"encoder": given.encoder, "image_size": str(given.size)}
)
task, model = request.task, request.task.model().to(given.device)
encoders = {"": model.encoder}
if given.compile:
    torch._functorch.config.donated_buffer = False  # K backwards go through one graph
    encoders[", compiled"] = torch.compile(model.encoder)
balancers = {c.method.name: c.method(2, 0, **c.params) for c in request.choices}
batch = {
    "inputs": torch.rand(8, 1, given.size, given.size),
    "mask": (torch.rand(8, 1, given.size, given.size) > 0.5).float(),
    "has_mask": torch.ones(8, dtype=torch.bool),
    "category": torch.randint(0, 5, (8,)),
    "radiomics": torch.randn(8, 13),
}
runs = [(name, kind) for name in balancers for kind in encoders]
seconds: dict[str, list[float]] = {name + kind: [] for name, kind in runs}
for _ in range(22):
    for name, kind in runs:
        begin = time.perf_counter()
        features = encoders[kind](batch["inputs"])
        losses = task.losses(model.decode(features), batch)
        shared = model.encoder.parameters()
        balancers[name].backward(Step(losses, features=features, shared=shared))
        model.zero_grad()
        if given.device != "cpu":  # a GPU has only been told what to do
            torch.accelerator.synchronize()
        seconds[name + kind].append(time.perf_counter() - begin)
medians = {name: statistics.median(times[2:]) for name, times in seconds.items()}
first = next(iter(medians.values()))
for name, median in medians.items():
    print(f"{name:16} {median:.4f} s  {median / first:.2f}")
