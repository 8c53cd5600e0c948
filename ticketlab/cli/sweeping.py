"""A sweep as it goes on, what came of it, and what it would do: a row for each point and telling level."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ticketlab.cli.levels import run_record
from ticketlab.cli.progress import Bars, drawn_line, level_line
from ticketlab.cli.render import new_table, note, result, show, with_interval
from ticketlab.errors import FailedRun, Stop
from ticketlab.recipe import Recipe
from ticketlab.report import summarise, telling
from ticketlab.runs.store import Level
from ticketlab.words import counted, long_time
from ticketlab.workflows.estimate import Forecast, forecast
from ticketlab.workflows.plan import Plan
from ticketlab.workflows.progress import Drawn, Notice
from ticketlab.workflows.progress import Progress as StepProgress
from ticketlab.workflows.run import Machine
from ticketlab.workflows.sweep import Begun, Pointed, Ready, sweep_run
from ticketlab.workflows.sweep_points import Point, check_points

SWEEP = "sweep"
"""Name of the bar over all points."""


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
    should_stop: Stop,
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
    swept = Swept()
    with Bars(quiet) as bars:
        try:
            for event in events:
                if isinstance(event, Notice):
                    bars.say(event.text)
                elif isinstance(event, Begun):
                    swept.points = event.points
                    bars.begin(SWEEP, sum(one.steps * one.file.recipe.replicates for one in event.points))
                    bars.describe(SWEEP, counted(len(event.points), "point"))
                    bars.tell(f"{counted(len(event.points), 'point')}, {event.workers} at a time")
                else:
                    _see(event, swept, bars)
        except FailedRun as error:
            if not swept.points:
                raise
            swept.failure = error
    return swept


def _see(event: Pointed, swept: Swept, bars: Bars) -> None:
    name, seen = swept.points[event.point].point.name, event.seen
    if isinstance(seen, StepProgress | Level):
        bars.move(SWEEP, seen, event.point)
    if isinstance(seen, Level):
        key = (event.point, event.replicate, seen.level)
        if key not in swept.levels:
            bars.tell(f"{name}: {level_line(seen)}")
        swept.levels[key] = seen
    elif isinstance(seen, Drawn):
        bars.tell(f"{name}: {drawn_line(seen)}")
    elif isinstance(seen, Notice):
        bars.say(f"{name}: {seen.text}")


def swept(done: Swept, json: bool) -> None:
    """What differs between the points, and what came of each."""
    if json:
        result({"sweep": [_record(done, index) for index in range(len(done.points))]})
        return
    fields = _fields([one.point for one in done.points])
    columns = [*fields, "level", "density\n%", "test\naccuracy %", "n", "minus\ndense %", "at\nend %", "run"]
    data = done.points[0].store.read_manifest()
    title = f"{data['recipe']}: test accuracy at the early-stop step ± 95 % t interval"
    table = new_table(title, columns)
    for index, one in enumerate(done.points):
        levels = done.of_point(index)
        for row in telling(summarise(levels)):
            is_dense = not row.level or row.minus_dense is None
            table.add_row(
                *(dict(one.point.swept).get(name, "") for name in fields),
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


def _fields(points: Sequence[Point]) -> list[str]:
    """What differs between points; variants may differ in fields that others leave alone."""
    return list(dict.fromkeys(name for point in points for name, _ in point.swept))


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
    fields = _fields(points)
    columns = [*fields, "levels", "density %", "replicates", "time", "run"]
    table = new_table("points", columns)
    for point, run, asked, expected in rows:
        table.add_row(
            *(dict(point.swept).get(name, "") for name in fields),
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
