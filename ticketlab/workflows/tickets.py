"""What tickets are made of: saliency from trained numbers, facts, and the weights that they restart from."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ticketlab.data.batches import Examples, permutation
from ticketlab.errors import FailedRun, PruningError, Stop
from ticketlab.models.build import call_builder, find_builder
from ticketlab.models.compact import layer_widths, rebuild
from ticketlab.pruning.allocate import prune
from ticketlab.pruning.criteria import Evidence, criteria
from ticketlab.pruning.early_bird import decides_nothing
from ticketlab.pruning.masks import Mask, full_mask, masked
from ticketlab.pruning.ranks import ranks
from ticketlab.pruning.reclaim import prune_live
from ticketlab.pruning.surgeon import compensated
from ticketlab.runs.ticket import Ticket, digest
from ticketlab.seeds import derive_seed
from ticketlab.training.gradients import MEASURED, Probe, input_moments, measure, passes
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


@dataclass(frozen=True)
class Observed:
    """What a criterion may look at beside the weights, by tensor."""

    seed: int
    """Of criteria that draw."""
    initial: Mapping[str, Tensor] = field(default_factory=dict)
    progress: float = 1.0
    flips: Mapping[str, Tensor] = field(default_factory=dict)
    measured: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    """By kind of evidence: what training examples say of the network (training/gradients.py)."""


def saliencies(plan: Plan, numbers: Mapping[str, Tensor], mask: Mask, seen: Observed, where: str) -> dict[str, Tensor]:
    """What the recipe's criterion says of each tensor, of which the mask's part competes.

    Raises FailedRun that names the criterion and the tensor for one that fails or gives something else.
    """
    section = plan.recipe.pruning
    criterion = criteria.find(section.criterion)
    found: dict[str, Tensor] = {}
    for name, evidence in _evidence(plan, numbers, mask, seen).items():
        try:
            # a copy: a user's criterion may work in place
            saliency = criterion(numbers[name].clone(), evidence, **section.options)
        except (Exception, SystemExit) as error:
            what = f"{type(error).__name__}: {error}"
            raise FailedRun(f"criterion '{section.criterion}' at {where}, {name}: {what}") from error
        if not isinstance(saliency, Tensor):
            raise FailedRun(f"criterion '{section.criterion}' gave {type(saliency).__name__} for {name}")
        if saliency.shape != numbers[name].shape:
            shapes = f"shape {tuple(saliency.shape)} for {name}, which has {tuple(numbers[name].shape)}"
            raise FailedRun(f"criterion '{section.criterion}' gave {shapes}")
        found[name] = saliency
    return found


def _evidence(plan: Plan, numbers: Mapping[str, Tensor], mask: Mask, seen: Observed) -> dict[str, Evidence]:
    """What the criterion asks for, of each tensor."""
    needs = criteria.needs(plan.recipe.pruning.criterion)
    generator = torch.Generator().manual_seed(seen.seed) if "generator" in needs else None
    magnitude: Mapping[str, Tensor] = {}
    steadiness: Mapping[str, Tensor] = {}
    if "magnitude_rank" in needs:
        magnitude = ranks({name: values.abs() for name, values in numbers.items()}, mask, plan.pools)
    if "steadiness_rank" in needs:
        steadiness = ranks({name: -seen.flips[name].double() for name in numbers}, mask, plan.pools)
    return {
        name: Evidence(
            initial=seen.initial.get(name),
            generator=generator,
            progress=seen.progress,
            flips=seen.flips.get(name),
            magnitude_rank=magnitude.get(name),
            steadiness_rank=steadiness.get(name),
            **{kind: found[name] for kind, found in seen.measured.items()},
        )
        for name in numbers
    }


def cut(plan: Plan, saliency: Mapping[str, Tensor], mask: Mask, keeps: Sequence[int]) -> Mask:
    """The mask that a saliency gives; with dead paths reclaimed, where the recipe asks for it."""
    if plan.recipe.pruning.reclaim is None:
        return prune(saliency, mask, plan.pools, keeps)
    return prune_live(saliency, mask, plan.pools, keeps, plan.paths.reach)


def next_mask(
    plan: Plan,
    replicate: int,
    level: int,
    trained: Mapping[str, Tensor],
    before: Mask,
    flips: Mapping[str, Tensor],
    initial: Mapping[str, Tensor],
    should_stop: Stop = lambda: False,
) -> Mask:
    """Saliency of trained weights → the exact number of weights for a level.

    Raises FailedRun that names the criterion where its saliency is of no use, Interrupted when asked to stop.
    """
    numbers = {name: trained[name] for name in before}
    progress = plan.schedule.completed(level) / plan.steps if plan.schedule else 1.0
    seed = derive_seed(replicate_seed(plan, replicate), "criterion", level)
    measured = measured_by(plan, replicate, trained, before, should_stop)
    observed = Observed(seed, initial, progress, flips, measured)
    return mask_by_criterion(plan, numbers, before, observed, plan.keeps(level), f"level {level}")


def mask_at_init(
    plan: Plan, replicate: int, level: int, weights: Mapping[str, Tensor], should_stop: Stop = lambda: False
) -> Mask:
    """A level's mask from weights that are still to be trained, in `pruning.rounds` prunings by the same share each.

    The criterion looks at what the round before left. Source: Tanaka et al. 2020 (SynFlow), algorithm 1.
    """
    whole, mask = plan.recipe.pruning.rounds, full_mask(plan.build(0))
    for at in range(1, whole + 1):
        left = masked(weights, mask)
        seed = derive_seed(replicate_seed(plan, replicate), "criterion", level, *([at] if whole > 1 else []))
        observed = Observed(seed, weights, 0.0, {}, measured_by(plan, replicate, weights, mask, should_stop))
        where = f"level {level}, round {at}"
        saliency = saliencies(plan, {name: left[name] for name in mask}, mask, observed, where)
        if at == 1 and decides_nothing(saliency, plan.pools):
            name = plan.recipe.pruning.criterion
            way_out = "take another one, or prune later (pruning.rewind; method: imp)"
            raise FailedRun(f"criterion '{name}' says the same of all weights before training; {way_out}")
        mask = _cut(plan, saliency, mask, plan.keeps_on_the_way(level, at / whole), where)
    return mask


def measured_by(
    plan: Plan, replicate: int, weights: Mapping[str, Tensor], mask: Mask, should_stop: Stop
) -> dict[str, dict[str, Tensor]]:
    """What training examples say of weights under a mask, of the kinds that the criterion asks for."""
    needs = criteria.needs(plan.recipe.pruning.criterion)
    if not needs & set(MEASURED):
        return {}
    try:
        return measure(_probe(plan, replicate, masked(weights, mask), mask, should_stop), needs)
    except PruningError as error:
        raise FailedRun(f"criterion '{plan.recipe.pruning.criterion}': {error}") from error


def made_up(
    plan: Plan, replicate: int, trained: Mapping[str, Tensor], mask: Mask, should_stop: Stop
) -> dict[str, Tensor]:
    """Trained weights, of which the remaining ones make up for those that the mask removes."""
    try:
        moments = input_moments(_probe(plan, replicate, trained, mask, should_stop))
    except PruningError as error:
        raise FailedRun(f"pruning.compensate: {error}") from error
    return {**trained, **{name: compensated(trained[name], kept, moments[name]) for name, kept in mask.items()}}


def _probe(plan: Plan, replicate: int, weights: Mapping[str, Tensor], mask: Mask, should_stop: Stop) -> Probe:
    model = plan.build(0)
    model.load_state_dict(weights)
    return Probe(model, _examples(plan, replicate), list(mask), should_stop)


def _examples(plan: Plan, replicate: int) -> Examples:
    """The training examples that a replicate's criteria look at."""
    order = permutation(len(plan.splits.train), derive_seed(replicate_seed(plan, replicate), "examples"))
    return plan.splits.train.some(order[: plan.recipe.pruning.examples])


def looks(plan: Plan, level: int) -> float:
    """Forward and backward passes of one example that the criterion takes to make a level's mask."""
    examples = min(plan.recipe.pruning.examples, len(plan.splits.train))
    once = passes(criteria.needs(plan.recipe.pruning.criterion), examples, plan.data.dataset.classes)
    making_up = examples if plan.recipe.pruning.compensate else 0
    return plan.recipe.pruning.rounds * once + making_up if level else 0.0


def mask_by_criterion(
    plan: Plan, numbers: Mapping[str, Tensor], before: Mask, seen: Observed, keeps: Sequence[int], where: str
) -> Mask:
    """What the recipe's criterion leaves of a mask: so many weights of each pool.

    Raises FailedRun that names the criterion where its saliency is of no use.
    """
    return _cut(plan, saliencies(plan, numbers, before, seen, where), before, keeps, where)


def _cut(plan: Plan, saliency: Mapping[str, Tensor], before: Mask, keeps: Sequence[int], where: str) -> Mask:
    try:
        return cut(plan, saliency, before, keeps)
    except PruningError as error:
        raise FailedRun(f"criterion '{plan.recipe.pruning.criterion}' at {where}: {error}") from error


def flip_evidence(kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Flips as criteria see them, from what a level left behind: recent ones, where old ones are forgotten."""
    kind = "recent/" if any(name.startswith("recent/") for name in kept) else "counts/"
    return {name.removeprefix(kind): flips for name, flips in kept.items() if name.startswith(kind)}


def wants_initial(plan: Plan) -> bool:
    """Whether the criterion asks for the weights at the rewind step."""
    return "initial" in criteria.needs(plan.recipe.pruning.criterion)
