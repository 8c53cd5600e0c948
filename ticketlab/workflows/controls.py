"""A ticket's controls: the same training of what a ticket must be compared with, paired with it by seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from ticketlab.errors import RunError, Stop
from ticketlab.pruning.controls import Start, Subject, controls
from ticketlab.recipe_file import RecipeFile
from ticketlab.report import Estimate, estimate, summarise, winning
from ticketlab.runs import results
from ticketlab.runs.store import Level, RunStore
from ticketlab.runs.ticket import Ticket
from ticketlab.seeds import derive_seed
from ticketlab.workflows.plan import Plan
from ticketlab.workflows.progress import Notice
from ticketlab.workflows.run import Event, Machine, told
from ticketlab.workflows.ticket_source import check_restarts
from ticketlab.workflows.tickets import replicate_seed, ticket_facts
from ticketlab.workflows.train_level import Settings, train_level
from ticketlab.workflows.trainer import LevelTask
from ticketlab.workflows.trunk import (
    Branch,
    Branched,
    check_levels,
    data_facts,
    finished_replicates,
    run_branches,
    run_plan,
    trunk_run,
    write_figures,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Compared:
    """A network beside the ticket, over replicates; accuracies are fractions of 1, at the early-stop step."""

    control: str
    test_accuracy: Estimate
    final_test_accuracy: Estimate
    early_stop_step: Estimate
    minus_ticket: Estimate
    """Difference in test accuracy, paired by seed."""


def controls_of(
    trunk: RunStore | RecipeFile,
    levels: Sequence[int] | None,
    names: Sequence[str],
    machine: Machine,
    should_stop: Stop = lambda: False,
) -> Iterator[Event | Branched | dict[str, Any]]:
    """`control_run` of a run, or of a recipe that is run first; what cannot be is told before."""

    def check(plan: Plan) -> None:
        for name in names:
            controls.find(name)
        check_restarts(plan.recipe, plan.name)
        check_levels(plan, levels or (1,), 1)

    store = yield from trunk_run(trunk, check, machine, should_stop)
    yield from control_run(store, levels, names, machine, should_stop)


def control_run(
    store: RunStore,
    levels: Sequence[int] | None,
    names: Sequence[str],
    machine: Machine,
    should_stop: Stop = lambda: False,
) -> Iterator[Branched | Notice | dict[str, Any]]:
    """Train the controls of levels with every replicate that has them; yields what is seen, at last the records.

    Args:
        levels: Left out, the winning ticket's; empty, all of the run.
        names: Of controls; none stands for all.

    Raises RunError for a run whose tickets have no controls.
    """
    chosen = list(dict.fromkeys(names)) or list(controls)
    for name in chosen:
        controls.find(name)
    plan = run_plan(store, machine.places)
    check_restarts(plan.recipe, plan.name)
    tickets = _tickets(store, levels or [])
    if levels is None:
        tickets = _tickets(store, [winning_level(store, plan.steps)])
        why = "the sparsest ticket as good as the dense network on validation data, else the best"
        yield Notice(f"{store.name}, level {tickets[0]}: {why}")
    replicates = {level: finished_replicates(store, level) for level in tickets}
    with told(store), store.lock():
        yield from run_branches(store, _missing(store, chosen, replicates), train_control, machine, should_stop)
        records = [_keep(store, level, found, plan.steps) for level, found in replicates.items()]
        if len(records) > 1:
            from ticketlab.ticket_figures import against_density  # matplotlib takes half a second to load

            _show(store, "controls", against_density(records))
    yield records[0] if len(records) == 1 else {"run": str(store.path), "levels": records}


def _tickets(store: RunStore, levels: Sequence[int]) -> list[int]:
    """The levels that are asked for, or all of the run; raises RunError where the dense network is among them."""
    deepest = max((len(store.levels(number)) for number in store.replicates()), default=0)
    found = sorted(set(levels)) or list(range(1, deepest))
    if deepest <= 1:
        raise RunError(f"{store.path}: has no ticket; run its recipe with -s pruning.levels=1 or more")
    if 0 in found:
        raise RunError(f"{store.path}: level 0 is the dense network, which has no controls; name a ticket with --level")
    return found


def _missing(store: RunStore, names: Sequence[str], replicates: Mapping[int, Sequence[int]]) -> list[Branch]:
    """Controls that have not been trained yet.

    Args:
        replicates: Of each level.
    """
    branches = [
        Branch(f"{results.control_folder(level)}/{name}", number, level)
        for level, numbers in replicates.items()
        for number in numbers
        for name in names
    ]
    return [one for one in branches if not store.part(one.folder).has_level(one.replicate, one.level)]


def _keep(store: RunStore, level: int, replicates: Sequence[int], steps: int) -> dict[str, Any]:
    """The record of a level, with the controls of earlier calls, on disk and as a figure."""
    from ticketlab.ticket_figures import beside_controls

    record = control_record(store, level, replicates, steps)
    store.write_result(results.control_record(level), record)
    _show(store, results.control_folder(level), beside_controls(record))
    return record


def winning_level(store: RunStore, steps: int) -> int:
    """The sparsest level whose mean validation accuracy is no lower than the dense network's, else the best one.

    Args:
        steps: Step at which training ends; a dense network that did not get there is no measure.
    """
    of_replicate = [found for found in map(store.levels, store.replicates()) if found]
    if not of_replicate:
        raise RunError(f"{store.path}: has no finished level yet")
    common = min(map(len, of_replicate))
    rows = summarise([level for found in of_replicate for level in found[:common]])
    sparsest = winning(rows)
    if sparsest.level and all(_is_trained(found[0], steps) for found in of_replicate):
        return sparsest.level
    return max(rows[1:], key=lambda row: row.val_accuracy.mean, default=rows[0]).level


def _is_trained(dense: Level, steps: int) -> bool:
    """Whether the dense network was trained to the end; an early-bird search stops it."""
    return dense.curve[-1]["step"] == steps


def train_control(plan: Plan, store: RunStore, branch: Branch, settings: Settings) -> Iterator[object]:
    """Train one control exactly as the ticket was trained."""
    part = store.part(branch.folder)
    if part.has_level(branch.replicate, branch.level):
        return
    ticket = store.read_ticket(branch.replicate, branch.level)
    assert ticket is not None, "a finished level has its ticket"
    name = branch.folder.rpartition("/")[2]
    start = control_start(plan, store, branch, name)
    facts = ticket_facts(plan, branch.replicate, branch.level, ticket.facts["rewind_step"])
    part.write_ticket(branch.replicate, branch.level, Ticket(start.mask, start.weights, {**facts, "control": name}))
    task = LevelTask(
        replicate=branch.replicate,
        seed=replicate_seed(plan, branch.replicate),
        level=branch.level,
        mask=start.mask,
        weights=start.weights,
        start=ticket.facts["rewind_step"],
        stop=plan.steps,
        frozen=start.frozen,
    )
    yield from train_level(plan, part, task, settings)


def control_start(plan: Plan, store: RunStore, branch: Branch, name: str) -> Start:
    """What a control starts from: the same whenever it is asked for.

    Controls of a level share their draws: the same fresh weights, the same places. Two that differ in one thing differ
    in nothing else.
    """
    ticket = store.read_ticket(branch.replicate, branch.level)
    assert ticket is not None, "a finished level has its ticket"
    seed = derive_seed(replicate_seed(plan, branch.replicate), "control", branch.level)
    fresh = plan.build(derive_seed(seed, "weights")).state_dict()
    generator = torch.Generator().manual_seed(derive_seed(seed, "places"))
    subject = Subject(ticket.mask, store.read_rewind(branch.replicate), fresh, generator)
    return controls.find(name)(subject)


def control_record(store: RunStore, level: int, replicates: Sequence[int], steps: int) -> dict[str, Any]:
    """What came of it, as one JSON object; no dense network where training of it ended before `steps`.

    Each control is compared over the replicates that have it.
    """
    ticket = {number: store.read_level(number, level) for number in replicates}
    dense = {number: store.read_level(number, 0) for number in replicates}
    return {
        "run": str(store.path),
        **data_facts(store),
        "level": level,
        "density": ticket[replicates[0]].density,
        "seeds": [one.seed for one in ticket.values()],
        "ticket": asdict(_compared("ticket", ticket, ticket)),
        "dense": asdict(_compared("dense", dense, ticket))
        if all(_is_trained(d, steps) for d in dense.values())
        else None,
        "controls": [
            asdict(_compared(name, found, ticket))
            for name in controls
            if (found := _trained(store.part(f"{results.control_folder(level)}/{name}"), level, replicates))
        ],
    }


def _trained(part: RunStore, level: int, replicates: Sequence[int]) -> dict[int, Level]:
    """Replicate → its finished control."""
    return {number: part.read_level(number, level) for number in replicates if part.has_level(number, level)}


def _compared(control: str, found: Mapping[int, Level], ticket: Mapping[int, Level]) -> Compared:
    """A network beside the ticket; both by replicate."""
    return Compared(
        control=control,
        test_accuracy=estimate([level.test_accuracy for level in found.values()]),
        final_test_accuracy=estimate([level.final_test_accuracy for level in found.values()]),
        early_stop_step=estimate([float(level.early_stop_step) for level in found.values()]),
        minus_ticket=estimate([level.test_accuracy - ticket[number].test_accuracy for number, level in found.items()]),
    )


def _show(store: RunStore, folder: str, figure: Figure) -> None:
    """A figure, as files and in TensorBoard."""
    from ticketlab.runs.tensorboard import write_pictures

    write_pictures(store.path / folder, write_figures(store, folder, {"controls": figure}))
