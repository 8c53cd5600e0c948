"""Fuse a network group by group: select, combine, drop; later groups see what earlier ones have become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ticketlab.fusion.combine import combiners
from ticketlab.fusion.groups import Group, after_keeping, keep_units_
from ticketlab.fusion.select import selectors
from ticketlab.fusion.units import View, apply_, observe, view_units
from ticketlab.models.compact import layer_widths
from ticketlab.seeds import derive_seed


@dataclass(frozen=True)
class Method:
    """How units are chosen and what is done for those that go."""

    select: str = "greedy"
    combine: str = "least_squares"
    options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword options of the combination."""

    def needs(self) -> frozenset[str]:
        """What the method wants to see: nothing, activations, or patches (which include activations)."""
        return selectors.needs(self.select) | combiners.needs(self.combine)


@dataclass(frozen=True)
class Fused:
    """A smaller network and where its units came from."""

    model: nn.Module
    kept: dict[str, Tensor]
    """Group → old units in whose places the new ones stand."""
    mixing: dict[str, Tensor]
    """Group → B, (old, new): how each old unit is read from the new ones."""


def fuse(
    model: nn.Module,
    groups: Sequence[Group],
    widths: Mapping[str, int],
    method: Method = Method(),
    images: Tensor | None = None,
    seed: int = 0,
) -> Fused:
    """A copy of a network with fewer units in the groups that `widths` names.

    Args:
        groups: In the order in which the network computes them.
        widths: Group's name → units to keep; a group left out, or as wide as it is, stays as it is.
        images: Normalised, without labels; only for methods that look at data.
    """
    reference, small = model.eval(), deepcopy(model).eval()
    kept: dict[str, Tensor] = {}
    mixing: dict[str, Tensor] = {}
    now = list(groups)
    alive = {name: torch.arange(width) for name, width in layer_widths(reference).items()}
    for index, original in enumerate(groups):
        group, keep = now[index], widths.get(original.name, original.units)
        if keep >= group.units:
            continue
        # weights are the reference's, as the data-free methods were published; activations are today's
        units = view_units(reference, original, torch.Generator().manual_seed(derive_seed(seed, group.name)))
        if method.needs() and images is not None:
            today, before = View(small, [group]), View(reference, [original], alive)
            ((activations, regressions),) = observe(today, before, images, seed, "patches" in method.needs())
            units = replace(units, activations=activations, regressions=regressions)
        chosen = selectors.find(method.select)(units, keep)
        plan = combiners.find(method.combine)(units, chosen, **method.options)
        apply_(small, group, plan)
        keep_units_(small, group, plan.kept)
        now = [after_keeping(other, group, plan.kept) for other in now]
        for slot in original.producers:
            lost = slot.index[~torch.isin(torch.arange(original.units), plan.kept)].reshape(-1)
            alive[slot.layer] = alive[slot.layer][~torch.isin(alive[slot.layer], lost)]
        kept[group.name], mixing[group.name] = plan.kept, plan.B
    return Fused(small, kept, mixing)
