"""Removed weights that keep a value instead of zero: added to what their layers compute, never trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional


def keep_frozen_(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Let layers compute with their own weights plus these, which no optimizer sees.

    A layer is linear in its weights: it computes with w + v what it computes with w, plus what v alone gives without
    a bias. So weights stay as they are stored, removed ones zero.

    Args:
        values: Parameter name → values of the weight's shape, of linear and convolution layers.
    """
    for name, value in values.items():
        layer = model.get_submodule(name.removesuffix(".weight"))
        layer.register_forward_hook(_Added(value, layer))


class _Added:
    """A hook that adds what some weights give."""

    def __init__(self, value: Tensor, layer: nn.Module) -> None:
        self.value, self.is_convolution = value, isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)

    def __call__(self, layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if self.is_convolution:
            added: Tensor = layer._conv_forward(inputs[0], self.value, None)
            return output + added
        return output + functional.linear(inputs[0], self.value)
