"""VGG-16 with batch normalisation for 32×32 images: 13 convolutions and one linear layer."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from ticketlab.models.registry import Scales, Shape, Widths, kaiming_normal_, models, scales_, widths_of

BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


@models.register("vgg_16")
def vgg_16(
    inputs: Shape,
    classes: int,
    *,
    batchnorm_init: Scales = "uniform",
    widths: Widths | None = None,
) -> nn.Module:
    """14.7 million weights; batch-norm scales start uniform in 0…1 as in the lottery ticket experiments.

    Source: Simonyan & Zisserman 2015, configuration D; linear part of Frankle et al. 2020.
    """
    entering = inputs[0]
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    usual = {f"conv{index}": filters for index, filters in enumerate(sum(BLOCKS, ()), start=1)}
    chosen = iter(widths_of(widths, {**usual, "output": classes}, classes))
    index = 0
    for block, filters_of_block in enumerate(BLOCKS, start=1):
        if block > 1:
            layers[f"pool{block - 1}"] = nn.MaxPool2d(2)
        for filters in (next(chosen) for _ in filters_of_block):
            index += 1
            layers[f"conv{index}"] = nn.Conv2d(entering, filters, 3, padding=1, bias=False)
            layers[f"norm{index}"] = nn.BatchNorm2d(filters)
            layers[f"relu{index}"] = nn.ReLU()
            entering = filters
    layers["mean"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["output"] = nn.Linear(entering, classes)
    model = nn.Sequential(layers)
    kaiming_normal_(model)
    scales_(model, batchnorm_init)
    return model
