"""A run as it goes on: bars on a terminal, one line per level elsewhere, both on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ticketlab.cli.render import console, counted, note
from ticketlab.runs.store import Level, RunStore
from ticketlab.workflows.plan import Plan
from ticketlab.workflows.run import Event, Started
from ticketlab.workflows.train_level import Drawn, Notice
from ticketlab.workflows.train_level import Progress as StepProgress


def follow(events: Iterable[Event], quiet: bool) -> tuple[RunStore, list[Level]]:
    """Show events as they come; returns the run and its levels."""
    screen = console(stderr=True)
    bars = Bars(screen.is_terminal and not quiet)
    store: RunStore | None = None
    # a worker that died is started again and tells its finished levels once more
    levels: dict[tuple[int, int], Level] = {}
    with bars.progress if bars.shown else nullcontext():
        for event in events:
            if isinstance(event, Started):
                store = event.store
                bars.start(event.plan)
                if not quiet:
                    bars.say(_opening(event))
            elif isinstance(event, Notice):
                bars.say(event.text)
            elif isinstance(event, Drawn):
                if not quiet:
                    bars.say(drawn_line(event))
            elif isinstance(event, Level):
                is_new = (event.replicate, event.level) not in levels
                levels[event.replicate, event.level] = event
                if is_new:
                    bars.finish(event)
                if is_new and not quiet:
                    bars.say(level_line(event))
            else:
                bars.move(event)
    assert store is not None
    return store, list(levels.values())


class Bars:
    """One bar per replicate, over all of its levels."""

    def __init__(self, shown: bool) -> None:
        self.shown = shown
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeRemainingColumn(),
            console=console(stderr=True),
        )
        self.say: Callable[[str], None] = self._print if shown else note
        self._tasks: dict[int, TaskID] = {}
        self._done: dict[int, int] = {}
        self._plan: Plan | None = None

    def start(self, plan: Plan) -> None:
        """Make the bars."""
        self._plan = plan
        steps = self._steps_from(0)
        for replicate in range(1, plan.recipe.replicates + 1):
            self._tasks[replicate] = self.progress.add_task(f"replicate {replicate}", total=steps)
            self._done[replicate] = 0

    def _steps_from(self, level: int) -> int:
        """Steps from a level's start to the end, as far as can be known before."""
        assert self._plan is not None
        return sum(self._plan.stop(index) - self._plan.start(index) for index in range(level, self._plan.levels + 1))

    def move(self, event: StepProgress) -> None:
        """A little further inside a level."""
        assert self._plan is not None
        level = f"replicate {event.replicate} · level {event.level}/{self._plan.levels}"
        within = event.step - event.start
        self.progress.update(
            self._tasks[event.replicate], description=level, completed=self._done[event.replicate] + within
        )

    def finish(self, level: Level) -> None:
        """A level is done."""
        self._done[level.replicate] += level.steps
        done = self._done[level.replicate]
        # a search may end early, a ticket may continue where it was drawn
        self.progress.update(
            self._tasks[level.replicate], completed=done, total=done + self._steps_from(level.level + 1)
        )

    def _print(self, text: str) -> None:
        self.progress.console.print(text, markup=False, highlight=False)


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
