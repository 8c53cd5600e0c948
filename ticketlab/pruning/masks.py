"""Which weights remain: make, apply, count, compare."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

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


def layer_densities(mask: Mask) -> dict[str, float]:
    """Density of each layer."""
    return {name: density({name: kept}) for name, kept in mask.items()}


def distance(first: Mask, second: Mask) -> float:
    """Normalised Hamming distance: fraction of positions at which two masks of the same layers differ."""
    differing = sum(int((first[name] ^ second[name]).sum()) for name in first)
    return differing / total(first)
