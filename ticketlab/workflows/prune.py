"""Iterative magnitude pruning with rewinding, level by level, for one replicate.

    level 0:  train the dense network; keep its weights at the rewind step
    level n:  trained weights of level n-1 → saliency → mask; weights to restart from + mask = the ticket; train it

Source: Frankle & Carbin 2019, section 2; rewinding to step k: Frankle et al. 2020; learning-rate rewinding and
fine-tuning: Renda et al. 2020. One-shot pruning takes every mask from level 0.
"""

from __future__ import annotations

from collections.abc import Iterator

from ticketlab.errors import FailedRun, PruningError
from ticketlab.pruning.allocate import prune
from ticketlab.pruning.masks import Mask, masked
from ticketlab.runs.store import RunStore
from ticketlab.runs.ticket import Ticket
from ticketlab.seeds import derive_seed
from ticketlab.workflows.plan import Plan
from ticketlab.workflows.tickets import (
    dense_ticket,
    replicate_seed,
    saliencies,
    seeded_ticket,
    ticket_facts,
    ticket_weights,
    wants_initial,
)
from ticketlab.workflows.train_level import LevelTask, Seen, Settings, train_level


def prune_replicate(plan: Plan, store: RunStore, replicate: int, settings: Settings) -> Iterator[Seen]:
    """Find tickets with one seed; finished levels are read, an unfinished one is taken up where it stopped."""
    seed = replicate_seed(plan, replicate)
    for index in range(plan.levels + 1):
        if store.has_level(replicate, index):
            yield store.read_level(replicate, index)
            continue
        ticket = store.read_ticket(replicate, index)
        if ticket is None:
            ticket = draw_ticket(plan, store, replicate, index)
            store.write_ticket(replicate, index, ticket)
        task = LevelTask(
            replicate=replicate,
            seed=seed,
            level=index,
            mask=ticket.mask,
            weights=ticket_weights(plan, ticket),
            start=plan.start(index),
            final_lr=index > 0 and plan.recipe.pruning.after == "finetune",
        )
        yield from train_level(plan, store, task, settings)


def draw_ticket(plan: Plan, store: RunStore, replicate: int, level: int) -> Ticket:
    """The mask of a level and the weights that it restarts from."""
    if level == 0:
        return dense_ticket(plan, replicate)
    after = plan.recipe.pruning.after
    seed = replicate_seed(plan, replicate)
    facts = ticket_facts(plan, replicate, level, plan.start(level))
    mask = draw_mask(plan, store, replicate, level)
    if after == "reinit":
        return seeded_ticket(plan, mask, derive_seed(seed, "reinit", level), facts)
    if after in ("lr_rewind", "finetune"):
        trained = store.read_weights(replicate, source_level(plan, level), "final")
        return Ticket(mask, masked(trained, mask), facts)
    if plan.rewind == 0:
        return seeded_ticket(plan, mask, derive_seed(seed, "init"), facts)
    return Ticket(mask, masked(store.read_rewind(replicate), mask), facts)


def source_level(plan: Plan, level: int) -> int:
    """The level whose trained weights decide a level's mask."""
    return 0 if plan.recipe.method == "oneshot" else level - 1


def draw_mask(plan: Plan, store: RunStore, replicate: int, level: int) -> Mask:
    """Saliency of the source level's trained weights → the exact number of weights for this level."""
    source = source_level(plan, level)
    before = store.read_ticket(replicate, source)
    assert before is not None
    trained = store.read_weights(replicate, source, "final")
    initial = store.read_rewind(replicate) if wants_initial(plan) else {}
    seed = derive_seed(replicate_seed(plan, replicate), "criterion", level)
    numbers = {name: trained[name] for name in before.mask}
    saliency = saliencies(plan, numbers, initial, seed, f"level {level}")
    try:
        return prune(saliency, before.mask, plan.pools, plan.keeps(level))
    except PruningError as error:
        raise FailedRun(f"criterion '{plan.recipe.pruning.criterion}' at level {level}: {error}") from error
