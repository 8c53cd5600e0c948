"""An early-bird ticket from a mask and a network in training: what it keeps and where it restarts."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ticketlab.fusion.groups import after_keeping, keep_units_
from ticketlab.models.compact import rebuild
from ticketlab.pruning.masks import Mask, masked
from ticketlab.runs.ticket import Ticket
from ticketlab.seeds import derive_seed
from ticketlab.workflows.plan import Plan
from ticketlab.workflows.tickets import fresh_weights, replicate_seed, seeded_ticket, ticket_facts


def draw_ticket(
    plan: Plan,
    replicate: int,
    level: int,
    step: int,
    mask: Mask,
    state: Mapping[str, Tensor],
    rewind: Mapping[str, Tensor] | None,
) -> Ticket:
    """The ticket of a mask that was seen at a step.

    Args:
        state: The dense network at that step.
        rewind: The dense network at the rewind step, where that is not its initialisation.
    """
    assert plan.early_bird is not None
    after, seed = plan.recipe.pruning.after, replicate_seed(plan, replicate)
    start = plan.start(level)
    if after == "continue":
        # at the end there is nothing left to continue: the schedule starts again, as after one-shot pruning
        start = step if step < plan.steps else plan.rewind
    facts = {**ticket_facts(plan, replicate, level, start), "density": plan.early_bird.targets[level - 1].density}
    facts["draw_step"] = step
    init = derive_seed(seed, "reinit", level) if after == "reinit" else derive_seed(seed, "init")
    keeps_values = after in ("continue", "lr_rewind")
    if not plan.early_bird.groups:
        if keeps_values or (after == "rewind" and rewind):
            return Ticket(mask, masked(state if keeps_values else rewind or {}, mask), facts)
        return seeded_ticket(plan, mask, init, facts)
    if after == "reinit":
        return Ticket(mask, fresh_weights(plan, ticket_network(plan, mask), init), facts)
    whole = state if keeps_values else rewind or plan.build(init).state_dict()
    return Ticket(mask, dict(ticket_network(plan, mask, whole).state_dict()), facts)


def ticket_network(plan: Plan, mask: Mask, state: Mapping[str, Tensor] | None = None) -> nn.Module:
    """The smaller dense network that a mask of channels leaves, with the values of `state`.

    Args:
        mask: Group → bool (units,).
    """
    assert plan.early_bird is not None
    model = plan.build(0)
    if state is not None:
        model = rebuild(model, state)
    groups = list(plan.early_bird.groups)
    for index, group in enumerate(groups):
        kept = mask[group.name].nonzero().squeeze(1)
        keep_units_(model, group, kept)
        groups[index + 1 :] = [after_keeping(other, group, kept) for other in groups[index + 1 :]]
    return model
