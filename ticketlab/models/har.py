"""Small networks for measurements: a convolution over time for human activity, plain layers for tables."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from ticketlab.models.registry import Shape, Widths, glorot_normal_, kaiming_normal_, models, widths_of


@models.register("har_cnn")
def har_cnn(inputs: Shape, classes: int, *, widths: Widths | None = None) -> nn.Module:
    """Three convolutions over time of 32, 64 and 64 filters, then their means: 41,024 weights on six channels.

    A series has shape (channels, 1, time); kernels are 9, 9 and 5 samples long, and time is halved twice.
    """
    usual = {"conv1": 32, "conv2": 64, "conv3": 64, "output": classes}
    *filters, _ = widths_of(widths, usual, classes)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    entering = inputs[0]
    for index, (leaving, length) in enumerate(zip(filters, (9, 9, 5), strict=True), start=1):
        layers[f"conv{index}"] = nn.Conv2d(entering, leaving, (1, length), padding=(0, length // 2))
        layers[f"relu{index}"] = nn.ReLU()
        layers[f"pool{index}"] = nn.MaxPool2d((1, 2)) if index < len(filters) else nn.AdaptiveAvgPool2d(1)
        entering = leaving
    layers["flatten"] = nn.Flatten()
    layers["output"] = nn.Linear(entering, classes)
    model = nn.Sequential(layers)
    kaiming_normal_(model)
    return model


@models.register("mlp")
def mlp(inputs: Shape, classes: int, *, hidden: Sequence[int] = (32, 16), widths: Widths | None = None) -> nn.Module:
    """Linear layers with ReLU between them, hidden ones of these widths, named fc1, fc2, …"""
    usual = {f"fc{index}": width for index, width in enumerate(hidden, start=1)}
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    channels, height, width = inputs
    entering = channels * height * width
    *chosen, _ = widths_of(widths, {**usual, "output": classes}, classes)
    for index, leaving in enumerate(chosen, start=1):
        layers[f"fc{index}"] = nn.Linear(entering, leaving)
        layers[f"relu{index}"] = nn.ReLU()
        entering = leaving
    layers["output"] = nn.Linear(entering, classes)
    model = nn.Sequential(layers)
    glorot_normal_(model)
    return model
