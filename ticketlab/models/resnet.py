"""ResNet-20 for 32×32 images: three stages of three residual blocks, 16-32-64 filters."""

from __future__ import annotations

from typing import Literal, cast

from torch import Tensor, nn
from torch.nn import functional

from ticketlab.models.registry import Shape, kaiming_normal_, models, uniform_scales_


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut; (n, in, h, w) → (n, filters, h/stride, w/stride)."""

    def __init__(self, entering: int, filters: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(entering, filters, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(filters)
        self.conv2 = nn.Conv2d(filters, filters, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(filters)
        self.shortcut = nn.Sequential()
        if stride != 1 or entering != filters:
            self.shortcut = nn.Sequential(nn.Conv2d(entering, filters, 1, stride, bias=False), nn.BatchNorm2d(filters))

    def forward(self, images: Tensor) -> Tensor:
        """Residual sum after the second normalisation (He et al. 2016, figure 2)."""
        hidden = functional.relu(self.norm1(self.conv1(images)))
        return functional.relu(self.norm2(self.conv2(hidden)) + self.shortcut(images))


class ResNet(nn.Module):
    """A 3×3 convolution, stages of residual blocks, global mean, one linear layer."""

    def __init__(self, channels: int, classes: int, blocks: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        stages: list[nn.Module] = []
        entering = widths[0]
        for stage, filters in enumerate(widths):
            for block in range(blocks):
                stages.append(ResidualBlock(entering, filters, stride=2 if stage and not block else 1))
                entering = filters
        self.blocks = nn.Sequential(*stages)
        self.output = nn.Linear(entering, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (n, channels, h, w) → logits (n, classes)."""
        hidden = self.blocks(functional.relu(self.norm(self.conv(images))))
        return cast(Tensor, self.output(hidden.mean(dim=(2, 3))))


@models.register("resnet_20")
def resnet_20(inputs: Shape, classes: int, *, batchnorm_init: Literal["ones", "uniform"] = "uniform") -> nn.Module:
    """About 271,000 weights; shortcuts that change shape are 1×1 convolutions, as in lottery ticket work.

    Source: He et al. 2016, section 4.2; batch-norm scales start uniform in 0…1 (Frankle et al. 2020).
    """
    model = ResNet(inputs[0], classes, blocks=3, widths=(16, 32, 64))
    kaiming_normal_(model)
    if batchnorm_init == "uniform":
        uniform_scales_(model)
    return model
