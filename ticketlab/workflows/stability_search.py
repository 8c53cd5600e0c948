"""What `ticketlab stability` looks at: the levels of a run, other steps of one, or the smallest step that is stable."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ticketlab.errors import RunError, Stop, TicketlabError
from ticketlab.pruning.connectivity import STABLE_BELOW, bracket, next_probe
from ticketlab.recipe_file import RecipeFile, read_recipe
from ticketlab.runs.results import INSTABILITY
from ticketlab.runs.store import RunStore
from ticketlab.steps import Duration
from ticketlab.workflows.inputs import run_name
from ticketlab.workflows.plan import Plan
from ticketlab.workflows.progress import Notice
from ticketlab.workflows.run import Event, Machine, plan_on, told
from ticketlab.workflows.stability import BranchPoint, Interpolation, analyse, branch_point_row
from ticketlab.workflows.ticket_source import check_restarts
from ticketlab.workflows.trunk import (
    TRAIN_SAMPLE,
    Branched,
    check_levels,
    data_facts,
    finished_replicates,
    pruned,
    run_file,
    run_plan,
    trunk_run,
    write_figures,
)

Events = Generator[Event | Branched, None, None]


@dataclass(frozen=True)
class Analysis:
    """What the user wants to know."""

    levels: tuple[int, ...] = ()
    """None named: all."""
    at: tuple[Duration, ...] = ()
    """Steps at which copies begin; none: the run's own rewind step."""
    is_search: bool = False
    """Find the smallest stable step."""
    resolution: Duration | None = None
    """Of the search; None: a twentieth of the training."""
    interpolation: Interpolation = field(default_factory=Interpolation)

    @property
    def folder(self) -> str:
        """Where the answer is kept, in the run."""
        levels = "_".join(str(level) for level in self.levels)
        return (f"stability/level_{levels}" if levels else "stability") + (
            "/search" if self.is_search else "/steps" if self.at else ""
        )


@dataclass(frozen=True)
class RunAnalysis:
    """An analysis of a run, checked."""

    store: RunStore
    plan: Plan
    analysis: Analysis
    machine: Machine
    should_stop: Stop

    def branch_point(self, level: int, step: int) -> BranchPoint:
        """Where a level at a step is found: in this run, or in one that rewinds to that step.

        Both have the replicates of this run, so that steps are compared seed by seed.
        """
        replicates = tuple(finished_replicates(self.store, level))
        if level == 0 or step == self.plan.rewind:
            return BranchPoint(self.store, level, step, replicates)
        name = run_name(self.rewound(level, step))
        return BranchPoint(RunStore(self.store.path.parent / name), level, step, replicates)

    def rewound(self, level: int, step: int) -> RecipeFile:
        """The recipe of the run with another rewind step, as deep as a level; deeper, where there is one already."""
        replicates = max(finished_replicates(self.store, level))
        overrides = [f"pruning.rewind={step}it", f"replicates={replicates}", "claims=[]"]
        densities = run_file(self.store).recipe.pruning.densities
        if densities:
            return run_file(self.store, [*overrides, f"pruning.densities={list(densities[:level])}"])
        file = run_file(self.store, [*overrides, f"pruning.levels={level}"])
        kept = self.store.path.parent / run_name(file) / "recipe.yaml"
        deepest = read_recipe(kept).recipe.pruning.levels if kept.exists() else 0
        return file if deepest <= level else run_file(self.store, [*overrides, f"pruning.levels={deepest}"])


def stability_of(
    trunk: RunStore | RecipeFile, analysis: Analysis, machine: Machine, should_stop: Stop = lambda: False
) -> Iterator[Event | Branched | dict[str, Any]]:
    """`stability_run` of a run, or of a recipe that is run first; what cannot be is told before."""

    def check(plan: Plan) -> None:
        check_levels(plan, analysis.levels, 0)
        starting_steps(plan, analysis, analysis.levels or range(plan.levels + 1))

    store = yield from trunk_run(trunk, check, machine, should_stop)
    yield from stability_run(store, analysis, machine, should_stop)


def stability_run(
    store: RunStore, analysis: Analysis, machine: Machine, should_stop: Stop = lambda: False
) -> Iterator[Event | Branched | dict[str, Any]]:
    """Instability analysis of a run; yields what is seen, at last the record.

    Raises TicketlabError before anything starts for a level, a step or a kind of run that cannot be looked at.
    """
    plan = run_plan(store, machine.places)
    levels = _levels(store, analysis)
    steps = starting_steps(plan, analysis, levels)
    run = RunAnalysis(store, plan, analysis, machine, should_stop)
    with told(store):
        if analysis.is_search:
            record = yield from _search(run)
        else:
            points = [run.branch_point(level, step) for level in levels for step in steps]
            yield from _look(run, points)
            record = _record(run, points)
        store.write_result(f"{analysis.folder}/{INSTABILITY}", record)
        _show(store, analysis, record)
    yield record


def _levels(store: RunStore, analysis: Analysis) -> list[int]:
    """The levels that are asked for; raises RunError for one that the run does not have."""
    for level in analysis.levels or (0,):
        finished_replicates(store, level)
    every = range(max(len(store.levels(number)) for number in store.replicates()))
    return list(analysis.levels or every)


def starting_steps(plan: Plan, analysis: Analysis, levels: Sequence[int]) -> list[int]:
    """The steps at which copies of some levels begin; raises TicketlabError for one that cannot be."""
    check_restarts(plan.recipe, plan.name)
    if analysis.is_search and (len(analysis.levels) != 1 or analysis.at):
        raise TicketlabError(
            "--bisect is of one level, and chooses the steps itself: name one --level, and leave --at out"
        )
    if 0 in levels and (asked := plan.recipe.train.sparsify) and asked.is_gated:
        raise RunError(
            f"{plan.name}: the gates of level 0 are not kept, so its copies cannot go on; name other --level"
        )
    steps = {str(time): time.steps(plan.steps_per_epoch) for time in analysis.at}
    late = [f"{time} is step {step}" for time, step in steps.items() if step >= plan.steps]
    if late:
        raise TicketlabError(f"{', '.join(late)}: not before the end of training at step {plan.steps}")
    if analysis.resolution is not None and not analysis.is_search:
        raise TicketlabError("a resolution belongs to a search for the smallest stable step: --bisect")
    if analysis.is_search and not 0 < _resolution(plan, analysis) < plan.steps:
        raise TicketlabError(f"a resolution of {_resolution(plan, analysis)} steps: give 1 to {plan.steps - 1}")
    found = sorted(set(steps.values())) or [plan.rewind]
    if any(levels) and (analysis.is_search or found != [plan.rewind]) and not _can_rewind_elsewhere(plan):
        way_out = "give --bisect --level 0" if analysis.is_search else "leave --at out"
        raise RunError(f"{plan.name}: tickets of method {plan.recipe.method} have their own step only; {way_out}")
    return found


def _can_rewind_elsewhere(plan: Plan) -> bool:
    """Whether the same recipe with another rewind step finds tickets of that step, level by level."""
    return plan.recipe.method in ("imp", "oneshot")


def _resolution(plan: Plan, analysis: Analysis) -> int:
    given = analysis.resolution
    return max(1, plan.steps // 20) if given is None else given.steps(plan.steps_per_epoch)


def _look(run: RunAnalysis, points: Sequence[BranchPoint]) -> Events:
    """Analyse branch points of any runs; the runs that are missing are made first."""
    missing = {
        point.store.path: point for point in sorted(points, key=lambda point: point.level) if _is_missing(run, point)
    }
    for point in missing.values():
        yield Notice(
            f"{point.title}: its ticket is one of a run that rewinds to step {point.step}; {point.store.name} is made "
            f"first, levels 0 to {point.level} with replicates: {max(point.replicates)}"
        )
    for point in missing.values():
        machine = replace(run.machine, runs=run.store.path.parent)
        file = replace(run.rewound(point.level, point.step), derived_from=run.store.name)
        yield from pruned(plan_on(file, machine), machine, run.should_stop)
    for path in dict.fromkeys(point.store.path for point in points):
        own = [point for point in points if point.store.path == path]
        yield from analyse(own, run.analysis.interpolation, run.machine, run.should_stop)


def _is_missing(run: RunAnalysis, point: BranchPoint) -> bool:
    """Whether another run lacks the level; one's own has it."""
    return point.store.path != run.store.path and any(
        len(point.store.levels(number)) <= point.level for number in point.replicates
    )


def _search(run: RunAnalysis) -> Generator[Event | Branched, None, dict[str, Any]]:
    """The smallest stable step of a level, by the mean barrier over replicates at each probe."""
    (level,), steps, resolution = run.analysis.levels, run.plan.steps, _resolution(run.plan, run.analysis)
    probes: list[BranchPoint] = []
    found: dict[int, bool] = {}
    while (step := next_probe(found, steps, resolution)) is not None:
        probes.append(run.branch_point(level, step))
        yield from _look(run, probes[-1:])
        row = branch_point_row(probes[-1], run.analysis.interpolation, steps)
        found[step] = row["verdict"] == "stable"
        yield Notice(f"step {step}: {row['verdict']}, barrier {100 * row['barrier']['validation']['mean']:.2f} points")
    search = {**asdict(bracket(found)), "resolution": resolution, "probes": list(found)}
    return _record(run, sorted(probes, key=lambda point: point.step)) | {"search": search}


def _record(run: RunAnalysis, points: Sequence[BranchPoint]) -> dict[str, Any]:
    """What came of it, as one JSON object; errors and barriers are fractions of 1."""
    interpolation, plan = run.analysis.interpolation, run.plan
    return {
        "run": str(run.store.path),
        **data_facts(run.store),
        "steps": plan.steps,
        "copies": interpolation.copies,
        "points": interpolation.points,
        "threshold": STABLE_BELOW,
        "examples": {"validation": len(plan.splits.validation), "train": min(TRAIN_SAMPLE, len(plan.splits.train))},
        "rows": [branch_point_row(point, interpolation, plan.steps) for point in points],
        "search": None,
        "folder": str(run.store.path / run.analysis.folder),
    }


def _show(store: RunStore, analysis: Analysis, record: dict[str, Any]) -> None:
    """The figures, as files and in TensorBoard."""
    from ticketlab.runs.tensorboard import write_stability
    from ticketlab.ticket_figures import along_lines, barriers

    figures = {"line": along_lines(record), "barrier": barriers(record)}
    write_stability(store.path / analysis.folder, record, write_figures(store, analysis.folder, figures))
