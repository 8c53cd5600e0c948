"""Iterative magnitude pruning with rewinding, level by level, for one replicate.

    level 0:  train the dense network; keep its weights at the rewind step
    level n:  trained weights of level n-1 → saliency → mask; weights to restart from + mask = the ticket; train it

Source: Frankle & Carbin 2019, section 2; rewinding to step k: Frankle et al. 2020; learning-rate rewinding and
fine-tuning: Renda et al. 2020. One-shot pruning takes every mask from level 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ticketlab.errors import FailedRun, PruningError
from ticketlab.pruning.allocate import prune
from ticketlab.pruning.criteria import Evidence, criteria
from ticketlab.pruning.masks import Mask, full_mask, masked
from ticketlab.runs.store import Level, RunStore
from ticketlab.runs.ticket import Ticket, digest
from ticketlab.seeds import derive_seed
from ticketlab.workflows.plan import Plan
from ticketlab.workflows.train_level import LevelTask, Progress, Settings, train_level


def prune_replicate(plan: Plan, store: RunStore, replicate: int, settings: Settings) -> Iterator[Progress | Level]:
    """Find tickets with one seed; finished levels are read, an unfinished one is taken up where it stopped."""
    seed = replicate_seed(plan, replicate)
    for index in range(plan.recipe.pruning.levels + 1):
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


def replicate_seed(plan: Plan, replicate: int) -> int:
    """Seed of a replicate; replicates count from 1."""
    return plan.recipe.seed + replicate - 1


def draw_ticket(plan: Plan, store: RunStore, replicate: int, level: int) -> Ticket:
    """The mask of a level and the weights that it restarts from."""
    after = plan.recipe.pruning.after
    seed = replicate_seed(plan, replicate)
    facts: dict[str, Any] = {
        "recipe_hash": plan.hash,
        "model": plan.recipe.model.model_dump(mode="json"),
        "data": plan.recipe.data.name,
        "replicate": replicate,
        "seed": seed,
        "level": level,
        "rewind_step": plan.start(level),
    }
    if level == 0:
        return _from_seed(plan, full_mask(plan.build(0)), derive_seed(seed, "init"), facts)
    mask = draw_mask(plan, store, replicate, level)
    if after == "reinit":
        return _from_seed(plan, mask, derive_seed(seed, "reinit", level), facts)
    if after in ("lr_rewind", "finetune"):
        trained = store.read_weights(replicate, source_level(plan, level), "final")
        return Ticket(mask, masked(trained, mask), facts)
    if plan.rewind == 0:
        return _from_seed(plan, mask, derive_seed(seed, "init"), facts)
    return Ticket(mask, masked(store.read_rewind(replicate), mask), facts)


def _from_seed(plan: Plan, mask: Mask, init_seed: int, facts: dict[str, Any]) -> Ticket:
    weights = plan.build(init_seed).state_dict()
    return Ticket(mask, None, {**facts, "init_seed": init_seed, "digest": digest(weights)})


def ticket_weights(plan: Plan, ticket: Ticket) -> dict[str, Tensor]:
    """The weights that a ticket restarts from, removed ones zero."""
    if ticket.weights is not None:
        return ticket.weights
    weights = plan.build(ticket.facts["init_seed"]).state_dict()
    if digest(weights) != ticket.facts["digest"]:
        raise FailedRun(
            "the ticket's seed draws other initial weights here than where it was made; the version of torch or "
            "the model changed"
        )
    return masked(weights, ticket.mask)


def source_level(plan: Plan, level: int) -> int:
    """The level whose trained weights decide a level's mask."""
    return 0 if plan.recipe.method == "oneshot" else level - 1


def draw_mask(plan: Plan, store: RunStore, replicate: int, level: int) -> Mask:
    """Saliency of the source level's trained weights → the exact number of weights for this level."""
    source = source_level(plan, level)
    before = store.read_ticket(replicate, source)
    assert before is not None
    trained = store.read_weights(replicate, source, "final")
    section = plan.recipe.pruning
    needs = criteria.needs(section.criterion)
    initial = store.read_rewind(replicate) if "initial" in needs else {}
    generator = torch.Generator().manual_seed(derive_seed(replicate_seed(plan, replicate), "criterion", level))
    saliency: dict[str, Tensor] = {}
    for name in before.mask:
        evidence = Evidence(initial.get(name), generator if "generator" in needs else None)
        try:
            values = criteria.find(section.criterion)(trained[name], evidence, **section.options)
        except (Exception, SystemExit) as error:
            what = f"{type(error).__name__}: {error}"
            raise FailedRun(f"criterion '{section.criterion}' at level {level}, {name}: {what}") from error
        saliency[name] = values
        if not isinstance(values, Tensor):
            raise FailedRun(f"criterion '{section.criterion}' gave {type(values).__name__} for {name}")
        if values.shape != trained[name].shape:
            raise FailedRun(f"criterion '{section.criterion}' gave shape {tuple(values.shape)} for {name}")
    try:
        return prune(saliency, before.mask, plan.pools, plan.keeps(level))
    except PruningError as error:
        raise FailedRun(f"criterion '{section.criterion}' at level {level}: {error}") from error
