"""Where each method ends on the toy problem, from every start: Adam, 1e-3, no trainer.

Usage: python benchmarks/toy_table.py [--steps 50000] [--scaling equal] [--tolerance 0.1] METHOD ...

A method's parameters are given as --key=value. A path counts as on the front if its end is at most
the tolerance away from it in objective space (f spans 20 for s = 1 and 2 for s = 0.1).
"""

import argparse
import time

import torch

from mtbench.balancing.step import Step
from mtbench.training.cell.request import Request
from mtbench_tasks.toy import STARTS, Toy

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("methods", nargs="+", metavar="METHOD")
parser.add_argument("--steps", type=int, default=50_000)
parser.add_argument("--scaling", choices=[*STARTS, "both"], default="both")
parser.add_argument("--tolerance", type=float, default=0.1)
given, extra = parser.parse_known_args()
parameters = dict(word.removeprefix("--").split("=") for word in extra)
torch.set_num_threads(1)
torch.set_flush_denormal(True)


def end(choice, task, seed):
    """Return where a method ends."""
    balancer = choice.method(2, seed, **choice.params)
    x = torch.nn.Parameter(task.start(seed)[None])
    groups = [{"params": [x]}]
    if own := list(balancer.parameters()):
        groups.append({"params": own})
    optimizer = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.0, fused=True)

    def forward():
        features = (x.view_as(x),)
        seen = [balancer.view(features, k)[0] for k in range(2)]
        losses = [task.value(k, point).sum() for k, point in enumerate(seen)]
        return Step(losses, features=features, shared=[x], again=forward)

    for done in range(1, given.steps + 1):
        optimizer.zero_grad()
        balancer.backward(forward())
        optimizer.step()
        balancer.after_step(lambda: forward().losses)
        if done % task.every == 0:
            balancer.after_epoch()
    return x.detach()[0].double()


for scaling in STARTS if given.scaling == "both" else [given.scaling]:
    task = Toy(scaling=scaling)
    for choice in Request.of("toy", given.methods, parameters).choices:
        begin, shown, reached = time.perf_counter(), [], 0
        for seed in range(len(STARTS[scaling])):
            x = end(choice, task, seed)
            distance = task.distance(task.values(x))
            reached += distance <= given.tolerance
            shown.append(f"({x[0]:.2f}, {x[1]:.2f}) {distance:.2g}")
        each = (time.perf_counter() - begin) / len(shown) / given.steps
        print(
            f"{choice.method.name:10} {scaling:8} {reached} of {len(shown)}  "
            f"{'  '.join(shown)}  {1e3 * each:.2f} ms a step",
            flush=True,
        )
