"""Cost of a step of each method on the thyroid model, side by side: medians of interleaved steps.

Usage: python benchmarks/step_cost.py ew rlar pcgrad
"""

import statistics
import sys
import time

import torch

from mtbench import Step
from mtbench.cell import Request

torch.set_flush_denormal(True)
torch.set_num_threads(1)
request = Request.of("thyroid", sys.argv[1:] or ["ew", "rlar", "pcgrad", "mgda"], {})
task, model = request.task, request.task.model()
balancers = {c.method.name: c.method(2, 0, **c.params) for c in request.choices}
batch = {
    "inputs": torch.rand(8, 1, 96, 96),
    "mask": (torch.rand(8, 1, 96, 96) > 0.5).float(),
    "has_mask": torch.ones(8, dtype=torch.bool),
    "category": torch.randint(0, 5, (8,)),
    "radiomics": torch.randn(8, 13),
}
seconds: dict[str, list[float]] = {name: [] for name in balancers}
for _ in range(22):
    for name, balancer in balancers.items():
        begin = time.perf_counter()
        features = model.encode(batch["inputs"])
        losses = task.losses(model.decode(features), batch)
        shared, heads = model.encoder.parameters(), [h.parameters() for h in model.heads]
        balancer.backward(Step(losses, features=features, shared=shared, heads=heads))
        model.zero_grad()
        seconds[name].append(time.perf_counter() - begin)
medians = {name: statistics.median(times[2:]) for name, times in seconds.items()}
first = next(iter(medians.values()))
for name, median in medians.items():
    print(f"{name:10} {median:.4f} s  {median / first:.2f}")
