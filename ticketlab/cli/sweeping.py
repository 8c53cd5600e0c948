"""A sweep as it goes on, what came of it, and what it would do: a row for each point and telling level."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ticketlab.cli.progress import drawn_line, level_line
from ticketlab.cli.render import console, counted, long_time, new_table, note, result, run_record, show, with_interval
from ticketlab.errors import FailedRun
from ticketlab.recipe import Recipe
from ticketlab.report import summarise, telling
from ticketlab.runs.store import Level
from ticketlab.workflows.estimate import Forecast, forecast
from ticketlab.workflows.plan import Plan
from ticketlab.workflows.run import Machine
from ticketlab.workflows.sweep import Begun, Pointed, Ready, sweep_run
from ticketlab.workflows.sweep_points import Point, check_points
from ticketlab.workflows.train_level import Drawn, Notice
from ticketlab.workflows.train_level import Progress as StepProgress


@dataclass
class Swept:
    """What has been seen of a sweep."""

    points: list[Ready] = field(default_factory=list)
    levels: dict[tuple[int, int, int], Level] = field(default_factory=dict)
    """By point, replicate and level."""
    failure: FailedRun | None = None

    def of_point(self, index: int) -> list[Level]:
        """Levels of one point, in order."""
        return [self.levels[key] for key in sorted(self.levels) if key[0] == index]


def sweep(
    recipe: Path,
    points: Sequence[Point],
    machine: Machine,
    should_stop: Callable[[], bool],
    dry_run: bool,
    json: bool,
    quiet: bool,
) -> None:
    """Run all points, or say what they would cost; errors are raised after what came of the other points is told."""
    if dry_run:
        planned(recipe, points, machine, json)
        return
    done = follow(sweep_run(recipe, points, machine, should_stop), quiet)
    swept(done, json)
    if done.failure is not None:
        raise done.failure


def follow(events: Iterable[Begun | Pointed | Notice], quiet: bool) -> Swept:
    """Show events as they come; a failure is kept until what did not fail has been told."""
    screen = console(stderr=True)
    bars = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"),
        TimeRemainingColumn(), console=screen,
    )  # fmt: skip
    is_shown = screen.is_terminal and not quiet
    swept, steps = Swept(), Steps(bars)
    with bars if is_shown else nullcontext():
        try:
            for event in events:
                if isinstance(event, Notice):
                    note(event.text)
                elif isinstance(event, Begun):
                    swept.points = event.points
                    steps.begin(event.points)
                    if not quiet:
                        note(f"{counted(len(event.points), 'point')}, {event.workers} at a time")
                else:
                    _see(event, swept, steps, quiet)
        except FailedRun as error:
            if not swept.points:
                raise
            swept.failure = error
    return swept


def _see(event: Pointed, swept: Swept, steps: Steps, quiet: bool) -> None:
    name, seen = swept.points[event.point].point.name, event.seen
    if isinstance(seen, StepProgress):
        steps.move(event.point, event.replicate, seen.level, seen.step - seen.start)
    elif isinstance(seen, Level):
        steps.move(event.point, event.replicate, seen.level, seen.steps)
        key = (event.point, event.replicate, seen.level)
        if key not in swept.levels and not quiet:
            note(f"{name}: {level_line(seen)}")
        swept.levels[key] = seen
    elif isinstance(seen, Drawn):
        if not quiet:
            note(f"{name}: {drawn_line(seen)}")
    else:
        note(f"{name}: {seen.text}")


class Steps:
    """One bar over all optimizer steps of a sweep."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._done: dict[tuple[int, int, int], int] = {}

    def begin(self, points: Sequence[Ready]) -> None:
        """Make the bar."""
        total = sum(one.steps * one.file.recipe.replicates for one in points)
        self._task = self._bars.add_task(counted(len(points), "point"), total=total)

    def move(self, point: int, replicate: int, level: int, steps: int) -> None:
        """So many steps of a level are done."""
        self._done[point, replicate, level] = steps
        self._bars.update(self._task, completed=sum(self._done.values()))


def swept(done: Swept, json: bool) -> None:
    """What differs between the points, and what came of each."""
    if json:
        result({"sweep": [_record(done, index) for index in range(len(done.points))]})
        return
    fields = [name for name, _ in done.points[0].point.swept]
    columns = [*fields, "level", "density\n%", "test\naccuracy %", "n", "minus\ndense %", "at\nend %", "run"]
    data = done.points[0].store.read_manifest()
    title = f"{data['recipe']}: test accuracy at the early-stop step ± 95 % t interval"
    table = new_table(title, columns)
    for index, one in enumerate(done.points):
        levels = done.of_point(index)
        for row in telling(summarise(levels)):
            is_dense = not row.level or row.minus_dense is None
            table.add_row(
                *(value for _, value in one.point.swept),
                str(row.level),
                f"{100 * row.density:.2f}",
                with_interval(row.test_accuracy, ".2f"),
                str(row.test_accuracy.n),
                "" if is_dense or row.minus_dense is None else with_interval(row.minus_dense, "+.2f"),
                f"{100 * row.final_test_accuracy.mean:.2f}",
                one.store.name,
            )
    show(table)
    note("levels: dense, the sparsest no worse than dense on validation data, the sparsest; --json has all")


def _record(done: Swept, index: int) -> dict[str, Any]:
    one = done.points[index]
    return {"set": one.point.settings(), **run_record(one.store, done.of_point(index))}


def planned(recipe: Path, points: Sequence[Point], machine: Machine, json: bool) -> None:
    """The points of a sweep and what they would cost."""

    def look(plan: Plan) -> tuple[Path, Recipe, Forecast]:
        return machine.runs / plan.name, plan.recipe, forecast(plan)

    found = check_points(recipe, points, machine, look)
    rows = [(point, *seen) for point, seen in zip(points, found, strict=True)]
    seconds = sum(expected.seconds for *_, expected in rows)
    size = sum(expected.bytes for *_, expected in rows)
    if json:
        plans = [
            {"set": point.settings(), "run": str(run), "recipe": asked.model_dump(mode="json"), **expected.as_dict()}
            for point, run, asked, expected in rows
        ]
        result({"sweep": plans, "seconds": seconds, "bytes": size})
        return
    columns = [*(name for name, _ in points[0].swept), "levels", "density %", "replicates", "time", "run"]
    table = new_table("points", columns)
    for point, run, asked, expected in rows:
        table.add_row(
            *(value for _, value in point.swept),
            str(len(expected.levels)),
            f"{100 * min(level.density for level in expected.levels):.2f}",
            str(asked.replicates),
            long_time(expected.seconds),
            run.name,
        )
    show(table)
    result(
        f"{counted(len(rows), 'point')} into {machine.runs}, about {size / 1e6:.0f} MB of disk, "
        f"roughly {long_time(seconds)} of one core in all"
    )
