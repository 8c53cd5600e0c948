"""Conv-2, Conv-4 and Conv-6: VGG's blocks cut short (Frankle & Carbin 2019, figure 2)."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from ticketlab.models.registry import Shape, glorot_normal_, models


@models.register("conv_2")
def conv_2(inputs: Shape, classes: int, *, dropout: float = 0.0) -> nn.Module:
    """One block of two 3×3 convolutions with 64 filters, then 256-256 units."""
    return _conv(inputs, classes, (64,), dropout)


@models.register("conv_4")
def conv_4(inputs: Shape, classes: int, *, dropout: float = 0.0) -> nn.Module:
    """Blocks of two 3×3 convolutions with 64 and 128 filters, then 256-256 units."""
    return _conv(inputs, classes, (64, 128), dropout)


@models.register("conv_6")
def conv_6(inputs: Shape, classes: int, *, dropout: float = 0.0) -> nn.Module:
    """Blocks of two 3×3 convolutions with 64, 128 and 256 filters, then 256-256 units."""
    return _conv(inputs, classes, (64, 128, 256), dropout)


def _conv(inputs: Shape, classes: int, blocks: tuple[int, ...], dropout: float) -> nn.Module:
    entering, height, width = inputs
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for block, filters in enumerate(blocks, start=1):
        for index in (2 * block - 1, 2 * block):
            layers[f"conv{index}"] = nn.Conv2d(entering, filters, 3, padding=1)
            layers[f"conv_relu{index}"] = nn.ReLU()
            entering = filters
        layers[f"pool{block}"] = nn.MaxPool2d(2)
        height, width = height // 2, width // 2
    layers["flatten"] = nn.Flatten()
    features = entering * height * width
    for index in (1, 2):
        layers[f"fc{index}"] = nn.Linear(features, 256)
        layers[f"fc_relu{index}"] = nn.ReLU()
        if dropout:
            layers[f"dropout{index}"] = nn.Dropout(dropout)
        features = 256
    layers["output"] = nn.Linear(256, classes)
    model = nn.Sequential(layers)
    glorot_normal_(model)
    return model
