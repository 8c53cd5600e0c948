"""A ticket on another task: the source's weights and mask where they fit, a new classifier where they do not."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ticketlab.errors import PruningError
from ticketlab.pruning.masks import Mask


def carry_over(
    weights: Mapping[str, Tensor], mask: Mask, fresh: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], Mask]:
    """Dense weights and mask for the target network; an output layer of another size is new and keeps all its weights.

    Args:
        weights: The source's dense network at the rewind step.
        mask: The source's ticket, in the network's order; the last layer is the output.
        fresh: The target's network with initial weights of its own.

    Raises PruningError that names every other tensor that does not fit.

    Source: Morcos et al. 2019, "One ticket to win them all", section 3: the output layer is initialised anew for
    another number of classes.
    """
    output = list(mask)[-1]
    layer = output.removesuffix("weight")
    is_swapped = any(_differs(weights, fresh, name) for name in fresh if name.startswith(layer))
    new = {name for name in fresh if name.startswith(layer)} if is_swapped else set()
    names = dict.fromkeys([*weights, *fresh])
    wrong = [_difference(weights, fresh, name) for name in names if name not in new and _differs(weights, fresh, name)]
    if wrong:
        raise PruningError("; ".join(wrong))
    dense = {name: (value if name in new else weights[name]).clone() for name, value in fresh.items()}
    kept = {name: torch.ones_like(dense[name], dtype=torch.bool) if name in new else mask[name] for name in mask}
    return dense, kept


def _differs(weights: Mapping[str, Tensor], fresh: Mapping[str, Tensor], name: str) -> bool:
    return name not in weights or name not in fresh or weights[name].shape != fresh[name].shape


def _difference(weights: Mapping[str, Tensor], fresh: Mapping[str, Tensor], name: str) -> str:
    return f"{name} is {_shape(weights, name)} there and {_shape(fresh, name)} here"


def _shape(state: Mapping[str, Tensor], name: str) -> str:
    if name not in state:
        return "absent"
    return "×".join(map(str, state[name].shape)) or "a number"
