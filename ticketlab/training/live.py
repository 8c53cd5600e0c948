"""The live part of a sparse network: the same training with what cannot change the result left out.

A hidden unit without a live outgoing connection has no effect and gets no gradient; an input that no live
weight reads need not be read. Both are dropped from the linear layers of a sequential network, trained
without them, and put back as they were. Weight decay would move such weights, so it rules this out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Set
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ticketlab.pruning.masks import Mask

ELEMENTWISE = (nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.Identity)
WORTH_PICKING = 0.9
"""Inputs are picked out only where at least a tenth of them is dead: the picking costs time too."""


class Pick(nn.Module):
    """Keeps some features of each example: (n, features) → (n, live features)."""

    live: Tensor

    def __init__(self, live: Tensor) -> None:
        super().__init__()
        self.register_buffer("live", live, persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """Features in the order of the indices."""
        return features.index_select(1, self.live)


@dataclass(frozen=True)
class LivePart:
    """A smaller network that computes the same, and where its weights stand in the whole one."""

    model: nn.Sequential
    mask: Mask
    rows: dict[str, Tensor]
    """Layer → indices of its live units."""
    columns: dict[str, Tensor]
    """Layer → indices of the inputs it still reads."""

    def shrink(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The live part of the whole network's weights, copied."""
        return {name: self._part(name, value).clone() for name, value in weights.items()}

    def expand(self, weights: Mapping[str, Tensor], whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The whole network's weights with the live part replaced; the rest stays as in `whole`."""
        full = {name: value.clone() for name, value in whole.items()}
        for name, value in weights.items():
            layer, _, kind = name.rpartition(".")
            if layer not in self.rows:
                full[name] = value.clone()
            elif kind == "bias":
                full[name][self.rows[layer]] = value
            else:
                full[name][self.rows[layer][:, None], self.columns[layer]] = value
        return full

    def _part(self, name: str, value: Tensor) -> Tensor:
        layer, _, kind = name.rpartition(".")
        if layer not in self.rows:
            return value
        live = value[self.rows[layer]]
        return live if kind == "bias" else live[:, self.columns[layer]]


def live_part(model: nn.Module, mask: Mask) -> LivePart | None:
    """The live part of a sequential network, or None where there is nothing to leave out or nothing is known.

    Follows linear layers with elementwise activations between them, from the output backward.
    """
    if type(model) is not nn.Sequential:
        return None
    layers = {
        name: module
        for name, module in model.named_children()
        if isinstance(module, nn.Linear) and f"{name}.weight" in mask
    }
    readers = _readers(model, layers)
    rows, columns = _live_indices(layers, readers, mask)
    small = _smaller(model, rows, columns, picking=layers.keys() - readers.values())
    part = LivePart(small, {}, rows, columns)
    smaller = {name: part._part(name, kept).contiguous() for name, kept in mask.items()}
    if all(smaller[name].shape == kept.shape for name, kept in mask.items()):
        return None
    return LivePart(small, smaller, rows, columns)


def _readers(model: nn.Sequential, layers: Mapping[str, nn.Linear]) -> dict[str, str]:
    """Linear layer → the linear layer that reads its units, where only elementwise functions lie between."""
    readers: dict[str, str] = {}
    last: str | None = None
    for name, module in model.named_children():
        if name in layers:
            if last is not None:
                readers[last] = name
            last = name
        elif not isinstance(module, ELEMENTWISE):
            last = None
    return readers


def _live_indices(
    layers: Mapping[str, nn.Linear], readers: Mapping[str, str], mask: Mask
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Live units and live inputs of each layer, from the output backward."""
    rows: dict[str, Tensor] = {}
    columns: dict[str, Tensor] = {}
    for name in reversed(layers):
        kept = mask[f"{name}.weight"]
        every = [torch.arange(size, device=kept.device) for size in kept.shape]
        rows[name] = columns[readers[name]] if name in readers else every[0]
        live = kept[rows[name]].any(dim=0).nonzero().squeeze(1)
        live = live if len(live) else every[1][:1]
        free = name in readers.values() or len(live) <= WORTH_PICKING * len(every[1])
        columns[name] = live if free else every[1]
    return rows, columns


def _smaller(
    model: nn.Sequential, rows: Mapping[str, Tensor], columns: Mapping[str, Tensor], picking: Set[str]
) -> nn.Sequential:
    """The network with narrower linear layers; a layer in `picking` first picks the inputs that it reads."""
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    for name, module in model.named_children():
        if name not in rows or not isinstance(module, nn.Linear):
            modules[name] = module
            continue
        if name in picking and len(columns[name]) < module.in_features:
            modules[f"{name}_inputs"] = Pick(columns[name])
        modules[name] = nn.Linear(
            len(columns[name]),
            len(rows[name]),
            bias=module.bias is not None,
            device=module.weight.device,
            dtype=module.weight.dtype,
        )
    return nn.Sequential(modules)
