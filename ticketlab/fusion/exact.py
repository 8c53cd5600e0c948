"""Reductions that change nothing: dead and parallel units go, to a fixed point.

Units without live inputs are constant; the constant moves into the biases of what reads them. Where padding with
zeros cuts a constant off at the border, no bias can carry it: one constant unit stays and carries it for all.
Units that nobody reads go. A unit that is a multiple of another one, before and after its activation, joins it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ticketlab.errors import FusionError
from ticketlab.fusion.groups import Group, Slot, after_keeping, keep_units_, recorded
from ticketlab.fusion.units import add_bias_, effective_rows
from ticketlab.models.compact import set_tensor_, tensor


@dataclass(frozen=True)
class Reduced:
    """A network with fewer units that computes the same."""

    model: nn.Module
    groups: list[Group]
    """The groups as they stand in the smaller network."""
    kept: dict[str, Tensor]
    """Group → old units that stayed, for groups that lost some."""
    removed: dict[str, int]
    """Why units went → how many: dead_inputs, dead_outputs, parallel."""


def reduce_exactly(model: nn.Module, groups: Sequence[Group], shape: Sequence[int]) -> Reduced:
    """Remove all units that can go without any change in evaluation; arithmetic in double precision.

    Args:
        shape: Of one example. Sizes of images may differ later.

    Raises FusionError for a network whose output does not depend on its input.
    """
    dtype = next(model.parameters()).dtype
    small = deepcopy(model).double().eval()
    now = list(groups)
    kept = {group.name: torch.arange(group.units) for group in groups}
    why: Counter[str] = Counter()
    probe = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    _check_alive(small, probe)
    steps: dict[str, Callable[[Group], Tensor]] = {
        "dead_outputs": lambda group: _unread(small, group),
        "dead_inputs": lambda group: _fold_constants_(small, group, probe),
        "parallel": lambda group: _join_parallel_(small, group, torch.finfo(dtype).eps),
    }
    changed = True
    while changed:
        changed = False
        for index in range(len(now)):
            for reason, find in steps.items():
                group = now[index]
                gone = find(group)
                if bool(gone.all()):
                    gone[0] = False  # a layer needs one unit, live or not
                if not bool(gone.any()):
                    continue
                stay = (~gone).nonzero().squeeze(1)
                keep_units_(small, group, stay)
                now = [
                    after_keeping(other.only(stay) if i == index else other, group, stay) for i, other in enumerate(now)
                ]
                kept[group.name] = kept[group.name][stay]
                why[reason] += int(gone.sum())
                changed = True
    lost = {g.name: kept[g.name] for g in groups if len(kept[g.name]) < g.units}
    return Reduced(small.to(dtype), now, lost, dict(why))


@torch.no_grad()
def _check_alive(model: nn.Module, probe: Tensor) -> None:
    logits = model(probe)
    if torch.equal(logits[0], logits[1]):
        raise FusionError(
            "the network answers the same whatever its input (layer collapse): there is nothing to fuse; take an "
            "earlier level"
        )


def _unread(model: nn.Module, group: Group) -> Tensor:
    """Units whose columns are zero in every consumer."""
    read = torch.zeros(group.units, dtype=torch.bool)
    for slot in group.consumers:
        weight = tensor(model.get_submodule(slot.layer), "weight")
        read |= (weight[:, slot.index] != 0).transpose(0, 1).flatten(1).any(dim=1)
    return ~read


# --- constants


@torch.no_grad()
def _fold_constants_(model: nn.Module, group: Group, probe: Tensor) -> Tensor:
    """Move the constants of units without live inputs into the consumers; returns the units that can go."""
    dead = torch.ones(group.units, dtype=torch.bool)
    for slot in group.producers:
        dead &= (effective_rows(model, slot)[0] == 0).all(dim=1)
    if not bool(dead.any()):
        return dead
    with recorded(model, [slot.layer for slot in group.consumers]) as passes:
        model(probe)
    values = [_constants(model, slot, passes[slot.layer][0]) for slot in group.consumers]
    for value in values:
        dead &= ~value.isnan().any(dim=1)
    framed = [_pads_with_zeros(model.get_submodule(slot.layer)) for slot in group.consumers]
    stuck = torch.stack([(value != 0).any(dim=1) & frame for value, frame in zip(values, framed, strict=True)]) & dead
    carrier = _carrier(values, stuck)
    if carrier is None:
        dead &= ~stuck.any(dim=0)
    if int(dead.sum()) <= (carrier is not None):
        return torch.zeros_like(dead)
    for slot, value, is_stuck in zip(group.consumers, values, stuck.any(dim=1).tolist(), strict=True):
        _move_(model, slot, value, dead, carrier if is_stuck else None)
    if carrier is not None:
        dead[carrier] = False
    return dead


def _constants(model: nn.Module, slot: Slot, inputs: Tensor) -> Tensor:
    """What a consumer sees of each unit, (units, taps), if that does not depend on the input; NaN where it does."""
    if isinstance(model.get_submodule(slot.layer), nn.Linear):
        seen = inputs.flatten(0, -2)[:, slot.index]  # (examples, units, taps)
    else:
        seen = inputs.flatten(2)[:, slot.index].movedim(3, 1).flatten(0, 1)
    same = (seen == seen[0]).all(dim=0)
    return seen[0].masked_fill(~same, torch.nan)


def _pads_with_zeros(layer: nn.Module) -> bool:
    padding = getattr(layer, "padding", 0)
    pads = (
        padding == "same" if isinstance(padding, str) else any(padding) if isinstance(padding, tuple) else bool(padding)
    )
    return pads and getattr(layer, "padding_mode", "zeros") == "zeros"


def _carrier(values: list[Tensor], stuck: Tensor) -> int | None:
    """The unit that carries constants past zero padding: the one with the largest, wherever any is needed.

    None where none is needed, or where no unit's first tap has a constant at all consumers that need one.
    """
    needed = stuck.any(dim=1).tolist()
    if not any(needed):
        return None
    sizes = torch.stack([v[:, 0].abs() for v, n in zip(values, needed, strict=True) if n]).nan_to_num(0.0)
    best = sizes.min(dim=0).values.masked_fill(~stuck.any(dim=0), 0.0)
    return int(best.argmax()) if float(best.max()) > 0 else None


def _move_(model: nn.Module, slot: Slot, value: Tensor, dead: Tensor, carrier: int | None) -> None:
    """Put what dead units give to one consumer into its bias, or into the carrier's columns."""
    layer = model.get_submodule(slot.layer)
    weight = tensor(layer, "weight").clone()
    ours = weight[:, slot.index[dead]]  # (outputs, dead, taps, kernel …)
    given = ours * value[dead].view(1, *value[dead].shape, *[1] * (ours.dim() - 3))
    weight[:, slot.index[dead]] = 0
    if carrier is None:
        add_bias_(model, slot, given.flatten(1).sum(dim=1))
    else:
        weight[:, slot.index[carrier, 0]] = given.sum(dim=(1, 2)) / value[carrier, 0]
    set_tensor_(layer, "weight", weight)


# --- parallel units


def _join_parallel_(model: nn.Module, group: Group, eps: float) -> Tensor:
    """Add the columns of units that are multiples of an earlier one to its columns; returns the units that can go.

    Args:
        eps: Rounding of the network's own precision; rows may differ by twice as much.
    """
    gone = torch.zeros(group.units, dtype=torch.bool)
    rows = _features(model, group)
    norms = rows.norm(dim=1)
    unit = rows / norms.clamp(min=1e-300)[:, None]
    alike = (unit @ unit.T).abs().triu(diagonal=1) > 1 - 1e-6
    for first, second in alike.nonzero().tolist():
        if gone[first] or gone[second] or norms[first] == 0:
            continue
        scale = float(rows[first] @ rows[second] / rows[first].square().sum())
        if abs(abs(scale) - 1) <= 2 * eps:
            scale = 1.0 if scale > 0 else -1.0
        close = (rows[second] - scale * rows[first]).abs().max() <= 2 * eps * rows[second].abs().max()
        if bool(close) and _allowed(scale, group.scales()):
            for slot in group.consumers:
                layer = model.get_submodule(slot.layer)
                weight = tensor(layer, "weight").clone()
                weight[:, slot.index[first]] += scale * weight[:, slot.index[second]]
                set_tensor_(layer, "weight", weight)
            gone[second] = True
    return gone


def _features(model: nn.Module, group: Group) -> Tensor:
    """All that decides a unit's activation, (units, …)."""
    parts = [
        torch.cat((weight, bias[:, None]), 1)
        for weight, bias in (effective_rows(model, s) for s in (*group.producers, *group.depthwise))
    ]
    own = {slot.norm for slot in (*group.producers, *group.depthwise)}
    for slot in group.norms:
        if slot.layer not in own:
            norm = model.get_submodule(slot.layer)
            parts += [
                tensor(norm, name).double()[slot.index]
                for name in ("weight", "bias", "running_mean", "running_var")
                if getattr(norm, name) is not None
            ]
    return torch.cat(parts, dim=1)


def _allowed(scale: float, scales: str) -> bool:
    return {"positive": scale > 0, "odd": abs(scale) == 1, "any": scale != 0, "one": scale == 1}[scales]


# --- norms


def fold_norms(model: nn.Module, layers: dict[str, str]) -> nn.Module:
    """A copy in which norms that directly follow a layer are part of its weights; for inference only.

    Args:
        layers: Layer → the norm that alone reads it.
    """
    folded = deepcopy(model).eval()
    for name, norm in layers.items():
        layer = folded.get_submodule(name)
        before = tensor(layer, "weight")
        weight, bias = effective_rows(folded, Slot(name, torch.arange(len(before))[:, None], norm))
        set_tensor_(layer, "weight", weight.view_as(before).to(before.dtype))
        set_tensor_(layer, "bias", bias.to(before.dtype))
        parent, _, last = norm.rpartition(".")
        setattr(folded.get_submodule(parent), last, nn.Identity())
    return folded
