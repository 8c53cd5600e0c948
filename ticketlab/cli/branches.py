"""Which run is meant, at which levels and times; trainings beside it as they go on."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ticketlab.cli.progress import Bars, drawn_line
from ticketlab.cli.render import note
from ticketlab.errors import RecipeError, RunError, TicketlabError
from ticketlab.recipe_file import RecipeFile, read_recipe, read_variants
from ticketlab.runs.find import find_run, is_kind, list_runs
from ticketlab.runs.store import Level, RunStore
from ticketlab.steps import Duration, parse_duration
from ticketlab.workflows.progress import Drawn, Notice
from ticketlab.workflows.progress import Progress as StepProgress
from ticketlab.workflows.run import Event, Started
from ticketlab.workflows.stability import Interpolation, Line
from ticketlab.workflows.stability_search import Analysis
from ticketlab.workflows.sweep_points import points_of
from ticketlab.workflows.trunk import Branch, Branched

Choose = Callable[[Path], RunStore]
"""Folder of runs → the run that is meant where none is named."""


def newest(runs: Path) -> RunStore:
    """The newest pruning run."""
    return find_run(runs, None, "prune")


def newest_claiming(runs: Path) -> RunStore:
    """The newest pruning run whose recipe claims something; raises RunError where there is none."""
    for store in reversed(list_runs(runs)):
        if is_kind(store, "prune") and _claims(store):
            return store
    raise RunError(f"no run in {runs} has a recipe with claims; name one: ticketlab verify RECIPE")


def _claims(store: RunStore) -> bool:
    """Whether a run's recipe claims something; a damaged one claims nothing, and hides no other."""
    try:
        return bool(read_recipe(store.path / "recipe.yaml").recipe.claims)
    except RecipeError:
        return False


def run(name: str | None, runs: Path, quiet: bool, choose: Choose = newest) -> RunStore:
    """The run that a user named; without a name one is chosen, and the user is told which."""
    if name is not None:
        return find_run(runs, name, "prune")
    store = choose(runs)
    if not quiet:
        note(f"run: {store.name}")
    return store


def trunk(
    name: str | None, overrides: Sequence[str], runs: Path, quiet: bool, choose: Choose = newest
) -> RunStore | RecipeFile:
    """The run or the recipe that a user named; of a run nothing can be changed, and a recipe is one, not a sweep."""
    if name is not None and name.endswith((".yaml", ".yml")):
        variants = read_variants(Path(name)) if any(text.startswith("variant=") for text in overrides) else {}
        (point, *more) = points_of(overrides, variants)
        if more:
            fields = ", ".join(field for field, _ in point.swept)
            raise TicketlabError(f"--set {fields}: lists of values (sweeps) belong to ticketlab prune; give one value")
        return read_recipe(Path(name), point.overrides)
    if overrides:
        raise TicketlabError(f"--set {overrides[0]}: the run is trained already; name a recipe to change its fields")
    return run(name, runs, quiet, choose)


def levels(text: str | None) -> list[int] | None:
    """The levels in `7`, `3,7` or `all` (empty); None for none named."""
    if text is None:
        return None
    if text.strip() == "all":
        return []
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise TicketlabError(f"--level {text}: write a level, several with commas between, or all")
    return sorted({int(part) for part in parts})


def names(text: str | None) -> list[str]:
    """Names with commas between; none where nothing is said."""
    found = [name.strip() for name in (text or "").split(",") if name.strip()]
    if text is not None and not found:
        raise TicketlabError(f"'{text}': write a name, or several with commas between")
    return found


def follow(events: Iterable[Event | Branched | dict[str, Any]], quiet: bool) -> dict[str, Any]:
    """Show events as they come; returns the record that ends them."""
    record: dict[str, Any] = {}
    # a worker that died is started again and tells its finished trainings once more
    told: set[Hashable] = set()
    with Bars(quiet, is_transient=True) as bars:
        for event in events:
            if isinstance(event, Notice):
                bars.say(event.text)
            elif isinstance(event, dict):
                record = event
            elif isinstance(event, Started):
                bars.tell(f"{event.store.name}: {event.plan.recipe.replicates} × {event.plan.levels + 1} levels")
            elif isinstance(event, Branched):
                _see(bars, event.branch.name, event.branch, event.seen, told)
            else:
                name = "" if isinstance(event, Drawn) else f"replicate {event.replicate}, level {event.level}"
                _see(bars, name, None, event, told)
    return record


def _see(bars: Bars, name: str, branch: Branch | None, seen: object, told: set[Hashable]) -> None:
    """Show what a training of that name lets be seen of itself."""
    if isinstance(seen, StepProgress):
        bars.begin(name, seen.stop - seen.start)
        bars.move(name, seen)
        if seen.step == seen.stop:
            bars.end(name)
    elif isinstance(seen, Notice):
        bars.tell(f"{name}: {seen.text}")
    elif isinstance(seen, Drawn):
        bars.tell(drawn_line(seen))
    elif isinstance(seen, Level | Line):
        bars.end(name)
        key = (branch, seen.replicate, seen.level, seen if isinstance(seen, Line) else None)
        if key not in told:
            bars.tell(_line(name, seen))
        told.add(key)


def _line(name: str, seen: Level | Line) -> str:
    if isinstance(seen, Line):
        return f"{name}: barrier {100 * seen.barrier:.2f} points of validation error, distance {seen.distance:.3g}"
    accuracy = f"test accuracy {100 * seen.test_accuracy:.2f} % at step {seen.early_stop_step}"
    return f"{name}: {accuracy}, {seen.seconds:.1f} s"


def analysis(
    level: str | None, at: str | None, bisect: bool, resolution: str | None, interpolation: Interpolation
) -> Analysis:
    """The instability analysis that the options of a command describe."""
    found = levels(level)
    if found is None:
        found = [0] if at or bisect else []
    return Analysis(tuple(found), times("--at", at), bisect, one_time("--resolution", resolution), interpolation)


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
