"""What an early-bird search is to draw, from which of a network's numbers, and when; what cannot be asked of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ticketlab.errors import FusionError
from ticketlab.fusion.groups import Group, prove
from ticketlab.fusion.trace import trace
from ticketlab.pruning.early_bird import Measure
from ticketlab.recipe import EarlyBirdSection, PruningSection, Recipe
from ticketlab.recipe_file import Problem

EPSILON = {"extrapolated": 0.32}
"""Distance in units of chance below which a mask of this criterion has settled, for a window that spans SPAN of the
training (calibrated: benchmarks/early_bird_epsilon.py)."""
EPSILON_ELSE = 0.2
"""Likewise for every other criterion; calibrated with magnitude."""
EPSILON_CHANNELS = 0.45
"""Likewise for channels, whose scales jitter as long as the learning rate is high."""
SPAN = 0.1
HAMMING = 0.1
"""The paper's ε, for raw distances."""
MASKS = 40
"""Masks in a whole training, where the recipe does not say how often one is made."""


@dataclass(frozen=True)
class Target:
    """One ticket to be drawn."""

    density: float
    at: int | None
    """Step to draw it at; None where the mask decides."""


@dataclass(frozen=True)
class EarlyBird:
    """A search, in steps."""

    targets: tuple[Target, ...]
    """In the order of the run's levels, from level 1 on."""
    every: int
    window: int
    epsilon: float
    measure: Measure
    patience: int
    """Step at which a ticket is drawn though its mask still moves."""
    groups: tuple[Group, ...]
    """Channels that can be removed; empty where single weights are."""

    def judged(self, state: Mapping[str, Tensor], weights: Mapping[str, int]) -> dict[str, Tensor]:
        """The numbers that a criterion judges: weights of each layer, or each group's batch-norm scales (units,)."""
        if not self.groups:
            return {name: state[name] for name in weights}
        return {group.name: _scales(state, group) for group in self.groups}


def _scales(state: Mapping[str, Tensor], group: Group) -> Tensor:
    slot = group.norms[0]
    return state[f"{slot.layer}.weight"].index_select(0, slot.index[:, 0])


def make_search(recipe: Recipe, model: nn.Module, shape: tuple[int, ...], per_epoch: int) -> EarlyBird:
    """The search of a recipe; raises FusionError where the network has no channels to prune."""
    section, stop = recipe.early_bird, recipe.train.steps.steps(per_epoch)
    every = _every(recipe, per_epoch)
    times = (None, *(time.steps(per_epoch) for time in section.also_at))
    return EarlyBird(
        targets=tuple(Target(density, at) for at in times for density in section.densities),
        every=every,
        window=section.window,
        epsilon=_epsilon(recipe, every * (section.window - 1) / stop),
        measure=section.distance,
        patience=section.patience.steps(per_epoch) if section.patience else stop,
        groups=_channels(model, shape) if section.granularity == "channels" else (),
    )


def _every(recipe: Recipe, per_epoch: int) -> int:
    """Steps between two masks."""
    asked = recipe.early_bird.every
    return asked.steps(per_epoch) if asked else max(1, recipe.train.steps.steps(per_epoch) // MASKS)


def _epsilon(recipe: Recipe, span: float) -> float:
    """ε of a window that spans this share of the training.

    Masks wander: after an interval four times as long they are twice as far apart. So in units of chance ε grows
    with the root of the window's span, and means the same for every interval.
    """
    section = recipe.early_bird
    if section.distance == "hamming":
        return section.epsilon or HAMMING
    is_weights = section.granularity == "weights"
    usual = EPSILON.get(recipe.pruning.criterion, EPSILON_ELSE) if is_weights else EPSILON_CHANNELS
    return (section.epsilon or usual) * math.sqrt(span / SPAN)


def _channels(model: nn.Module, shape: tuple[int, ...]) -> tuple[Group, ...]:
    """Groups of channels with one batch norm of their own, one scale each; residual streams stay whole."""
    probe = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    found = tuple(g for g in trace(model, probe[:1]).groups if not g.is_stream and _has_scales(model, g))
    if not found:
        raise FusionError("no channels with a batch norm of their own; use early_bird.granularity: weights")
    prove(model, found, probe)
    return found


def _has_scales(model: nn.Module, group: Group) -> bool:
    """Whether one batch norm with a trainable scale for each channel reads the group."""
    if len(group.norms) != 1 or group.norms[0].index.shape[1] != 1:
        return False
    scale = getattr(model.get_submodule(group.norms[0].layer), "weight", None)
    return isinstance(scale, nn.Parameter) and scale.requires_grad


def check_method(recipe: Recipe) -> list[Problem]:
    """Settings that the recipe's method would ignore, or cannot follow."""
    early, pruning = recipe.method == "early_bird", recipe.pruning
    problems: list[Problem] = []
    if not early and recipe.early_bird != EarlyBirdSection():
        problems.append((("early_bird",), f"belongs to method: early_bird, not to {recipe.method}"))
    if not early and pruning.after == "continue":
        problems.append((("pruning", "after"), f"continue belongs to method: early_bird, not to {recipe.method}"))
    if not early:
        return problems
    if pruning.after == "finetune":
        problems.append((("pruning", "after"), "early_bird has no last learning rate to finetune at; use continue"))
    if pruning.levels != PruningSection().levels:
        problems.append((("pruning", "levels"), "early_bird draws one ticket for each of early_bird.densities instead"))
    if len(set(recipe.early_bird.densities)) < len(recipe.early_bird.densities):
        problems.append((("early_bird", "densities"), "each density once"))
    if len(set(recipe.early_bird.also_at)) < len(recipe.early_bird.also_at):
        problems.append((("early_bird", "also_at"), "each time once"))
    if recipe.early_bird.distance == "hamming" and (recipe.early_bird.epsilon or 0) >= 1:
        problems.append((("early_bird", "epsilon"), "no two masks are that far apart: a hamming distance is at most 1"))
    if recipe.early_bird.granularity == "channels" and (pruning.output_rate is not None or pruning.rates):
        problems.append((("pruning",), "channels have no rates of their own: leave output_rate and rates out"))
    return problems


def check_search(recipe: Recipe, per_epoch: int) -> list[Problem]:
    """Times of a search that do not fit together, once the length of an epoch is known."""
    section, stop = recipe.early_bird, recipe.train.steps.steps(per_epoch)
    rewind = recipe.pruning.rewind.steps(per_epoch)
    every = _every(recipe, per_epoch)
    problems: list[Problem] = []
    if every == 0:
        return [(("early_bird", "every"), "must be at least 1it")]
    if every * section.window > stop:
        message = f"{section.window} masks {every} steps apart need more than the {stop} steps of training"
        problems.append((("early_bird", "every" if section.every else "window"), message))
    first = min([every * section.window, *(time.steps(per_epoch) for time in section.also_at)])
    if recipe.pruning.after in ("rewind", "lr_rewind") and rewind > first:
        message = f"step {rewind} comes after step {first}, at which a ticket may be drawn; rewind to an earlier step"
        problems.append((("pruning", "rewind"), message))
    if section.patience and not every * section.window <= section.patience.steps(per_epoch) <= stop:
        message = f"must lie between the first full window (step {every * section.window}) and the end (step {stop})"
        problems.append((("early_bird", "patience"), message))
    for index, time in enumerate(section.also_at):
        if not 1 <= time.steps(per_epoch) <= stop:
            problems.append((("early_bird", "also_at", index), f"must lie between step 1 and the end (step {stop})"))
    return problems
