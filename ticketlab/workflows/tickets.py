"""What tickets are made of: saliency from trained numbers, facts, and the weights that they restart from."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ticketlab.errors import FailedRun
from ticketlab.models.compact import layer_widths, rebuild
from ticketlab.pruning.criteria import Evidence, criteria
from ticketlab.pruning.masks import Mask, full_mask, masked
from ticketlab.runs.ticket import Ticket, digest
from ticketlab.seeds import derive_seed
from ticketlab.workflows.build import call_builder, find_builder
from ticketlab.workflows.plan import Plan


def replicate_seed(plan: Plan, replicate: int) -> int:
    """Seed of a replicate; replicates count from 1."""
    return plan.recipe.seed + replicate - 1


def ticket_facts(plan: Plan, replicate: int, level: int, start: int) -> dict[str, Any]:
    """Where a ticket comes from; `start` is the step that it restarts from."""
    return {
        "recipe_hash": plan.hash,
        "model": plan.recipe.model.model_dump(mode="json"),
        "data": plan.recipe.data.name,
        "replicate": replicate,
        "seed": replicate_seed(plan, replicate),
        "level": level,
        "rewind_step": start,
    }


def seeded_ticket(plan: Plan, mask: Mask, init_seed: int, facts: Mapping[str, Any]) -> Ticket:
    """A ticket whose weights are those that a seed draws."""
    weights = plan.build(init_seed).state_dict()
    return Ticket(mask, None, {**facts, "init_seed": init_seed, "digest": digest(weights)})


def dense_ticket(plan: Plan, replicate: int) -> Ticket:
    """Level 0: the whole network with the weights that the replicate's seed draws."""
    facts = ticket_facts(plan, replicate, 0, 0)
    init = derive_seed(replicate_seed(plan, replicate), "init")
    return seeded_ticket(plan, full_mask(plan.build(0)), init, facts)


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


def fresh_weights(plan: Plan, model: nn.Module, seed: int) -> dict[str, Tensor]:
    """Initial weights for a narrower edition of the plan's network: its builder's, where it takes `widths`.

    Elsewhere torch's own initialisation of each layer.
    """
    section, dataset = plan.recipe.model, plan.data.dataset
    builder = find_builder(section, plan.file.path.parent)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if "widths" in inspect.signature(builder).parameters:
            options = {**section.options, "widths": layer_widths(model)}
            made = call_builder(builder, options, dataset.input_shape, dataset.classes)
            if set(made.state_dict()) == set(model.state_dict()):
                return dict(made.state_dict())
        made = rebuild(plan.build(0), model.state_dict())
        for layer in made.modules():
            reset = getattr(layer, "reset_parameters", None)
            if callable(reset):
                reset()
    return dict(made.state_dict())


def saliencies(
    plan: Plan,
    numbers: Mapping[str, Tensor],
    initial: Mapping[str, Tensor],
    seed: int,
    where: str,
    progress: float = 1.0,
) -> dict[str, Tensor]:
    """What the recipe's criterion says of each tensor; `seed` is for criteria that draw.

    Raises FailedRun that names the criterion and the tensor for one that fails or gives something else.
    """
    section = plan.recipe.pruning
    criterion, needs = criteria.find(section.criterion), criteria.needs(section.criterion)
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Tensor] = {}
    for name, values in numbers.items():
        evidence = Evidence(initial.get(name), generator if "generator" in needs else None, progress)
        try:
            # a copy: a user's criterion may work in place
            saliency = criterion(values.clone(), evidence, **section.options)
        except (Exception, SystemExit) as error:
            what = f"{type(error).__name__}: {error}"
            raise FailedRun(f"criterion '{section.criterion}' at {where}, {name}: {what}") from error
        if not isinstance(saliency, Tensor):
            raise FailedRun(f"criterion '{section.criterion}' gave {type(saliency).__name__} for {name}")
        if saliency.shape != values.shape:
            raise FailedRun(f"criterion '{section.criterion}' gave shape {tuple(saliency.shape)} for {name}")
        found[name] = saliency
    return found


def wants_initial(plan: Plan) -> bool:
    """Whether the criterion asks for the weights at the rewind step."""
    return "initial" in criteria.needs(plan.recipe.pruning.criterion)
