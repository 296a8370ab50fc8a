"""Cost of a step of each method on the thyroid model, side by side: medians of interleaved steps.

Usage: python benchmarks/step_cost.py [--compile] ew rlar pcgrad

--compile puts beside each the same with the encoder compiled by torch.compile.
"""

import statistics
import sys
import time

import torch
import torch._functorch.config

from mtbench import Step
from mtbench.training.cell.request import Request

torch.set_flush_denormal(True)
torch.set_num_threads(1)
names = [word for word in sys.argv[1:] if word != "--compile"]
request = Request.of("thyroid", names or ["ew", "rlar", "pcgrad", "mgda"], {})
task, model = request.task, request.task.model()
encoders = {"": model.encoder}
if "--compile" in sys.argv:
    torch._functorch.config.donated_buffer = False  # K backwards go through one graph
    encoders[", compiled"] = torch.compile(model.encoder)
balancers = {c.method.name: c.method(2, 0, **c.params) for c in request.choices}
batch = {
    "inputs": torch.rand(8, 1, 96, 96),
    "mask": (torch.rand(8, 1, 96, 96) > 0.5).float(),
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
        seconds[name + kind].append(time.perf_counter() - begin)
medians = {name: statistics.median(times[2:]) for name, times in seconds.items()}
first = next(iter(medians.values()))
for name, median in medians.items():
    print(f"{name:16} {median:.4f} s  {median / first:.2f}")
