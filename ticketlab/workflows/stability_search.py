"""What `ticketlab stability` looks at: the levels of a run, other steps of one, or the smallest step that is stable."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ticketlab.errors import RunError, TicketlabError
from ticketlab.pruning.connectivity import STABLE_BELOW, bracket, next_probe
from ticketlab.recipe_file import RecipeFile, read_recipe
from ticketlab.runs.store import RunStore
from ticketlab.steps import Duration
from ticketlab.workflows.plan import Plan
from ticketlab.workflows.run import Event, Machine, plan_on, told
from ticketlab.workflows.stability import TRAIN_SAMPLE, Effort, Spot, analyse, spot_row
from ticketlab.workflows.train_level import Notice
from ticketlab.workflows.trunk import Branched, check_restarts, data_facts, finished_replicates, pruned, run_plan

Events = Generator[Event | Branched, None, None]


@dataclass(frozen=True)
class Question:
    """What the user wants to know."""

    levels: tuple[int, ...] = ()
    """None named: all."""
    at: tuple[Duration, ...] = ()
    """Steps at which copies begin; none: the run's own rewind step."""
    is_search: bool = False
    """Find the smallest stable step."""
    resolution: Duration | None = None
    """Of the search; None: a twentieth of the training."""
    effort: Effort = field(default_factory=Effort)

    @property
    def folder(self) -> str:
        """Where the answer is kept, in the run."""
        levels = "_".join(str(level) for level in self.levels)
        return (f"stability/level_{levels}" if levels else "stability") + (
            "/search" if self.is_search else "/steps" if self.at else ""
        )


@dataclass(frozen=True)
class Asked:
    """A question to a run, checked."""

    store: RunStore
    plan: Plan
    question: Question
    machine: Machine
    should_stop: Callable[[], bool]

    def spot(self, level: int, step: int) -> Spot:
        """Where a level at a step is found: in this run, or in one that rewinds to that step.

        Both have the replicates of this run, so that steps are compared seed by seed.
        """
        replicates = tuple(finished_replicates(self.store, level))
        if level == 0 or step == self.plan.rewind:
            return Spot(self.store, level, step, replicates)
        return Spot(RunStore(self.store.path.parent / self.rewound(level, step).name), level, step, replicates)

    def rewound(self, level: int, step: int) -> Plan:
        """The plan of the same run with another rewind step, as deep as a level; deeper, where there is one already."""
        replicates = max(finished_replicates(self.store, level))
        overrides = [f"pruning.rewind={step}it", f"replicates={replicates}", "claims=[]"]
        plan = run_plan(self.store, self.machine.places, [*overrides, f"pruning.levels={level}"])
        kept = self.store.path.parent / plan.name / "recipe.yaml"
        deepest = read_recipe(kept).recipe.pruning.levels if kept.exists() else 0
        if deepest <= level:
            return plan
        return run_plan(self.store, self.machine.places, [*overrides, f"pruning.levels={deepest}"])


def stability_of(
    trunk: RunStore | RecipeFile,
    question: Question,
    machine: Machine,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Event | Branched | dict[str, Any]]:
    """`stability_run` of a run, or of a recipe that is run first; what cannot be is told before."""
    if not isinstance(trunk, RunStore):
        plan = plan_on(trunk, machine)
        if wrong := [level for level in question.levels if level > plan.levels]:
            raise RunError(f"{plan.name}: has levels 0 to {plan.levels}, not {wrong[0]}")
        starting_steps(plan, question, question.levels or range(plan.levels + 1))
    store = trunk if isinstance(trunk, RunStore) else (yield from pruned(trunk, machine, should_stop))
    yield from stability_run(store, question, machine, should_stop)


def stability_run(
    store: RunStore, question: Question, machine: Machine, should_stop: Callable[[], bool] = lambda: False
) -> Iterator[Event | Branched | dict[str, Any]]:
    """Instability analysis of a run; yields what is seen, at last the record.

    Raises TicketlabError before anything starts for a level, a step or a kind of run that cannot be looked at.
    """
    plan = run_plan(store, machine.places)
    levels = _levels(store, question)
    steps = starting_steps(plan, question, levels)
    asked = Asked(store, plan, question, machine, should_stop)
    with told(store):
        if question.is_search:
            record = yield from _search(asked)
        else:
            spots = [asked.spot(level, step) for level in levels for step in steps]
            yield from _look(asked, spots)
            record = _record(asked, spots)
        store.write_result(f"{question.folder}/stability.json", record)
        _show(store, question, record)
    yield record


def _levels(store: RunStore, question: Question) -> list[int]:
    """The levels in question; raises RunError for one that the run does not have."""
    for level in question.levels or (0,):
        finished_replicates(store, level)
    every = range(max(len(store.levels(number)) for number in store.replicates()))
    return list(question.levels or every)


def starting_steps(plan: Plan, question: Question, levels: Sequence[int]) -> list[int]:
    """The steps at which copies of some levels begin; raises TicketlabError for a question that has no answer."""
    check_restarts(plan)
    if question.is_search and (len(question.levels) != 1 or question.at):
        raise TicketlabError(
            "--bisect is of one level, and chooses the steps itself: name one --level, and leave --at out"
        )
    steps = {str(time): time.steps(plan.steps_per_epoch) for time in question.at}
    late = [f"{time} is step {step}" for time, step in steps.items() if step >= plan.steps]
    if late:
        raise TicketlabError(f"{', '.join(late)}: not before the end of training at step {plan.steps}")
    if question.resolution is not None and not question.is_search:
        raise TicketlabError("a resolution belongs to a search for the smallest stable step: --bisect")
    if question.is_search and not 0 < _resolution(plan, question) < plan.steps:
        raise TicketlabError(f"a resolution of {_resolution(plan, question)} steps: give 1 to {plan.steps - 1}")
    found = sorted(set(steps.values())) or [plan.rewind]
    if any(levels) and (question.is_search or found != [plan.rewind]) and not _can_rewind_elsewhere(plan):
        way_out = "give --bisect --level 0" if question.is_search else "leave --at out"
        raise RunError(f"{plan.name}: tickets of method {plan.recipe.method} have their own step only; {way_out}")
    return found


def _can_rewind_elsewhere(plan: Plan) -> bool:
    """Whether the same recipe with another rewind step finds tickets of that step, level by level."""
    return plan.recipe.method in ("imp", "oneshot")


def _resolution(plan: Plan, question: Question) -> int:
    given = question.resolution
    return max(1, plan.steps // 20) if given is None else given.steps(plan.steps_per_epoch)


def _look(asked: Asked, spots: Sequence[Spot]) -> Events:
    """Analyse spots of any runs; the runs that are missing are made first."""
    missing = {spot.store.path: spot for spot in sorted(spots, key=lambda spot: spot.level) if _is_missing(asked, spot)}
    for spot in missing.values():
        yield Notice(
            f"{spot.title}: its ticket is one of a run that rewinds to step {spot.step}; {spot.store.name} is made "
            f"first, levels 0 to {spot.level} with replicates: {max(spot.replicates)}"
        )
    for spot in missing.values():
        machine = replace(asked.machine, runs=asked.store.path.parent)
        yield from pruned(asked.rewound(spot.level, spot.step).file, machine, asked.should_stop)
    for path in dict.fromkeys(spot.store.path for spot in spots):
        own = [spot for spot in spots if spot.store.path == path]
        yield from analyse(own, asked.question.effort, asked.machine, asked.should_stop)


def _is_missing(asked: Asked, spot: Spot) -> bool:
    """Whether another run lacks the level; one's own has it."""
    return spot.store.path != asked.store.path and any(
        len(spot.store.levels(number)) <= spot.level for number in spot.replicates
    )


def _search(asked: Asked) -> Generator[Event | Branched, None, dict[str, Any]]:
    """The smallest stable step of a level, by the mean barrier over replicates at each probe."""
    (level,), steps, resolution = asked.question.levels, asked.plan.steps, _resolution(asked.plan, asked.question)
    probes: list[Spot] = []
    found: dict[int, bool] = {}
    while (step := next_probe(found, steps, resolution)) is not None:
        probes.append(asked.spot(level, step))
        yield from _look(asked, probes[-1:])
        row = spot_row(probes[-1], asked.question.effort, steps)
        found[step] = row["verdict"] == "stable"
        yield Notice(f"step {step}: {row['verdict']}, barrier {100 * row['barrier']['validation']['mean']:.2f} points")
    search = {**asdict(bracket(found)), "resolution": resolution, "probes": list(found)}
    return _record(asked, sorted(probes, key=lambda spot: spot.step)) | {"search": search}


def _record(asked: Asked, spots: Sequence[Spot]) -> dict[str, Any]:
    """What came of it, as one JSON object; errors and barriers are fractions of 1."""
    effort, plan = asked.question.effort, asked.plan
    return {
        "run": str(asked.store.path),
        **data_facts(asked.store),
        "steps": plan.steps,
        "copies": effort.copies,
        "points": effort.points,
        "threshold": STABLE_BELOW,
        "examples": {
            "validation": len(plan.splits.validation),
            "train": min(TRAIN_SAMPLE, len(plan.splits.train)),
        },
        "rows": [spot_row(spot, effort, plan.steps) for spot in spots],
        "search": None,
        "folder": str(asked.store.path / asked.question.folder),
    }


def _show(store: RunStore, question: Question, record: dict[str, Any]) -> None:
    """The figures, as files and in TensorBoard."""
    from ticketlab.figures import encode
    from ticketlab.runs.tensorboard import write_stability
    from ticketlab.ticket_figures import along_lines, barriers

    pictures = {"line": encode(along_lines(record)), "barrier": encode(barriers(record))}
    for name, kinds in pictures.items():
        for kind, content in kinds.items():
            store.write_file(f"{question.folder}/{name}.{kind}", content)
    write_stability(store.path / question.folder, record, {name: kinds["png"] for name, kinds in pictures.items()})
