"""Many runs from one recipe: every point of a sweep is a run of its own, its replicates share the processes of all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ticketlab.errors import FailedRun, Interrupted, Stop, TicketlabError
from ticketlab.recipe_file import RecipeFile
from ticketlab.runs.store import RunStore
from ticketlab.workflows.plan import Plan
from ticketlab.workflows.progress import Notice, Seen
from ticketlab.workflows.run import (
    Machine,
    begin_run,
    check_run,
    death_notice,
    run_facts,
    stand_in_notice,
    told,
    train_replicate,
)
from ticketlab.workflows.summary import Summary
from ticketlab.workflows.sweep_points import Point, check_points
from ticketlab.workflows.workers import Died, run_jobs


@dataclass(frozen=True)
class Ready:
    """A point that has been checked."""

    point: Point
    file: RecipeFile
    """Names the stand-in where one is used."""
    store: RunStore
    steps: int
    """Of all levels of one replicate."""
    facts: dict[str, Any]
    """For the manifest."""
    notice: str | None


@dataclass(frozen=True)
class Begun:
    """Every point is ready; nothing is trained yet."""

    points: list[Ready]
    workers: int


@dataclass(frozen=True)
class Pointed:
    """What a replicate of a point lets be seen of itself."""

    point: int
    """Place of the point in the sweep, from 0."""
    replicate: int
    seen: Seen


@dataclass(frozen=True)
class Ended:
    """A replicate of a point is finished or, with an error, cannot go on."""

    point: int
    error: str | None = None


@dataclass
class Progressing:
    """How the points of a sweep stand."""

    missing: Counter[int]
    """Replicates that have not ended, by point."""
    errors: dict[int, list[str]] = field(default_factory=dict)

    def state(self, point: int) -> str:
        """As in the run's manifest."""
        return "failed" if point in self.errors else "interrupted" if self.missing[point] else "finished"


def sweep_run(
    recipe: Path, points: Sequence[Point], machine: Machine, should_stop: Stop = lambda: False
) -> Iterator[Begun | Pointed | Notice]:
    """Run every point; yields what is seen. A point that fails keeps no other from being finished.

    Raises RecipeError before anything starts where a point is wrong, Interrupted after saving when asked to stop, and
    at last FailedRun that names the points that failed.
    """
    device = machine.chosen_device()
    plans = check_points(recipe, points, machine, partial(_look, machine, device))
    ready = [Ready(point, *found) for point, found in zip(points, plans, strict=True)]
    jobs = [(index, number) for index, one in enumerate(ready) for number in _replicates(one)]
    workers = machine.workers_for(len(jobs), device)
    standing = Progressing(Counter(index for index, _ in jobs))
    with ExitStack() as held:
        for one in ready:
            held.enter_context(one.store.lock())
        yield from _begin(ready)
        yield Begun(ready, workers)
        body = partial(_work, ready, jobs, machine, str(device))
        names = {job: f"{ready[index].point.name}, replicate {number}" for job, (index, number) in enumerate(jobs)}
        try:
            yield from _follow(
                run_jobs(body, names, workers, should_stop, machine.engine, ready[0].store.witness), standing, ready
            )
        finally:
            for index, one in enumerate(ready):
                one.store.set_state(standing.state(index))
    if standing.errors:
        failed = [f"{ready[index].point.name}: {text}" for index, texts in standing.errors.items() for text in texts]
        raise FailedRun("\n".join(failed))


def _begin(ready: Sequence[Ready]) -> Iterator[Notice]:
    """Write recipe and manifest of every point, once all are found to be as they should."""
    yield from (Notice(text) for text in dict.fromkeys(one.notice for one in ready) if text is not None)
    warnings = [text for one in ready for text in check_run(one.store, one.facts)]
    for one in ready:
        with told(one.store):
            begin_run(one.store, one.file.recipe, one.facts)
    yield from (Notice(text) for text in warnings)


def _follow(events: Iterable[object], standing: Progressing, ready: Sequence[Ready]) -> Iterator[Pointed | Notice]:
    """Pass on what replicates let be seen, and note those that end."""
    for event in events:
        if isinstance(event, Ended):
            _end(standing, ready, event)
        elif isinstance(event, Died):
            yield death_notice(event)
        elif isinstance(event, Pointed):
            yield event


def _look(
    machine: Machine, device: torch.device, plan: Plan
) -> tuple[RecipeFile, RunStore, int, dict[str, Any], str | None]:
    notice = stand_in_notice(plan) if plan.data.stand_in_for is not None else None
    facts = run_facts(plan, device, machine.threads)
    return plan.file, RunStore(machine.runs / plan.name), plan.steps_from(0), facts, notice


def _replicates(one: Ready) -> range:
    return range(1, one.file.recipe.replicates + 1)


def _work(
    ready: Sequence[Ready],
    jobs: Sequence[tuple[int, int]],
    machine: Machine,
    device: str,
    job: int,
    should_stop: Stop,
) -> Iterator[Pointed | Ended]:
    """One replicate of one point, in this process or in one of its own."""
    index, replicate = jobs[job]
    one = ready[index]
    try:
        for seen in train_replicate(one.file, machine, one.store.path, device, replicate, should_stop):
            yield Pointed(index, replicate, seen)
        yield Ended(index)
    except Interrupted:
        raise
    except TicketlabError as error:
        yield Ended(index, f"replicate {replicate}: {error}")


def _end(standing: Progressing, ready: Sequence[Ready], event: Ended) -> None:
    """Note the end of a replicate; a point whose last one it was is finished."""
    standing.missing[event.point] -= 1
    if event.error is not None:
        standing.errors.setdefault(event.point, []).append(event.error)
    store = ready[event.point].store
    if not standing.missing[event.point]:
        if event.point not in standing.errors:
            with Summary(store, ready[event.point].file.recipe):
                pass  # all levels are there
        store.set_state(standing.state(event.point))
