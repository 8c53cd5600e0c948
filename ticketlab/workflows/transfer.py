"""Transfer: a ticket found on one data set, or with one optimizer, is trained on another.

    level 0:  the dense network on the target, from the weights that the source's ticket was cut from
    level 1:  the source's ticket on the target: its mask over the same weights

Both train for the target recipe's whole length, from step 0 of its schedule. Target replicate r takes replicate r of
the source. Source: Morcos et al. 2019, "One ticket to win them all", section 3.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from ticketlab.errors import PruningError
from ticketlab.pruning.masks import Mask, full_mask, masked
from ticketlab.pruning.transfer import carry_over
from ticketlab.runs.store import RunStore
from ticketlab.runs.ticket import Ticket
from ticketlab.seeds import derive_seed
from ticketlab.workflows.plan import Plan
from ticketlab.workflows.progress import Seen
from ticketlab.workflows.prune import watches
from ticketlab.workflows.ticket_source import KEY, TicketSource
from ticketlab.workflows.tickets import replicate_seed, ticket_facts, ticket_weights
from ticketlab.workflows.train_level import Settings, train_level
from ticketlab.workflows.trainer import LevelTask


def transfer_plan(plan: Plan, source: TicketSource) -> Plan:
    """The plan with the mask that it will train; raises RecipeError where the ticket does not fit the network."""
    try:
        return replace(plan, given=_carried(plan, source, 1)[1], source=source)
    except PruningError as error:
        shape = "×".join(map(str, plan.data.dataset.input_shape))
        message = f"{source.name} does not fit {plan.recipe.model.name} on {plan.data.dataset.name} ({shape}): {error}"
        raise plan.file.error([(KEY, message)]) from error


def _carried(plan: Plan, source: TicketSource, replicate: int) -> tuple[dict[str, Tensor], Mask]:
    fresh = plan.build(derive_seed(replicate_seed(plan, replicate), "init")).state_dict()
    return carry_over(source.dense(replicate), source.mask(replicate), fresh)


def transfer_replicate(plan: Plan, store: RunStore, replicate: int, settings: Settings) -> Iterator[Seen]:
    """Train the dense network and the ticket with one seed; finished levels are read."""
    for level in range(plan.levels + 1):
        if store.has_level(replicate, level):
            yield store.read_level(replicate, level)
        else:
            task = _task(plan, store, replicate, level)
            yield from train_level(plan, store, task, settings, watches(plan, store, task))


def _task(plan: Plan, store: RunStore, replicate: int, level: int) -> LevelTask:
    ticket = store.read_ticket(replicate, level)
    if ticket is None:
        ticket = draw_ticket(plan, store, replicate, level)
        store.write_ticket(replicate, level, ticket)
    weights = ticket_weights(plan, ticket)
    return LevelTask(replicate, replicate_seed(plan, replicate), level, ticket.mask, weights, 0, plan.steps)


def draw_ticket(plan: Plan, store: RunStore, replicate: int, level: int) -> Ticket:
    """What the source run gives for a level."""
    given = store.read_manifest()["source"]
    source = TicketSource(RunStore(Path(given["path"])), given["level"])
    dense, mask = _carried(plan, source, replicate)
    kept = mask if level else full_mask(plan.build(0))
    facts = {**ticket_facts(plan, replicate, level, 0), "source": source.facts(replicate)}
    return Ticket(kept, masked(dense, kept), facts)
