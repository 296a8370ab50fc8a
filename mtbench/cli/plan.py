"""``mtbench plan``."""

from mtbench.cli.options import Data, Jobs, Plugins, SuiteName, number_of_jobs


def plan(suite: SuiteName, data: Data = None, jobs: Jobs = None, plugin: Plugins = None) -> None:
    """Tell what a suite takes and what it can show, before anything is spent."""
    import math

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from mtbench.cli.display import Display
    from mtbench.cli.status import duration
    from mtbench.comparing.judging import statistics
    from mtbench.comparing.planning.cost import probe
    from mtbench.comparing.planning.grid import Grid, Order, needs_data
    from mtbench.comparing.planning.suite import load

    workers = number_of_jobs(jobs)
    order = Order(load(suite), data, tuple(plugin or ()))
    needs_data(order)
    grid = Grid(order)
    console, budget = Console(), order.suite.budget
    costs = []
    with Display(console, []) as display:
        for cost in probe(grid, display.prepare):
            costs.append(cost)
            display.prepare("timing a few steps", len(costs), len(grid.entries))
    each = budget.trials + budget.seeds
    for task, entries in grid.tasks.items():
        title = Text(f"{task}: {', '.join(entries[0].request.task.objectives)}")
        table = Table("method", "steps/s", "ratio", "a cell", "all cells", title=title)
        for column in table.columns[1:]:
            column.justify = "right"
        rows = [cost for cost in costs if cost.entry.task == task]
        # Which one is the plain sum is not known here: the fastest stands for it.
        least = min((row.step for row in rows if not math.isnan(row.step)), default=math.nan)
        for row in rows:
            cells = (f"{1 / row.step:.3g}", f"{row.step / least:.2f}")
            times = (duration(row.cell), duration(row.cell * each))
            if math.isnan(row.cell):
                cells, times = ("-", "-"), ("-", "does not run")
            table.add_row(Text(row.entry.choice.method.name), *cells, *times)
        console.print(table)
    total = sum(cost.cell * each for cost in costs if not math.isnan(cost.cell))
    methods = len(grid.entries) // len(grid.tasks)
    say = [
        f"cells: tasks {len(grid.tasks)} x methods {methods} x (trials {budget.trials} + "
        f"seeds {budget.seeds}) = {len(grid.cells)}",
        f"time: {duration(total)} on one core, {duration(total / workers)} with --jobs {workers} "
        "and as many cores (ratio: to the fastest method)",
    ]
    effect = statistics.smallest_effect(budget.seeds)
    if math.isinf(effect):
        say.append("smallest effect: one seed can detect none")
    else:
        text = (
            f"smallest effect that {budget.seeds} paired seeds detect (power 0.8, level 0.05): "
            f"{effect:.2f} standard deviations of the paired differences"
        )
        if methods > 2:
            strict = statistics.smallest_effect(budget.seeds, alpha=0.05 / (methods - 1))
            text += f"; {strict:.2f} as one of {methods - 1} comparisons"
        say.append(text)
    say.append(statistics.significance_note(budget.seeds, methods - 1))
    for line in filter(None, say):
        console.print(f"- {line}", markup=False, highlight=False, soft_wrap=True)
    given = "" if data is None else f" --data {data}"
    console.print(
        f"run it: mtbench sweep {suite}{given} --out runs",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
