"""Trainings beside a finished run as they go on, and what came of them, as tables or JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ticketlab.cli.render import console, new_table, note, result, show, with_interval
from ticketlab.report import Estimate
from ticketlab.runs.store import Level
from ticketlab.workflows.train_level import Notice
from ticketlab.workflows.train_level import Progress as StepProgress
from ticketlab.workflows.trunk import Branched


def follow(events: Iterable[Branched | Notice | dict[str, Any]], quiet: bool) -> dict[str, Any]:
    """Show events as they come; returns the record that ends them."""
    screen = console(stderr=True)
    is_shown = screen.is_terminal and not quiet
    bars = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=screen, transient=True,
    )  # fmt: skip
    tasks: dict[str, Any] = {}
    record: dict[str, Any] = {}
    with bars if is_shown else nullcontext():
        for event in events:
            if isinstance(event, Notice):
                note(event.text)
            elif isinstance(event, dict):
                record = event
            elif isinstance(event.seen, StepProgress):
                seen, name = event.seen, event.branch.name
                if name not in tasks:
                    tasks[name] = bars.add_task(name, total=seen.stop - seen.start)
                bars.update(tasks[name], completed=seen.step - seen.start)
                if seen.step == seen.stop:
                    bars.remove_task(tasks.pop(name))
            elif isinstance(event.seen, Notice) and not quiet:
                note(f"{event.branch.name}: {event.seen.text}")
            elif isinstance(event.seen, Level):
                if event.branch.name in tasks:
                    bars.remove_task(tasks.pop(event.branch.name))
                if not quiet:
                    note(_line(event.branch.name, event.seen))
    return record


def _line(name: str, level: Level) -> str:
    accuracy = f"test accuracy {100 * level.test_accuracy:.2f} % at step {level.early_stop_step}"
    return f"{name}: {accuracy}, {level.seconds:.1f} s"


def controls(record: Mapping[str, Any], json: bool) -> None:
    """The ticket between what it is compared with."""
    if json:
        result(dict(record))
        return
    title = f"{record['run']} level {record['level']}, {100 * record['density']:.2f} % of weights: ± 95 % t interval"
    table = new_table(title, ("network", "test\naccuracy %", "n", "minus\nticket %", "at\nend %", "early\nstop"))
    for row in (record["ticket"], record["dense"], *record["controls"]):
        accuracy, minus = Estimate(**row["test_accuracy"]), Estimate(**row["minus_ticket"])
        table.add_row(
            row["control"].replace("_", " "),
            with_interval(accuracy, ".2f"),
            str(accuracy.n),
            "" if row["control"] == "ticket" else with_interval(minus, "+.2f"),
            f"{100 * row['final_test_accuracy']['mean']:.2f}",
            f"{row['early_stop_step']['mean']:.0f}",
        )
    show(table)
    note(f"figure: {record['run']}/controls/level_{record['level']}/controls.png")


def supermasks(record: Mapping[str, Any], json: bool) -> None:
    """Untrained networks under masks, the best first, between the network without a mask and the trained one."""
    if json:
        result(dict(record))
        return
    title = f"{record['run']}: untrained weights under masks, test accuracy ± 95 % t interval"
    table = new_table(title, ("mask", "weights", "test\naccuracy %", "n", "validation\naccuracy %", "density\n%"))
    trained = Estimate(**record["trained"])
    table.add_row("trained dense network", "trained", with_interval(trained, ".2f"), str(trained.n), "", "100")
    masks = [*record["one_shot"], *record["learned"]]
    for row in sorted(masks, key=lambda row: -row["test_accuracy"]["mean"]):
        accuracy = Estimate(**row["test_accuracy"])
        table.add_row(
            row["mask"] if "mask" in row else row["criterion"].replace("_", " "),
            row["weights"].replace("_", " "),
            with_interval(accuracy, ".2f"),
            str(accuracy.n),
            f"{100 * row['val_accuracy']['mean']:.2f}",
            _from_to(row["densities"]),
        )
    for row in record["no_mask"]:
        accuracy = Estimate(**row["test_accuracy"])
        kind = row["weights"].replace("_", " ")
        table.add_row("no mask", kind, with_interval(accuracy, ".2f"), str(accuracy.n), "", "100")
    show(table)
    note(f"figure: {record['run']}/supermask/supermask.png")


def _from_to(densities: Sequence[float]) -> str:
    low, high = (f"{100 * end(densities):.2f}" for end in (min, max))
    return low if low == high else f"{low}–{high}"
