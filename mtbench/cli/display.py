"""How a cell's progress is shown: live bars on a terminal, plain lines in a log."""

import math
import time
from typing import Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from mtbench.training.cell.rundir import Spec


class Display:
    """Shows preparation and training; an `Observer` and a `task.Progress`.

    Args:
        console: where to.
        primary: the metrics shown after each epoch.
    """

    def __init__(self, console: Console, primary: list[str]) -> None:
        self.console, self.primary = console, primary
        self.bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.preparing: dict[str, TaskID] = {}
        self.training: TaskID | None = None
        self.label, self.metrics, self.losses = "", "", ""
        self.epochs, self.begun = 0, 0.0
        self.smooth: dict[str, float] = {}

    def __enter__(self) -> "Display":
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def prepare(self, what: str, done: int, total: int) -> None:
        """Show how far a preparation is."""
        if what not in self.preparing:
            self.preparing[what] = self.bars.add_task(what, total=total, note="")
            if not self.console.is_terminal and done < total:
                self.console.print(f"{what}: {total - done} to do")
        self.bars.update(self.preparing[what], completed=done, total=total)
        if done >= total:
            self.bars.remove_task(self.preparing.pop(what))

    def started(self, spec: Spec, epochs: int, steps: int, done: int) -> None:
        """A cell begins or goes on."""
        self.label = f"{spec.method} seed {spec.seed}"
        self.epochs, self.metrics, self.smooth = epochs, "", {}
        self.begun = time.perf_counter()
        self.training = self.bars.add_task(
            self.label, total=epochs * steps, completed=done, note=""
        )
        if done:
            # Whatever is asked for now: another number could add in another order.
            self.console.print(
                f"{self.label}: resumed at step {done} of {epochs * steps}, with "
                f"{torch.get_num_threads()} CPU threads as before"
            )

    def stepped(self, epoch: int, losses: dict[str, float]) -> None:
        """One step was made."""
        for name, value in losses.items():
            self.smooth[name] = 0.9 * self.smooth.get(name, value) + 0.1 * value
        if self.training is not None and self.console.is_terminal:
            shown = " ".join(f"{name} {value:.3f}" for name, value in self.smooth.items())
            note = f"epoch {epoch + 1}/{self.epochs}  {shown}  {self.metrics}"
            self.bars.update(self.training, advance=1, note=note)

    def evaluated(self, record: dict[str, Any]) -> None:
        """An epoch ended."""
        self.metrics = " ".join(
            f"{name} {record['val'][name]:.3f}"
            for name in self.primary
            if not math.isnan(record["val"][name])
        )
        losses = " ".join(f"{name} {value:.3f}" for name, value in record["train_loss"].items())
        if not self.console.is_terminal:
            elapsed = time.perf_counter() - self.begun
            self.console.print(
                f"{self.label}  epoch {record['epoch'] + 1}/{self.epochs}  train {losses}  "
                f"validation {self.metrics}  {elapsed:.0f} s",
                soft_wrap=True,
            )

    def finished(self, result: dict[str, Any]) -> None:
        """The cell ended."""
        if self.training is not None:
            self.bars.remove_task(self.training)
            self.training = None
        if events := result["nonfinite"]:
            first = events[0]
            self.console.print(
                f"{self.label}: {len(events)} x {first['answer']}, first for a {first['reason']}",
            )
        if result.get("acts") == 0:
            text = f"{self.label}: the method acted in no step: this is training by the plain sum"
            self.console.print(text, style="yellow")
        if result["status"] == "diverged":
            text = f"{self.label}: diverged: {result['reason']}"
            self.console.print(text, style="yellow")
        else:
            seconds = time.perf_counter() - self.begun
            self.console.print(
                f"{self.label}: epoch {result['best_epoch'] + 1} selected ({self.metrics} at the "
                f"end), {seconds:.0f} s",
            )
