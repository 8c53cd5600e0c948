"""Conv-2, Conv-4 and Conv-6: VGG's blocks cut short (Frankle & Carbin 2019, figure 2)."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from ticketlab.models.registry import Shape, Widths, glorot_normal_, models, widths_of


@models.register("conv_2")
def conv_2(inputs: Shape, classes: int, *, dropout: float = 0.0, widths: Widths | None = None) -> nn.Module:
    """One block of two 3×3 convolutions with 64 filters, then 256-256 units."""
    return _conv(inputs, classes, (64,), dropout, widths)


@models.register("conv_4")
def conv_4(inputs: Shape, classes: int, *, dropout: float = 0.0, widths: Widths | None = None) -> nn.Module:
    """Blocks of two 3×3 convolutions with 64 and 128 filters, then 256-256 units."""
    return _conv(inputs, classes, (64, 128), dropout, widths)


@models.register("conv_6")
def conv_6(inputs: Shape, classes: int, *, dropout: float = 0.0, widths: Widths | None = None) -> nn.Module:
    """Blocks of two 3×3 convolutions with 64, 128 and 256 filters, then 256-256 units."""
    return _conv(inputs, classes, (64, 128, 256), dropout, widths)


def _conv(inputs: Shape, classes: int, blocks: tuple[int, ...], dropout: float, widths: Widths | None) -> nn.Module:
    entering, height, width = inputs
    usual = {f"conv{2 * block + index}": filters for block, filters in enumerate(blocks) for index in (1, 2)}
    chosen = iter(widths_of(widths, {**usual, "fc1": 256, "fc2": 256, "output": classes}, classes))
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for block in range(1, len(blocks) + 1):
        for index in (2 * block - 1, 2 * block):
            filters = next(chosen)
            layers[f"conv{index}"] = nn.Conv2d(entering, filters, 3, padding=1)
            layers[f"conv_relu{index}"] = nn.ReLU()
            entering = filters
        layers[f"pool{block}"] = nn.MaxPool2d(2)
        height, width = height // 2, width // 2
    layers["flatten"] = nn.Flatten()
    features = entering * height * width
    for index in (1, 2):
        units = next(chosen)
        layers[f"fc{index}"] = nn.Linear(features, units)
        layers[f"fc_relu{index}"] = nn.ReLU()
        if dropout:
            layers[f"dropout{index}"] = nn.Dropout(dropout)
        features = units
    layers["output"] = nn.Linear(features, classes)
    model = nn.Sequential(layers)
    glorot_normal_(model)
    return model
