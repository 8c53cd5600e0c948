"""Which weights remain: make, apply, count, compare."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

State = dict[str, Tensor]
"""Name of a parameter or buffer → its values, as PyTorch's state_dict."""
Mask = dict[str, Tensor]
"""Parameter name → bool tensor of the parameter's shape; True keeps."""


def prunable(model: nn.Module) -> list[str]:
    """Names of the weights that may be pruned, in the model's order: of linear and convolution layers.

    Biases and normalisation are never pruned.
    """
    layers = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return [
        f"{name}.weight" if name else "weight" for name, module in model.named_modules() if isinstance(module, layers)
    ]


def full_mask(model: nn.Module) -> Mask:
    """A mask that keeps every prunable weight."""
    parameters = dict(model.named_parameters())
    return {name: torch.ones_like(parameters[name], dtype=torch.bool) for name in prunable(model)}


def masked(weights: Mapping[str, Tensor], mask: Mask) -> dict[str, Tensor]:
    """A copy of the weights in which removed ones are +0.0; shares no memory with the original."""
    return {
        name: torch.where(mask[name], value, torch.zeros_like(value)) if name in mask else value.clone()
        for name, value in weights.items()
    }


def remaining(mask: Mask) -> int:
    """Number of weights that the mask keeps."""
    return sum(int(kept.sum()) for kept in mask.values())


def total(mask: Mask) -> int:
    """Number of weights that the mask covers."""
    return sum(kept.numel() for kept in mask.values())


def density(mask: Mask) -> float:
    """Fraction of prunable weights that remain."""
    return remaining(mask) / total(mask)


def pack(mask: Tensor) -> NDArray[np.uint8]:
    """Bool tensor → bytes of eight weights each, first weight in the highest bit; the last is filled with zeros."""
    return np.packbits(mask.cpu().numpy().reshape(-1))


def unpack(packed: NDArray[np.uint8], shape: Sequence[int]) -> Tensor:
    """The bool tensor of a shape that `pack` packed."""
    return torch.from_numpy(np.unpackbits(packed, count=math.prod(shape)).astype(bool)).reshape(tuple(shape))
