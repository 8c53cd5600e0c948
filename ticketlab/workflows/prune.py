"""Pruning level by level, for one replicate: each level a training of its own, or a part of one training.

    level 0:  train the dense network; keep its weights at the rewind step
    level n:  trained weights of level n-1 → saliency → mask; weights to restart from + mask = the ticket; train it

Source: Frankle & Carbin 2019, section 2; rewinding to step k: Frankle et al. 2020; learning-rate rewinding and
fine-tuning: Renda et al. 2020. One-shot pruning takes every mask from level 0, pruning at initialisation from the
weights that level 0 has at the rewind step; of method dynamic that is only the first mask of a level. Methods sign_flip
and gradual prune while training: a level goes on with the weights, the optimizer and the flip counts of the one before.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from torch import Tensor

from ticketlab.errors import FailedRun, Stop
from ticketlab.pruning.early_bird import nearly_empty
from ticketlab.pruning.masks import Mask, masked, remaining
from ticketlab.runs.store import Level, RunStore
from ticketlab.runs.ticket import Ticket
from ticketlab.seeds import derive_seed
from ticketlab.workflows.at_once import AtOnce
from ticketlab.workflows.flips import FlipWatch
from ticketlab.workflows.plan import Plan
from ticketlab.workflows.progress import Notice, Seen
from ticketlab.workflows.rewire import Rewire
from ticketlab.workflows.schedule import counts_flips
from ticketlab.workflows.tickets import (
    dense_ticket,
    flip_evidence,
    looks,
    made_up,
    mask_at_init,
    next_mask,
    replicate_seed,
    seeded_ticket,
    ticket_facts,
    ticket_weights,
    wants_initial,
)
from ticketlab.workflows.train_level import Settings, train_level
from ticketlab.workflows.trainer import LevelTask, Watch


def prune_replicate(plan: Plan, store: RunStore, replicate: int, settings: Settings) -> Iterator[Seen]:
    """Find tickets with one seed; finished levels are read, an unfinished one is taken up where it stopped."""
    for index in range(plan.levels + 1):
        if store.has_level(replicate, index):
            yield store.read_level(replicate, index)
        else:
            yield from _train(plan, store, replicate, index, settings)
        if plan.schedule and index:
            store.drop_optimizer(replicate, index - 1)


def _train(plan: Plan, store: RunStore, replicate: int, level: int, settings: Settings) -> Iterator[Seen]:
    # of a level whose mask changes as it trains, the ticket is what its end leaves
    ticket = None if loses_weights(plan, level) or rewires(plan, level) else store.read_ticket(replicate, level)
    began = time.perf_counter()
    if ticket is None:
        ticket = draw_ticket(plan, store, replicate, level, settings.should_stop)
        store.write_ticket(replicate, level, ticket)
        yield from _warnings(plan, ticket.mask, replicate, level)
        if level and plan.recipe.train.sparsify:
            yield from _filled_up(plan, store, replicate, level, ticket.mask)
    task = replace(_task(plan, store, replicate, level, ticket), spent=time.perf_counter() - began)
    for seen in train_level(plan, store, task, settings, watches(plan, store, task)):
        yield seen
        if isinstance(seen, Level) and seen.effective_density == 0:
            yield Notice(f"replicate {replicate}, level {level}: no path from input to output is left")
        if isinstance(seen, Level) and not level and plan.recipe.train.sparsify:
            yield from _emptied(plan, store, replicate)
    if rewires(plan, level) and (end := store.read_ticket(replicate, level)) is not None:
        yield from _warnings(plan, end.mask, replicate, level)


def _task(plan: Plan, store: RunStore, replicate: int, level: int, ticket: Ticket) -> LevelTask:
    batch = plan.recipe.train.batch_size
    return LevelTask(
        replicate=replicate,
        seed=replicate_seed(plan, replicate),
        level=level,
        mask=ticket.mask,
        weights=ticket_weights(plan, ticket),
        start=plan.start(level),
        stop=plan.stop(level),
        final_lr=level > 0 and plan.recipe.pruning.after == "finetune",
        settled=_settled(plan, level),
        optimizer=store.read_optimizer(replicate, level - 1) if plan.schedule and level else None,
        looks=looks(plan, level),
        may_grow=rewires(plan, level),
        dense_gradients=batch * plan.rewiring.looks(plan.recipe.dynamic.grow) if plan.rewiring and level else 0,
    )


def _settled(plan: Plan, level: int) -> int:
    """Step from which a level has the mask that it ends with."""
    if plan.rewiring and level:
        return plan.rewiring.last
    return plan.schedule.completed(level) if plan.schedule and level else 0


def _warnings(plan: Plan, mask: Mask, replicate: int, level: int) -> Iterator[Notice]:
    where = f"replicate {replicate}, level {level}"
    for name in nearly_empty(mask, share=0):
        yield Notice(f"{where}: layer '{name}' is down to its last weight")
    if plan.recipe.pruning.reclaim and level:
        dead = remaining(mask) - remaining(plan.paths.live(mask))
        if dead:
            yield Notice(
                f"{where}: {dead} weights stay on dead paths, because their layers have more places than live units"
            )


def _emptied(plan: Plan, store: RunStore, replicate: int) -> Iterator[Notice]:
    """Layers of which the dense network's training has left nothing."""
    weights = store.read_weights(replicate, 0, "final")
    for name in plan.competing:
        if not weights[name].any():
            yield Notice(f"replicate {replicate}, level 0: all weights of layer '{name}' are zero")


def _filled_up(plan: Plan, store: RunStore, replicate: int, level: int, mask: Mask) -> Iterator[Notice]:
    """Where so many weights are kept that some of them were zero already, which no magnitude tells apart."""
    weights = store.read_weights(replicate, source_level(plan, level), "final")
    idle = sum(int((weights[name][mask[name]] == 0).sum()) for name in plan.competing)
    if idle:
        kept = sum(int(mask[name].sum()) for name in plan.competing)
        share = f"{idle:,} of the {kept:,} weights that are kept had been trained to zero"
        yield Notice(f"replicate {replicate}, level {level}: {share}, where any is as good; use a smaller strength")


def loses_weights(plan: Plan, level: int) -> bool:
    """Whether weights are removed while a level trains."""
    return plan.schedule is not None and plan.schedule.at_once is not None and level > 0


def rewires(plan: Plan, level: int) -> bool:
    """Whether weights are replaced while a level trains."""
    return plan.rewiring is not None and level > 0


def watches(plan: Plan, store: RunStore, task: LevelTask) -> list[Watch]:
    """Who looks on while a level trains."""
    if rewires(plan, task.level):
        return [Rewire(plan, store, task, partial(ticket_of, plan, store, task.replicate, task.level))]
    if not counts_flips(plan.recipe):
        return []
    flips = FlipWatch(plan, store, task, _carried(plan, store, task))
    return [flips, AtOnce(plan, store, task, flips)] if loses_weights(plan, task.level) else [flips]


def _carried(plan: Plan, store: RunStore, task: LevelTask) -> dict[str, Tensor]:
    """Flips that are counted on: within one training, unless each pruning starts anew or the grace period ends."""
    ends_grace = loses_weights(plan, 1) and task.level == 1
    if not plan.schedule or not task.level or plan.recipe.sign_flips.reset or ends_grace:
        return {}
    return store.read_flips(task.replicate, task.level - 1)


def draw_ticket(plan: Plan, store: RunStore, replicate: int, level: int, should_stop: Stop) -> Ticket:
    """The mask of a level and the weights that it restarts from, or goes on with."""
    if level == 0:
        return dense_ticket(plan, replicate)
    mask = draw_mask(plan, store, replicate, level, should_stop)
    return ticket_of(plan, store, replicate, level, mask, should_stop)


def ticket_of(
    plan: Plan, store: RunStore, replicate: int, level: int, mask: Mask, should_stop: Stop = lambda: False
) -> Ticket:
    """The ticket of a level that has this mask."""
    after = plan.recipe.pruning.after
    seed = replicate_seed(plan, replicate)
    facts = ticket_facts(plan, replicate, level, plan.start(level))
    if after == "reinit":
        return seeded_ticket(plan, mask, derive_seed(seed, "reinit", level), facts)
    if plan.schedule or after in ("lr_rewind", "finetune"):
        trained = store.read_weights(replicate, source_level(plan, level), "final")
        if plan.recipe.pruning.compensate:
            trained = made_up(plan, replicate, trained, mask, should_stop)
        return Ticket(mask, masked(trained, mask), facts)
    if plan.rewind == 0:
        return seeded_ticket(plan, mask, derive_seed(seed, "init"), facts)
    return Ticket(mask, masked(store.read_rewind(replicate), mask), facts)


def source_level(plan: Plan, level: int) -> int:
    """The level whose trained weights decide a level's mask."""
    return 0 if plan.recipe.method == "oneshot" or plan.recipe.prunes_at_init else level - 1


def draw_mask(plan: Plan, store: RunStore, replicate: int, level: int, should_stop: Stop) -> Mask:
    """What the source level's trained weights leave for this level; at initialisation, what its first ones leave."""
    if plan.recipe.prunes_at_init:
        return mask_at_init(plan, replicate, level, store.read_rewind(replicate), should_stop)
    source = source_level(plan, level)
    before = store.read_ticket(replicate, source)
    assert before is not None
    if loses_weights(plan, level):
        return before.mask
    trained = store.read_weights(replicate, source, "final")
    if not any(trained[name].any() for name in plan.competing):
        raise FailedRun(
            f"level {source} has trained all weights that compete to zero; use a smaller train.sparsify.strength"
        )
    initial = store.read_rewind(replicate) if wants_initial(plan) else {}
    flips = flip_evidence(store.read_flips(replicate, source))
    return next_mask(plan, replicate, level, trained, before.mask, flips, initial, should_stop)
