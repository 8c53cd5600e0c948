"""LeNet-300-100, the lottery ticket's first network, and LeNet-5 in the form that pruning papers use."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from ticketlab.models.registry import Shape, Widths, glorot_normal_, models, widths_of


@models.register("lenet_300_100")
def lenet_300_100(inputs: Shape, classes: int, *, widths: Widths | None = None) -> nn.Module:
    """Two hidden layers of 300 and 100 units: 266,200 weights on MNIST (Frankle & Carbin 2019, figure 2)."""
    channels, height, width = inputs
    first, second = widths_of(widths, {"fc1": 300, "fc2": 100, "output": classes}, classes)[:2]
    model = nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            fc1=nn.Linear(channels * height * width, first),
            relu1=nn.ReLU(),
            fc2=nn.Linear(first, second),
            relu2=nn.ReLU(),
            output=nn.Linear(second, classes),
        )
    )
    glorot_normal_(model)
    return model


@models.register("lenet_5")
def lenet_5(inputs: Shape, classes: int, *, batch_norm: bool = False, widths: Widths | None = None) -> nn.Module:
    """Two 5×5 convolutions of 20 and 50 filters, 500 units: 430,500 weights on MNIST (Han et al. 2015)."""
    channels, height, width = inputs
    first, second, units, _ = widths_of(widths, {"conv1": 20, "conv2": 50, "fc1": 500, "output": classes}, classes)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for index, (entering, filters) in enumerate(((channels, first), (first, second)), start=1):
        layers[f"conv{index}"] = nn.Conv2d(entering, filters, 5, bias=not batch_norm)
        if batch_norm:
            layers[f"norm{index}"] = nn.BatchNorm2d(filters)
        layers[f"relu{index}"] = nn.ReLU()
        layers[f"pool{index}"] = nn.MaxPool2d(2)
        height, width = (height - 4) // 2, (width - 4) // 2
    layers["flatten"] = nn.Flatten()
    layers["fc1"] = nn.Linear(second * height * width, units)
    layers["relu3"] = nn.ReLU()
    layers["output"] = nn.Linear(units, classes)
    model = nn.Sequential(layers)
    glorot_normal_(model)
    return model
