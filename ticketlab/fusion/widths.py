"""How many units each group keeps: the same share everywhere, or what a budget buys where errors are smallest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from ticketlab.errors import FusionError
from ticketlab.fusion.groups import Group
from ticketlab.fusion.least_squares import eliminate
from ticketlab.fusion.units import View, observe, view_units
from ticketlab.models.compact import LINEAR, NORMS, tensor

Widths = dict[str, int]
STEPS = 60
"""Steps in which a group goes from all of its units to one while a budget is sought."""


def uniform(groups: Sequence[Group], share: float) -> Widths:
    """The same share of units everywhere, at least one."""
    return {group.name: max(1, round(share * group.units)) for group in groups}


@dataclass(frozen=True)
class Costs:
    """What a network costs as a function of its widths."""

    groups: Sequence[Group]
    layers: Mapping[str, tuple[int, int, int, int]]
    """Layer → rows, columns, multiply-accumulates of one row and column, weights of one row and column."""
    fixed: Mapping[str, int]
    """Layer or norm → parameters per row beside the weights."""

    def parameters(self, widths: Widths) -> float:
        """Weights, biases and norms."""
        return sum(self._sum(widths, 3)) + sum(count * self._rows(name, widths) for name, count in self.fixed.items())

    def macs(self, widths: Widths) -> float:
        """Multiply-accumulates of one example."""
        return sum(self._sum(widths, 2))

    def _sum(self, widths: Widths, which: int) -> list[float]:
        return [
            self._rows(name, widths) * self._columns(name, widths) * part[which] for name, part in self.layers.items()
        ]

    def _rows(self, layer: str, widths: Widths) -> int:
        lost = sum(
            (g.units - widths.get(g.name, g.units)) * slot.index.shape[1]
            for g in self.groups
            for slot in (*g.producers, *g.norms, *g.depthwise)
            if slot.layer == layer
        )
        return self.sizes[layer] - lost

    def _columns(self, layer: str, widths: Widths) -> int:
        lost = sum(
            (g.units - widths.get(g.name, g.units)) * slot.index.shape[1]
            for g in self.groups
            for slot in g.consumers
            if slot.layer == layer
        )
        return self.layers[layer][1] - lost

    sizes: Mapping[str, int] = field(default_factory=dict)
    """Rows of each layer and entries of each norm."""


def cost_model(model: nn.Module, groups: Sequence[Group], macs: Mapping[str, int]) -> Costs:
    """Costs of a network whose layers take `macs` multiply-accumulates each for one example."""
    # a consumer without a bias or a norm of its own is given a bias to take up what its inputs lose
    gaining = {slot.layer for group in groups for slot in group.consumers if slot.norm is None}
    layers, fixed, sizes = {}, {}, {}
    for name, layer in model.named_modules():
        if isinstance(layer, LINEAR):
            weight = tensor(layer, "weight")
            rows, columns = weight.shape[:2]
            layers[name] = (rows, columns, macs.get(name, 0) // (rows * columns), weight[0, 0].numel())
            fixed[name], sizes[name] = int(layer.bias is not None or name in gaining), rows
        elif isinstance(layer, NORMS):
            fixed[name], sizes[name] = 2 if layer.weight is not None else 0, layer.num_features
    return Costs(groups, layers, fixed, sizes)


def error_curves(model: nn.Module, groups: Sequence[Group], images: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """Group → relative error of its consumers' outputs with 0, 1, … n units left, refitted by least squares.

    Units go one by one, the one that can best be made up for first; each group is looked at alone, in the network
    as it is. The error with no unit is 1.
    """
    curves = {}
    view = View(model, groups)
    for group, (activations, regressions) in zip(groups, observe(view, view, images, seed), strict=True):
        units = view_units(model, group, torch.Generator().manual_seed(seed))
        curves[group.name] = _curve(
            eliminate(replace(units, activations=activations, regressions=regressions), keep=1).errors
        )
    return curves


def _curve(errors: Tensor) -> Tensor:
    return torch.cat((errors, torch.ones(1))).flip(0).clamp(max=1)


def within(
    groups: Sequence[Group],
    curves: Mapping[str, Tensor],
    cost: Callable[[Widths], float],
    budget: float,
    round_to: int = 1,
) -> Widths:
    """Widths of the smallest summed error whose cost is within a budget.

    Units go where the error that this adds is smallest for the cost that it saves; at the end the room that is left
    is filled the other way round. Raises FusionError for a budget below the cost of the narrowest network.
    """
    widths = {group.name: group.units for group in groups}
    least = {group.name: min(round_to, group.units) for group in groups}
    if cost(least) > budget:
        raise FusionError(
            f"the budget is below the narrowest network's cost of {cost(least):,.0f}; allow at least that"
        )
    while cost(widths) > budget:
        choices = [c for g in groups if (c := _step(widths, g, curves[g.name], cost, least[g.name], round_to))]
        widths = min(choices, key=lambda choice: choice[0])[1]
    return _fill(groups, curves, cost, budget, widths, round_to)


def _step(
    widths: Widths, group: Group, curve: Tensor, cost: Callable[[Widths], float], least: int, round_to: int
) -> tuple[float, Widths] | None:
    """(error added per cost saved, widths) when a group loses a little."""
    now = widths[group.name]
    if now <= least:
        return None
    fewer = now - max(1, group.units // STEPS)
    fewer = max(least, fewer // round_to * round_to)
    narrower = {**widths, group.name: fewer}
    return float(curve[fewer] - curve[now]) / max(cost(widths) - cost(narrower), 1e-9), narrower


def _fill(
    groups: Sequence[Group],
    curves: Mapping[str, Tensor],
    cost: Callable[[Widths], float],
    budget: float,
    widths: Widths,
    round_to: int,
) -> Widths:
    """Add units while they fit, the most useful for its cost first."""
    while True:
        choices = []
        for group in groups:
            now = widths[group.name]
            more = min(group.units, (now // round_to + 1) * round_to)
            wider = {**widths, group.name: more}
            if more > now and cost(wider) <= budget:
                gain = float(curves[group.name][now] - curves[group.name][more])
                choices.append((gain / max(cost(wider) - cost(widths), 1e-9), wider))
        if not choices:
            return widths
        widths = max(choices, key=lambda choice: choice[0])[1]
