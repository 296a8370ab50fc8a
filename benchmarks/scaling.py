"""What data-parallel training sends and holds: formulas against what is counted.

    python benchmarks/scaling.py                  # the tables on paper
    torchrun --standalone --nproc-per-node 2 benchmarks/scaling.py    # counted and timed

A payload is what a rank hands to collectives in a step, in bytes. A ring sends 2 (R - 1) / R times
as much over each rank's wire, whatever R.
"""

import statistics
import time
from functools import partial
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.functional import mse_loss

from mtbench import Engine, MultitaskModel, Step
from mtbench.balancing.distributed import Group, Ranks
from mtbench.plugins.method import Method
from mtbench.training.machine.processes import started

ENCODERS = {"ResNet-18": 11e6, "ResNet-50": 25e6, "ViT-B": 86e6}
COUNTS = (2, 8, 40)
WIRES = {"100 Gbit/s": 12.5e9, "NVLink, 400 GB/s": 400e9}
FAMILIES = {
    "one scalar": ("ew", "uw", "famo", "rlar"),
    "Gramian of features": ("mgda space=features",),
    "Gramian, Jacobian": ("mgda", "nash_mtl", "graddrop"),
    "Gramian, 4 parts": ("mgda parts=4",),
    "Jacobian, remembered": ("moco",),
}


def numbers(family: str, K: int, d: float, h: float = 0.0) -> tuple[float, float]:
    """Return (sent, held): float32 numbers a rank hands over, and holds of gradients, a step."""
    if family in ("one scalar", "Gramian of features"):
        return d + h, 2 * (d + h)
    if family == "Gramian, 4 parts":
        return (K + 1) * d + h, K * d / 4 + 2 * (d + h)
    kept = 2 * K if family == "Jacobian, remembered" else K
    return K * d + h, (kept + 1) * d + 2 * h


def on_paper() -> None:
    """Print what each family sends and holds for three encoders."""
    wires = " | ".join(f"at {wire}, ms" for wire in WIRES)
    print(f"| encoder | family | sent, MB, K = {COUNTS} | held, MB | {wires} |")
    print("|---|---|---:|---:|" + "---:|" * len(WIRES))
    for encoder, d in ENCODERS.items():
        for family in FAMILIES:
            both = [numbers(family, K, d) for K in COUNTS]
            sent, held = ([4 * n for n in column] for column in zip(*both, strict=True))
            times = [[2e3 * n / wire for n in sent] for wire in WIRES.values()]
            cells = [[n / 1e6 for n in sent], [n / 1e6 for n in held], *times]
            shown = " | ".join(_row(cell) for cell in cells)
            print(f"| {encoder}, {d / 1e6:.0f} M | {family} | {shown} |")


def _row(values: list[float]) -> str:
    shown = [f"{value:,.0f}" if value >= 10 else f"{value:.2g}" for value in values]
    return " / ".join(dict.fromkeys(shown))


def _model(width: int, objectives: int) -> MultitaskModel:
    encoder = nn.Sequential(
        nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 64)
    )
    return MultitaskModel.single_feature(encoder, [nn.Linear(64, 1) for _ in range(objectives)])


def _counted(sent: list[int]) -> None:
    """Make collectives note the bytes that they are handed."""

    def counting(call: Any, tensor_at: int, *args: Any, **named: Any) -> Any:
        sent.append(args[tensor_at].numel() * args[tensor_at].element_size())
        return call(*args, **named)

    distributed.all_reduce = partial(counting, distributed.all_reduce, 0)
    distributed.all_gather = partial(counting, distributed.all_gather, 1)


def _step(model: MultitaskModel, balancer: Any, ranks: Ranks, engine: Engine) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(128, 64, generator=generator)
    y = torch.randn(128, len(model.heads), generator=generator)

    def forward() -> Step:
        mine, sizes = ranks.share(x)
        z = model.encode(mine)
        outputs = ranks.gather(model.decode(z), sizes)
        losses = [mse_loss(o[:, 0], y[:, k]) for k, o in enumerate(outputs)]
        shared = model.encoder.parameters()
        return Step(losses, features=z, shared=shared, engine=engine, ranks=ranks)

    balancer.backward(forward())
    balancer.after_step(lambda: forward().losses)
    model.zero_grad()


def measured() -> None:
    """Print the bytes counted and the time of a step, beside what `numbers` says."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    sent: list[int] = []
    _counted(sent)
    ranks = Group()
    if not ranks.rank:
        print(f"{ranks.size} ranks, gloo, an MLP")
        print("| family | method | K | d | paper, MB | counted, MB | step, ms |")
        print("|---|---|---:|---:|---:|---:|---:|")
    for family, methods in FAMILIES.items():
        for words in methods:
            for K in (2, 8):
                name, *options = words.split()
                given = dict(option.split("=") for option in options)
                parts = int(given.pop("parts", 1))
                torch.manual_seed(0)
                model = _model(1000, K)
                balancer = Method.find(name)(K, 0, **given)
                engine, times = Engine(batched=False, parts=parts), []
                for _ in range(5):
                    sent.clear()
                    begin = time.perf_counter()
                    _step(model, balancer, ranks, engine)
                    times.append(time.perf_counter() - begin)
                d = sum(p.numel() for p in model.encoder.parameters())
                h = sum(p.numel() for p in model.heads.parameters())
                paper = 4 * numbers(family, K, d, h)[0]
                if not ranks.rank:
                    print(
                        f"| {family} | `{words}` | {K} | {d / 1e6:.2f} M | {paper / 1e6:.3f} | "
                        f"{sum(sent) / 1e6:.3f} | {1e3 * statistics.median(times[1:]):.0f} |"
                    )
    distributed.destroy_process_group()


if __name__ == "__main__":
    measured() if started() else on_paper()
