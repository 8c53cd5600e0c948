"""Trainings beside a finished run as they go on, and what came of them, as tables or JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ticketlab.cli.render import console, new_table, note, result, show, with_interval
from ticketlab.errors import GateFailed, TicketlabError
from ticketlab.recipe_file import RecipeFile, read_recipe
from ticketlab.report import Estimate
from ticketlab.runs.store import Level, RunStore, find_run
from ticketlab.steps import Duration, parse_duration
from ticketlab.workflows.run import Event, Started
from ticketlab.workflows.stability import Line
from ticketlab.workflows.train_level import Notice
from ticketlab.workflows.train_level import Progress as StepProgress
from ticketlab.workflows.trunk import Branched
from ticketlab.workflows.verify import failed

STABILITY_COLUMNS = (
    "level", "density\n%", "step", "% of\ntraining", "barrier, points\nvalidation", "\ntrain", "n", "",
    "error of the ends, %\nvalidation", "\ntrain", "\ntest", "L2\ndistance",
)  # fmt: skip


def trunk(name: str | None, overrides: Sequence[str], runs: Path) -> RunStore | RecipeFile:
    """The run or the recipe that a user named; of a run nothing can be changed."""
    if name is not None and name.endswith((".yaml", ".yml")):
        return read_recipe(Path(name), overrides)
    if overrides:
        raise TicketlabError(f"--set {overrides[0]}: the run is trained already; name a recipe to change its fields")
    return find_run(runs, name, "prune")


def levels(text: str | None) -> list[int] | None:
    """The levels in `7`, `3,7` or `all` (empty); None for none named."""
    if text is None:
        return None
    if text.strip() == "all":
        return []
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise TicketlabError(f"--level {text}: write a level, several with commas between, or all")
    return [int(part) for part in parts]


def names(text: str | None) -> list[str]:
    """Names with commas between."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def follow(events: Iterable[Event | Branched | dict[str, Any]], quiet: bool) -> dict[str, Any]:
    """Show events as they come; returns the record that ends them."""
    screen = console(stderr=True)
    bars = _Bars(screen, screen.is_terminal and not quiet)
    record: dict[str, Any] = {}
    with bars.progress if bars.is_shown else nullcontext():
        for event in events:
            if isinstance(event, Notice):
                note(event.text)
            elif isinstance(event, dict):
                record = event
            elif isinstance(event, Started):
                if not quiet:
                    note(f"{event.store.name}: {event.plan.recipe.replicates} × {event.plan.levels + 1} levels")
            else:
                branch, seen = (event.branch.name, event.seen) if isinstance(event, Branched) else ("", event)
                if isinstance(seen, StepProgress):
                    bars.move(branch or f"replicate {seen.replicate}, level {seen.level}", seen)
                elif isinstance(seen, Notice) and not quiet:
                    note(f"{branch}: {seen.text}")
                elif isinstance(seen, Level | Line):
                    name = branch or f"replicate {seen.replicate}, level {seen.level}"
                    bars.finish(name)
                    if not quiet:
                        note(_line(name, seen))
    return record


class _Bars:
    """A bar for each training that is going on."""

    def __init__(self, screen: Console, is_shown: bool) -> None:
        self.is_shown = is_shown
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            console=screen, transient=True,
        )  # fmt: skip
        self._tasks: dict[str, TaskID] = {}

    def move(self, name: str, seen: StepProgress) -> None:
        """A training got further."""
        if name not in self._tasks:
            self._tasks[name] = self.progress.add_task(name, total=seen.stop - seen.start)
        self.progress.update(self._tasks[name], completed=seen.step - seen.start)
        if seen.step == seen.stop:
            self.finish(name)

    def finish(self, name: str) -> None:
        """A training is over."""
        if name in self._tasks:
            self.progress.remove_task(self._tasks.pop(name))


def _line(name: str, seen: Level | Line) -> str:
    if isinstance(seen, Line):
        return f"{name}: barrier {100 * seen.barrier:.2f} points of validation error, distance {seen.distance:.3g}"
    accuracy = f"test accuracy {100 * seen.test_accuracy:.2f} % at step {seen.early_stop_step}"
    return f"{name}: {accuracy}, {seen.seconds:.1f} s"


def controls(record: Mapping[str, Any], json: bool) -> None:
    """Tickets between what they are compared with."""
    if json:
        result(dict(record))
        return
    for one in record.get("levels", [record]):
        _controls(one)
    folder = "controls" if "levels" in record else f"controls/level_{record['level']}"
    note(f"figure: {record['run']}/{folder}/controls.png")


def _controls(record: Mapping[str, Any]) -> None:
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


def claims(record: Mapping[str, Any], json: bool) -> None:
    """Claims with what was measured; raises GateFailed where one fails."""
    if json:
        result(dict(record))
    else:
        table = new_table(
            f"{record['recipe']}: claims", ("claim", "expected", "measured\n± 95 % t interval", "n", "verdict")
        )
        for one in record["claims"]:
            found, what = one["measured"], f"{one['that']} ({one['metric'].replace('_', ' ')}, level {one['level']})"
            table.add_row(
                f"{one['claim']}\n{one['source']}\n{what}",
                _expected(one),
                _measured(one),
                str(found["n"] if found else 0),
                one["verdict"] + _more(one),
            )
        show(table)
        note(f"run: {record['run']}")
    wrong = failed(record)
    if wrong:
        raise GateFailed(f"{len(wrong)} of {len(record['claims'])} claims failed: {'; '.join(wrong)}")


def _spoken(value: float, one: Mapping[str, Any], form: str = "") -> str:
    """Accuracies in points, anything else as it is; a ratio of accuracies is a plain number."""
    in_points = one["metric"].endswith("accuracy") and "/" not in one["that"]
    return f"{100 * value:{form}.2f} points" if in_points else f"{value:{form}.4g}"


def _expected(one: Mapping[str, Any]) -> str:
    bounds = one["expected"]
    if "expected" in bounds:
        return f"{_spoken(bounds['expected'], one)} ± {_spoken(bounds['tolerance'], one)}"
    told = {"at_least": "≥", "at_most": "≤"}
    return ", ".join(f"{sign} {_spoken(bounds[name], one)}" for name, sign in told.items() if name in bounds)


def _measured(one: Mapping[str, Any]) -> str:
    found = one["measured"]
    if not found:
        return "nothing"
    half = "" if found["high"] is None else f" ± {_spoken(found['high'] - found['mean'], one)}"
    return f"{_spoken(found['mean'], one)}{half}"


def _more(one: Mapping[str, Any]) -> str:
    return f"\n(about {one['seeds_to_decide']} would do)" if one["seeds_to_decide"] else ""


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


def stability(record: Mapping[str, Any], json: bool) -> None:
    """Barriers by level or step."""
    if json:
        result(dict(record))
        return
    title = f"{record['run']}: error on the line between copies ± 95 % t interval; stable: less than 2 points"
    table = new_table(title, STABILITY_COLUMNS)
    for row in record["rows"]:
        barrier, error = (
            {split: Estimate(**found) for split, found in row[key].items()} for key in ("barrier", "error")
        )
        table.add_row(
            str(row["level"]),
            f"{100 * row['density']:.2f}",
            str(row["step"]),
            f"{100 * row['share']:.1f}",
            with_interval(barrier["validation"], ".2f"),
            with_interval(barrier["train"], ".2f"),
            str(barrier["validation"].n),
            row["verdict"] + ("?" if row["is_clear"] is False else ""),
            *(f"{100 * error[split].mean:.2f}" for split in ("validation", "train", "test")),
            f"{row['distance']['mean']:.3g}",
        )
    show(table)
    if any(row["is_clear"] is False for row in record["rows"]):
        note("?: the interval holds 2 points; more replicates would tell")
    if record["search"]:
        note(_smallest(record["search"], record["steps"]))
    note(f"figures: {record['folder']}/line.png, barrier.png")


def _smallest(search: Mapping[str, Any], steps: int) -> str:
    """The end of a search, in a sentence."""
    found, below, to_within = search["stable"], search["unstable"], f"to within {search['resolution']} steps"
    if found is None:
        return f"not stable at any step that was tried, the last of them {below} of {steps}"
    if below is None:
        return f"stable from step {found} on"
    return f"smallest stable step: {found} of {steps} ({100 * found / steps:.1f} %), {to_within}"


def times(option: str, text: str | None) -> tuple[Duration, ...]:
    """Times with commas between; raises TicketlabError that shows both forms."""
    try:
        return tuple(parse_duration(part.strip()) for part in (text or "").split(",") if part.strip())
    except ValueError as error:
        raise TicketlabError(f"{option} {text}: {error}") from error


def one_time(option: str, text: str | None) -> Duration | None:
    """A single time, if there is one; raises TicketlabError for several."""
    found = times(option, text)
    if len(found) > 1:
        raise TicketlabError(f"{option} {text}: one time, please")
    return found[0] if found else None
