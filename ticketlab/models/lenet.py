"""LeNet-300-100, the lottery ticket's first network, and LeNet-5 in the form that pruning papers use."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from ticketlab.models.registry import Shape, glorot_normal_, models


@models.register("lenet_300_100")
def lenet_300_100(inputs: Shape, classes: int) -> nn.Module:
    """Two hidden layers of 300 and 100 units: 266,200 weights on MNIST (Frankle & Carbin 2019, figure 2)."""
    channels, height, width = inputs
    model = nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            fc1=nn.Linear(channels * height * width, 300),
            relu1=nn.ReLU(),
            fc2=nn.Linear(300, 100),
            relu2=nn.ReLU(),
            output=nn.Linear(100, classes),
        )
    )
    glorot_normal_(model)
    return model


@models.register("lenet_5")
def lenet_5(inputs: Shape, classes: int, *, batch_norm: bool = False) -> nn.Module:
    """Two 5×5 convolutions of 20 and 50 filters, 500 units: 430,500 weights on MNIST (Han et al. 2015)."""
    channels, height, width = inputs
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for index, (entering, filters) in enumerate(((channels, 20), (20, 50)), start=1):
        layers[f"conv{index}"] = nn.Conv2d(entering, filters, 5, bias=not batch_norm)
        if batch_norm:
            layers[f"norm{index}"] = nn.BatchNorm2d(filters)
        layers[f"relu{index}"] = nn.ReLU()
        layers[f"pool{index}"] = nn.MaxPool2d(2)
        height, width = (height - 4) // 2, (width - 4) // 2
    layers["flatten"] = nn.Flatten()
    layers["fc1"] = nn.Linear(50 * height * width, 500)
    layers["relu3"] = nn.ReLU()
    layers["output"] = nn.Linear(500, classes)
    model = nn.Sequential(layers)
    glorot_normal_(model)
    return model
