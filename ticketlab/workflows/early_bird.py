"""Early-bird tickets: train the dense network until its masks stop moving, draw, stop, train the tickets.

    level 0:     the search; it ends as soon as every ticket is drawn
    level 1 …:   one ticket each: every density where its mask settled, then at the fixed steps of `also_at`

Source: You et al. 2020, "Drawing early-bird tickets", algorithm 1.
"""

from __future__ import annotations

from collections.abc import Iterator

from ticketlab.errors import RunError
from ticketlab.models.compact import rebuild
from ticketlab.pruning.masks import full_mask
from ticketlab.runs.store import RunStore
from ticketlab.workflows.flips import FlipWatch
from ticketlab.workflows.plan import Plan
from ticketlab.workflows.progress import Seen
from ticketlab.workflows.schedule import counts_flips
from ticketlab.workflows.search import Search
from ticketlab.workflows.tickets import dense_ticket, replicate_seed, ticket_weights
from ticketlab.workflows.train_level import Settings, train_level
from ticketlab.workflows.trainer import LevelTask


def early_bird_replicate(plan: Plan, store: RunStore, replicate: int, settings: Settings) -> Iterator[Seen]:
    """Search and train with one seed; finished levels are read, an unfinished one is taken up where it stopped."""
    assert plan.early_bird is not None
    if store.has_level(replicate, 0):
        yield store.read_level(replicate, 0)
    else:
        task = _dense(plan, store, replicate)
        flips = FlipWatch(plan, store, task, {}) if counts_flips(plan.recipe) else None
        search = Search(plan, store, replicate, settings.device, flips)
        yield from train_level(plan, store, task, settings, [flips, search] if flips else [search])
    for level in range(1, plan.levels + 1):
        if store.has_level(replicate, level):
            yield store.read_level(replicate, level)
        else:
            task = _task(plan, store, replicate, level)
            looking = [FlipWatch(plan, store, task, {})] if "sign_flips" in plan.recipe.watch else []
            yield from train_level(plan, store, task, settings, looking)


def _dense(plan: Plan, store: RunStore, replicate: int) -> LevelTask:
    """Level 0, whose ticket is the whole network."""
    ticket = dense_ticket(plan, replicate)
    store.write_ticket(replicate, 0, ticket)
    return LevelTask(
        replicate, replicate_seed(plan, replicate), 0, ticket.mask, ticket_weights(plan, ticket), 0, plan.steps
    )


def _task(plan: Plan, store: RunStore, replicate: int, level: int) -> LevelTask:
    """A drawn ticket; one of channels is a network of its own size, with nothing masked in it."""
    ticket = store.read_ticket(replicate, level)
    if ticket is None:
        raise RunError(
            f"{store.level_dir(replicate, level)}: the ticket is missing; delete {store.path} and start anew"
        )
    weights = ticket_weights(plan, ticket)
    mask = full_mask(rebuild(plan.build(0), weights)) if plan.has_channels else ticket.mask
    return LevelTask(
        replicate, replicate_seed(plan, replicate), level, mask, weights, ticket.facts["rewind_step"], plan.steps
    )
