"""A change of a fused network's weights, carried back to the network that it was fused from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ticketlab.fusion.groups import Group, Slot


def widen(
    change: Mapping[str, Tensor],
    like: Mapping[str, Tensor],
    groups: Sequence[Group],
    kept: Mapping[str, Tensor],
    mixing: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The smallest change of the wide network that fuses to this change of the narrow one, and where it can be one.

    With W' = W[kept rows] · B for the weights of a layer, it is ΔW = ΔW' · B⁺ in the kept rows, B⁺ the pseudo-inverse,
    zero elsewhere. Fusions that average rows are not meant.

    Args:
        change: Of the narrow network's state.
        like: The wide network's state; gives shapes.
        groups: Of the wide network.
        kept: Group → old units in whose places the new ones stand; groups left out kept all.
        mixing: Group → B, (old units, new units).

    Returns the change, and for each tensor a bool tensor of where the narrow network reaches; whole numbers are
    left out.
    """
    found: dict[str, Tensor] = {}
    reached: dict[str, Tensor] = {}
    for name, wide in like.items():
        if not wide.is_floating_point():
            continue
        layer, _, part = name.rpartition(".")
        rows, back = _rows(wide, layer, groups, kept), None
        value, touches = change[name].double(), torch.ones_like(change[name], dtype=torch.bool)
        if part == "weight" and wide.dim() > 1:
            back = _columns(wide.shape[1], layer, groups, kept, mixing)
            value = torch.einsum("rc...,cw->rw...", value, back)
            touches = (back != 0).any(0).view(1, -1, *[1] * (wide.dim() - 2)).expand(len(value), *wide.shape[1:])
        found[name] = torch.zeros_like(wide)
        found[name][rows] = value.to(wide.dtype)
        reached[name] = torch.zeros_like(wide, dtype=torch.bool)
        reached[name][rows] = touches
    return found, reached


def _rows(wide: Tensor, layer: str, groups: Sequence[Group], kept: Mapping[str, Tensor]) -> Tensor:
    """Places in the wide tensor of the narrow one's rows, in order."""
    stays = torch.ones(wide.shape[0] if wide.dim() else 0, dtype=torch.bool)
    for group in groups:
        for slot in (*group.producers, *group.norms, *group.depthwise):
            if slot.layer == layer and group.name in kept:
                stays[_gone(slot, group, kept[group.name])] = False
    return stays.nonzero().flatten()


def _columns(
    width: int, layer: str, groups: Sequence[Group], kept: Mapping[str, Tensor], mixing: Mapping[str, Tensor]
) -> Tensor:
    """(narrow columns, wide columns): how a change of the narrow network's columns is spread over the wide one's."""
    full = torch.eye(width, dtype=torch.double)
    stays = torch.ones(width, dtype=torch.bool)
    for group in groups:
        if group.name not in kept:
            continue
        back = torch.linalg.pinv(mixing[group.name].double())
        for slot in group.consumers:
            if slot.layer != layer:
                continue
            stays[_gone(slot, group, kept[group.name])] = False
            for tap in slot.index.T:
                full[tap[kept[group.name]][:, None], tap[None, :]] = back
    return full[stays]


def _gone(slot: Slot, group: Group, kept: Tensor) -> Tensor:
    return slot.index[~torch.isin(torch.arange(group.units), kept)].reshape(-1)
