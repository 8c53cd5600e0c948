"""ResNet-20 for 32×32 images: three stages of three residual blocks, 16-32-64 filters."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional

from ticketlab.models.registry import Scales, Shape, Widths, kaiming_normal_, models, scales_, widths_of


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut; (n, in, h, w) → (n, filters, h/stride, w/stride)."""

    def __init__(self, entering: int, inner: int, filters: int, stride: int, has_projection: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(entering, inner, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, filters, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(filters)
        self.shortcut = nn.Sequential()
        if has_projection:
            self.shortcut = nn.Sequential(nn.Conv2d(entering, filters, 1, stride, bias=False), nn.BatchNorm2d(filters))

    def forward(self, images: Tensor) -> Tensor:
        """Residual sum after the second normalisation (He et al. 2016, figure 2)."""
        hidden = functional.relu(self.norm1(self.conv1(images)))
        return functional.relu(self.norm2(self.conv2(hidden)) + self.shortcut(images))


class ResNet(nn.Module):
    """A 3×3 convolution, stages of residual blocks, global mean, one linear layer."""

    def __init__(
        self, channels: int, classes: int, blocks: int, stages: tuple[int, ...], widths: Widths | None = None
    ) -> None:
        super().__init__()
        chosen = iter(widths_of(widths, usual_widths(blocks, stages, classes), classes))
        entering = next(chosen)
        self.conv = nn.Conv2d(channels, entering, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(entering)
        made: list[nn.Module] = []
        for index in range(blocks * len(stages)):
            projects = index > 0 and index % blocks == 0
            inner, filters = next(chosen), next(chosen)
            if (projects and next(chosen) != filters) or (not projects and filters != entering):
                raise ValueError(f"widths: what blocks.{index} adds up must be equally wide")
            made.append(ResidualBlock(entering, inner, filters, 2 if projects else 1, projects))
            entering = filters
        self.blocks = nn.Sequential(*made)
        self.output = nn.Linear(entering, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (n, channels, h, w) → logits (n, classes)."""
        hidden = self.blocks(functional.relu(self.norm(self.conv(images))))
        return cast(Tensor, self.output(hidden.mean(dim=(2, 3))))


def usual_widths(blocks: int, stages: tuple[int, ...], classes: int) -> Widths:
    """Filters of each layer; layers that are added up must be equally wide."""
    widths = {"conv": stages[0]}
    for index in range(blocks * len(stages)):
        filters = stages[index // blocks]
        widths |= {f"blocks.{index}.conv1": filters, f"blocks.{index}.conv2": filters}
        if index and index % blocks == 0:
            widths[f"blocks.{index}.shortcut.0"] = filters
    return {**widths, "output": classes}


@models.register("resnet_20")
def resnet_20(
    inputs: Shape,
    classes: int,
    *,
    batchnorm_init: Scales = "uniform",
    widths: Widths | None = None,
) -> nn.Module:
    """About 271,000 weights; shortcuts that change shape are 1×1 convolutions, as in lottery ticket work.

    Source: He et al. 2016, section 4.2; batch-norm scales start uniform in 0…1 (Frankle et al. 2020).
    """
    model = ResNet(inputs[0], classes, blocks=3, stages=(16, 32, 64), widths=widths)
    kaiming_normal_(model)
    scales_(model, batchnorm_init)
    return model
