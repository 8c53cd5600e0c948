"""A run as it goes on: bars on a terminal, one line per level elsewhere, both on stderr."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ticketlab.cli.render import console, note
from ticketlab.runs.store import Level, RunStore
from ticketlab.words import counted
from ticketlab.workflows.plan import Plan
from ticketlab.workflows.progress import Drawn, Notice
from ticketlab.workflows.progress import Progress as StepProgress
from ticketlab.workflows.run import Event, Started


def follow(events: Iterable[Event], quiet: bool) -> tuple[RunStore, list[Level]]:
    """Show events as they come; returns the run and its levels."""
    started: Started | None = None
    # a worker that died is started again and tells its finished levels once more
    levels: dict[tuple[int, int], Level] = {}
    with Bars(quiet) as bars:
        for event in events:
            if isinstance(event, Started):
                started = event
                for replicate in range(1, event.plan.recipe.replicates + 1):
                    bars.begin(_bar(replicate), event.plan.steps_from(0))
                bars.tell(_opening(event))
            elif isinstance(event, Notice):
                bars.say(event.text)
            elif isinstance(event, Drawn):
                bars.tell(drawn_line(event))
            else:
                assert started is not None
                _see(bars, event, started.plan)
                if isinstance(event, Level):
                    if (event.replicate, event.level) not in levels:
                        bars.tell(level_line(event))
                    levels[event.replicate, event.level] = event
    assert started is not None
    return started.store, list(levels.values())


def _bar(replicate: int) -> str:
    return f"replicate {replicate}"


def _see(bars: Bars, seen: StepProgress | Level, plan: Plan) -> None:
    """Move the bar of a replicate; a search may end early, and a ticket may continue where it was drawn."""
    name = _bar(seen.replicate)
    bars.move(name, seen)
    if isinstance(seen, Level):
        bars.resize(name, plan.steps_from(seen.level + 1))
    else:
        bars.describe(name, f"{name} · level {seen.level}/{plan.levels}")


class Bars:
    """A bar for each name, over the steps of all trainings under it; without a terminal, or quiet, no bars."""

    def __init__(self, quiet: bool, is_transient: bool = False) -> None:
        screen = console(stderr=True)
        self._is_quiet = quiet
        self._is_shown = screen.is_terminal and not quiet
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"),
            TimeRemainingColumn(), console=screen, transient=is_transient,
        )  # fmt: skip
        self._tasks: dict[str, TaskID] = {}
        self._done: dict[str, dict[Hashable, int]] = {}

    def __enter__(self) -> Self:
        if self._is_shown:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_shown:
            self._progress.stop()

    def say(self, text: str) -> None:
        """A line that the user must see."""
        if self._is_shown:
            self._progress.console.print(text, markup=False, highlight=False)
        else:
            note(text)

    def tell(self, text: str) -> None:
        """A line for who is not quiet."""
        if not self._is_quiet:
            self.say(text)

    def begin(self, name: str, total: int) -> None:
        """Make a bar, if there is none of that name."""
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total)
            self._done[name] = {}

    def move(self, name: str, seen: StepProgress | Level, point: int = 0) -> None:
        """A training under a name got further, or is finished; told once more, it counts once.

        Args:
            point: Of a sweep, where several have a replicate of that number.
        """
        steps = seen.steps if isinstance(seen, Level) else seen.step - seen.start
        self._done[name][point, seen.replicate, seen.level] = steps
        self._progress.update(self._tasks[name], completed=self.done(name))

    def done(self, name: str) -> int:
        """Steps that are done under a name."""
        return sum(self._done[name].values())

    def resize(self, name: str, left: int) -> None:
        """So many steps are left under a name."""
        self._progress.update(self._tasks[name], total=self.done(name) + left)

    def describe(self, name: str, text: str) -> None:
        """Another text beside a bar."""
        self._progress.update(self._tasks[name], description=text)

    def end(self, name: str) -> None:
        """Take a bar away, if there is one."""
        if name in self._tasks:
            self._progress.remove_task(self._tasks.pop(name))
            del self._done[name]


def _opening(event: Started) -> str:
    plan = event.plan
    replicates = counted(plan.recipe.replicates, "replicate")
    return (
        f"{event.store.name}: {replicates} × {plan.levels + 1} levels on "
        f"{plan.data.dataset.name} from {plan.data.dataset.source}, {event.device}, {event.workers} at a time"
    )


def drawn_line(event: Drawn) -> str:
    """A drawn ticket in one line."""
    distance = "" if event.distance is None else f" (mask distance {event.distance:.3f})"
    why = "" if event.settled else ", its mask not settled" if event.chosen else ", as also_at says"
    return (
        f"replicate {event.replicate} drew the ticket of density {event.density:g} at step {event.step:,} of "
        f"{event.stop:,}{distance}{why}"
    )


def level_line(level: Level) -> str:
    """A finished level in one line."""
    return (
        f"replicate {level.replicate} level {level.level}: density {100 * level.density:.2f} %, "
        f"test accuracy {100 * level.test_accuracy:.2f} % at step {level.early_stop_step} "
        f"({100 * level.final_test_accuracy:.2f} % at the end), {level.seconds:.1f} s"
    )
